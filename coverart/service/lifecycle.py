"""The start and the stop of the proxy; listening is a service of its own."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.client import HTTPConnectionPool

from coverart.archive.coarse_clock import LOOK_S
from coverart.archive.leads_here import LOOK_S as LOOK_AT_NAMES_S
from coverart.archive.leads_here import LeadsHere
from coverart.archive.proxies import Proxies
from coverart.cache.lookup import CoverCache
from coverart.coordination.redis_client import RedisAway, RedisLink
from coverart.model import MEGABYTE
from coverart.service.open_cache import OpenCache
from coverart.service.timers import pulse, repeat
from coverart.service.upkeep import Upkeep

STOP_S = 20.0
"""Seconds until a stop gives up on fetches that clients wait for."""


@attrs.frozen(kw_only=True)
class Parts:
    """What is started and stopped."""

    opened: OpenCache
    cache: CoverCache
    upkeep: Upkeep
    pool: HTTPConnectionPool
    """The connections to the archive."""
    look: Callable[[], None]
    """What bounds connections and every fetch in time, to be called every LOOK_S."""
    drain: Callable[[float], Awaitable[int]]
    """Lets running requests end within a number of seconds; returns how many did not."""
    proxies: Proxies
    """Between this process and the archive."""
    leads_here: LeadsHere


class CoverService(Service):
    """The cache's life from start to stop."""

    log = Logger()

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def startService(self) -> None:
        super().startService()
        opened, link = self.parts.opened, self.parts.opened.link
        opened.metrics.starts.inc()
        opened.metrics.start_time.set_to_current_time()
        self._pulse = pulse(opened.reactor, LOOK_S, self._beat)
        opened.start()
        opened.store.serving.take()
        opened.before_changes()
        if link is not None:
            Deferred.fromCoroutine(self._check_redis(link)).addErrback(
                lambda failure: self.log.failure(
                    "checking the settings of Redis failed; the start goes on", failure
                )
            )
        self.log.info(
            "cache at {dir}, index in {kind}{where}, limit {limit_mb} MB (COVER_ART_CACHE_MAX_SIZE)",
            dir=str(opened.store.root),
            kind=opened.index.kind,
            where="" if link is None else f" at {link.address}",
            limit_mb=self.parts.upkeep.limit_bytes // MEGABYTE,
        )
        if self.parts.proxies.by_scheme:
            self.log.info(
                "the archive is asked through proxies: {which}", which=str(self.parts.proxies)
            )
        self.parts.upkeep.start()
        # The last look ends by itself, or never: a resolver can't be told.
        self._stop_looking = repeat(
            opened.reactor,
            LOOK_AT_NAMES_S,
            "looking where the archive's names lead",
            self.parts.leads_here.look,
            now=True,
        )

    def _beat(self, late_s: float) -> None:
        """Let bounds in time run out, and tell how late: what holds up this holds up clients."""
        self.parts.look()
        self.parts.opened.metrics.reactor_delay.observe(late_s)

    async def _check_redis(self, link: RedisLink) -> None:
        """Warn where Redis could throw away what it is told."""
        try:
            memory = await link.info("memory")
        except RedisAway:
            return
        if not memory:
            self.log.warn(
                "Redis does not let this user send INFO: the proxy will not notice a Redis that is "
                "back with older data, or that may evict keys"
            )
        policy = re.search(rb"maxmemory_policy:(\S+)", memory)
        if policy is not None and policy[1] != b"noeviction":
            self.log.warn(
                "Redis may evict keys (maxmemory-policy {policy}), and the index would miss them: set it to "
                "noeviction",
                policy=policy[1].decode(),
            )

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """Stop all, whatever fails: what waits for its end keeps the process alive."""
        parts = self.parts
        self._stop_looking()
        steps: dict[str, Callable[[], Awaitable[object]]] = {
            "the upkeep": parts.upkeep.stop,
            # Before clients are waited for: another process shall clean meanwhile.
            "giving up the lead": parts.opened.leadership.resign,
            "waiting for clients": self._drain,
            "telling the counts": parts.opened.counts.tell,
            "closing connections to the archive": parts.pool.closeCachedConnections,
            "closing the cache": parts.opened.close,
        }
        for name, step in steps.items():
            try:
                await step()
            except Exception:
                self.log.failure("stopping: {step} failed; the stop goes on", step=name)
        # Last: until here fetches go on, and are bounded.
        self._pulse.stop()

    async def _drain(self) -> None:
        left = await self.parts.drain(STOP_S)
        if left:
            self.log.warn("stopping while {count} clients wait; they get no answer", count=left)
