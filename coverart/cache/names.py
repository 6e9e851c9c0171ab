"""Where names point: asked of the archive, kept in the index, linked on the disk for nginx."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
from twisted.logger import Logger

from coverart.archive.paths import spell
from coverart.archive.source import Source
from coverart.cache.fetch import Fetch, Missing
from coverart.cache.single_flight import Flight
from coverart.cache.writer import InThread, Link, Writer
from coverart.errors import CoverError, NotInArchive
from coverart.freshness import Lifetimes
from coverart.index.base import Index
from coverart.model import ORIGINAL, Alias, AliasKey, FileEntry, Found, ImageRequest
from coverart.store.image_store import ImageStore


@attrs.frozen(kw_only=True)
class Pointing:
    """Where the name of a request points."""

    request: ImageRequest
    alias: Alias | None
    """The new target; None where the name is the image's own."""
    known: Alias | None
    """What the index held before."""
    elsewhere: Alias | None = attrs.field(init=False)
    """The alias, where the name is not the image's own."""

    @elsewhere.default
    def _not_own(self) -> Alias | None:
        if self.alias is None or self.alias.target.ref == self.request.alias.own_ref:
            return None
        return self.alias


@attrs.define(eq=False, kw_only=True)
class Names:
    """Finds out where names point, once for all sizes, and makes them point there."""

    log = Logger()

    _index: Index
    _store: ImageStore
    _writer: Writer
    _upstream: Source
    _in_thread: InThread
    _now: Callable[[], float]
    _targets: Flight[AliasKey, Alias | Missing] = attrs.field(factory=Flight, init=False)
    on_the_way: dict[AliasKey, Alias] = attrs.field(factory=dict, init=False)
    """Where names point whose images are still being fetched: for their other sizes."""

    @property
    def resolving(self) -> int:
        """How many names hop 1 is being asked about."""
        return len(self._targets)

    def joins(self, key: AliasKey) -> bool:
        """Say whether resolve() would join others."""
        return self._targets.running(key)

    async def resolve(self, key: AliasKey, fetch: Fetch) -> Alias | Missing:
        """Ask the archive where a name points."""

        async def ask(_: object) -> Alias | Missing:
            asked_at = self._now()
            try:
                target = await fetch.within_time(self._upstream.resolve(key, fetch))
            except NotInArchive:
                return Missing(subject=key, asked_at=asked_at)
            return Alias(target=target, checked_at=asked_at)

        if (said := fetch.resolved.get(key)) is None:
            said = fetch.resolved[key] = await self._targets.run(key, ask)
        return said

    async def resolve_or_known(
        self, request: ImageRequest, found: Found, fetch: Fetch
    ) -> Alias | Missing:
        """The same; what the index knows if the archive can't be asked. :raises CoverError: neither."""
        try:
            return await self.resolve(request.alias, fetch)
        except CoverError as error:
            # Without limit: an old target is better than no answer.
            known = found.alias
            if known is None or not self._upstream.can_fetch(known.target, request.size):
                raise
            self.log.warn(
                "{key}: hop 1 failed, using its last known image: {detail}",
                key=spell(request),
                detail=error.detail,
            )
            return known

    async def learn(self, pointing: Pointing) -> None:
        """Where a name points is worth knowing for other sizes even if this one can't be had."""
        # An alias that leads to images held is not moved before the new image is held too.
        if pointing.known is None and pointing.elsewhere is not None:
            await self._index.put_alias(pointing.request.alias, pointing.elsewhere)

    async def repoint_unfetched(self, key: AliasKey, alias: Alias) -> None:
        """Make a name point where the archive says now, whether its image is held or not."""
        if await self._index.put_alias(key, alias) and self._store.links.exist(key):
            link = Link(ImageRequest(alias=key, size=ORIGINAL), alias, renewed=True)
            await self._in_thread(self._writer.link, link, None)

    async def point(self, pointing: Pointing, entry: FileEntry) -> Alias | None:
        """
        Make a name point at an image that is held: in the index, and on the disk for nginx.

        What the archive was asked for later stays. :returns: the alias; None where the name is the
        image's own.
        """
        request, alias = pointing.request, pointing.alias
        if alias is None:
            return None
        known = (await self._index.find_image(request)).alias
        if pointing.elsewhere is None:
            if known is not None and known.checked_at <= alias.checked_at:
                await self.unlink(request.alias)
            return None
        if alias != known and not await self._index.put_alias(request.alias, alias):
            return alias
        link = Link(
            request,
            alias,
            renewed=known is not None and known.checked_at != alias.checked_at,
            outdated=known is not None or not self._index.complete,
        )
        if link.renewed:
            await self._in_thread(self._writer.link, link, entry.media)
        else:
            # One symlink: not worth the way to a thread and back, a tenth of a whole miss.
            self._writer.link(link, entry.media)
        return alias

    async def unlink(self, key: AliasKey) -> None:
        """Make a name point nowhere, whether the index knew of it or only the disk."""
        self.on_the_way.pop(key, None)
        if await self._index.forget_alias(key) or self._store.links.exist(key):
            await self.remove_links(key, math.inf)

    async def remove_links(self, key: AliasKey, until: float) -> None:
        """Take a name's links out of nginx's sight. :param until: those stamped later stay."""
        try:
            await self._in_thread(self._store.links.remove, key, until)
        except OSError as error:
            # What the archive says counts all the same; nginx goes by the links until a sweep can.
            self.log.warn(
                "can't remove the links of {name}, nginx follows them until a sweep can: {reason}",
                name=spell(ImageRequest(alias=key, size=ORIGINAL)),
                reason=error.strerror,
            )

    async def missing(
        self, missing: Missing, known: Alias | None, fetch: Fetch, lifetimes: Lifetimes
    ) -> None:
        """
        The archive said 404: remember it, and what of a request it was about.

        :param known: what the index knew of the name.
        """
        subject, asked_at = missing.subject, missing.asked_at
        # Or it is remembered already, with the time of its own question.
        if asked_at is not None:
            linked = known is not None or not self._index.complete
            if isinstance(subject, AliasKey) and linked and self._store.links.exist(subject):
                # What was asked for before is nginx's no more.
                await self.remove_links(subject, asked_at)
            absence = lifetimes.absence(subject, asked_at)
            await self._index.put_absence(subject, absence, fetch.end_claims())
