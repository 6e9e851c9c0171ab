"""
A clock whose calls may be up to half a second late: one timer of the reactor for all of them.

A fetch sets a timeout on each thing it waits for, and cancels most of them milliseconds later.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

LOOK_S = 0.5
"""Limit of seconds by which a call is late."""


@implementer(IReactorTime)
class CoarseClock:
    """The time of another clock, looked at every LOOK_S while anything waits."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self.seconds = clock.seconds
        self._clock = clock
        self._waiting: set[DelayedCall] = set()
        self._looks = False

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002
        *args: object,
        **kwargs: object,
    ) -> IDelayedCall:
        due = self.seconds() + delay
        call = DelayedCall(due, callable, args, kwargs, self._waiting.remove, _moved, self.seconds)
        self._waiting.add(call)
        if not self._looks:
            self._look_later()
        return call

    def getDelayedCalls(self) -> list[DelayedCall]:
        return list(self._waiting)

    def _look_later(self) -> None:
        self._looks = True
        self._clock.callLater(LOOK_S, self._look)

    def _look(self) -> None:
        now = self._clock.seconds()
        for call in sorted(each for each in self._waiting if each.getTime() <= now):
            # Not if one before it called this one off.
            if call.active():
                self._waiting.remove(call)
                call.called = 1
                with self.log.failuresHandled("a call by the clock failed"):
                    call.func(*call.args, **call.kw)
        self._looks = False
        if self._waiting:
            self._look_later()


def _moved(_: DelayedCall) -> None:
    """When a call is due is looked at anew each time."""
