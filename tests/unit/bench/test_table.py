"""What `python -m bench` makes of what it measured."""

from typing import Literal

from twisted.trial.unittest import SynchronousTestCase

from bench.__main__ import ROWS
from bench.load import Load, load_of
from bench.table import Figure, Goal, Pair, Result, Row, render


def result(goal: Goal | None, *pairs: tuple[float, float]) -> Result:
    """Reference and coverart, a pair a round."""
    row = Row(name="row", what="this", reference="that", unit="ms", goal=goal, measure=lambda _: [])
    return Result(
        row=row,
        pairs=tuple(Pair(reference=Figure(value=a), coverart=Figure(value=b)) for a, b in pairs),
    )


class GoalTests(SynchronousTestCase):
    """Each kind of goal bounds what it says."""

    def reached(self, bound: float, of: Literal["ratio", "later", "figure"]) -> bool | None:
        """Whether 10 : 30, 20 : 50 and 40 : 44 reach a goal of at most that."""
        goal = Goal(bound=bound, at_most=True, of=of)
        return result(goal, (10, 30), (20, 50), (40, 44)).reached

    def test_ratio(self) -> None:
        """The median of the rounds' ratios, 2.5."""
        self.assertTrue(self.reached(2.5, "ratio"))
        self.assertFalse(self.reached(2.4, "ratio"))

    def test_later(self) -> None:
        """The median of the rounds' differences, 20."""
        self.assertTrue(self.reached(20, "later"))
        self.assertFalse(self.reached(19, "later"))

    def test_figure(self) -> None:
        """The median of coverart's own, 44."""
        self.assertTrue(self.reached(44, "figure"))
        self.assertFalse(self.reached(43, "figure"))

    def test_at_least(self) -> None:
        """More is better by itself; without a goal nothing is reached or missed."""
        self.assertTrue(result(Goal(bound=0.9), (10, 9)).reached)
        self.assertFalse(result(Goal(bound=0.9), (10, 8)).reached)
        self.assertIsNone(result(None, (10, 8)).reached)

    def test_told(self) -> None:
        """The table says what is bounded, in the unit of the row."""
        self.assertIn(
            "<= 5 ms later", render([result(Goal(bound=5, at_most=True, of="later"), (1, 2))])
        )
        self.assertIn(">= 0.9 ", render([result(Goal(bound=0.9), (1, 2))]))


class LoadTests(SynchronousTestCase):
    """What wrk's script says, as answers and failures."""

    said = "Requests/sec: 5\nbench 100 2000000 3 40\n"

    def test_refusals(self) -> None:
        """40 of 100 were refusals: failed where none should be, right where all should."""
        self.assertEqual(load_of(self.said, 200), Load(answers=100, failed=43, seconds=2.0))
        self.assertEqual(load_of(self.said, 404), Load(answers=100, failed=63, seconds=2.0))

    def test_nothing(self) -> None:
        """A wrk that says something else ends the measurement."""
        self.assertRaises(RuntimeError, load_of, "unable to connect", 200)


class RowsTests(SynchronousTestCase):
    """All rows of the benchmark."""

    def test_names(self) -> None:
        """Each has a name of its own, by which it can be run alone."""
        self.assertEqual(len({row.name for row in ROWS}), len(ROWS))
