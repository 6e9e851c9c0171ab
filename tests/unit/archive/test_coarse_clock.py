"""A clock that is looked at now and then."""

from twisted.internet.defer import Deferred, TimeoutError  # noqa: A004
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive.coarse_clock import CoarseClock


class CoarseClockTests(SynchronousTestCase):
    """CoarseClock over a clock moved by hand."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.coarse = CoarseClock(self.clock)
        self.called: list[int] = []

    def advance(self, seconds: float) -> None:
        """Time passes, then somebody looks."""
        self.clock.advance(seconds)
        self.coarse.look()

    def test_in_order(self) -> None:
        """What is due is called in order by the next look; its time is the other clock's; it sets no timer."""
        for number, delay in enumerate((3.0, 1.0, 2.0)):
            self.coarse.callLater(delay, self.called.append, number)
        self.clock.advance(0.9)
        self.assertEqual((self.coarse.seconds(), self.clock.getDelayedCalls()), (0.9, []))
        for seconds, called in ((0, []), (0.2, [1]), (2, [1, 2, 0])):
            self.advance(seconds)
            self.assertEqual(self.called, called)

    def test_taken_back(self) -> None:
        """A bound that was taken back or moved is none."""
        self.coarse.callLater(1, self.called.append, 1).cancel()
        moved = self.coarse.callLater(1, self.called.append, 2)
        moved.reset(5)
        self.advance(4)
        self.assertEqual(self.called, [])
        self.advance(1)
        self.assertEqual((self.called, moved.active()), ([2], False))

    def take_back(self) -> None:
        """Call off the second."""
        self.second.cancel()

    def test_one_takes_another_back(self) -> None:
        """Of two that are due at once the first may call off the second."""
        first = self.coarse.callLater(1, self.take_back)
        self.second = self.coarse.callLater(1.1, self.called.append, 1)
        self.advance(2)
        self.assertEqual((self.called, first.active()), ([], False))

    def test_error(self) -> None:
        """An error is logged, and what else is due is called by the next look."""
        self.coarse.callLater(1, lambda: 1 / 0)
        self.coarse.callLater(2, self.called.append, 1)
        self.advance(3)
        self.coarse.look()
        self.assertEqual((self.called, len(self.flushLoggedErrors(ZeroDivisionError))), ([1], 1))

    def test_bounds_a_deferred(self) -> None:
        """addTimeout() goes by it."""
        d: Deferred[None] = Deferred()
        d.addTimeout(1, self.coarse)
        self.advance(1)
        self.failureResultOf(d, TimeoutError)
