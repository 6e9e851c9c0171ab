"""Taking in the hit log: who may, in which order, and what happens when something is away."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from coverart.coordination.leader import Alone
from coverart.index.base import IndexAway
from coverart.index.eviction_order import Eviction
from coverart.index.memory import MemoryIndex
from coverart.maintenance import count_hits
from coverart.maintenance.count_hits import HitCounter
from coverart.maintenance.hit_log import BATCH_BYTES, CUT_BYTES, HitLog
from coverart.maintenance.share_counts import SharedCounts
from coverart.metrics import Metrics
from coverart.model import FileEntry, MediaType
from tests.support.doubles import HeldBack, at_once, folder
from tests.support.hit_lines import LINE, OTHER, OTHER_LINE, REF, Log


class Index(MemoryIndex):
    """One that can be away, and says what it was told."""

    def __init__(self, eviction: Eviction = "oldest") -> None:
        super().__init__(eviction=eviction)
        self.available = True
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


class Leading(Alone):
    """A leader, or not."""

    token: str | None = "one"  # type: ignore[assignment]  # noqa: S105


class CountCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = Log(folder(self))
        self.index = Index()
        self.leadership = Leading()
        self.metrics = Metrics()
        self.clock = Clock()
        self.counter = self.make()
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def make(self, in_thread: Callable[..., Deferred[Any]] = at_once) -> HitCounter:
        return HitCounter(
            HitLog(self.log.path, self.log.root, follow=self.index.eviction != "oldest"),
            index=self.index,
            in_thread=in_thread,
            leadership=self.leadership,
            clock=self.clock,
            metrics=self.metrics,
        )

    def finish(self, work: Coroutine[Deferred[Any], Any, object]) -> None:
        """Let it come to its end, in as many turns as it takes."""
        d = Deferred.fromCoroutine(work)
        for _ in range(200):
            self.clock.advance(0)
        self.successResultOf(d)

    def warnings(self) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_level"] is LogLevel.warn]

    def hits(self) -> int:
        return sum(told["direct_hits"] for told in self.index.told)


class CountTests(CountCase):
    """One look into the log."""

    def test_counted(self) -> None:
        """Hits are told to the index for all, and counted for Prometheus, once."""
        self.log.append(LINE * 3 + OTHER_LINE)
        self.finish(self.counter.count())
        self.finish(self.counter.count())
        self.assertEqual(self.index.told, [{"direct_hits": 4}])
        self.assertEqual(self.metrics.value("coverart_direct_hits_total"), 4)
        self.assertEqual(self.metrics.value("coverart_answers_total", outcome="hits"), 0)
        self.assertEqual(self.warnings(), [])

    def test_batch_by_batch(self) -> None:
        """A long log is told in batches, each written down before the next."""
        count = 3 * (BATCH_BYTES // len(LINE))
        self.log.append(LINE * count)
        self.finish(self.counter.count())
        self.assertEqual(len(self.index.told), 3)
        self.assertEqual(self.hits(), count)

    def test_not_the_leader(self) -> None:
        """Who does not lead does not touch it."""
        self.leadership.token = None
        self.log.append(LINE)
        self.finish(self.counter.count())
        self.assertEqual(self.index.told, [])
        self.assertEqual(os.listdir(self.log.root), ["hits.log"])

    def test_lead_lost(self) -> None:
        """Who loses the lead in between stops behind the batch under way; the next goes on."""
        count = 4 * BATCH_BYTES // len(LINE)
        self.log.append(LINE * count)
        threads = HeldBack()
        counter = self.make(threads)
        d = Deferred.fromCoroutine(counter.count())
        for _ in range(2):
            threads.let_one_go()
        self.leadership.token = None
        threads.let_all_go()
        self.successResultOf(d)
        self.assertEqual(len(self.index.told), 1)
        self.leadership.token = "another"  # noqa: S105
        self.finish(self.make().count())
        self.assertEqual(self.hits(), count)

    def test_stopping(self) -> None:
        """A process that ends does not go through a gigabyte first."""
        self.counter.stop()
        self.log.append(LINE)
        self.finish(self.counter.count())
        self.assertEqual(self.index.told, [])

    def test_index_away(self) -> None:
        """What the index did not hear stays in the log, and is told when it is back."""
        self.log.append(LINE * 2)
        self.index.away = True
        self.finish(self.counter.count())
        self.assertEqual(self.metrics.value("coverart_direct_hits_total"), 0)
        self.index.available = False
        self.finish(self.counter.count())
        self.assertFalse(self.log.position.exists())
        self.index.away, self.index.available = False, True
        self.finish(self.counter.count())
        self.assertEqual(self.index.told, [{"direct_hits": 2}])

    def test_one_by_one(self) -> None:
        """Asked for twice at once, as by a sweep, it is done twice in turn: both see the end."""
        threads = HeldBack()
        counter = self.make(threads)
        self.log.append(LINE)
        first = Deferred.fromCoroutine(counter.count())
        second = Deferred.fromCoroutine(counter.count())
        threads.let_one_go()
        threads.let_one_go()
        self.log.append(LINE * 2)
        threads.let_all_go()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.hits(), 3)

    def test_ends_under_load(self) -> None:
        """While nginx writes on and on, a look into the log ends all the same."""
        grow = self.index.tally
        told = 0

        async def tally(counts: Mapping[str, int]) -> None:
            nonlocal told
            told += 1
            self.log.append(LINE)
            await grow(counts)

        self.patch(self.index, "tally", tally)
        self.log.append(LINE * (CUT_BYTES // len(LINE) + 1))
        full = CUT_BYTES // BATCH_BYTES
        self.finish(self.counter.count())
        self.assertEqual(told, full + 1)
        self.assertGreater(self.log.path.stat().st_size, CUT_BYTES)

    def test_rubbish(self) -> None:
        """One line tells how many lines are nothing, however many batches they were in."""
        self.log.append(b"what\n" * (2 * BATCH_BYTES // 5) + LINE)
        self.finish(self.counter.count())
        (said,) = self.warnings()
        self.assertIn(f"{2 * BATCH_BYTES // 5} lines of {self.log.path}", said)
        self.assertEqual(self.hits(), 1)

    def test_complains_once(self) -> None:
        """A log that can't be used is named once, with what to do; then it is well again."""
        os.mkdir(self.log.path)
        for _ in range(3):
            self.finish(self.counter.count())
        (said,) = self.warnings()
        self.assertIn(str(self.log.path), said)
        self.assertIn("must be able to", said)
        os.rmdir(self.log.path)
        self.log.append(LINE)
        self.finish(self.counter.count())
        self.assertEqual((self.hits(), len(self.warnings())), (1, 1))
        os.unlink(self.log.path)
        os.mkdir(self.log.path)
        self.finish(self.counter.count())
        self.assertEqual(len(self.warnings()), 2)

    def test_not_writable(self) -> None:
        """The same for a log that can be read only: it could never be cut off."""
        self.log.append(LINE)
        opened = os.open

        def as_somebody_else(path: str, flags: int, mode: int = 0o777) -> int:
            # What any user but root gets for a file of mode 0444.
            if path == os.fspath(self.log.path) and flags & (os.O_WRONLY | os.O_RDWR):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return opened(path, flags, mode)

        self.patch(os, "open", as_somebody_else)
        self.finish(self.counter.count())
        self.assertIn("Permission denied", self.warnings()[0])


class UseTests(CountCase):
    """The order of eviction."""

    def test_uses(self) -> None:
        """A file that nginx sends often is not the first to go, though it is the oldest."""
        self.index = Index("least-useful")
        for key, at in ((REF.at(250), 1.0), (OTHER.at(500), 2.0)):
            entry = FileEntry(size_bytes=9000, stored_at=at, media=MediaType.JPEG)
            self.finish(self.index.put_file(key, entry))
        self.log.append(LINE * 5 + OTHER_LINE)
        self.finish(self.make().count())
        order: list[Any] = []

        async def look() -> None:
            order.extend(key for key, _ in await self.index.first_to_evict(2))

        self.finish(look())
        self.assertEqual(order, [OTHER.at(500), REF.at(250)])

    def test_told_together(self) -> None:
        """A file that is in every batch is told once, with all its uses; many files at times."""
        self.index = Index("least-useful")
        told: list[tuple[Any, int]] = []

        async def use(uses: Sequence[tuple[Any, int]]) -> None:
            told.extend(uses)

        self.patch(self.index, "use", use)
        count = 3 * BATCH_BYTES // len(LINE)
        self.log.append(LINE * count)
        self.finish(self.make().count())
        self.assertEqual(told, [(REF.at(250), count)])
        self.patch(count_hits, "MOST_USES_KEPT", 1)
        self.log.append((LINE + OTHER_LINE) * count)
        self.finish(self.make().count())
        self.assertGreater(len(told), 5)
        total: Counter[Any] = Counter()
        for key, times in told:
            total[key] += times
        self.assertEqual(total, {REF.at(250): 2 * count, OTHER.at(500): count})


class TalliesTests(CountCase):
    """What every process adds."""

    def setUp(self) -> None:
        super().setUp()
        self.counts = SharedCounts(self.metrics, self.index)

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
