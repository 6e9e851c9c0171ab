"""The running proxy: what is started, what is awaited at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, TimeoutError  # noqa: A004
from twisted.internet.threads import blockingCallFromThread, deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.web.client import HTTPConnectionPool

from coverart.cache import CoverCache
from coverart.index import Index, Seen
from coverart.rebuild import rebuild

DISK_THREADS = 8
STOP_S = 20.0
"""So long a stop waits for fetches that clients wait for."""
MEGABYTE = 1 << 20


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


class CoverService(Service):
    """The cache's life from start to stop; listening is a service of its own."""

    log = Logger()

    def __init__(
        self,
        *,
        reactor: Any,
        cache: CoverCache,
        threads: DiskThreads,
        pool: HTTPConnectionPool,
        limit_bytes: int,
    ) -> None:
        self.rebuilding = False
        self._reactor = reactor
        self._cache = cache
        self._threads = threads
        self._pool = pool
        self._limit_bytes = limit_bytes
        self._stopping = False

    def startService(self) -> None:
        super().startService()
        self._threads.start()
        self.log.info(
            "cache at {dir}, index in {kind}, limit {limit_mb} MB",
            dir=str(self._cache.store.root),
            kind=self._cache.index.kind,
            limit_mb=self._limit_bytes // MEGABYTE,
        )
        self.rebuilding = True
        Deferred.fromCoroutine(self._rebuild()).addErrback(self._not_rebuilt)

    async def _rebuild(self) -> None:
        """Fill the index from the disk; requests are answered meanwhile, the disk helping out."""
        began = time.monotonic()
        store = self._cache.store
        orphans = await self._threads(store.remove_orphans, time.time())
        await self._threads(rebuild, str(store.root), self._take)
        totals = await self._cache.index.totals()
        self.rebuilding = False
        self.log.info(
            "cache holds {files} files, {size_mb:.1f} MB and {aliases} aliases; "
            "read from disk in {elapsed_s:.2f} s, {orphans} unfinished files removed",
            files=totals.files,
            size_mb=totals.size_bytes / MEGABYTE,
            aliases=sum(totals.aliases.values()),
            elapsed_s=time.monotonic() - began,
            orphans=orphans,
        )

    def _take(self, seen: list[Seen]) -> None:
        """In a thread: pass a slice to the index and wait until it is in."""
        if self._stopping:
            raise _Stopped
        index: Index = self._cache.index

        def learn() -> Any:
            return Deferred.fromCoroutine(index.learn(seen))

        blockingCallFromThread(self._reactor, learn)

    def _not_rebuilt(self, failure: Failure) -> None:
        self.rebuilding = False
        if failure.check(_Stopped) is None:
            self.log.failure("the cache directory can't be read", failure)

    async def _stop(self) -> None:
        self._stopping = True
        try:
            await self._cache.idle().addTimeout(STOP_S, self._reactor)
        except TimeoutError:
            self.log.warn("stopping with {count} fetches under way", count=self._cache.fetching)
        await self._pool.closeCachedConnections()
        self._threads.stop()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


class _Stopped(Exception):
    pass
