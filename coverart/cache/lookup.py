"""
The cache itself: look up, judge, serve what is held, join or start a fetch, refresh behind backs.

Knows nothing of HTTP: it says what to answer, web.py says it. Each answer carries how it came
about, for the X-Cache-Status header and the log.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, OrderedDict
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.archive.paths import spell
from coverart.archive.throttle import at_once
from coverart.cache.answers import Absent, Answer, Flowing, Held, Passing, Pointed, Status
from coverart.cache.miss import Arriving, Fetched, Fetcher, Unstored
from coverart.cache.single_flight import Announce, Flight
from coverart.coordination.leases import Fetches
from coverart.errors import (
    CoverError,
    FileNotInArchive,
    NobodyReads,
    NotInArchive,
    Overloaded,
    StoreFailed,
)
from coverart.freshness import (
    Lifetimes,
    Verdict,
    alias_is_fresh,
    judge_image,
    judge_listing,
    listing_is_fresh,
)
from coverart.index.base import Index
from coverart.index.codec import pack_alias_key, pack_file_key, pack_size
from coverart.metrics import Metrics
from coverart.model import (
    Alias,
    AliasKey,
    FileEntry,
    FileKey,
    Found,
    ImageRequest,
    ListingKey,
    Subject,
)
from coverart.store.image_store import ImageStore

REFRESH_PAUSE_S = 60.0
"""After a refresh failed, the old answer is served so long before the archive is asked again."""
MOST_PAUSES = 10_000
REFRESHES_AT_ONCE = 4
"""Clients have their old answers already: those who wait for a new one go first."""
MOST_REFRESHES = 500
"""Past that a stale answer is renewed another time."""
MOST_FETCHES = 1000
COME_BACK_S = 5.0
"""Told to those who find no room to wait in."""
MOST_USES_KEPT = 50_000
"""Files whose uses are counted between two times of passing them on."""


class CoverCache:
    """What to answer to each request."""

    log = Logger()

    def __init__(
        self,
        *,
        index: Index,
        store: ImageStore,
        fetcher: Fetcher,
        fetches: Fetches,
        lifetimes: Lifetimes,
        clock: IReactorTime,
        now: Callable[[], float],
        most_fetches: int = MOST_FETCHES,
        turn: Callable[[], Deferred[None]] = at_once,
        metrics: Metrics | None = None,
    ) -> None:
        """
        :param most_fetches: different things fetched for clients, or waiting to be, at once.
        :param turn: awaited by each miss that joins none; who joins it meanwhile needs none.
        """
        self.index = index
        self.store = store
        self.lifetimes = lifetimes
        self._metrics = metrics or Metrics()
        self._fetcher = fetcher
        self._fetches = fetches
        self._clock = clock
        self._now = now
        self._most_fetches = most_fetches
        self._turn = turn
        self._refreshing = DeferredSemaphore(REFRESHES_AT_ONCE)
        self._counts_uses = index.eviction != "oldest"
        self._uses: Counter[FileKey] = Counter()
        self._requests: Flight[ImageRequest | ListingKey, Answer] = Flight()
        self._refreshes: Flight[AliasKey | ListingKey, None] = Flight()
        self._pauses: OrderedDict[AliasKey | ListingKey, float] = OrderedDict()

    async def idle(self) -> None:
        """Returns when nothing is fetched for a client, nor refreshed in the background."""
        await self._requests.landed()
        await self._refreshes.landed()

    @property
    def waiting(self) -> int:
        """How many clients wait for something that is being fetched."""
        return self._requests.waiting

    async def get(self, thing: ImageRequest | ListingKey) -> Answer:
        """
        Say how to answer a request.

        :raises CoverError: there is nothing to serve and the archive can't be asked.
        """
        found, verdict = await self._look(thing)
        if verdict is Verdict.HIT or verdict is Verdict.STALE:
            held = self._held(found, Status.HIT if verdict is Verdict.HIT else Status.STALE)
            if held is not None:
                if verdict is Verdict.STALE:
                    self._refresh(thing)
                return held
            if found.key is not None and found.entry is not None:
                await self._fetcher.lost(found.key, found.entry)
        elif verdict is Verdict.ABSENT:
            return Absent(status=Status.ABSENT)
        elif verdict is Verdict.ABSENT_STALE:
            self._refresh(thing)
            return Absent(status=Status.ABSENT)
        joined = self._requests.running(thing)
        answer = await self._requests.run(thing, lambda announce: self._fetch(thing, announce))
        if _too_late(answer):
            # All of it came, and the index is still being told: the answer after that is a file.
            # Or part of it was let go of, unstored, and it is fetched again after that.
            landing = self._requests.landing(thing)
            if landing is not None:
                with contextlib.suppress(StoreFailed):
                    answer = await landing
            if _too_late(answer):
                answer = await self.get(thing)
        return attrs.evolve(answer, joined=True) if joined else answer

    def hit(self, request: ImageRequest) -> Held | Deferred[Held | None] | None:
        """
        A hit; None where only get() can say; a Deferred of that where the index is asked elsewhere.

        :raises Overloaded: it is none, and get() would say this, with more effort.
        """
        found = self.index.find_now(request)
        if found is None:
            return Deferred.fromCoroutine(self._hit_found(request))
        return self._hit(request, found)

    async def _hit_found(self, request: ImageRequest) -> Held | None:
        return self._hit(request, await self.index.find_image(request))

    def _hit(self, request: ImageRequest, found: Found) -> Held | None:
        if found.entry is None and found.absence is None:
            full = len(self._requests) >= self._most_fetches
            if full and not self._requests.running(request) and not self._fetcher.named(request):
                self._make_sure_of_room(len(self._requests))
            return None
        if judge_image(request, found, self._now(), self.lifetimes) is not Verdict.HIT:
            return None
        return self._held(found, Status.HIT)

    async def spoilt(self, held: Held) -> None:
        """
        The file of an answer is not what it was, though its size is: it is held no more.

        :raises StoreFailed: it can't be removed.
        """
        await self._fetcher.lost(held.key, held.entry)

    async def tell_uses(self) -> None:
        """Pass on which files were served since the last time, for the order of eviction."""
        uses, self._uses = self._uses, Counter()
        if uses:
            await self.index.use(list(uses.items()))

    async def point(self, key: AliasKey) -> Pointed | Absent:
        """
        Say where a name points, without fetching the image.

        :raises CoverError: nothing is known and the archive can't be asked.
        """
        request = ImageRequest(alias=key, size=0)
        found = await self.index.find_image(request)
        answer: Pointed | Absent
        if found.target is not None:
            fresh = self._is_fresh(key, found.alias)
            if not fresh:
                self._refresh(request)
            answer = Pointed(status=Status.HIT if fresh else Status.STALE, target=found.target)
        elif judge_image(request, found, self._now(), self.lifetimes) in _REMEMBERED:
            answer = Absent(status=Status.ABSENT)
        else:
            self._make_sure_of_room(self._fetcher.resolving)
            trip = self._fetcher.trip()
            try:
                alias = await self._fetcher.resolve(key, trip)
            except NotInArchive as error:
                answer = await self._missing(request, error, trip.hops)
            else:
                await self.index.put_alias(key, alias)
                answer = Pointed(status=Status.MISS, target=alias.target, hops=trip.hops)
        return answer

    async def purge(self, thing: ImageRequest | ListingKey) -> bool:
        """Forget a thing and remove its file. :returns: whether anything was known of it."""
        found, _ = await self._look(thing)
        if found.entry is None and (on_disk := await self._fetcher.find(thing)) is not None:
            # An index that was flushed, or is away, knows nothing of what the next would be served.
            found = on_disk.as_found()
        known = await self.index.forget_absence(
            thing if isinstance(thing, ListingKey) else thing.alias
        )
        if isinstance(thing, ImageRequest):
            target = found.target
            ref = thing.alias.own_ref if target is None else target.ref
            if ref is not None:
                known |= await self.index.forget_absence(ref.at(thing.size))
            known |= found.alias is not None
            await self._fetcher.unlink(thing.alias)
        if found.key is not None and found.entry is not None:
            known |= await self._drop(found.key, found.entry)
        return known

    async def refresh(self, thing: ImageRequest | ListingKey) -> Answer:
        """
        Ask the archive about a thing now, whatever is held of it.

        :raises CoverError: the archive can't be asked; what is held stays.
        """
        found, _ = await self._look(thing)
        if found.alias is not None or isinstance(thing, ListingKey):
            await self._ask_again(thing)
        else:
            await self.purge(thing)
        return await self.get(thing)

    def _make_sure_of_room(self, fetching: int) -> None:
        """:raises Overloaded: one more would be too many. At once: waiting would help nobody."""
        if fetching >= self._most_fetches:
            self._metrics.overload["fetch"].inc()
            raise Overloaded(f"{fetching} things are being fetched", retry_after_s=COME_BACK_S)

    # One request

    async def _look(self, thing: ImageRequest | ListingKey) -> tuple[Found, Verdict]:
        now = self._now()
        if isinstance(thing, ListingKey):
            found = await self.index.find_listing(thing)
            return found, judge_listing(found, now, self.lifetimes)
        found = await self.index.find_image(thing)
        return found, judge_image(thing, found, now, self.lifetimes)

    def _held(self, found: Found, status: Status) -> Held | None:
        """What the index knows as an answer, if the disk agrees."""
        if found.key is None or found.entry is None:
            return None
        path = self.store.path_of(found.key, found.entry.media)
        on_disk = self.store.stat(path)
        if on_disk is None or on_disk.st_size != found.entry.size_bytes:
            return None
        if self._counts_uses and len(self._uses) < MOST_USES_KEPT:
            self._uses[found.key] += 1
        return Held(status=status, key=found.key, entry=found.entry, path=path, alias=found.alias)

    async def _fetch(self, thing: ImageRequest | ListingKey, announce: Announce[Answer]) -> Answer:
        """A miss, once for all who wait, here and in other processes."""
        # In here, so that those who join wait for no turn: each would push the next miss back.
        await self._turn()
        answers: list[Answer] = []

        async def here() -> bytes:
            answers.append(await self._fetch_here(thing, announce))
            return b""

        # A listing's lease is that of its file; an image's file has one of its own (fetch.py),
        # taken after this one, never the other way round.
        listing = isinstance(thing, ListingKey)
        # Served whatever else goes on: without Redis this is how every hit is found.
        on_disk = await self._fetcher.find(thing)
        if on_disk is not None:
            return self._adopted(thing, on_disk)
        self._make_sure_of_room(len(self._requests) - 1)
        with self._metrics.fetches.track_inprogress():
            # Before the lease: who waits in line keeps no other process from the work.
            try:
                place = await self._fetcher.place()
            except Overloaded:
                self._metrics.overload["waited"].inc()
                raise
            try:
                await self._fetches.once(_lease(thing), here, doubt=listing)
            finally:
                place.release()
        if answers:
            return answers[0]
        # Another process did it: what it found is in the index, or on the disk at least.
        found, verdict = await self._look(thing)
        held = self._held(found, Status.MISS)
        if held is not None:
            return attrs.evolve(held, joined=True)
        if verdict in _REMEMBERED:
            return Absent(status=Status.MISS, joined=True)
        return await self._fetch_here(thing, announce)

    async def _fetch_here(
        self, thing: ImageRequest | ListingKey, announce: Announce[Answer]
    ) -> Answer:
        # Look again now that the flight is ours: the one before may have landed in between.
        found, verdict = await self._look(thing)
        if verdict is Verdict.HIT and (held := self._held(found, Status.HIT)) is not None:
            return held
        if verdict is Verdict.ABSENT:
            return Absent(status=Status.ABSENT)
        on_disk = await self._fetcher.find(thing)
        if on_disk is not None:
            return self._adopted(thing, on_disk)
        trip = self._fetcher.trip()
        fetched: Fetched | Arriving | Unstored
        try:
            if isinstance(thing, ListingKey):
                fetched = await self._fetcher.listing(thing, trip)
            else:
                fetched = await self._fetcher.image(
                    thing,
                    found,
                    trip,
                    lambda arriving: announce(Flowing(arriving=arriving)),
                    fresh=self._is_fresh(thing.alias, found.alias),
                )
        except NotInArchive as error:
            return await self._missing(thing, error, trip.hops)
        except CoverError as error:
            error.hops = trip.hops
            # That nothing can be stored is told once a minute (room.py).
            if not isinstance(error, NobodyReads):
                self.log.warn(
                    "{key} could not be fetched: {detail}", key=spell(thing), detail=error.detail
                )
            raise
        if isinstance(fetched, Unstored):
            return Passing(listing=fetched)
        if isinstance(fetched, Arriving):
            # Those who wait begin to read as they are told.
            landing = self._requests.landing(thing)
            if landing is not None:
                landing.addBoth(lambda _: fetched.incoming.release())
            return Flowing(arriving=fetched)
        return self._answer(fetched, Status.MISS)

    def _adopted(self, thing: ImageRequest | ListingKey, fetched: Fetched) -> Held:
        if isinstance(thing, ListingKey):
            fresh = listing_is_fresh(fetched.entry, self._now(), self.lifetimes)
        else:
            fresh = self._is_fresh(thing.alias, fetched.alias)
        if not fresh:
            self._refresh(thing)
        return self._answer(fetched, Status.HIT if fresh else Status.STALE)

    def _answer(self, fetched: Fetched, status: Status) -> Held:
        return Held(
            status=status,
            key=fetched.key,
            entry=fetched.entry,
            path=self.store.path_of(fetched.key, fetched.entry.media),
            alias=fetched.alias,
            hops=fetched.hops,
        )

    async def _missing(
        self, thing: ImageRequest | ListingKey, error: NotInArchive, hops: int
    ) -> Absent:
        """The archive said 404: remember it, and what of the request it was about."""
        asked_at = error.asked_at
        if asked_at is None:
            # It is remembered already, with the time of its own question.
            return Absent(status=Status.MISS, hops=hops)
        subject: Subject = thing if isinstance(thing, ListingKey) else thing.alias
        if error.image is not None:
            subject = error.image
        elif isinstance(thing, ImageRequest):
            await self._fetcher.absent(thing.alias, asked_at)
        await self.index.put_absence(subject, self.lifetimes.absence(subject, asked_at))
        return Absent(status=Status.MISS, hops=hops)

    # Refreshing in the background

    def _refresh(self, thing: ImageRequest | ListingKey) -> None:
        key = thing if isinstance(thing, ListingKey) else thing.alias
        if self._refreshes.running(key) or self._pauses.get(key, 0.0) > self._clock.seconds():
            return
        if len(self._refreshes) >= MOST_REFRESHES:
            self._metrics.overload["refresh"].inc()
            return
        self._pauses.pop(key, None)

        def failed(failure: Failure) -> None:
            self._pause(key)
            if failure.check(CoverError):
                detail = getattr(failure.value, "detail", "")
                self.log.warn(
                    "refresh of {key} failed, serving the old answer: {detail}",
                    key=spell(thing),
                    detail=detail,
                )
            else:
                self.log.failure("refresh of {key}", failure, key=spell(thing))

        self._refreshes.run(key, lambda _: self._refresh_once(thing)).addErrback(failed)

    def _pause(self, key: AliasKey | ListingKey) -> None:
        self._pauses[key] = self._clock.seconds() + REFRESH_PAUSE_S
        if len(self._pauses) > MOST_PAUSES:
            self._pauses.popitem(last=False)

    async def _refresh_once(self, thing: ImageRequest | ListingKey) -> None:
        async def here() -> bytes:
            await self._ask_again(thing)
            return b""

        place = await self._refreshing.acquire()
        try:
            await self._fetches.once(b"refresh" + _lease(thing), here)
        finally:
            place.release()

    async def _ask_again(self, thing: ImageRequest | ListingKey) -> None:
        trip = self._fetcher.trip()
        found, _ = await self._look(thing)
        try:
            if isinstance(thing, ListingKey):
                fetched = await self._fetcher.listing(thing, trip)
                if isinstance(fetched, Unstored):
                    raise StoreFailed(f"the new one can't be stored ({fetched.why})")
            else:
                alias = await self._fetcher.resolve(thing.alias, trip)
                await self._fetcher.repoint(thing, alias, trip)
        except NotInArchive as error:
            await self._missing(thing, error, trip.hops)
            if isinstance(thing, ImageRequest) and isinstance(error, FileNotInArchive):
                # The name leads to an image of which this size was not made yet: the old one
                # stays, and is as stale as before.
                self._pause(thing.alias)
            if isinstance(thing, ListingKey) and found.entry is not None:
                await self._drop(thing, found.entry, until=error.asked_at or 0.0)
        self._metrics.refreshes.inc()

    async def _drop(self, key: FileKey, entry: FileEntry, until: float = math.inf) -> bool:
        """
        Remove a file and forget it. :returns: whether it was known.

        In this order: removed after it was forgotten, it could be another that came since.

        :param until: what is stamped later, and so was asked for later, stays on the disk.
        """
        path = self.store.path_of(key, entry.media)
        try:
            if self.store.stamp(path) <= until:
                self.store.remove(path)
        except OSError as error:
            # Forgotten is enough: what is stored next takes its place, if anything can.
            self.log.warn(
                "can't remove {path}, the index forgets it all the same: {reason}",
                path=path,
                reason=error.strerror,
            )
        known = await self.index.forget_file(key, entry)
        if known:
            await self.index.settle([key])
        return known

    def _is_fresh(self, key: AliasKey, alias: Alias | None) -> bool:
        return alias_is_fresh(key, alias, self._now(), self.lifetimes)


def _too_late(answer: Answer) -> bool:
    """Say whether the beginning of an image that arrives is not to be had any more."""
    return isinstance(answer, Flowing) and answer.arriving.incoming.over


def _lease(thing: ImageRequest | ListingKey) -> bytes:
    """The name that all processes know a fetch by."""
    if isinstance(thing, ListingKey):
        return pack_file_key(thing)
    return pack_alias_key(thing.alias) + pack_size(thing.size)


_REMEMBERED = frozenset({Verdict.ABSENT, Verdict.ABSENT_STALE})
