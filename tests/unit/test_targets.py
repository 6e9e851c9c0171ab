"""Whatever comes from outside is understood or refused: seeds torn apart and put together again."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.strategies import examples
from tests.support.targets import SEEDS, TARGETS


@st.composite
def torn(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Pieces of seeds, and between them anything."""
    pieces = []
    for _ in range(draw(st.integers(1, 4))):
        seed = draw(st.sampled_from(seeds))
        start, stop = sorted(draw(st.tuples(*[st.integers(0, len(seed))] * 2)))
        pieces.append(draw(st.sampled_from((seed, seed[:start], seed[start:stop], seed[stop:]))))
        pieces.append(draw(st.binary(max_size=3)))
    return b"".join(pieces)


class TargetTests(SynchronousTestCase):
    """tests/support/targets.py, a little of each; `python -m bench.fuzz` goes on for as long as you like."""

    def test_every_target(self) -> None:
        """Each keeps its promise for its seeds and for what can be made of them."""
        for name, target in TARGETS.items():
            for seed in SEEDS[name]:
                target(seed)

            @given(st.one_of(torn(SEEDS[name]), st.binary(max_size=60)))
            @examples(150)
            def keeps_it(data: bytes) -> None:
                target(data)  # noqa: B023 - called in this turn

            keeps_it()
