"""Fetching images: joined, bounded in time, checked before clients get them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from coverart.archive.source import Source
from coverart.cache.download import Download, Wanted
from coverart.cache.fetch import Fetch, Fetched, Missing
from coverart.cache.held_files import HeldFiles
from coverart.cache.names import Names, Pointing
from coverart.cache.single_flight import Announce, Flight
from coverart.cache.size_limits import Room
from coverart.cache.writer import Link, Writer
from coverart.errors import BadUpstream, CoverError, NotInArchive, NotWanted, StoreFailed
from coverart.index.base import Index
from coverart.model import Alias, FileEntry, Found, ImageKey, ImageRequest, Target
from coverart.store.image_store import ImageStore


@attrs.frozen(kw_only=True)
class _Landed:
    """An image that is held; `linked` is the request whose name was made to point at it with it."""

    entry: FileEntry
    linked: ImageRequest | None = None


@attrs.define(eq=False, kw_only=True)
class Images:
    """
    Fetches images. Those who want one image at the same time meet, by whatever name.

    The one who starts an image's flight claims it among all processes, with a last look at what
    is held.
    """

    _index: Index
    _store: ImageStore
    _held: HeldFiles
    _names: Names
    _room: Room
    _writer: Writer
    _upstream: Source
    _now: Callable[[], float]
    _flights: Flight[ImageKey, _Landed | Download | Missing | Alias] = attrs.field(
        factory=Flight, init=False
    )

    def over(self, key: ImageKey) -> Deferred[Any]:
        """Fires when the flight of an image has ended, if one is under way."""
        return self._flights.over(key)

    def by_name(self, request: ImageRequest, found: Found, *, fresh: bool) -> bool:
        """Say whether hop 1 has to be asked before it is known which image is wanted."""
        if (
            fresh
            and found.target is not None
            and self._upstream.can_fetch(found.target, request.size)
        ):
            return False
        return found.alias is not None or request.alias.own_ref is None

    async def get(
        self,
        request: ImageRequest,
        found: Found,
        fetch: Fetch,
        announce: Announce[Download],
        *,
        by_name: bool,
        wanted: Wanted | None = None,
    ) -> Fetched | Download | Missing:
        """
        Fetch an image and make the name it was asked by point at it.

        :param found: what the index knows.
        :param by_name: as by_name() says: the known target serves only if hop 1 can't be asked.
        :param announce: called as soon as clients can be sent what has come of it.
        :param wanted: as a Download takes it.
        :returns: the download if it could not be stored.
        :raises NotWanted: it is not wanted.
        :raises CoverError: it could not be had.
        """
        pointing = Pointing(request=request, alias=found.alias, known=found.alias)
        target, asked = found.target, False
        if by_name:
            learnt = self._names.on_the_way.get(request.alias)
            alias = learnt or await self._names.resolve_or_known(request, found, fetch)
            if isinstance(alias, Missing):
                return alias
            pointing, target = attrs.evolve(pointing, alias=alias), alias.target
            asked = alias not in (learnt, found.alias)
        elif target is None or not self._upstream.can_fetch(target, request.size):
            target = None
        if pointing.known is None and pointing.elsewhere is not None:
            self._names.on_the_way[request.alias] = pointing.elsewhere
        try:
            while True:
                got = await self._image(pointing, target, fetch, announce, wanted=wanted)
                if isinstance(got, Missing) and target is not None and not asked:
                    # What we knew may have been overtaken: a merge moves an item to another MBID.
                    moved = await self._names.resolve(request.alias, fetch)
                    if isinstance(moved, Missing):
                        return moved
                    if moved.target.ref == target.ref and (
                        request.size or moved.target.extension == target.extension
                    ):
                        # The same file, which this fetch has claimed.
                        return got
                elif isinstance(got, Alias):
                    moved = got
                else:
                    break
                pointing, target, asked = attrs.evolve(pointing, alias=moved), moved.target, True
        except CoverError:
            await self._names.learn(pointing)
            raise
        finally:
            self._names.on_the_way.pop(request.alias, None)
        if isinstance(got, Fetched):
            return got
        await self._names.learn(pointing)
        return got

    async def repoint(self, request: ImageRequest, alias: Alias, fetch: Fetch) -> Missing | None:
        """
        Make a name point where the archive says now; fetch the image only if it is not held.

        :raises CoverError: it could not be had; the name stays as it was.
        """
        # The name has moved or was confirmed: what is known of it is looked up as it is pointed.
        pointing = Pointing(
            request=request, alias=alias, known=Alias(target=alias.target, checked_at=0)
        )
        got = await self._image(pointing, alias.target, fetch, lambda _: None)
        if isinstance(got, Missing):
            return got
        if isinstance(got, Download):
            raise StoreFailed(f"its new image can't be stored ({got.unstored})")
        if isinstance(got, Alias):
            raise BadUpstream("its image moves to another MBID")
        return None

    async def fetch_again(self, request: ImageRequest, target: Target | None, fetch: Fetch) -> bool:
        """
        Fetch an image that is held by its own name; what is held stays until the new one is there.

        :returns: whether the archive still has it under this name.
        :raises CoverError: it could not be had, or can't be stored.
        """
        if target is not None and not self._upstream.can_fetch(target, request.size):
            target = None
        pointing = Pointing(request=request, alias=None, known=None)
        got = await self._image(pointing, target, fetch, lambda _: None, again=True)
        if isinstance(got, Download):
            raise StoreFailed(f"the new one can't be stored ({got.unstored})")
        return not isinstance(got, Missing | Alias)

    async def _image(
        self,
        pointing: Pointing,
        target: Target | None,
        fetch: Fetch,
        announce: Announce[Download],
        *,
        again: bool = False,
        wanted: Wanted | None = None,
    ) -> Fetched | Download | Missing | Alias:
        """
        Join the flight of an image, or start it.

        :param again: fetch it also where it is held.
        :param target: None where hop 1 was not asked yet and the name is the image's own.
        :returns: an alias where hop 1 then led elsewhere; a download that was not stored.
        """
        key = pointing.request.image(target)
        if key is None:
            raise ValueError("a name that is no image's own needs a target")

        def fly(say: Announce[_Landed | Download | Missing | Alias]) -> Any:
            return self._fly(key, pointing, target, fetch, say, again=again, wanted=wanted)

        try:
            got = await self._flights.run(key, fly)
        except NotWanted:
            if wanted is not None:
                raise
            # The one who began the flight did not want it: somebody else does.
            return await self._image(pointing, target, fetch, announce, again=again)
        if wanted is not None and not _is_wanted(got, wanted):
            raise NotWanted(f"{key} as another fetched it")
        landing = self._flights.landing(key)
        if isinstance(got, Download) and landing is not None:
            # Its beginning may be freed already, for slow readers.
            late = got.over
            if not late:
                announce(got)
            try:
                got = await landing
            except StoreFailed:
                if not late:
                    raise
            if late and isinstance(got, Download):
                return await self._image(pointing, target, fetch, announce, wanted=wanted)
        if not isinstance(got, _Landed):
            return got
        alias = pointing.elsewhere
        if got.linked != pointing.request:
            alias = await self._names.point(pointing, got.entry)
        return Fetched(key=key, entry=got.entry, alias=alias)

    async def _fly(
        self,
        key: ImageKey,
        pointing: Pointing,
        target: Target | None,
        fetch: Fetch,
        announce: Announce[_Landed | Download | Missing | Alias],
        *,
        again: bool,
        wanted: Wanted | None,
    ) -> _Landed | Download | Missing | Alias:
        """Once for all in this process who want an image."""
        known = await self._held.claim(key, fetch, again=again)
        if known is not None:
            return known if isinstance(known, Missing) else _Landed(entry=known)
        if target is None:
            alias = await self._names.resolve(pointing.request.alias, fetch)
            if isinstance(alias, Missing) or alias.target.ref != key.ref:
                return alias
            target = alias.target
        download = Download(
            key,
            store=self._store,
            room=self._room,
            writer=self._writer,
            stored_at=self._now(),
            announce=announce,
            wanted=wanted,
        )
        try:
            asked_at = self._now()
            try:
                await fetch.within_time(self._upstream.image(target, key.size, download, fetch))
            except NotInArchive:
                return Missing(subject=key, asked_at=asked_at)
            except NotWanted:
                # Nothing of it was written, and the claim lasts until the whole fetch ends.
                await self._index.settle([key])
                raise
            link = self._link(pointing, fetch)
            entry = await download.finish(link)
            if entry is not None:
                return await self._tell(key, entry, pointing, link, fetch)
            # It is there all the same.
            await self._index.forget_absence(key)
            return download
        except BaseException as error:
            unexpected = CoverError("a fetch ended unexpectedly")
            download.end(error if isinstance(error, CoverError) else unexpected)
            raise
        finally:
            download.end()

    def _link(self, pointing: Pointing, fetch: Fetch) -> Link | None:
        """The symlink to be made with the file; None where there is none, or more to be seen to."""
        alias, known = pointing.elsewhere, pointing.known
        if alias is None or (known is not None and known != alias):
            return None
        outdated = known is None and not fetch.complete
        return Link(pointing.request, alias, outdated=outdated)

    async def _tell(
        self, key: ImageKey, entry: FileEntry, pointing: Pointing, link: Link | None, fetch: Fetch
    ) -> _Landed:
        """Tell the index of a file, and of the name that was linked to it."""
        name = pointing.request.alias
        linked = None if link is None else (name, link.alias)
        stored = await self._index.store(key, entry, alias=linked, claims=fetch.end_claims())
        if link is None:
            return _Landed(entry=entry)
        if not stored.alias:
            # The archive was asked later and said otherwise: what was linked too is not right.
            await self._names.remove_links(name, link.alias.checked_at)
        return _Landed(entry=entry, linked=pointing.request)


def _is_wanted(got: _Landed | Download | Missing | Alias, wanted: Wanted) -> bool:
    if isinstance(got, _Landed):
        return wanted(got.entry.size_bytes, got.entry.media)
    return not isinstance(got, Download) or wanted(got.size_bytes, got.media)
