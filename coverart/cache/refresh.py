"""Asking the archive again about what is held: in the background, or for an operator."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.archive.paths import spell
from coverart.cache.fetch import Fetch, Missing, Unstored
from coverart.cache.miss import Fetcher
from coverart.cache.single_flight import Flight
from coverart.errors import CoverError, StoreFailed
from coverart.freshness import Lifetimes
from coverart.index.base import Index
from coverart.metrics import Metrics
from coverart.model import AliasKey, ImageKey, ImageRequest, ListingKey, Thing, name_of

REFRESH_PAUSE_S = 60.0
"""Seconds until the archive is asked again after a refresh failed; the old answer is served."""
MOST_PAUSES = 10_000
REFRESHES_AT_ONCE = 4
"""Clients have their old answers already: those who wait for a new one go first."""
MOST_REFRESHES = 500
"""Limit of refreshes under way and waiting; past it a stale answer is renewed another time."""


@attrs.define(eq=False, kw_only=True)
class Refreshes:
    """Renews what is stale, once for all who ask in this process."""

    log = Logger()

    _index: Index
    _fetcher: Fetcher
    _lifetimes: Lifetimes
    _clock: IReactorTime
    _metrics: Metrics
    _slots: DeferredSemaphore = attrs.field(
        factory=lambda: DeferredSemaphore(REFRESHES_AT_ONCE), init=False
    )
    _flights: Flight[AliasKey | ListingKey, None] = attrs.field(factory=Flight, init=False)
    _pauses: OrderedDict[AliasKey | ListingKey, float] = attrs.field(
        factory=OrderedDict, init=False
    )

    def over(self, thing: Thing) -> Deferred[Any]:
        """Fires when the refresh of a thing's name has ended, if one is under way."""
        return self._flights.over(name_of(thing))

    @property
    def running(self) -> int:
        """How many are under way, or wait."""
        return len(self._flights)

    def start(self, thing: Thing, *, fetches: bool = True) -> None:
        """:param fetches: whether the image of a name that moved is fetched before it moves here."""
        key = name_of(thing)
        if self._flights.running(key) or self._pauses.get(key, 0.0) > self._clock.seconds():
            return
        if self.running >= MOST_REFRESHES:
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
                self.log.failure(
                    "refreshing {key} failed unexpectedly, serving the old answer",
                    failure,
                    key=spell(thing),
                )

        self._flights.run(key, lambda _: self._run(thing, fetches)).addErrback(failed)

    def _pause(self, key: AliasKey | ListingKey) -> None:
        self._pauses[key] = self._clock.seconds() + REFRESH_PAUSE_S
        if len(self._pauses) > MOST_PAUSES:
            self._pauses.popitem(last=False)

    async def _run(self, thing: Thing, fetches: bool) -> None:
        async with self._slots, self._fetcher.begin() as fetch:
            if isinstance(thing, ListingKey):
                _, claim = await self._index.claim(thing, again=True)
            else:
                claim = await self._index.claim_name(thing)
            if claim is not None:
                fetch.add_claim(claim)
            # Or another process did it.
            if claim is None or not claim.waited:
                await self.ask_again(thing, fetch, fetches=fetches)

    async def ask_again(self, thing: Thing, fetch: Fetch, *, fetches: bool = True) -> None:
        """
        Ask the archive about a listing or a name.

        :param fetches: as start() takes it.
        :raises CoverError: it can't be asked, or what it has can't be stored.
        """
        found = await self._fetcher.held.known(thing)
        missing: Missing | None = None
        if isinstance(thing, ListingKey):
            fetched = await self._fetcher.listings.fetch(thing, fetch)
            if isinstance(fetched, Unstored):
                raise StoreFailed(f"the new one can't be stored ({fetched.why})")
            missing = fetched if isinstance(fetched, Missing) else None
        else:
            alias = await self._fetcher.names.resolve(thing.alias, fetch)
            if isinstance(alias, Missing):
                missing = alias
            elif fetches:
                missing = await self._fetcher.images.repoint(thing, alias, fetch)
            else:
                await self._fetcher.names.repoint_unfetched(thing.alias, alias)
        if missing is not None:
            await self._fetcher.names.missing(missing, found.alias, fetch, self._lifetimes)
            if isinstance(missing.subject, ImageKey) and isinstance(thing, ImageRequest):
                # The name leads to an image of which this size was not made yet: the old one
                # stays, and is as stale as before.
                self._pause(thing.alias)
            if isinstance(thing, ListingKey) and found.entry is not None:
                await self._fetcher.held.drop(thing, found.entry, until=missing.asked_at or 0.0)
        self._metrics.refreshes.inc()
