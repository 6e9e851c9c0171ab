"""Uses of files on their way to the index."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.uses import USES_AT_ONCE, tell_uses
from coverart.index.memory import MemoryIndex
from coverart.model import Entity, FileKey, ImageRef
from tests.support.strategies import MBID


class _Told(MemoryIndex):
    """Notes how much it is told at once."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def use(self, uses: Sequence[tuple[FileKey, int]]) -> None:
        self.batches.append(len(uses))


class UsesTests(SynchronousTestCase):
    def test_in_batches(self) -> None:
        """Many uses keep no request waiting: the reactor has its turn after each batch."""
        refs = [
            ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=number)
            for number in range(2 * USES_AT_ONCE + 1)
        ]
        index, clock = _Told(), Clock()
        d = Deferred.fromCoroutine(tell_uses(index, {ref.at(250): 1 for ref in refs}, clock))
        self.assertEqual(index.batches, [USES_AT_ONCE])
        clock.advance(0)
        self.assertEqual(index.batches, [USES_AT_ONCE, USES_AT_ONCE, 1])
        self.successResultOf(d)
