"""Work that goes on a piece at a time, by a clock moved by hand."""

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive.throttle import BUSY_S, GAP_S, HITS_S, MOST_PASSED, Turns, at_once


class Reactor(Clock):
    """A Clock in which what is put off in one turn runs in the next, as in the real one."""

    def callLater(self, delay: float, callable: Any, *args: Any, **kw: Any) -> Any:  # noqa: A002
        return super().callLater(delay + 1e-9, callable, *args, **kw)

    def advance(self, amount: float) -> None:
        """One turn."""
        super().advance(amount + 1e-6)


class TurnsTests(SynchronousTestCase):
    """Turns; advance() is one of the reactor's."""

    def setUp(self) -> None:
        self.clock = Reactor()
        self.clock.advance(1000)
        self.turns = Turns(self.clock)
        self.gone: list[int] = []

    def wait(self, number: int) -> None:
        """Ask for a turn."""
        self.turns.next().addCallback(lambda _: self.gone.append(number))

    def test_one_at_a_time(self) -> None:
        """The first goes at once, each turn of the reactor lets one more go, in the order of asking."""
        for number in range(3):
            self.wait(number)
        for done in range(1, 5):
            self.assertEqual(self.gone, list(range(min(done, 3))))
            self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_asks_again(self) -> None:
        """What asks for another turn from its own waits behind the others."""
        self.wait(0)
        self.turns.next().addCallback(lambda _: self.wait(9))
        self.wait(1)
        for _ in range(3):
            self.clock.advance(0)
        self.assertEqual(self.gone, [0, 1, 9])

    def test_asks_again_alone(self) -> None:
        """Who is alone and asks again from its own turn is looked at once, after the gap."""
        self.turns.hit()

        def ask_again(_: None) -> None:
            self.wait(8)
            self.wait(9)

        self.wait(0)
        self.turns.next().addCallback(ask_again)
        self.clock.advance(GAP_S)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(GAP_S / 2)
        self.assertEqual(self.gone, [0])
        self.clock.advance(GAP_S / 2)
        self.assertEqual(self.gone, [0, 8])
        self.clock.advance(GAP_S)
        self.clock.advance(GAP_S)
        self.assertEqual(self.gone, [0, 8, 9])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gap_beside_hits(self) -> None:
        """While there are hits, pieces are apart; after a pause in them they are not."""
        self.turns.hit()
        for number in range(4):
            self.wait(number)
        self.clock.advance(GAP_S / 2)
        self.assertEqual(self.gone, [0])
        self.clock.advance(GAP_S / 2)
        self.assertEqual(self.gone, [0, 1])
        self.clock.advance(HITS_S)
        for _ in range(MOST_PASSED + 2):
            self.clock.advance(0)
        self.assertEqual(self.gone, [0, 1, 2, 3])

    def test_lone_one(self) -> None:
        """A single piece after a while waits for no gap, hits or not."""
        self.turns.hit()
        self.wait(1)
        self.assertEqual((self.gone, self.clock.getDelayedCalls()), ([1], []))

    def test_busy(self) -> None:
        """Turns that had much to do are let pass, but not for ever."""
        self.wait(0)
        self.wait(1)
        for _ in range(MOST_PASSED):
            self.clock.advance(2 * BUSY_S)
            self.assertEqual(self.gone, [0])
        self.clock.advance(2 * BUSY_S)
        self.assertEqual(self.gone, [0, 1])

    def test_cancelled(self) -> None:
        """One that gives up takes no turn from the others, alone or not."""
        self.wait(0)
        d = self.turns.next()
        self.wait(1)
        d.addErrback(lambda _: None).cancel()
        self.clock.advance(0)
        self.assertEqual(self.gone, [0, 1])
        d = self.turns.next()
        d.addErrback(lambda _: None).cancel()
        self.wait(2)
        for _ in range(2):
            self.clock.advance(0)
        self.assertEqual(self.gone, [0, 1, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_at_once(self) -> None:
        """Who need not wait does not."""
        self.assertIsNone(self.successResultOf(at_once()))
