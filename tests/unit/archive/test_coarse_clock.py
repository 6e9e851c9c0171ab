"""A clock that is looked at now and then."""

from twisted.internet.defer import Deferred, TimeoutError  # noqa: A004
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from coverart.archive.coarse_clock import LOOK_S, CoarseClock


class CoarseClockTests(SynchronousTestCase):
    """CoarseClock over a clock moved by hand."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.coarse = CoarseClock(self.clock)
        self.called: list[int] = []

    def test_interface(self) -> None:
        """It is a clock as any other."""
        verifyObject(IReactorTime, self.coarse)

    def test_in_order(self) -> None:
        """What is due is called in order, a look later at most, by one timer; then none is left."""
        for number, delay in enumerate((3.0, 1.0, 2.0)):
            self.coarse.callLater(delay, self.called.append, number)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        while self.clock.getDelayedCalls():
            due = [
                n for n, delay in ((1, 1.0), (2, 2.0), (0, 3.0)) if delay <= self.clock.seconds()
            ]
            self.assertEqual(self.called, due)
            self.clock.advance(LOOK_S)
        self.assertEqual((self.called, self.coarse.getDelayedCalls()), ([1, 2, 0], []))

    def test_taken_back(self) -> None:
        """A bound that was taken back or moved is none."""
        self.coarse.callLater(1, self.called.append, 1).cancel()
        moved = self.coarse.callLater(1, self.called.append, 2)
        moved.reset(5)
        self.clock.advance(4)
        self.assertEqual(self.called, [])
        self.clock.advance(1)
        self.assertEqual((self.called, moved.active()), ([2], False))

    def take_back(self) -> None:
        """Call off the second."""
        self.second.cancel()

    def test_one_takes_another_back(self) -> None:
        """Of two that are due at once the first may call off the second."""
        first = self.coarse.callLater(1, self.take_back)
        self.second = self.coarse.callLater(1.1, self.called.append, 1)
        self.clock.advance(2)
        self.assertEqual((self.called, first.active()), ([], False))

    def test_error(self) -> None:
        """An error is logged, and what else is due is called."""
        self.coarse.callLater(1, lambda: 1 / 0)
        self.coarse.callLater(2, self.called.append, 1)
        for _ in range(4):
            self.clock.advance(1)
        self.assertEqual((self.called, len(self.flushLoggedErrors(ZeroDivisionError))), ([1], 1))

    def test_bounds_a_deferred(self) -> None:
        """addTimeout() goes by it."""
        d: Deferred[None] = Deferred()
        d.addTimeout(1, self.coarse)
        self.clock.advance(1)
        self.failureResultOf(d, TimeoutError)
