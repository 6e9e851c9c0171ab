"""
Bringing into the cache what is not there: joined, bounded in time, checked before it is told.

Two flights join callers beside that of a request: of a name's target (front-250 and front-500 ask
hop 1 once), of an image (a front, its id and its group's front download one file once). The one who
starts an image's flight claims it among all processes, with a last look at what is held.
"""

from __future__ import annotations

import math
import os
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
from coverart.cache.download import Download, InThread
from coverart.cache.single_flight import Announce, Flight
from coverart.cache.size_limits import Room
from coverart.cache.writer import Link, NewFile, Permit, Writer
from coverart.errors import (
    BadUpstream,
    CoverError,
    NobodyReads,
    NotInArchive,
    Overloaded,
    StoreFailed,
    UpstreamTimeout,
)
from coverart.index.base import Claim, Index, IndexAway
from coverart.index.codec import pack_seen
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
    Subject,
    Target,
)
from coverart.store import layout
from coverart.store.image_store import ImageStore, OnDisk

PLACES_A_REQUEST = 2

T = TypeVar("T")


@attrs.define(eq=False, kw_only=True)
class Fetch(FetchDeadline):
    """
    The account of one fetch. What it claims among processes ends with its `async with` block.

    A CoverError that leaves the block is also the answer to those who wait in other processes.
    """

    index: Index
    complete: bool
    """Whether what the index did not know as it began is not on the disk either."""
    _claims: list[Claim] = attrs.field(factory=list, init=False)

    async def __aenter__(self) -> Fetch:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, CoverError):
            error.hops = self.hops
        claims = self.end_claims()
        if not claims:
            return
        # That nobody reads here is no answer to those who wait in another process.
        if isinstance(error, CoverError) and not isinstance(error, NobodyReads):
            await self.index.release(claims, error)
        else:
            await self.index.release(claims)

    def add_claim(self, claim: Claim) -> None:
        self._claims.append(claim)

    def end_claims(self) -> list[Claim]:
        """The claims, for the one who ends them with what was fetched."""
        ended, self._claims = self._claims, []
        return ended


@attrs.frozen(kw_only=True)
class Fetched:
    """A file that is now held, and the alias that led to it."""

    key: ImageKey | ListingKey
    entry: FileEntry
    alias: Alias | None = None


@attrs.frozen(kw_only=True)
class Unstored:
    """A listing that could not be stored."""

    body: bytes
    stored_at: float
    why: str
    """A token (RFC 9110 section 5.6.2)."""


@attrs.frozen(kw_only=True)
class Missing:
    """
    The archive said 404: of a name, of one size of an image, or of a listing.

    `asked_at` is when it was asked, in seconds since the epoch; None if that is remembered already.
    """

    subject: Subject
    asked_at: float | None


@attrs.frozen(kw_only=True)
class _Named:
    """A request, and where its name points: by `alias`, or by itself; `known` before that."""

    request: ImageRequest
    alias: Alias | None
    known: Alias | None
    elsewhere: Alias | None = attrs.field(init=False)
    """The alias, where the name is not the image's own."""

    @elsewhere.default
    def _not_own(self) -> Alias | None:
        if self.alias is None or self.alias.target.ref == self.request.alias.own_ref:
            return None
        return self.alias


@attrs.frozen(kw_only=True)
class _Landed:
    """An image that is held; `named` is the request whose name was made to point at it with it."""

    entry: FileEntry
    named: ImageRequest | None = None


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
        clock: IReactorTime,
        now: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._index = index
        self._store = store
        self._room = room
        self._upstream = upstream
        self._in_thread = in_thread
        self._writer = Writer(store, in_thread)
        self._clock = clock
        self._now = now
        self._limits = limits
        # Twice as many as requests: the archive need not wait for our disk.
        self._places = DeferredSemaphore(PLACES_A_REQUEST * limits.concurrency)
        self._images: Flight[ImageKey, _Landed | Download | Missing | Alias] = Flight()
        self._targets: Flight[AliasKey, Alias | Missing] = Flight()
        self._permits: set[Permit] = set()
        self._learnt: dict[AliasKey, Alias] = {}
        """Where names point whose images are still being fetched: for their other sizes."""

    @property
    def resolving(self) -> int:
        """How many names hop 1 is being asked about."""
        return len(self._targets)

    def begin(self) -> Fetch:
        """The account of a fetch that starts now; use it in `async with`, which ends its claims."""
        fetch = Fetch(at=0.0, index=self._index, complete=self._index.complete)
        self.begin_anew(fetch)
        return fetch

    def begin_anew(self, fetch: Fetch) -> None:
        """The time of a fetch begins now: until then it waited for others."""
        fetch.at = self._clock.seconds() + self._limits.total_s

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

    # What lies on the disk

    def named(self, thing: ImageRequest | ListingKey) -> bool:
        """Say whether find() could find anything."""
        return not self._index.complete and self._store.has_name(thing)

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

    def revoke(self, key: FileKey) -> bool:
        """
        A purge comes: a fetch of this file that is under way here gives it no name any more.

        :returns: whether all its bytes are there; its flight ends in a moment then, and what the disk
            and the index may have taken of it has to be removed after that.
        """
        permits = [permit for permit in self._permits if permit.key == key]
        for permit in permits:
            permit.revoked = True
        return any(permit.whole for permit in permits)

    def landing(self, key: FileKey) -> Deferred[Any] | None:
        """The end of the flight of an image, if one is under way."""
        return self._images.landing(key) if isinstance(key, ImageKey) else None

    async def claim(
        self, key: FileKey, fetch: Fetch, *, again: bool = False
    ) -> FileEntry | Missing | None:
        """
        Claim a file among all processes, for the time of a fetch.

        :param again: also where it is held, unless another process fetches it just now.
        :returns: None; or what is known of it, and nothing has to be fetched.
        :raises CoverError: another process failed to fetch it while this one waited.
        """
        found, claim = await self._index.claim(key, again=again)
        if again and claim is not None and not claim.waited:
            self.claimed(claim, fetch)
            return None
        if found.entry is not None:
            status = self._store.stat(self._store.path_of(key, found.entry.media))
            if status is not None and status.st_size == found.entry.size_bytes:
                if claim is not None:
                    self.claimed(claim, fetch)
                return found.entry
            await self.lost(key, found.entry)
        if claim is None:
            found, claim = await self._index.claim(key, again=True)
        if claim is not None:
            self.claimed(claim, fetch)
            if claim.waited and found.absence is not None:
                return Missing(subject=key, asked_at=None)
        if fetch.complete and (claim is None or not claim.waited):
            return None
        on_disk = await self.find(key if isinstance(key, ListingKey) else key.own_request)
        return on_disk.entry if on_disk is not None and on_disk.key == key else None

    def claimed(self, claim: Claim, fetch: Fetch) -> None:
        """A claim was taken for a fetch."""
        fetch.add_claim(claim)
        if claim.waited:
            self.begin_anew(fetch)

    # Images

    def by_name(self, request: ImageRequest, found: Found, *, fresh: bool) -> bool:
        """Say whether hop 1 has to be asked before it is known which image is wanted."""
        if (
            fresh
            and found.target is not None
            and self._upstream.can_fetch(found.target, request.size)
        ):
            return False
        return found.alias is not None or request.alias.own_ref is None

    async def image(
        self,
        request: ImageRequest,
        found: Found,
        fetch: Fetch,
        announce: Announce[Download],
        *,
        fresh: bool,
    ) -> Fetched | Download | Missing:
        """
        Fetch an image and make the name it was asked by point at it.

        :param found: what the index knows.
        :param fresh: whether the target in it can be taken as still right; else it serves only
            if hop 1 can't be asked.
        :param announce: called as soon as clients can be sent what has come of it.
        :returns: the download if it could not be stored.
        :raises CoverError: it could not be had.
        """
        named = _Named(request=request, alias=found.alias, known=found.alias)
        target, asked = found.target, False
        if self.by_name(request, found, fresh=fresh):
            learnt = self._learnt.get(request.alias)
            alias = learnt or await self._ask_hop_1(request, found, fetch)
            if isinstance(alias, Missing):
                return alias
            named, target = attrs.evolve(named, alias=alias), alias.target
            asked = alias not in (learnt, found.alias)
        elif target is None or not self._upstream.can_fetch(target, request.size):
            target = None
        if named.known is None and named.elsewhere is not None:
            self._learnt[request.alias] = named.elsewhere
        try:
            while True:
                got = await self._image(named, target, fetch, announce)
                if isinstance(got, Missing) and target is not None and not asked:
                    # What we knew may have been overtaken: a merge moves an item to another MBID.
                    moved = await self.resolve(request.alias, fetch)
                    if isinstance(moved, Missing):
                        return moved
                    if moved.target == target:
                        return got
                elif isinstance(got, Alias):
                    moved = got
                else:
                    break
                named, target, asked = attrs.evolve(named, alias=moved), moved.target, True
        except CoverError:
            await self._learn_name(named)
            raise
        finally:
            self._learnt.pop(request.alias, None)
        if isinstance(got, Fetched):
            return got
        await self._learn_name(named)
        return got

    async def _learn_name(self, named: _Named) -> None:
        """Where a name points is worth knowing for other sizes even if this one can't be had."""
        # An alias that leads to images held is not moved before the new image is held too.
        if named.known is None and named.elsewhere is not None:
            await self._index.put_alias(named.request.alias, named.elsewhere)

    async def _ask_hop_1(
        self, request: ImageRequest, found: Found, fetch: Fetch
    ) -> Alias | Missing:
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

    async def resolve(self, key: AliasKey, fetch: Fetch) -> Alias | Missing:
        """Ask the archive where a name points."""

        async def ask(_: object) -> Alias | Missing:
            asked_at = self._now()
            try:
                target = await self._asked(self._upstream.resolve(key, fetch), fetch)
            except NotInArchive:
                return Missing(subject=key, asked_at=asked_at)
            return Alias(target=target, checked_at=asked_at)

        return await self._targets.run(key, ask)

    async def repoint(self, request: ImageRequest, alias: Alias, fetch: Fetch) -> Missing | None:
        """
        Make a name point where the archive says now; fetch the image only if it is not held.

        :raises CoverError: it could not be had; the name stays as it was.
        """
        # The name has moved or was confirmed: what is known of it is looked up as it is pointed.
        named = _Named(request=request, alias=alias, known=Alias(target=alias.target, checked_at=0))
        got = await self._image(named, alias.target, fetch, lambda _: None)
        if isinstance(got, Missing):
            return got
        if isinstance(got, Download):
            why = got.unstored or "it was purged"
            raise StoreFailed(f"its new image can't be stored ({why})")
        if isinstance(got, Alias):
            raise BadUpstream("its image moves to another MBID")
        return None

    async def repoint_unfetched(self, key: AliasKey, alias: Alias) -> None:
        """Make a name point where the archive says now, whether its image is held or not."""
        if await self._index.put_alias(key, alias) and self._store.links.exist(key):
            link = Link(ImageRequest(alias=key, size=ORIGINAL), alias, renewed=True)
            await self._in_thread(self._writer.link, link, None)

    async def fetch_again(self, request: ImageRequest, target: Target | None, fetch: Fetch) -> bool:
        """
        Fetch an image that is held by its own name; what is held stays until the new one is there.

        :returns: whether the archive still has it under this name.
        :raises CoverError: it could not be had, or can't be stored.
        """
        if target is not None and not self._upstream.can_fetch(target, request.size):
            target = None
        named = _Named(request=request, alias=None, known=None)
        got = await self._image(named, target, fetch, lambda _: None, again=True)
        if isinstance(got, Download) and got.unstored is not None:
            raise StoreFailed(f"the new one can't be stored ({got.unstored})")
        return not isinstance(got, Missing | Alias)

    async def _image(
        self,
        named: _Named,
        target: Target | None,
        fetch: Fetch,
        announce: Announce[Download],
        *,
        again: bool = False,
    ) -> Fetched | Download | Missing | Alias:
        """
        Join the flight of an image, or start it.

        :param again: fetch it also where it is held.
        :param target: None where hop 1 was not asked yet and the name is the image's own.
        :returns: an alias where hop 1 then led elsewhere; a download that was not stored.
        """
        ref = named.request.alias.own_ref if target is None else target.ref
        if ref is None:
            raise ValueError("a name that is no image's own needs a target")
        key = ref.at(named.request.size)

        def fly(say: Announce[_Landed | Download | Missing | Alias]) -> Any:
            return self._fly(key, named, target, fetch, say, again=again)

        got = await self._images.run(key, fly)
        landing = self._images.landing(key)
        if isinstance(got, Download) and landing is not None:
            # Let go of in part, for those who read it and are slow.
            late = got.over
            if not late:
                announce(got)
            try:
                got = await landing
            except StoreFailed:
                if not late:
                    raise
            if late and isinstance(got, Download):
                return await self._image(named, target, fetch, announce)
        if not isinstance(got, _Landed):
            return got
        alias = named.elsewhere
        if got.named != named.request:
            alias = await self._point(named, got.entry)
        return Fetched(key=key, entry=got.entry, alias=alias)

    async def _fly(
        self,
        key: ImageKey,
        named: _Named,
        target: Target | None,
        fetch: Fetch,
        announce: Announce[_Landed | Download | Missing | Alias],
        *,
        again: bool,
    ) -> _Landed | Download | Missing | Alias:
        """Once for all in this process who want an image."""
        known = await self.claim(key, fetch, again=again)
        if known is not None:
            return known if isinstance(known, Missing) else _Landed(entry=known)
        if target is None:
            alias = await self.resolve(named.request.alias, fetch)
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
        )
        self._permits.add(download.permit)
        try:
            asked_at = self._now()
            try:
                await self._asked(self._upstream.image(target, key.size, download, fetch), fetch)
            except NotInArchive:
                return Missing(subject=key, asked_at=asked_at)
            link = self._link(named, fetch)
            entry = await download.finish(link)
            if entry is not None:
                return await self._tell(key, entry, named, link, fetch)
            if download.unstored is not None:
                # It is there all the same.
                await self._index.forget_absence(key)
            return download
        except CoverError as error:
            download.fail(error)
            raise
        except BaseException:
            download.fail(CoverError("a fetch ended unexpectedly"))
            raise
        finally:
            self._permits.remove(download.permit)
            download.end()

    def _link(self, named: _Named, fetch: Fetch) -> Link | None:
        """The symlink to be made with the file; None where there is none, or more to be seen to."""
        alias, known = named.elsewhere, named.known
        if alias is None or (known is not None and known != alias):
            return None
        outdated = known is None and not fetch.complete
        return Link(named.request, alias, outdated=outdated)

    async def _tell(
        self, key: ImageKey, entry: FileEntry, named: _Named, link: Link | None, fetch: Fetch
    ) -> _Landed:
        """Tell the index of a file, and of the name that was linked to it."""
        name = named.request.alias
        linked = None if link is None else (name, link.alias)
        stored = await self._index.store(key, entry, alias=linked, claims=fetch.end_claims())
        if link is None:
            return _Landed(entry=entry)
        if not stored.alias:
            # The archive was asked later and said otherwise: what was linked too is not right.
            await self._remove_links(name, link.alias.checked_at)
        return _Landed(entry=entry, named=named.request)

    async def _point(self, named: _Named, entry: FileEntry) -> Alias | None:
        """
        Make a name point at an image that is held: in the index, and on the disk for nginx.

        What the archive was asked for later stays. :returns: the alias; None where the name is the
        image's own.
        """
        request, alias = named.request, named.alias
        if alias is None:
            return None
        known = (await self._index.find_image(request)).alias
        if named.elsewhere is None:
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

    async def absent(self, key: AliasKey, asked_at: float, known: Alias | None) -> None:
        """
        The archive knows no such name: what it was asked for before is nginx's no more.

        :param known: what the index knew of it.
        """
        if (known is not None or not self._index.complete) and self._store.links.exist(key):
            await self._remove_links(key, asked_at)

    async def unlink(self, key: AliasKey) -> None:
        """Make a name point nowhere, whether the index knew of it or only the disk."""
        self._learnt.pop(key, None)
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

    # Listings

    async def listing(self, key: ListingKey, fetch: Fetch) -> Fetched | Unstored | Missing:
        """
        Fetch a listing.

        :raises CoverError: it could not be had.
        """
        asked_at = self._now()
        try:
            body = await self._asked(self._upstream.listing(key, fetch), fetch)
        except NotInArchive:
            return Missing(subject=key, asked_at=asked_at)
        permit = Permit(key, whole=True)
        self._permits.add(permit)
        try:
            return await self._keep_listing(key, body, asked_at, permit, fetch)
        finally:
            self._permits.remove(permit)

    async def _keep_listing(
        self, key: ListingKey, body: bytes, asked_at: float, permit: Permit, fetch: Fetch
    ) -> Fetched | Unstored | Missing:
        why, named = self._room.reserve(len(body)), False
        if why is not None:
            await self._in_thread(listings.check, body)
        else:
            file = NewFile(
                media=None,
                body=body,
                stored_at=asked_at,
                permit=permit,
                latest=True,
                # In the thread: a listing of a large set takes a while to parse.
                check=lambda: listings.check(body),
            )
            try:
                written = await self._writer.commit(file)
                os.close(written.temporary.fd)
                named = written.named
                self._room.stored()
            except OSError as error:
                why = self._room.failed(layout.listing_path(key), error)
            finally:
                self._room.release(len(body))
        if why is not None:
            await self._index.forget_absence(key)
            return Unstored(body=body, stored_at=asked_at, why=why)
        if permit.revoked:
            return Unstored(body=body, stored_at=asked_at, why="purged")
        if not named:
            # One that was asked for later landed before.
            later = await self.find(key)
            if later is None:
                raise StoreFailed("a listing was removed while an older one came")
            return later
        entry = FileEntry(size_bytes=len(body), stored_at=asked_at)
        stored = await self._index.store(key, entry, claims=fetch.end_claims())
        if not stored.file and (await self._index.find_listing(key)).entry is None:
            # The archive was asked later and said 404, which is remembered.
            await self._in_thread(self._store.remove_entry, key, entry)
            return Missing(subject=key, asked_at=None)
        return Fetched(key=key, entry=entry)

    async def _asked(self, work: Coroutine[Any, Any, T], fetch: Fetch) -> T:
        """
        The archive's answer.

        :raises UpstreamTimeout: there was none at the deadline of the fetch.
        """

        def late(_: object, __: float) -> T:
            raise UpstreamTimeout(f"not done after {self._limits.total_s:g} s")

        left_s = max(0.0, fetch.at - self._clock.seconds())
        d: Deferred[T] = Deferred.fromCoroutine(work)
        return await d.addTimeout(left_s, self._clock, onTimeoutCancel=late)


def _no_place(_: object, waited_s: float) -> DeferredSemaphore:
    raise Overloaded(f"no place to fetch in after {waited_s:g} s", retry_after_s=waited_s)
