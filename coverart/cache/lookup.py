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
from coverart.cache.download import Download, Wanted
from coverart.cache.fair_shares import Share, nobodys
from coverart.cache.fetch import Fetch, Fetched, Missing, Unstored
from coverart.cache.miss import Fetcher
from coverart.cache.missing_sizes import MissingSizes
from coverart.cache.operator_actions import OperatorActions
from coverart.cache.refresh import Refreshes
from coverart.cache.single_flight import Announce, Flight
from coverart.cache.substitutes import Substitutes
from coverart.cache.uses import MOST_USES_KEPT, tell_uses
from coverart.errors import CoverError, NobodyReads, Overloaded
from coverart.freshness import (
    Lifetimes,
    Verdict,
    alias_is_fresh,
    judge_image,
    judge_listing,
)
from coverart.index.base import Index
from coverart.metrics import Metrics
from coverart.model import (
    Alias,
    AliasKey,
    FileEntry,
    FileKey,
    Found,
    ImageKey,
    ImageRequest,
    ListingKey,
    Thing,
)
from coverart.store.image_store import ImageStore

MOST_FETCHES = 1000
COME_BACK_S = 5.0
"""Seconds until clients should ask again who find no room to wait in."""


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
        substitutes: Substitutes | None = None,
    ) -> None:
        """
        :param most_fetches: different things fetched for clients, or waiting to be, at once.
        :param turn: awaited by each miss that joins none; who joins it meanwhile needs none.
        :param substitutes: for sizes that the archive has not made; None: there are none.
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
        self._missing_sizes = MissingSizes(
            policy=substitutes or Substitutes(),
            files=fetcher.held,
            now=now,
            held=self._held,
        )
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

    @property
    def idle(self) -> bool:
        """Whether nothing is fetched for a client, nor refreshed in the background."""
        return not (len(self._requests) or self._refreshes.running)

    @property
    def waiting(self) -> int:
        """How many clients wait for something that is being fetched."""
        return self._requests.waiting

    async def get(
        self,
        thing: Thing,
        found: Found | None = None,
        share: Callable[[], Share | None] = nobodys,
    ) -> Answer:
        """
        Say how to answer a request.

        :param found: what hit() just found, which is then not looked up again.
        :param share: called for the share of who asks, where a fetch is to start.
        :raises CoverError: there is nothing to serve and the archive can't be asked.
        """
        found = found or await self._fetcher.held.known(thing)
        known = self._known(thing, found)
        if isinstance(known, Absent) and known.image is not None:
            known = await self._missing_sizes.held(thing, known)
        if known is not None:
            return known
        if found.key is not None and found.entry is not None:
            await self._fetcher.held.lost(found.key, found.entry)
        joined = self._requests.running(thing)
        full = len(self._requests) >= self._most_fetches
        if full and not (joined or self._fetcher.held.has_name(thing)):
            self._make_sure_of_room(len(self._requests))
        paying = None if joined else share()
        if paying is not None:
            paying.spend(unless=lambda: self._fetcher.held.has_name(thing))
        waiting = self._requests.run(thing, lambda tell: self._fetch(thing, found, tell))
        at_once = joined and waiting.called
        answer = await waiting if paying is None else await paying.settled(waiting)
        if not isinstance(answer, Flowing):
            return attrs.evolve(answer, joined=True) if joined else answer
        if answer.download.over:
            # All of it came, and it is about to be held. Or its first bytes were freed, unstored.
            await self._requests.over(thing)
            return await self.get(thing)
        if at_once and answer.download.whole and answer.unstored is None:
            # It is being committed, and as good as held.
            return attrs.evolve(answer, status=Status.HIT)
        return attrs.evolve(answer, joined=True) if joined else answer

    def hit(self, thing: Thing) -> Held | Absent | Found | Deferred[Held | Absent | Found]:
        """
        What is held or known to be absent, or what get() is to be told.

        A Deferred of that where the index is asked elsewhere.
        """
        found = self.index.find_now(thing)
        if found is None:
            return Deferred.fromCoroutine(self._hit_later(thing))
        known = self._known(thing, found)
        if isinstance(known, Absent) and known.image is not None:
            return Deferred.fromCoroutine(self._instead(thing, found, known))
        return known or found

    async def _hit_later(self, thing: Thing) -> Held | Absent | Found:
        found = await self._fetcher.held.known(thing)
        known = self._known(thing, found)
        if isinstance(known, Absent) and known.image is not None:
            return await self._instead(thing, found, known)
        return known or found

    async def _instead(self, thing: Thing, found: Found, absent: Absent) -> Held | Absent | Found:
        return await self._missing_sizes.held(thing, absent) or found

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

    async def point(
        self, key: AliasKey, share: Callable[[], Share | None] = nobodys
    ) -> Pointed | Absent:
        """
        Say where a name or an id points, without fetching the image.

        :param share: as get() takes it.
        :raises CoverError: nothing is known and the archive can't be asked.
        """
        request = ImageRequest(alias=key, size=0)
        found = await self.index.find_image(request)
        if found.target is not None:
            fresh = self._is_fresh(key, found.alias)
            if not fresh:
                self._refreshes.start(request, fetches=False)
            return Pointed(status=Status.HIT if fresh else Status.STALE, target=found.target)
        if isinstance(known := self._known(request, found, fetches=False), Absent):
            return known
        self._make_sure_of_room(self._fetcher.names.resolving)
        paying = None if self._fetcher.names.joins(key) else share()
        if paying is None:
            return await self._ask_where(key, found)
        paying.spend()
        return await paying.settled(self._ask_where(key, found))

    async def _ask_where(self, key: AliasKey, found: Found) -> Pointed | Absent:
        # No claim: without one, each process sends one small request at most.
        async with self._fetcher.begin() as fetch:
            alias = await self._fetcher.names.resolve(key, fetch)
            if isinstance(alias, Missing):
                return await self._missing(alias, found, fetch)
            if alias.target.ref != key.own_ref:
                await self.index.put_alias(key, alias)
            return Pointed(status=Status.MISS, target=alias.target, hops=fetch.hops)

    def _make_sure_of_room(self, fetching: int) -> None:
        """:raises Overloaded: one more would be too many. At once: waiting would help nobody."""
        if fetching >= self._most_fetches:
            self._metrics.overload["fetch"].inc()
            raise Overloaded(f"{fetching} things are being fetched", retry_after_s=COME_BACK_S)

    # One request

    def _known(self, thing: Thing, found: Found, *, fetches: bool = True) -> Held | Absent | None:
        """
        The answer that needs no fetch, if there is one; what is stale is refreshed behind it.

        :param fetches: as Refreshes.start() takes it.
        """
        if isinstance(thing, ListingKey):
            verdict = judge_listing(found, self._now(), self.lifetimes)
        else:
            verdict = judge_image(thing, found, self._now(), self.lifetimes)
        answer: Held | Absent | None = None
        match verdict:
            case Verdict.HIT:
                return self._held(found, Status.HIT)
            case Verdict.STALE:
                answer = self._held(found, Status.STALE)
            case Verdict.ABSENT:
                return Absent(status=Status.ABSENT, image=self._missing_sizes.image(thing, found))
            case Verdict.ABSENT_STALE:
                image = self._missing_sizes.image(thing, found)
                answer = Absent(status=Status.ABSENT, image=image, asked_again=True)
        if answer is not None:
            self._refreshes.start(thing, fetches=fetches)
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
        if not self.index.complete:
            # Served whatever else goes on: without Redis this is how every hit is found.
            on_disk = await self._fetcher.held.find(thing)
            if on_disk is not None and (known := self._known(thing, on_disk)) is not None:
                return known
        with self._metrics.fetches.track_inprogress():
            # Before the claims: who waits in line keeps no other process from the work.
            try:
                slot = await self._fetcher.slot(thing)
            except Overloaded:
                self._metrics.overload["waited"].inc()
                raise
            try:
                async with self._fetcher.begin() as fetch:
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
        # Of a size that is known to be missing, only what stands in for it.
        known = None if found.absence is None else self._known(thing, found)
        answer = known or await self._fetch_one(thing, found, fetch, announce)
        if not isinstance(answer, Absent):
            return answer
        return await self._missing_sizes.fetched(thing, answer, fetch, announce, self._fetch_one)

    async def _fetch_one(
        self,
        thing: Thing,
        found: Found,
        fetch: Fetch,
        announce: Announce[Answer],
        wanted: Wanted | None = None,
    ) -> Answer:
        got: Fetched | Download | Unstored | Missing
        if isinstance(thing, ListingKey):
            known = await self._fetcher.held.claim(thing, fetch)
            if isinstance(known, FileEntry):
                got = Fetched(key=thing, entry=known)
            else:
                got = known or await self._fetcher.listings.fetch(thing, fetch)
        else:
            by_name = self._by_name(thing, found)
            if by_name:
                claim = await self.index.claim_name(thing)
                fetch.add_claim(claim)
                if claim.waited:
                    # Another process did it: what it found is in the index.
                    found = await self._fetcher.held.known(thing)
                    if (answer := self._known(thing, found)) is not None:
                        return attrs.evolve(answer, status=Status.MISS, joined=True)
                    by_name = self._by_name(thing, found)

            def tell(download: Download) -> None:
                announce(Flowing(download=download, fetch=fetch))

            got = await self._fetcher.images.get(
                thing, found, fetch, tell, by_name=by_name, wanted=wanted
            )
        if isinstance(got, Missing):
            return await self._missing(got, found, fetch)
        if isinstance(got, Unstored):
            return Passing(listing=got, hops=fetch.hops)
        if isinstance(got, Download):
            return Flowing(download=got, fetch=fetch)
        return Held(
            status=Status.MISS,
            key=got.key,
            entry=got.entry,
            path=self.store.path_of(got.key, got.entry.media),
            alias=got.alias,
            hops=fetch.hops,
        )

    def _by_name(self, request: ImageRequest, found: Found) -> bool:
        fresh = self._is_fresh(request.alias, found.alias)
        return self._fetcher.images.by_name(request, found, fresh=fresh)

    async def _missing(self, missing: Missing, found: Found, fetch: Fetch) -> Absent:
        await self._fetcher.names.missing(missing, found.alias, fetch, self.lifetimes)
        image = missing.subject if isinstance(missing.subject, ImageKey) else None
        return Absent(status=Status.MISS, image=image, hops=fetch.hops)

    def _is_fresh(self, key: AliasKey, alias: Alias | None) -> bool:
        return alias_is_fresh(key, alias, self._now(), self.lifetimes)
