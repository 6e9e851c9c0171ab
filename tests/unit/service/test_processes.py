"""When a process that ended is started again."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.service.processes import FIRST_PAUSE_S, LONG_LIFE_S, LONGEST_PAUSE_S, pause_s
from tests.support.strategies import examples


def pauses(lives: list[float]) -> list[float]:
    """The pause after each life."""
    last_s, all_s = 0.0, []
    for lived_s in lives:
        last_s = pause_s(last_s, lived_s)
        all_s.append(last_s)
    return all_s


class PauseTests(SynchronousTestCase):
    """Pauses between an end and a start."""

    def test_grows(self) -> None:
        """Short lives in a row: each pause is twice the one before, up to a minute."""
        self.assertEqual(pauses([1.0] * 9), [0.5, 1, 2, 4, 8, 16, 32, 60, 60])

    def test_long_life(self) -> None:
        """After a long life it starts at once, and the pauses begin anew."""
        self.assertEqual(pauses([0.1] * 5 + [LONG_LIFE_S, 0.1])[-2:], [0, FIRST_PAUSE_S])

    @examples(200)
    @given(st.lists(st.floats(0, 10 * LONG_LIFE_S), max_size=2000))
    def test_bounds(self, lives: list[float]) -> None:
        """No pause is longer than the longest, however often it dies."""
        self.assertLessEqual(max(pauses(lives), default=0), LONGEST_PAUSE_S)
