"""
Bringing into the cache what is not there: joined, bounded in time, stored before it is told.

Three flights join callers: of a request (whatever is asked for twice at once is one fetch), of a
name's target (front-250 and front-500 ask hop 1 once), of an image (a front, its id and its
group's front download one file once). Each looks again at what is held before it asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from coverart.archive import listings
from coverart.archive.archive_client import Limits
from coverart.archive.paths import spell
from coverart.archive.source import FetchDeadline, Source
from coverart.cache.download import Incoming, InThread
from coverart.cache.single_flight import Announce, Flight
from coverart.cache.size_limits import Room
from coverart.coordination.leases import Fetches
from coverart.errors import (
    CoverError,
    NotInArchive,
    Overloaded,
    StoreFailed,
    UpstreamTimeout,
)
from coverart.index.base import Index, IndexAway
from coverart.index.codec import pack_file_key, pack_seen
from coverart.model import (
    ORIGINAL,
    Alias,
    AliasKey,
    FileEntry,
    FileKey,
    Found,
    ImageKey,
    ImageRequest,
    ListingKey,
    Target,
)
from coverart.store import layout
from coverart.store.image_store import ImageStore, OnDisk

PLACES_A_REQUEST = 2

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Fetched:
    """A file that is now held, and the alias that led to it."""

    key: ImageKey | ListingKey
    entry: FileEntry
    alias: Alias | None = None
    hops: int = 0

    def as_found(self) -> Found:
        """The same as an index says it."""
        target = None if self.alias is None else self.alias.target
        return Found(key=self.key, entry=self.entry, alias=self.alias, target=target)


@attrs.frozen(kw_only=True)
class Arriving:
    """An image that is read from where it arrives: a large one, or one that can't be stored."""

    incoming: Incoming
    trip: FetchDeadline


@attrs.frozen(kw_only=True)
class Unstored:
    """A listing that could not be stored."""

    body: bytes
    stored_at: float
    why: str
    """A token (RFC 9110 section 5.6.2)."""
    hops: int = 0


class Fetcher:
    """Fills the cache from the archive, or from what already lies on the disk."""

    log = Logger()

    def __init__(
        self,
        *,
        index: Index,
        store: ImageStore,
        room: Room,
        upstream: Source,
        in_thread: InThread,
        fetches: Fetches,
        clock: IReactorTime,
        now: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._index = index
        self._store = store
        self._room = room
        self._upstream = upstream
        self._in_thread = in_thread
        self._fetches = fetches
        self._clock = clock
        self._now = now
        self._limits = limits
        # Twice as many as requests: the archive need not wait for our disk.
        self._places = DeferredSemaphore(PLACES_A_REQUEST * limits.concurrency)
        self._images: Flight[ImageKey, FileEntry | Incoming] = Flight()
        self._targets: Flight[AliasKey, Alias] = Flight()

    @property
    def resolving(self) -> int:
        """How many names hop 1 is being asked about."""
        return len(self._targets)

    async def place(self) -> DeferredSemaphore:
        """
        Wait for a place to fetch in; give it back by its release().

        A fetch keeps its place through all hops: were each request to wait in line by itself, a
        crowd of fetches would all get half way in the time that all of them have.

        :raises Overloaded: there was none in the time that a whole fetch may take.
        """
        waiting: Deferred[DeferredSemaphore] = self._places.acquire()
        if not waiting.called:
            waiting.addTimeout(self._limits.total_s, self._clock, onTimeoutCancel=_no_place)
        return await waiting

    def named(self, thing: ImageRequest | ListingKey) -> bool:
        """Say whether find() could find anything."""
        return self._store.has_name(thing)

    async def find(self, thing: ImageRequest | ListingKey) -> Fetched | None:
        """What lies on the disk and the index does not know; it learns it."""
        # A look at names only spares most misses the way to a thread and back.
        if not self._store.has_name(thing):
            return None
        found: OnDisk | None = await self._in_thread(self._store.find, thing)
        if found is None:
            return None
        alias = found.alias
        if alias is not None and isinstance(thing, ImageRequest):
            taken = await self._index.put_alias(thing.alias, alias)
            known = None if taken else (await self._index.find_image(thing)).alias
            if known is not None and known.target.ref != alias.target.ref:
                # An index that was flushed learnt since, by another size, that the name moved.
                await self._in_thread(self._store.links.remove_outdated, thing.alias, known)
                return None
            if known is None and not taken:
                # The archive said since that there is no such name.
                return None
            alias = known or alias
        # Nothing was stored: without Redis every hit comes by here.
        with suppress(IndexAway):
            await self._index.learn_packed([pack_seen((found.key, found.entry))])
        return Fetched(key=found.key, entry=found.entry, alias=alias)

    async def image(
        self,
        request: ImageRequest,
        found: Found,
        trip: FetchDeadline,
        announce: Announce[Arriving],
        *,
        fresh: bool,
    ) -> Fetched | Arriving:
        """
        Fetch an image and make the name it was asked by point at it.

        :param found: what the index knows.
        :param fresh: whether the target in it can be taken as still right; else it serves only
            if hop 1 can't be asked.
        :param announce: called if the image is large, once it can be read while it arrives.
        :returns: one that is arriving if it could not be stored. The caller must release() it
            when those who wait have it.
        :raises NotInArchive: no such name; FileNotInArchive: only this size is missing.
        :raises CoverError: it could not be had.
        """
        target = found.target if fresh else None
        alias = found.alias
        if target is None or not self._upstream.can_fetch(target, request.size):
            target, alias = await self._ask_hop_1(request, found, trip)
        try:
            entry = await self._image(target, request, trip, announce)
        except NotInArchive:
            if target != found.target:
                raise
            # What we knew may have been overtaken: a merge moves an item to another MBID.
            alias = await self.resolve(request.alias, trip)
            if alias.target == target:
                raise
            target = alias.target
            entry = await self._image(target, request, trip, announce)
        if isinstance(entry, Incoming):
            return Arriving(incoming=entry, trip=trip)
        alias = await self.point(request, alias, entry)
        return Fetched(key=target.ref.at(request.size), entry=entry, alias=alias, hops=trip.hops)

    async def _ask_hop_1(
        self, request: ImageRequest, found: Found, trip: FetchDeadline
    ) -> tuple[Target, Alias | None]:
        try:
            alias = await self.resolve(request.alias, trip)
        except NotInArchive:
            raise
        except CoverError as error:
            # Without limit: an old target is better than no answer.
            if found.target is None or not self._upstream.can_fetch(found.target, request.size):
                raise
            self.log.warn(
                "{key}: hop 1 failed, using its last known image: {detail}",
                key=spell(request),
                detail=error.detail,
            )
            return found.target, found.alias
        if found.alias is None and alias.target.ref != request.alias.own_ref:
            # Worth knowing for other sizes even if this one can't be had. An alias that leads to
            # images held is not moved before the new image is held too.
            await self._index.put_alias(request.alias, alias)
        return alias.target, alias

    async def repoint(self, request: ImageRequest, alias: Alias, trip: FetchDeadline) -> None:
        """
        Make a name point where the archive says now; fetch the image only if it is not held.

        :raises CoverError: it could not be had; the name stays as it was.
        """
        entry = await self._image(alias.target, request, trip, lambda _: None)
        if isinstance(entry, Incoming):
            entry.release()
            raise StoreFailed(f"its new image can't be stored ({entry.unstored})")
        await self.point(request, alias, entry)

    async def resolve(self, key: AliasKey, trip: FetchDeadline) -> Alias:
        """Ask the archive where a name points. :raises NotInArchive: nowhere."""

        async def ask(_: object) -> Alias:
            target, asked_at = await self._asked(self._upstream.resolve(key, trip), trip)
            return Alias(target=target, checked_at=asked_at)

        return await self._targets.run(key, ask)

    async def point(
        self, request: ImageRequest, alias: Alias | None, entry: FileEntry
    ) -> Alias | None:
        """
        Make a name point at an image that is held: in the index, and on the disk for nginx.

        What the archive was asked for later stays.

        :param alias: as it was known, or as the archive just told it; None if the name was taken
            for the image's own without asking.
        :returns: the alias; None where the name is the image's own.
        """
        if alias is None:
            return None
        known = (await self._index.find_image(request)).alias
        if alias.target.ref == request.alias.own_ref:
            if known is not None and known.checked_at <= alias.checked_at:
                await self.unlink(request.alias)
            return None
        if alias != known and not await self._index.put_alias(request.alias, alias):
            return alias
        try:
            if known is None or known == alias:
                # One symlink: not worth the way to a thread and back, a tenth of a whole miss.
                self._point_on_disk(request, alias, entry, known)
            else:
                await self._in_thread(self._point_on_disk, request, alias, entry, known)
        except OSError as error:
            # The image is held and the index knows the way; only nginx's short cut is missing.
            self.log.warn(
                "can't link {name}, nginx asks the app for it: {reason}",
                name=spell(request),
                reason=error.strerror,
            )
        return alias

    async def absent(self, key: AliasKey, asked_at: float) -> None:
        """The archive knows no such name: what it was asked for before is nginx's no more."""
        if self._store.links.exist(key):
            await self._remove_links(key, asked_at)

    async def unlink(self, key: AliasKey) -> None:
        """Make a name point nowhere, whether the index knew of it or only the disk."""
        if await self._index.forget_alias(key) or self._store.links.exist(key):
            await self._remove_links(key, math.inf)

    async def _remove_links(self, key: AliasKey, until: float) -> None:
        try:
            await self._in_thread(self._store.links.remove, key, until)
        except OSError as error:
            # What the archive says counts all the same; nginx goes by the links until a sweep can.
            self.log.warn(
                "can't remove the links of {name}, nginx follows them until a sweep can: {reason}",
                name=spell(ImageRequest(alias=key, size=ORIGINAL)),
                reason=error.strerror,
            )

    def _point_on_disk(
        self, request: ImageRequest, alias: Alias, entry: FileEntry, known: Alias | None
    ) -> None:
        """Link what was asked for; where the alias moved or was renewed, see to its other sizes."""
        if known is not None and known.checked_at != alias.checked_at:
            self._store.links.confirm(request.alias, alias)
        else:
            self._store.links.remove_outdated(request.alias, alias)
        if entry.media is not None:
            key = alias.target.ref.at(request.size)
            self._store.links.make(request, key, entry.media, alias.checked_at)

    async def listing(self, key: ListingKey, trip: FetchDeadline) -> Fetched | Unstored:
        """
        Fetch a listing. :raises NotInArchive: no such entity, or no art of it.
        :raises CoverError: it could not be had.
        """
        body, asked_at = await self._asked(self._upstream.listing(key, trip), trip)
        why, kept = self._room.claim(len(body)), True
        if why is not None:
            await self._in_thread(listings.check, body)
        else:
            try:
                kept = await self._in_thread(self._keep_listing, key, body, asked_at)
                self._room.stored()
            except OSError as error:
                why = self._room.failed(layout.listing_path(key), error)
            finally:
                self._room.release(len(body))
        if why is not None:
            await self._index.forget_absence(key)
            return Unstored(body=body, stored_at=asked_at, why=why, hops=trip.hops)
        entry = FileEntry(size_bytes=len(body), stored_at=asked_at)
        if not kept:
            # One that was asked for later landed before.
            later = await self.find(key)
            if later is None:
                raise StoreFailed("a listing was removed while an older one came")
            return attrs.evolve(later, hops=trip.hops)
        if not await self._index.put_file(key, entry):
            found = await self._index.find_listing(key)
            if found.entry is None:
                await self._in_thread(self._store.remove_entry, key, entry)
                raise NotInArchive("the archive said 404 when it was asked later")
        return Fetched(key=key, entry=entry, hops=trip.hops)

    def _keep_listing(self, key: ListingKey, body: bytes, asked_at: float) -> bool:
        """In a thread: a listing of a large set takes a while to parse."""
        listings.check(body)
        return self._store.write(layout.listing_path(key), body, asked_at)

    async def _image(
        self,
        target: Target,
        request: ImageRequest,
        trip: FetchDeadline,
        announce: Announce[Arriving],
    ) -> FileEntry | Incoming:
        """:returns: what is stored; or what could not be, held for the caller to release."""
        key = target.ref.at(request.size)
        looked = target.ref == request.alias.own_ref
        answer = await self._images.run(
            key, lambda say: self._download(key, target, trip, say, looked=looked)
        )
        if isinstance(answer, FileEntry):
            return answer
        landed: FileEntry | Incoming = answer
        landing = self._images.landing(key)
        # Let go of in part, for those who read it and are slow.
        late = answer.over
        if landing is not None:
            if not late:
                announce(Arriving(incoming=answer, trip=trip))
            try:
                landed = await landing
            except StoreFailed:
                if not late:
                    raise
        if isinstance(landed, Incoming):
            if late:
                return await self._image(target, request, trip, announce)
            landed.hold()
        return landed

    async def _download(
        self,
        key: ImageKey,
        target: Target,
        trip: FetchDeadline,
        say: Callable[[FileEntry | Incoming], None],
        *,
        looked: bool,
    ) -> FileEntry | Incoming:
        if not looked and (held := await self._held(key)) is not None:
            return held
        entries: list[FileEntry | Incoming] = []

        async def here() -> bytes:
            known = await self._known(key)
            entries.append(known or await self._download_here(key, target, trip, say))
            return b""

        try:
            await self._fetches.once(pack_file_key(key), here, doubt=True)
            entry = entries[0] if entries else await self._held(key)
            return entry or await self._download_here(key, target, trip, say)
        except NotInArchive as error:
            error.image = key
            raise

    async def _download_here(
        self,
        key: ImageKey,
        target: Target,
        trip: FetchDeadline,
        say: Callable[[FileEntry | Incoming], None],
    ) -> FileEntry | Incoming:
        incoming = Incoming(
            key,
            store=self._store,
            room=self._room,
            in_thread=self._in_thread,
            largest_bytes=self._limits.largest_image_bytes,
            stored_at=self._now(),
            announce=say,
        )
        if (landing := self._images.landing(key)) is not None:
            # Those who wait for it take hold of it as it lands.
            incoming.hold()
            landing.addBoth(lambda _: incoming.release())
        try:
            await self._asked(self._upstream.image(target, key.size, incoming, trip), trip)
            entry = await incoming.finish()
        except CoverError as error:
            incoming.fail(error)
            raise
        except BaseException:
            incoming.fail(CoverError("a fetch ended unexpectedly"))
            raise
        if entry is None:
            # It is there all the same.
            await self._index.forget_absence(key)
            return incoming
        await self._index.put_file(key, entry)
        return entry

    async def _held(self, key: ImageKey) -> FileEntry | None:
        """The image, if it is held under another name than the one asked for."""
        if (known := await self._known(key)) is not None:
            return known
        on_disk = await self.find(key.own_request)
        return on_disk.entry if on_disk is not None and on_disk.key == key else None

    async def _known(self, key: ImageKey) -> FileEntry | None:
        """What the index knows of a file, if the disk agrees."""
        found = await self._index.find_image(key.own_request)
        if found.key != key or found.entry is None:
            return None
        status = self._store.stat(self._store.path_of(key, found.entry.media))
        if status is not None and status.st_size == found.entry.size_bytes:
            return found.entry
        await self.lost(key, found.entry)
        return None

    async def lost(self, key: FileKey, entry: FileEntry) -> None:
        """
        The file of an entry is gone or not the one that was stored: it is not held any more.

        It goes from the disk first. The other way round, somebody who finds the index empty
        could take in what is left of the file, or store it anew and lose that.

        :raises StoreFailed: it can't be removed, so nothing could take its place either.
        """
        path = self._store.path_of(key, entry.media)
        self.log.warn("{path} is gone or was changed; fetching it again", path=path)
        try:
            await self._in_thread(self._store.remove_spoilt, key, entry)
        except OSError as error:
            raise StoreFailed(f"can't remove {path}: {error.strerror}") from error
        await self._index.suspect(key)
        if await self._index.forget_file(key, entry):
            await self._index.settle([key])

    def trip(self) -> FetchDeadline:
        """The account of a fetch that starts now."""
        return FetchDeadline(at=self._clock.seconds() + self._limits.total_s)

    async def _asked(self, work: Coroutine[Any, Any, T], trip: FetchDeadline) -> tuple[T, float]:
        """
        The archive's answer, and when it was asked: the stamp of what comes of it.

        :raises UpstreamTimeout: there was none at the trip's deadline.
        """

        def late(_: object, __: float) -> T:
            raise UpstreamTimeout(f"not done after {self._limits.total_s:g} s")

        left_s = max(0.0, trip.at - self._clock.seconds())
        asked_at = self._now()
        d: Deferred[T] = Deferred.fromCoroutine(work)
        try:
            return await d.addTimeout(left_s, self._clock, onTimeoutCancel=late), asked_at
        except NotInArchive as error:
            error.asked_at = asked_at
            raise


def _no_place(_: object, waited_s: float) -> DeferredSemaphore:
    raise Overloaded(f"no place to fetch in after {waited_s:g} s", retry_after_s=waited_s)
