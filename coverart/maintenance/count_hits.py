"""Counts the hits that nginx served by itself: the leader adds them to the index."""

from __future__ import annotations

from collections import Counter

from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from coverart.cache.uses import MOST_USES_KEPT, tell_uses
from coverart.cache.writer import InThread
from coverart.coordination.leader import Leadership
from coverart.index.base import Index, IndexAway
from coverart.maintenance.hit_log import Batch, HitLog
from coverart.metrics import DIRECT_HITS, Metrics
from coverart.model import FileKey


class HitCounter:
    """Reads the hit log while this process leads."""

    log = Logger()

    def __init__(
        self,
        log: HitLog,
        *,
        index: Index,
        in_thread: InThread,
        leadership: Leadership,
        clock: IReactorTime,
        metrics: Metrics,
    ) -> None:
        self._stopping = False
        self._hit_log = log
        self._index = index
        self._in_thread = in_thread
        self._leadership = leadership
        self._clock = clock
        self._metrics = metrics
        self._one_by_one = DeferredLock()
        self._rubbish = 0
        """Lines that are no hits, of this run."""
        self._complained = ""

    def stop(self) -> None:
        """The batch under way is the last one."""
        self._stopping = True

    async def count(self) -> None:
        """
        Count all new lines, if this process leads and the index can be asked.

        What can't be told to the index stays in the log. A call during another one waits for it,
        then reads once more.
        """
        await self._one_by_one.acquire()
        self._rubbish = 0
        try:
            if self._may_go_on() and await self._in_thread(self._hit_log.begin):
                await self._count()
                self._complained = ""
        except IndexAway:
            pass
        except OSError as error:
            self._complain(error)
        finally:
            await self._in_thread(self._hit_log.end)
            self._one_by_one.release()
        if self._rubbish:
            self.log.warn(
                "{count} lines of {path} were skipped: a line must be the path of a file under the "
                "cache directory, with a slash in front, and nothing else",
                count=self._rubbish,
                path=self._hit_log.path,
            )

    def _may_go_on(self) -> bool:
        return not self._stopping and self._leadership.token is not None and self._index.available

    async def _count(self) -> None:
        """
        Batch by batch, to the first that is not full: under load there are always some new lines.

        Uses are not told with each batch, which would tell most files of a busy cache again and
        again. Those of a process that is killed are lost: they order what is evicted, nobody adds
        them up.

        :raises IndexAway: a batch could not be told.
        """
        uses: Counter[FileKey] = Counter()
        more = True
        while more and self._may_go_on():
            batch: Batch | None = await self._in_thread(self._hit_log.read)
            if batch is None:
                break
            if batch.hits:
                await self._index.tally({DIRECT_HITS: batch.hits})
                self._metrics.direct_hits.inc(batch.hits)
            await self._in_thread(self._hit_log.done, batch)
            self._rubbish += batch.rubbish
            uses.update(batch.uses)
            more = batch.full
            if len(uses) > MOST_USES_KEPT:
                await tell_uses(self._index, uses, self._clock)
                uses.clear()
        await tell_uses(self._index, uses, self._clock)

    def _complain(self, error: OSError) -> None:
        """Once for each trouble: this is tried every few seconds."""
        reason = f"{error.filename or self._hit_log.path}: {error.strerror or error}"
        if reason != self._complained:
            self._complained = reason
            self.log.warn(
                "the hit log {path} can't be read or cut off ({reason}); the user that runs this must be "
                "able to read and write it and to write to its folder. What nginx sends without "
                "asking is not counted until then",
                path=self._hit_log.path,
                reason=reason,
            )
