"""What goes by the clock: work that is repeated, and how late the reactor is."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

DELAY_EVERY_S = 0.25


def go_by_monotonic_time(reactor: Any) -> None:
    """
    Let a reactor that does not run yet time its calls by a clock that nobody sets.

    Twisted goes by the time of day: set back by an hour, it makes every call wait for that hour.
    """
    if not reactor.running:
        reactor.seconds = time.monotonic


class Repeated:
    """Work that is done at an interval; after an error it is done again the next time."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        seconds: float,
        name: str,
        work: Callable[[], Awaitable[object]],
    ) -> None:
        """:param name: what the log calls the work."""
        self._seconds = seconds
        self._name = name
        self._work = work
        self._calls = LoopingCall(self._once)
        self._calls.clock = clock
        self._ended: Deferred[Any] = succeed(None)

    def start(self, *, now: bool = False) -> None:
        """:param now: do it at once for the first time."""
        self._ended = self._calls.start(self._seconds, now=now)

    def stop(self) -> Deferred[Any]:
        """Begin no more. Fires when what is under way has ended."""
        if self._calls.running:
            self._calls.stop()
        return self._ended

    async def _once(self) -> None:
        try:
            await self._work()
        except Exception:
            # A LoopingCall would end for good.
            self.log.failure(
                "{work} failed; it is done again in {seconds:g} s",
                work=self._name,
                seconds=self._seconds,
            )


class ReactorDelay:
    """Watches how late a timed call runs: what holds up the reactor holds up every client."""

    def __init__(self, clock: IReactorTime, observe: Callable[[float], None]) -> None:
        self._clock = clock
        self._observe = observe
        self._due = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        self._due = self._clock.seconds() + DELAY_EVERY_S
        self._call = self._clock.callLater(DELAY_EVERY_S, self._look)

    def stop(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _look(self) -> None:
        self._observe(max(0.0, self._clock.seconds() - self._due))
        self.start()
