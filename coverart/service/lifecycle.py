"""The running proxy: what is started, what goes on by the clock, what is awaited at the end."""

from __future__ import annotations

import gc
import re
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from twisted.web.client import HTTPConnectionPool

from coverart.cache.lookup import CoverCache
from coverart.cache.size_limits import Room
from coverart.coordination.leases import LEADER_LIFE_S, Leadership, RedisFetches
from coverart.coordination.redis_client import RedisAway, RedisLink
from coverart.coordination.untold_mark import Mark
from coverart.maintenance.count_hits import Intake
from coverart.maintenance.share_counts import SharedCounts
from coverart.maintenance.sweep import SLICES_A_SWEEP, Cleanup
from coverart.metrics import Metrics
from coverart.model import MEGABYTE

DISK_THREADS = 8
STOP_S = 20.0
"""So long a stop waits for fetches that clients wait for."""
TAKE_IN_S = 5.0
"""So often the leader looks into the hit log."""
LOOK_EVERY_S = 1.0
"""So often it is asked whether more is held than the maximum."""
DELAY_EVERY_S = 0.25
"""So often the reactor's delay is looked at."""


class DiskThreads:
    """A pool of threads for disk work, apart from the reactor's own that resolves names."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(minthreads=0, maxthreads=DISK_THREADS, name="coverart-disk")

    def __call__(self, call: Callable[..., Any], /, *args: Any) -> Deferred[Any]:
        """Run a blocking call off the reactor thread."""
        return deferToThreadPool(self._reactor, self._pool, call, *args)

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> None:
        """Returns when the calls under way have ended."""
        self._pool.stop()


@attrs.frozen(kw_only=True)
class Shared:
    """What a process has in common with others, by Redis."""

    link: RedisLink
    fetches: RedisFetches


class ReactorDelay:
    """Watches how late timed calls run: what keeps the reactor keeps every client."""

    def __init__(self, clock: IReactorTime, observe: Callable[[float], None]) -> None:
        self._clock = clock
        self._observe = observe
        self._calls = LoopingCall(self._look)
        self._calls.clock = clock
        self._due = 0.0

    def start(self) -> None:
        self._due = self._clock.seconds() + DELAY_EVERY_S
        self._calls.start(DELAY_EVERY_S, now=False)

    def stop(self) -> None:
        if self._calls.running:
            self._calls.stop()

    def _look(self) -> None:
        now = self._clock.seconds()
        self._observe(max(0.0, now - self._due))
        # A LoopingCall keeps to the places in time that it began with, and skips those it missed.
        while self._due <= now:
            self._due += DELAY_EVERY_S


class CoverService(Service):
    """The cache's life from start to stop; listening is a service of its own."""

    log = Logger()

    def __init__(
        self,
        *,
        reactor: Any,
        cache: CoverCache,
        cleanup: Cleanup,
        leadership: Leadership,
        room: Room,
        shared: Shared | None,
        metrics: Metrics,
        counts: SharedCounts,
        threads: DiskThreads,
        pool: HTTPConnectionPool,
        intake: Intake | None = None,
        limit_bytes: int,
        interval_s: float,
    ) -> None:
        self.rebuilding = False
        self.drain: Callable[[float], Awaitable[int]] = _nobody
        """Lets running requests end; set once there is a site."""
        self._reactor = reactor
        self.cache = cache
        self.cleanup = cleanup
        self.leadership = leadership
        self._room = room
        self._shared = shared
        self.metrics = metrics
        self._counts = counts
        self._delay = ReactorDelay(reactor, metrics.reactor_delay.observe)
        self._threads = threads
        self.pool = pool
        self._intake = intake
        cleanup.before_evicting = self._tell_uses
        self._limit_bytes = limit_bytes
        self._interval_s = interval_s
        self._sweeps = LoopingCall(self._turn, self._sweep)
        self._looks = LoopingCall(self._turn, self._keep_within)
        self._sweeping = DeferredLock()
        self._left_bytes = -1
        self._terms = LoopingCall(self._turn, self.stand)
        # Apart from the terms, which must be kept however long a log is.
        self._intakes = LoopingCall(self._turn, self.take_in)
        self._first = True
        self._loops: list[Deferred[Any]] = []

    def startService(self) -> None:
        super().startService()
        self.metrics.starts.inc()
        self.metrics.start_time.set_to_current_time()
        self._delay.start()
        self._threads.start()
        self.cache.store.hold()
        if self._shared is None:
            # A Redis that knew this directory once is not told what comes and goes now.
            Mark(self.cache.store.root).leave()
        else:
            self._shared.link.connect()
            self._shared.fetches.start()
            Deferred.fromCoroutine(self._check_redis()).addErrback(
                lambda failure: self.log.failure("looking at Redis", failure)
            )
        self.log.info(
            "cache at {dir}, index in {kind}{where}, limit {limit_mb} MB (COVER_ART_CACHE_MAX_SIZE)",
            dir=str(self.cache.store.root),
            kind=self.cache.index.kind,
            where="" if self._shared is None else f" at {self._shared.link.address}",
            limit_mb=self._limit_bytes // MEGABYTE,
        )
        self.rebuilding = True
        for loop, seconds in (
            (self._sweeps, self._interval_s),
            (self._looks, LOOK_EVERY_S),
            (self._terms, LEADER_LIFE_S / 3),
            (self._intakes, TAKE_IN_S),
        ):
            loop.clock = self._reactor
            self._loops.append(loop.start(seconds, now=loop is self._sweeps))

    async def _turn(self, work: Callable[[], Awaitable[None]]) -> None:
        """One turn of what goes by the clock. A LoopingCall ends for good with its first error."""
        try:
            await work()
        except Exception:
            self.log.failure("{work} failed; it is tried again", work=work.__name__.strip("_"))

    async def _keep_within(self) -> None:
        """Sweep at once where more is held than the maximum, whichever process stored it."""
        if self.rebuilding or self._sweeping.locked:
            return
        if self._shared is not None:
            # Others store too; index.size_bytes goes by what it was told last.
            await self.cache.index.totals()
        index = self.cache.index
        # Once for each change: what can't be evicted now is the next regular sweep's.
        if self._room.over and index.size_bytes != self._left_bytes:
            # Done by one of the processes alone (cleanup.py).
            await self._sweep(slices=0)
            self._left_bytes = index.size_bytes

    async def _sweep(self, slices: int = SLICES_A_SWEEP) -> None:
        """One turn of the cleanup."""
        await self._sweeping.acquire()
        try:
            await self.cleanup.sweep(slices=slices)
            self.metrics.leader.set(self.leadership.token is not None)
            if self._first:
                self._first = False
                # An index of a million files is a few very long lists, which the garbage
                # collector would look through for 60 ms each time. They are here to stay.
                gc.freeze()
                await self._say_what_is_held()
        finally:
            self._sweeping.release()
            self.rebuilding = False

    async def stand(self) -> None:
        """One turn of the terms: stand for the lead, or keep it; pass on what was counted."""
        await self.leadership.stand()
        await self.cache.tell_uses()
        await self._counts.tell()
        self.metrics.leader.set(self.leadership.token is not None)

    async def take_in(self) -> None:
        """One look into the hit log, if this process leads."""
        # An index that is being filled would not know the files.
        if self._intake is not None and not self.rebuilding:
            await self._intake.take_in()

    async def _tell_uses(self) -> None:
        """Pass on all that was used, for the order of eviction."""
        await self.cache.tell_uses()
        if self._intake is not None:
            await self._intake.take_in()

    async def _say_what_is_held(self) -> None:
        totals = await self.cache.index.totals()
        self.log.info(
            "cache holds {files} files, {size_mb:.1f} MB and {aliases} aliases",
            files=totals.files,
            size_mb=totals.size_bytes / MEGABYTE,
            aliases=sum(totals.aliases.values()),
        )

    async def _check_redis(self) -> None:
        """Warn where Redis could throw away what it is told."""
        if self._shared is None:
            return
        try:
            memory = await self._shared.link.info("memory")
        except RedisAway:
            return
        if not memory:
            self.log.warn(
                "Redis does not let this user send INFO: whether it is back with older data, or may "
                "evict keys, is not seen"
            )
        policy = re.search(rb"maxmemory_policy:(\S+)", memory)
        if policy is not None and policy[1] != b"noeviction":
            self.log.warn(
                "Redis may evict keys (maxmemory-policy {policy}): set it to noeviction",
                policy=policy[1].decode(),
            )

    async def _stop(self) -> None:
        self._delay.stop()
        self.cleanup.stop()
        if self._intake is not None:
            self._intake.stopping = True
        for loop in (self._sweeps, self._looks, self._terms, self._intakes):
            if loop.running:
                loop.stop()
        for step in (
            self._end_loops,
            self._resign,
            self._drain,
            self._counts.tell,
            self.pool.closeCachedConnections,
            self._leave_redis,
        ):
            try:
                await step()
            except Exception:
                self.log.failure("a step of the stop failed; the stop goes on")
        # Threads that were not ended would keep the process alive.
        self._threads.stop()
        self.cache.store.release()

    async def _end_loops(self) -> None:
        for ended in self._loops:
            await ended

    async def _resign(self) -> None:
        await self.leadership.resign()
        self.metrics.leader.set(0)

    async def _drain(self) -> None:
        left = await self.drain(STOP_S)
        if left:
            self.log.warn("stopping while {count} clients wait", count=left)

    async def _leave_redis(self) -> None:
        if self._shared is not None:
            await self._shared.link.close()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


async def _nobody(seconds: float) -> int:  # noqa: ARG001
    return 0
