"""What a running service does by the clock: it sweeps, keeps the lead, passes on what it counted."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from coverart.cache.lookup import CoverCache
from coverart.coordination.leader import LEADER_LIFE_S
from coverart.maintenance.hit_log import HitLog
from coverart.maintenance.sweep import SLICES_A_SWEEP, Cleanup
from coverart.model import MEGABYTE
from coverart.service.open_cache import OpenCache
from coverart.service.timers import repeat

HIT_LOG_EVERY_S = 5.0
LOOK_EVERY_S = 1.0


class Upkeep:
    """The repeated work of one process, and whether its index is still being filled."""

    log = Logger()

    def __init__(
        self,
        opened: OpenCache,
        cache: CoverCache,
        cleanup: Cleanup,
        hit_log: HitLog | None,
        *,
        limit_bytes: int,
        interval_s: float,
    ) -> None:
        """
        :param hit_log: None where nginx writes no hit log.
        :param limit_bytes: a sweep is due when more is held.
        :param interval_s: seconds between two sweeps.
        """
        self.rebuilding = True
        """Until the first sweep has ended: the index may not know all that is on the disk."""
        self.cleanup = cleanup
        self.limit_bytes = limit_bytes
        self._opened = opened
        self._cache = cache
        self._interval_s = interval_s
        self._hit_log = hit_log
        self._due_at = 0.0
        self._left_bytes = -1
        self._ends: list[Callable[[], Deferred[Any]]] = []

    def start(self) -> None:
        clock = self._opened.reactor
        look_s = min(LOOK_EVERY_S, self._interval_s)
        self._ends = [
            repeat(clock, look_s, "looking after the cache's size", self._sweep_if_due, now=True),
            repeat(clock, LEADER_LIFE_S / 3, "keeping the lead", self.keep_the_lead),
            # Apart from the lead, which must be kept however long a log is.
            repeat(clock, HIT_LOG_EVERY_S, "reading the hit log", self.read_hit_log),
        ]

    async def stop(self) -> None:
        """Returns when what was under way has ended, which is soon."""
        self.cleanup.stop()
        if self._hit_log is not None:
            self._hit_log.stop()
        for ended in [end() for end in self._ends]:
            await ended

    async def keep_the_lead(self) -> None:
        """Take the lead if nobody has it, or keep it; pass on what was counted."""
        await self._opened.leadership.stand()
        await self._cache.tell_uses()
        await self._opened.counts.tell()
        self._opened.metrics.leader.set(self._opened.leadership.token is not None)

    async def read_hit_log(self) -> None:
        """Count what nginx sent by itself, if this process leads."""
        # An index that is being filled would not know the files.
        if self._hit_log is not None and not self.rebuilding:
            await self._hit_log.count()

    async def _sweep_if_due(self) -> None:
        """Sweep at the interval, and at once where more is held than the maximum, whoever stored it."""
        index, now = self._opened.index, self._opened.reactor.seconds()
        due = now >= self._due_at
        if due:
            self._due_at = now + self._interval_s
        elif self._opened.link is not None:
            # Others store too; index.size_bytes goes by what it was told last.
            await index.totals()
        # Once for each change: what can't be evicted now is the next regular sweep's.
        if due or (index.size_bytes > self.limit_bytes and index.size_bytes != self._left_bytes):
            # Done by one of the processes alone (sweep.py).
            await self.cleanup.sweep(slices=SLICES_A_SWEEP if due else 0)
            self._left_bytes = index.size_bytes
        if self.rebuilding:
            self.rebuilding = False
            # An index of a million files is a few very long lists, which the garbage collector
            # would look through for 60 ms each time. They are here to stay.
            gc.freeze()
            totals = await index.totals()
            self.log.info(
                "cache holds {files} files, {size_mb:.1f} MB and {aliases} aliases",
                files=totals.files,
                size_mb=totals.size_bytes / MEGABYTE,
                aliases=sum(totals.aliases.values()),
            )
