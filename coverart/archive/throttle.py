"""
Throttles misses, so that hits are served in between.

The reactor does whatever is ready in one turn, and only then looks for more: a hundred answers of
the archive that came together would keep a hit waiting for all of them.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

GAP_S = 0.002
"""Seconds between two pieces of work while there are hits: about twice what a piece takes."""
HITS_S = 0.1
"""Seconds without a hit until pieces follow each other turn by turn of the reactor."""
BUSY_S = 0.0005
"""
Seconds by which a turn of the reactor is late: other work is running; let it finish. Two pieces
that are less apart may be of one turn.
"""
MOST_PASSED = 4
"""Limit of late turns that are let pass; then a piece goes on all the same, or it never might."""


def at_once() -> Deferred[None]:
    """Wait for no turn."""
    return succeed(None)


class Turns:
    """Lets one piece of work go on at a time, in the order of asking."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: deque[Deferred[None]] = deque()
        self._hit_at = self._last = self._due = float("-inf")
        self._passed = 0

    def hit(self) -> None:
        """A hit was served: there are clients who should not wait."""
        self._hit_at = self._clock.seconds()

    def next(self) -> Deferred[None]:
        """Fires when it is the caller's turn: at once, if the last was long enough ago."""
        now = self._clock.seconds()
        gap_s = GAP_S if now - self._hit_at < HITS_S else BUSY_S
        if not self._waiting and now - self._last >= gap_s:
            self._last = now
            return succeed(None)
        d: Deferred[None] = Deferred(self._leave)
        self._waiting.append(d)
        if len(self._waiting) == 1:
            self._look_later()
        return d

    def _leave(self, d: Deferred[None]) -> None:
        if len(self._waiting) > 1:
            self._waiting.remove(d)

    def _look_later(self) -> None:
        now = self._clock.seconds()
        gap_s = GAP_S if now - self._hit_at < HITS_S else 0.0
        self._due = max(now, self._last + gap_s)
        self._clock.callLater(self._due - now, self._look)

    def _look(self) -> None:
        now = self._clock.seconds()
        if now - self._due > BUSY_S and self._passed < MOST_PASSED:
            self._passed += 1
            self._look_later()
            return
        self._passed = 0
        self._last = now
        d = self._waiting.popleft()
        # Before the callback: next() looks later itself if nobody waits when it is called.
        if self._waiting:
            self._look_later()
        # Not if it was the only one and left.
        if not d.called:
            d.callback(None)
