"""
The cache itself: look up, judge, serve what is held, join or start a fetch.

Knows nothing of HTTP: it says what to answer, web/covers.py says it. Each answer carries how it came
about, for the X-Cache-Status header and the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from coverart.archive.paths import spell
from coverart.archive.throttle import at_once
from coverart.cache.answers import Absent, Answer, Flowing, Held, Passing, Pointed, Status
from coverart.cache.download import Download
from coverart.cache.fetch import Fetch, Fetched, Missing, Unstored
from coverart.cache.miss import Fetcher
from coverart.cache.operator_actions import OperatorActions
from coverart.cache.refresh import Refreshes
from coverart.cache.single_flight import Announce, Flight
from coverart.cache.uses import MOST_USES_KEPT, tell_uses
from coverart.errors import CoverError, NobodyReads, Overloaded
from coverart.freshness import (
    Lifetimes,
    Verdict,
    alias_is_fresh,
    judge_image,
    judge_listing,
    listing_is_fresh,
)
from coverart.index.base import Index
from coverart.metrics import Metrics
from coverart.model import (
    Alias,
    AliasKey,
    FileEntry,
    FileKey,
    Found,
    ImageRequest,
    ListingKey,
    Thing,
)
from coverart.store.image_store import ImageStore

MOST_FETCHES = 1000
COME_BACK_S = 5.0
"""Seconds until clients should ask again who find no room to wait in."""


@attrs.frozen(kw_only=True)
class Looked:
    """What a look-up in the index found, and how many fetches had ended by then."""

    found: Found
    verdict: Verdict
    fetches_ended: int


class CoverCache:
    """What to answer to each request."""

    log = Logger()

    def __init__(
        self,
        *,
        index: Index,
        store: ImageStore,
        fetcher: Fetcher,
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
        self._clock = clock
        self._now = now
        self._most_fetches = most_fetches
        self._turn = turn
        self._counts_uses = index.eviction != "oldest"
        self._uses: Counter[FileKey] = Counter()
        self._requests: Flight[Thing, Answer] = Flight()
        self._refreshes = Refreshes(
            index=index,
            fetcher=fetcher,
            lifetimes=lifetimes,
            clock=clock,
            metrics=self._metrics,
        )
        self.operator_actions = OperatorActions(
            index=index,
            fetcher=fetcher,
            refreshes=self._refreshes,
            requests=self._requests,
            get=self.get,
        )

    async def idle(self) -> None:
        """Returns when nothing is fetched for a client, nor refreshed in the background."""
        await self._requests.landed()
        await self._refreshes.landed()

    @property
    def waiting(self) -> int:
        """How many clients wait for something that is being fetched."""
        return self._requests.waiting

    async def get(self, thing: Thing, looked: Looked | None = None) -> Answer:
        """
        Say how to answer a request.

        :param looked: what hit() just found, which is then not looked up again.
        :raises CoverError: there is nothing to serve and the archive can't be asked.
        """
        looked = looked or await self._look(thing)
        if (known := self._known(thing, looked)) is not None:
            return known
        found = looked.found
        if found.key is not None and found.entry is not None:
            await self._fetcher.held.lost(found.key, found.entry)
        if looked.fetches_ended != self._requests.ended:
            # It may have been fetched between the look and now.
            looked = await self._look(thing)
            if (known := self._known(thing, looked)) is not None:
                return known
            found = looked.found
        joined, early = self._requests.running(thing), self._requests.announced(thing)
        # It is being committed, and as good as held.
        whole = isinstance(early, Flowing) and early.unstored is None and early.download.whole
        answer = await self._requests.run(thing, lambda tell: self._fetch(thing, found, tell))
        if isinstance(answer, Flowing) and answer.download.over:
            # All of it came, and it is about to be held. Or its first bytes were freed, unstored.
            await self._requests.over(thing)
            return await self.get(thing)
        if whole:
            return attrs.evolve(answer, status=Status.HIT)
        return attrs.evolve(answer, joined=True) if joined else answer

    def hit(self, thing: Thing) -> Held | Absent | Looked | Deferred[Held | Absent | Looked]:
        """
        What is held or known to be absent, or what get() is to be told.

        A Deferred of that where the index is asked elsewhere.

        :raises Overloaded: the request is no hit and no fetch slot is free.
        """
        found = self.index.find_now(thing)
        if found is None:
            return Deferred.fromCoroutine(self._hit_later(thing))
        return self._hit(thing, self._judged(thing, found, self._requests.ended))

    async def _hit_later(self, thing: Thing) -> Held | Absent | Looked:
        return self._hit(thing, await self._look(thing))

    def _hit(self, thing: Thing, looked: Looked) -> Held | Absent | Looked:
        if looked.verdict is Verdict.HIT:
            return self._held(looked.found, Status.HIT) or looked
        if looked.verdict is Verdict.ABSENT:
            return Absent(status=Status.ABSENT)
        full = looked.verdict is Verdict.FETCH and len(self._requests) >= self._most_fetches
        if full and not (self._requests.running(thing) or self._fetcher.held.has_name(thing)):
            self._make_sure_of_room(len(self._requests))
        return looked

    async def spoilt(self, held: Held) -> None:
        """
        The file of an answer is not what it was, though its size is: it is held no more.

        :raises StoreFailed: it can't be removed.
        """
        await self._fetcher.held.lost(held.key, held.entry)

    async def tell_uses(self) -> None:
        """Pass on which files were served since the last time, for the order of eviction."""
        uses, self._uses = self._uses, Counter()
        await tell_uses(self.index, uses, self._clock)

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
                self._refreshes.start(request, fetches=False)
            answer = Pointed(status=Status.HIT if fresh else Status.STALE, target=found.target)
        elif judge_image(request, found, self._now(), self.lifetimes) in _REMEMBERED:
            answer = Absent(status=Status.ABSENT)
        else:
            self._make_sure_of_room(self._fetcher.names.resolving)
            # No claim: without one, each process sends one small request at most.
            async with self._fetcher.begin() as fetch:
                alias = await self._fetcher.names.resolve(key, fetch)
                if isinstance(alias, Missing):
                    return await self._missing(alias, found, fetch)
                await self.index.put_alias(key, alias)
                answer = Pointed(status=Status.MISS, target=alias.target, hops=fetch.hops)
        return answer

    def _make_sure_of_room(self, fetching: int) -> None:
        """:raises Overloaded: one more would be too many. At once: waiting would help nobody."""
        if fetching >= self._most_fetches:
            self._metrics.overload["fetch"].inc()
            raise Overloaded(f"{fetching} things are being fetched", retry_after_s=COME_BACK_S)

    # One request

    async def _look(self, thing: Thing) -> Looked:
        ended = self._requests.ended
        return self._judged(thing, await self._fetcher.held.known(thing), ended)

    def _judged(self, thing: Thing, found: Found, ended: int) -> Looked:
        now = self._now()
        if isinstance(thing, ListingKey):
            verdict = judge_listing(found, now, self.lifetimes)
        else:
            verdict = judge_image(thing, found, now, self.lifetimes)
        return Looked(found=found, verdict=verdict, fetches_ended=ended)

    def _known(self, thing: Thing, looked: Looked) -> Held | Absent | None:
        """The answer that needs no fetch, if there is one; what is stale is refreshed behind it."""
        answer: Held | Absent | None = None
        match looked.verdict:
            case Verdict.HIT:
                return self._held(looked.found, Status.HIT)
            case Verdict.STALE:
                answer = self._held(looked.found, Status.STALE)
            case Verdict.ABSENT:
                return Absent(status=Status.ABSENT)
            case Verdict.ABSENT_STALE:
                answer = Absent(status=Status.ABSENT)
        if answer is not None:
            self._refreshes.start(thing)
        return answer

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

    async def _fetch(self, thing: Thing, found: Found, announce: Announce[Answer]) -> Answer:
        """A miss, once for all who wait in this process."""
        # In here, so that those who join wait for no turn: each would push the next miss back.
        await self._turn()
        async with self._fetcher.begin() as fetch:
            if not fetch.complete:
                # Served whatever else goes on: without Redis this is how every hit is found.
                on_disk = await self._fetcher.held.find(thing)
                if on_disk is not None:
                    return self._adopted(thing, on_disk)
            self._make_sure_of_room(len(self._requests) - 1)
            with self._metrics.fetches.track_inprogress():
                # Before the claims: who waits in line keeps no other process from the work.
                try:
                    slot = await self._fetcher.slot()
                except Overloaded:
                    self._metrics.overload["waited"].inc()
                    raise
                fetch.restart()
                try:
                    return await self._fetch_here(thing, found, fetch, announce)
                except CoverError as error:
                    # That nothing can be stored is told once a minute (size_limits.py).
                    if not isinstance(error, NobodyReads):
                        self.log.warn(
                            "{key} could not be fetched: {detail}",
                            key=spell(thing),
                            detail=error.detail,
                        )
                    raise
                finally:
                    slot.release()

    async def _fetch_here(
        self, thing: Thing, found: Found, fetch: Fetch, announce: Announce[Answer]
    ) -> Answer:
        got: Fetched | Download | Unstored | Missing
        if isinstance(thing, ListingKey):
            known = await self._fetcher.held.claim(thing, fetch)
            if isinstance(known, FileEntry):
                return self._adopted(thing, Fetched(key=thing, entry=known))
            got = known or await self._fetcher.listings.fetch(thing, fetch)
        else:
            by_name = self._by_name(thing, found)
            if by_name:
                claim = await self.index.claim_name(thing)
                fetch.add_claim(claim)
                if claim.waited:
                    # Another process did it: what it found is in the index.
                    looked = await self._look(thing)
                    if (answer := self._known(thing, looked)) is not None:
                        return attrs.evolve(answer, status=Status.MISS, joined=True)
                    found = looked.found
                    by_name = self._by_name(thing, found)

            def tell(download: Download) -> None:
                announce(Flowing(download=download, fetch=fetch))

            got = await self._fetcher.images.get(thing, found, fetch, tell, by_name=by_name)
        if isinstance(got, Missing):
            return await self._missing(got, found, fetch)
        if isinstance(got, Unstored):
            return Passing(listing=got, hops=fetch.hops)
        if isinstance(got, Download):
            return Flowing(download=got, fetch=fetch)
        return self._answer(got, Status.MISS, fetch.hops)

    def _by_name(self, request: ImageRequest, found: Found) -> bool:
        fresh = self._is_fresh(request.alias, found.alias)
        return self._fetcher.images.by_name(request, found, fresh=fresh)

    def _adopted(self, thing: Thing, fetched: Fetched) -> Held:
        if isinstance(thing, ListingKey):
            fresh = listing_is_fresh(fetched.entry, self._now(), self.lifetimes)
        else:
            fresh = self._is_fresh(thing.alias, fetched.alias)
        if not fresh:
            self._refreshes.start(thing)
        return self._answer(fetched, Status.HIT if fresh else Status.STALE)

    def _answer(self, fetched: Fetched, status: Status, hops: int = 0) -> Held:
        return Held(
            status=status,
            key=fetched.key,
            entry=fetched.entry,
            path=self.store.path_of(fetched.key, fetched.entry.media),
            alias=fetched.alias,
            hops=hops,
        )

    async def _missing(self, missing: Missing, found: Found, fetch: Fetch) -> Absent:
        await self._fetcher.names.missing(missing, found.alias, fetch, self.lifetimes)
        return Absent(status=Status.MISS, hops=fetch.hops)

    def _is_fresh(self, key: AliasKey, alias: Alias | None) -> bool:
        return alias_is_fresh(key, alias, self._now(), self.lifetimes)


_REMEMBERED = frozenset({Verdict.ABSENT, Verdict.ABSENT_STALE})
