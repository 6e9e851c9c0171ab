"""What a running service does by the clock: it sweeps, keeps the lead, passes on what it counted."""

from __future__ import annotations

import gc

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from coverart.cache.lookup import CoverCache
from coverart.coordination.leader import LEADER_LIFE_S
from coverart.maintenance.hit_log import HitLog
from coverart.maintenance.sweep import SLICES_A_SWEEP, Cleanup
from coverart.model import MEGABYTE
from coverart.service.open_cache import OpenCache
from coverart.service.timers import Repeated

HIT_LOG_EVERY_S = 5.0
SIZE_EVERY_S = 1.0


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
        self._opened = opened
        self._cache = cache
        self._limit_bytes = limit_bytes
        self._hit_log = hit_log
        self._sweeping = DeferredLock()
        self._left_bytes = -1
        clock = opened.reactor
        self._sweeps = Repeated(clock, interval_s, "the cleanup", self._sweep)
        self._others = (
            Repeated(clock, SIZE_EVERY_S, "looking at the cache's size", self._keep_within),
            Repeated(clock, LEADER_LIFE_S / 3, "keeping the lead", self.keep_the_lead),
            # Apart from the lead, which must be kept however long a log is.
            Repeated(clock, HIT_LOG_EVERY_S, "reading the hit log", self.read_hit_log),
        )

    def start(self) -> None:
        self._sweeps.start(now=True)
        for each in self._others:
            each.start()

    async def stop(self) -> None:
        """Returns when what was under way has ended, which is soon."""
        self.cleanup.stop()
        if self._hit_log is not None:
            self._hit_log.stop()
        for ended in [each.stop() for each in (self._sweeps, *self._others)]:
            await ended

    async def keep_the_lead(self) -> None:
        """Take the lead if nobody has it, or keep it; pass on what was counted."""
        await self._opened.leadership.stand()
        await self._cache.tell_uses()
        await self._opened.counts.tell()
        self._show_lead()

    async def read_hit_log(self) -> None:
        """Count what nginx sent by itself, if this process leads."""
        # An index that is being filled would not know the files.
        if self._hit_log is not None and not self.rebuilding:
            await self._hit_log.count()

    async def _keep_within(self) -> None:
        """Sweep at once where more is held than the maximum, whichever process stored it."""
        if self.rebuilding or self._sweeping.locked:
            return
        index = self._opened.index
        if self._opened.link is not None:
            # Others store too; index.size_bytes goes by what it was told last.
            await index.totals()
        # Once for each change: what can't be evicted now is the next regular sweep's.
        if index.size_bytes > self._limit_bytes and index.size_bytes != self._left_bytes:
            # Done by one of the processes alone (sweep.py).
            await self._sweep(slices=0)
            self._left_bytes = index.size_bytes

    async def _sweep(self, slices: int = SLICES_A_SWEEP) -> None:
        await self._sweeping.acquire()
        try:
            await self.cleanup.sweep(slices=slices)
            self._show_lead()
            if self.rebuilding:
                # An index of a million files is a few very long lists, which the garbage
                # collector would look through for 60 ms each time. They are here to stay.
                gc.freeze()
                await self._say_what_is_held()
        finally:
            self._sweeping.release()
            self.rebuilding = False

    def _show_lead(self) -> None:
        self._opened.metrics.leader.set(self._opened.leadership.token is not None)

    async def _say_what_is_held(self) -> None:
        totals = await self._opened.index.totals()
        self.log.info(
            "cache holds {files} files, {size_mb:.1f} MB and {aliases} aliases",
            files=totals.files,
            size_mb=totals.size_bytes / MEGABYTE,
            aliases=sum(totals.aliases.values()),
        )
