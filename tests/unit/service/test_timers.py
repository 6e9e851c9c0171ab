"""What goes by the clock."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from coverart.service.timers import pulse, repeat


class RepeatTests(SynchronousTestCase):
    """Work that is done every so many seconds."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.done: list[float] = []
        self.ending: Deferred[None] | None = None

    async def work(self) -> None:
        self.done.append(self.clock.seconds())
        if self.ending is not None:
            await self.ending
        if len(self.done) == 2:
            raise ValueError("out of order")

    def test_after_an_error(self) -> None:
        """Work that fails is told by name, and done again the next time."""
        events: list[LogEvent] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        repeat(self.clock, 5, "the work", self.work)
        self.clock.pump([5] * 3)
        self.assertEqual(self.done, [5, 10, 15])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        lines = [formatEvent(event) for event in events]
        self.assertIn("the work failed; it is done again in 5 s", lines)

    def test_stop(self) -> None:
        """A stop waits for what is under way; nothing follows."""
        self.ending = Deferred()
        stopped = repeat(self.clock, 5, "the work", self.work, now=True)()
        self.assertNoResult(stopped)
        self.ending.callback(None)
        self.successResultOf(stopped)
        self.clock.advance(60)
        self.assertEqual(self.done, [0])


class PulseTests(SynchronousTestCase):
    """How late timed calls run."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.seen: list[float] = []
        self.calls = pulse(self.clock, 0.25, self.seen.append)

    def test_in_time(self) -> None:
        """A reactor that is free is never late."""
        self.clock.pump([0.25] * 5)
        self.assertEqual(self.seen, [0] * 5)

    def test_held_up(self) -> None:
        """A turn that took long is seen in full, also where it took several times as long."""
        self.clock.advance(0.25 + 0.0625)
        self.clock.advance(0.25 - 0.0625)
        self.clock.advance(4 * 0.25)
        self.assertEqual(self.seen, [0.0625, 0, 3 * 0.25])

    def test_stop(self) -> None:
        """Stopped, it leaves nothing behind."""
        self.calls.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
