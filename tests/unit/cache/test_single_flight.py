"""One running piece of work for each key, one Deferred for each waiter."""

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.single_flight import Announce, Flight, Work
from coverart.errors import BadUpstream


class FlightTests(SynchronousTestCase):
    """Joining, early answers, and leaving."""

    def setUp(self) -> None:
        self.flight: Flight[str, str] = Flight()
        self.gate: Deferred[str] = Deferred()
        self.started = 0
        self.announce: Announce[str] = lambda _: None

    def work(self) -> Work[str]:
        """Work that ends when the gate says so, and counts how often it was started."""

        def start(announce: Announce[str]) -> Coroutine[Deferred[Any], Any, str]:
            self.started += 1
            self.announce = announce

            async def wait() -> str:
                return await self.gate

            return wait()

        return start

    def test_joined(self) -> None:
        """All who want one thing at a time get it from one piece of work."""
        waiters = [self.flight.run("a", self.work()) for _ in range(10)]
        self.assertTrue(self.flight.running("a"))
        self.assertEqual((self.started, len(self.flight)), (1, 1))
        self.gate.callback("cover")
        self.assertEqual([self.successResultOf(d) for d in waiters], ["cover"] * 10)
        self.assertFalse(self.flight.running("a"))
        self.assertEqual(len(self.flight), 0)

    def test_keys_apart(self) -> None:
        """What is wanted under another key is other work."""
        self.flight.run("a", self.work())
        self.flight.run("b", self.work())
        self.assertEqual((self.started, len(self.flight)), (2, 2))

    def test_anew(self) -> None:
        """What is wanted after the end is worked for again."""
        self.gate.callback("cover")
        for _ in range(2):
            self.assertEqual(self.successResultOf(self.flight.run("a", self.work())), "cover")
        self.assertEqual(self.started, 2)

    def test_failure_for_all(self) -> None:
        """Every waiter is told of the error, by a Failure of its own, and none is kept."""
        waiters = [self.flight.run("a", self.work()) for _ in range(3)]
        self.gate.errback(BadUpstream("cut"))
        failures = [self.failureResultOf(d, BadUpstream) for d in waiters]
        self.assertEqual(len({id(failure) for failure in failures}), 3)
        self.assertEqual({failure.value.detail for failure in failures}, {"cut"})
        self.assertEqual(len(self.flight), 0)

    def test_failure_at_once(self) -> None:
        """Work that fails before it ever waits tells its caller just the same."""

        async def fail(_: Announce[str]) -> str:
            raise BadUpstream("no")

        self.failureResultOf(self.flight.run("a", fail), BadUpstream)
        self.assertEqual(len(self.flight), 0)

    def test_failure_unheard(self) -> None:
        """An error that nobody waits for any more is no unhandled error."""
        self.flight.run("a", self.work()).addErrback(lambda _: None).cancel()
        self.gate.errback(BadUpstream("cut"))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_first_leaves(self) -> None:
        """The one who started the work may leave; the work goes on for the others."""
        first = self.flight.run("a", self.work())
        second = self.flight.run("a", self.work())
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertNoResult(second)
        self.gate.callback("cover")
        self.assertEqual(self.successResultOf(second), "cover")

    def test_all_leave(self) -> None:
        """Work that nobody waits for goes on to its end, and can be joined again until then."""
        for _ in range(3):
            self.flight.run("a", self.work()).addErrback(lambda _: None).cancel()
        late = self.flight.run("a", self.work())
        self.assertEqual(self.started, 1)
        self.gate.callback("cover")
        self.assertEqual(self.successResultOf(late), "cover")

    def test_early(self) -> None:
        """An early answer goes to all waiters, and to all who come while the work goes on."""
        before = self.flight.run("a", self.work())
        self.announce("arriving")
        after = self.flight.run("a", self.work())
        self.assertEqual(self.successResultOf(before), "arriving")
        self.assertEqual(self.successResultOf(after), "arriving")
        self.assertTrue(self.flight.running("a"))
        self.gate.callback("cover")
        self.assertEqual(self.started, 1)

    def test_early_once(self) -> None:
        """The first early answer counts."""
        self.flight.run("a", self.work())
        self.announce("one")
        self.announce("two")
        self.assertEqual(self.successResultOf(self.flight.run("a", self.work())), "one")

    def test_early_then_failure(self) -> None:
        """A failure after an early answer is told to those who await the landing alone."""
        early = self.flight.run("a", self.work())
        landing = self.flight.landing("a")
        assert landing is not None
        self.announce("arriving")
        self.gate.errback(BadUpstream("cut"))
        self.assertEqual(self.successResultOf(early), "arriving")
        self.failureResultOf(landing, BadUpstream)

    def test_early_too_late(self) -> None:
        """An announcement after the end changes nothing for the work that came after."""
        self.flight.run("a", self.work())
        announce = self.announce
        self.gate.callback("cover")
        self.gate = Deferred()
        second = self.flight.run("a", self.work())
        announce("ghost")
        self.assertNoResult(second)

    def test_landing(self) -> None:
        """The landing is what the work ends with, early answers aside; None if nothing runs."""
        self.assertIsNone(self.flight.landing("a"))
        self.flight.run("a", self.work())
        landing = self.flight.landing("a")
        assert landing is not None
        self.announce("arriving")
        self.assertNoResult(landing)
        self.gate.callback("cover")
        self.assertEqual(self.successResultOf(landing), "cover")

    def test_landing_left(self) -> None:
        """Who leaves a landing takes nothing from the others."""
        mine = self.flight.run("a", self.work())
        landing = self.flight.landing("a")
        assert landing is not None
        landing.cancel()
        self.failureResultOf(landing, CancelledError)
        self.gate.callback("cover")
        self.assertEqual(self.successResultOf(mine), "cover")

    def test_again_from_a_callback(self) -> None:
        """A waiter that asks again when it is told starts new work, and is not told twice."""
        again: list[Deferred[str]] = []

        def ask(answer: str) -> str:
            self.gate = Deferred()
            again.append(self.flight.run("a", self.work()))
            return answer

        first = self.flight.run("a", self.work()).addCallback(ask)
        second = self.flight.run("a", self.work())
        self.gate.callback("cover")
        self.assertEqual(self.successResultOf(first), "cover")
        self.assertEqual(self.successResultOf(second), "cover")
        self.assertNoResult(again[0])
        self.assertEqual(self.started, 2)
        self.gate.callback("new")
        self.assertEqual(self.successResultOf(again[0]), "new")

    def test_leaves_while_told(self) -> None:
        """A waiter may make another one leave from its callback."""
        first = self.flight.run("a", self.work())
        second = self.flight.run("a", self.work())
        third = self.flight.run("a", self.work())
        first.addCallback(lambda _: second.cancel())
        self.gate.callback("cover")
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.successResultOf(third), "cover")
