"""What goes by the clock: work that is repeated, and how late the reactor is."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

log = Logger()


def go_by_monotonic_time(reactor: Any) -> None:
    """
    Let a reactor that does not run yet time its calls by a clock that nobody sets.

    Twisted goes by the time of day: set back by an hour, it makes every call wait for that hour.
    """
    if not reactor.running:
        reactor.seconds = time.monotonic


def repeat(
    clock: IReactorTime,
    seconds: float,
    name: str,
    work: Callable[[], Awaitable[object]],
    *,
    now: bool = False,
) -> Callable[[], Deferred[Any]]:
    """
    Do work at an interval from now on; after an error it is done again the next time.

    :param name: what the log calls the work.
    :param now: do it at once for the first time.
    :returns: call it once, to begin no more. Fires when what is under way has ended.
    """

    async def once() -> None:
        try:
            await work()
        except Exception:
            # A LoopingCall would end for good.
            log.failure(
                "{work} failed; it is done again in {seconds:g} s", work=name, seconds=seconds
            )

    calls = LoopingCall(once)
    calls.clock = clock
    ended = calls.start(seconds, now=now)

    def stop() -> Deferred[Any]:
        calls.stop()
        return ended

    return stop


def pulse(clock: IReactorTime, seconds: float, beat: Callable[[float], object]) -> LoopingCall:
    """
    Call at an interval from now on, with how many seconds too late it is.

    What holds up the reactor is seen by that, also where it takes several intervals.
    """
    began = clock.seconds()

    def once(intervals: int) -> None:
        beat((intervals - 1) * seconds + (clock.seconds() - began) % seconds)

    calls = LoopingCall.withCount(once)
    calls.clock = clock
    calls.start(seconds, now=False)
    return calls
