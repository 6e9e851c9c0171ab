"""Questions that come while one is on its way go together in the next."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from coverart.index.batched_lookups import BatchedLookups


class BatchedLookupsTests(SynchronousTestCase):
    """A far side that answers when the test says so."""

    def setUp(self) -> None:
        self.asked: list[list[str]] = []
        self.gates: list[Deferred[None]] = []
        self.lookups: BatchedLookups[str, str] = BatchedLookups(self.ask_all, 3)

    async def ask_all(self, questions: list[str]) -> Sequence[str]:
        self.asked.append(questions)
        gate: Deferred[None] = Deferred()
        self.gates.append(gate)
        await gate
        return [question.upper() for question in questions]

    def test_at_once(self) -> None:
        """One by itself waits for nobody."""
        d = self.lookups.ask("a")
        self.assertEqual(self.asked, [["a"]])
        self.gates[0].callback(None)
        self.assertEqual(self.successResultOf(d), "A")

    def test_together(self) -> None:
        """Those that come meanwhile go in one, in their order, and each gets its own answer."""
        first, *others = [self.lookups.ask(question) for question in "abc"]
        self.assertEqual(self.asked, [["a"]])
        self.gates[0].callback(None)
        self.assertEqual(self.successResultOf(first), "A")
        self.assertEqual(self.asked, [["a"], ["b", "c"]])
        self.gates[1].callback(None)
        self.assertEqual([self.successResultOf(d) for d in others], ["B", "C"])

    def test_bounded(self) -> None:
        """No more than so many at once; the rest with the one after."""
        waiters = [self.lookups.ask(question) for question in "abcdef"]
        for gate in range(3):
            self.gates[gate].callback(None)
        self.assertEqual(self.asked, [["a"], ["b", "c", "d"], ["e", "f"]])
        self.assertEqual([self.successResultOf(d) for d in waiters], list("ABCDEF"))

    def test_again(self) -> None:
        """After all were answered it begins anew, also from within an answer."""
        later: list[Deferred[str]] = []
        first = self.lookups.ask("a")
        first.addCallback(lambda _: later.append(self.lookups.ask("b")))
        self.gates[0].callback(None)
        self.assertEqual(self.asked, [["a"], ["b"]])
        self.gates[1].callback(None)
        self.assertEqual(self.successResultOf(later[0]), "B")
        last = self.lookups.ask("c")
        self.assertEqual(self.asked, [["a"], ["b"], ["c"]])
        self.gates[2].callback(None)
        self.assertEqual(self.successResultOf(last), "C")

    def test_one_leaves(self) -> None:
        """Who leaves takes no answer from the others, whether it was asked already or not."""
        waiters = [self.lookups.ask(question) for question in "abc"]
        waiters[0].cancel()
        waiters[1].cancel()
        self.gates[0].callback(None)
        self.gates[1].callback(None)
        for left in waiters[:2]:
            self.failureResultOf(left, CancelledError)
        self.assertEqual(self.successResultOf(waiters[2]), "C")

    def test_failure(self) -> None:
        """An error is told to each of those it concerns; those after them are asked all the same."""
        waiters = [self.lookups.ask(question) for question in "abcd"]
        self.gates[0].callback(None)
        self.gates[1].errback(OSError("away"))
        failures = [self.failureResultOf(d, OSError) for d in waiters[1:]]
        self.assertEqual(len({id(failure) for failure in failures}), 3)
        d = self.lookups.ask("e")
        self.gates[2].callback(None)
        self.assertEqual(self.successResultOf(d), "E")

    def test_too_few_answers(self) -> None:
        """Nobody waits for ever for an answer that is missing."""

        async def short(_: list[str]) -> Sequence[str]:
            return []

        lookups: BatchedLookups[str, str] = BatchedLookups(short, 3)
        self.failureResultOf(lookups.ask("a"), ValueError)
