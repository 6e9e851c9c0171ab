"""
A clock whose calls may be up to half a second late: one timer of the reactor for all of them.

A fetch sets a timeout on each thing it waits for, and cancels most of them milliseconds later.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.logger import Logger

LOOK_S = 0.5
"""Limit of seconds by which a call is late."""


class CoarseClock(Clock):
    """The time of another clock; what is due is called by look(), which whoever owns it repeats."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__()
        # Asked at every call: by no detour.
        self.seconds = clock.seconds  # type: ignore[method-assign]

    def look(self) -> None:
        """Call what is due. What an error keeps from being called is called by the next look."""
        with self.log.failuresHandled("a call by the clock failed"):
            self.advance(0)
