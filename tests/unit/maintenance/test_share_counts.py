"""What each process counted, told to the index for all."""

from collections.abc import Coroutine, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from coverart.index.base import IndexAway
from coverart.index.memory import MemoryIndex
from coverart.maintenance.share_counts import SharedCounts
from coverart.metrics import Metrics


class Index(MemoryIndex):
    """One that can be away, and says what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.told: list[dict[str, int]] = []
        self.busy: Deferred[None] | None = None

    async def tally(self, counts: Mapping[str, int]) -> None:
        if self.busy is not None:
            await self.busy
        if self.away:
            raise IndexAway
        self.told.append(dict(counts))
        await super().tally(counts)


class TalliesTests(SynchronousTestCase):
    """What every process adds."""

    def setUp(self) -> None:
        self.index = Index()
        self.metrics = Metrics()
        self.counts = SharedCounts(self.metrics, self.index)

    def finish(self, work: Coroutine[Deferred[Any], Any, object]) -> None:
        """Let it come to its end, which waits for nothing."""
        self.successResultOf(Deferred.fromCoroutine(work))

    def test_told_once(self) -> None:
        """Each tells what it counted since; nothing new is nothing told."""
        self.metrics.request("hits", 1, 0.1)
        self.finish(self.counts.tell())
        self.finish(self.counts.tell())
        self.metrics.request("hits", 1, 0.1)
        self.metrics.swept["evicted"].inc(3)
        self.finish(self.counts.tell())
        self.assertEqual(self.index.told, [{"hits": 1}, {"hits": 1, "evicted": 3}])

    def test_kept_while_away(self) -> None:
        """What the index could not be told is kept, and told with what came after."""
        self.index.away = True
        self.metrics.request("misses", 1, 0.1)
        self.finish(self.counts.tell())
        self.assertEqual(self.index.told, [])
        self.metrics.request("misses", 1, 0.1)
        self.index.away = False
        self.finish(self.counts.tell())
        self.assertEqual(self.index.told, [{"misses": 2}])
        self.finish(self.counts.tell())
        self.assertEqual(len(self.index.told), 1)

    def test_two_at_once(self) -> None:
        """A call while the index is still being told tells what came since, and that alone."""
        self.metrics.request("hits", 1, 0.1)
        self.index.busy = Deferred()
        telling = Deferred.fromCoroutine(self.counts.tell())
        self.metrics.request("hits", 1, 0.1)
        second = Deferred.fromCoroutine(self.counts.tell())
        self.index.busy.callback(None)
        self.successResultOf(telling)
        self.successResultOf(second)
        self.assertEqual(self.index.told, [{"hits": 1}, {"hits": 1}])
