"""When a process that ended is started again."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.service.processes import FIRST_PAUSE_S, LONG_LIFE_S, LONGEST_PAUSE_S, Backoff
from tests.support.strategies import examples


class BackoffTests(SynchronousTestCase):
    """Pauses between an end and a start."""

    def test_grows(self) -> None:
        """Short lives in a row: each pause is twice the one before, up to a minute."""
        backoff = Backoff()
        pauses = [backoff.pause_s(1.0) for _ in range(9)]
        self.assertEqual(pauses, [0.5, 1, 2, 4, 8, 16, 32, 60, 60])
        self.assertEqual(backoff.quick_deaths, 9)

    def test_long_life(self) -> None:
        """After a long life it starts at once, and the pauses begin anew."""
        backoff = Backoff()
        for _ in range(5):
            backoff.pause_s(0.1)
        self.assertEqual(backoff.pause_s(LONG_LIFE_S), 0)
        self.assertEqual(backoff.pause_s(0.1), FIRST_PAUSE_S)

    @examples(200)
    @given(st.lists(st.floats(0, 10 * LONG_LIFE_S), max_size=2000))
    def test_bounds(self, lives: list[float]) -> None:
        """No pause is longer than the longest, however often it dies."""
        backoff = Backoff()
        for lived_s in lives:
            self.assertLessEqual(backoff.pause_s(lived_s), LONGEST_PAUSE_S)
