"""A cache directory with its index: all that it takes to clean and to scan, without HTTP."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from coverart.coordination.leader import Alone, Leadership, RedisLeadership, locks_prefix
from coverart.coordination.redis_client import RedisLink
from coverart.coordination.untold_mark import Mark
from coverart.errors import StoreFailed
from coverart.index.base import Index
from coverart.index.memory import MemoryIndex
from coverart.index.redis import RedisIndex
from coverart.maintenance.share_counts import SharedCounts
from coverart.maintenance.sweep import Bounds, Cleanup
from coverart.metrics import Metrics
from coverart.service.disk_threads import DiskThreads
from coverart.service.settings import PREFIX, ConfigError, Settings
from coverart.store.image_store import ImageStore


@attrs.frozen(kw_only=True)
class OpenCache:
    """What a service and a command of the command line work with, from start() to close()."""

    reactor: Any
    now: Callable[[], float]
    """The time of day, in seconds since the epoch; what ages, ages by it."""
    index: Index
    store: ImageStore
    threads: DiskThreads
    leadership: Leadership
    link: RedisLink | None
    """None if the index is in the memory of this process."""
    metrics: Metrics
    counts: SharedCounts

    def start(self) -> None:
        self.threads.start()
        if self.link is not None:
            self.link.connect()

    def before_changes(self) -> None:
        """
        Call before files are stored or removed.

        Without Redis a mark stays in the directory, for a Redis that knows it from another time.
        """
        if self.link is None:
            Mark(self.store.root).leave()

    async def close(self) -> None:
        """Let another process lead, and end connections and threads."""
        try:
            await self.leadership.resign()
            if self.link is not None:
                await self.link.close()
        finally:
            # Threads that were not ended would keep the process alive.
            self.threads.stop()
            self.store.keeping.release()
            self.store.serving.release()

    def cleanup(self, bounds: Bounds) -> Cleanup:
        """What sweeps it."""
        return Cleanup(
            index=self.index,
            store=self.store,
            in_thread=self.threads,
            leadership=self.leadership,
            bounds=bounds,
            clock=self.reactor,
            now=self.now,
            metrics=self.metrics,
        )


def open_cache(settings: Settings, reactor: Any, now: Callable[[], float] = time.time) -> OpenCache:
    """:raises ConfigError: the cache directory can't be used."""
    store = open_store(settings, now)
    index, leadership, link = index_for(settings, reactor, store.root, now)
    metrics = Metrics()
    return OpenCache(
        reactor=reactor,
        now=now,
        index=index,
        store=store,
        threads=DiskThreads(reactor),
        leadership=leadership,
        link=link,
        metrics=metrics,
        counts=SharedCounts(metrics, index),
    )


def bounds_of(settings: Settings) -> Bounds:
    """What a sweep keeps to."""
    return Bounds(
        max_bytes=settings.max_bytes,
        clean_to_bytes=settings.clean_to_bytes,
        alias_ttl_s=settings.alias_ttl,
    )


def open_store(settings: Settings, now: Callable[[], float] = time.time) -> ImageStore:
    """The cache directory. :raises ConfigError: it can't be used."""
    try:
        return ImageStore(settings.directory(), now)
    except StoreFailed as error:
        raise ConfigError(f"{PREFIX}CACHE_DIR can't be used: {error.detail}") from error


def index_for(
    settings: Settings, reactor: Any, root: Path, now: Callable[[], float] = time.time
) -> tuple[Index, Leadership, RedisLink | None]:
    """
    The index and what goes with it: all in this process, or shared by Redis.

    :param root: the cache directory.
    """
    if settings.redis_url is None:
        return MemoryIndex(eviction=settings.cache_eviction, now=now), Alone(), None
    link = RedisLink(settings.redis_url, reactor, reactor)
    mark = Mark(root)
    index = RedisIndex(
        link,
        settings.cache_name,
        mark,
        eviction=settings.cache_eviction,
        # Long enough for a fetch of another process, and for the next that takes it over.
        longest_wait_s=2 * settings.upstream_timeout,
        now=now,
    )
    name = f"{socket.gethostname()}-{os.getpid()}"
    return index, RedisLeadership(link, locks_prefix(settings.cache_name), name), link
