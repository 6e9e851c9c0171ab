"""The one place that joins the parts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.application.service import MultiService
from twisted.internet.interfaces import IStreamServerEndpoint

from coverart.archive.archive_client import ArchiveClient, Limits
from coverart.archive.circuit_breaker import Breaker
from coverart.archive.safe_connect import make_client
from coverart.archive.throttle import Turns
from coverart.archive.upstream import Upstream
from coverart.archive.url_policy import Rules
from coverart.cache.lookup import CoverCache
from coverart.cache.miss import Fetcher
from coverart.cache.size_limits import Room
from coverart.coordination.leases import Alone, Fetches, Leadership, RedisFetches, RedisLeadership
from coverart.coordination.redis_client import RedisLink
from coverart.coordination.untold_mark import Mark
from coverart.errors import StoreFailed
from coverart.index.base import Index
from coverart.index.memory import MemoryIndex
from coverart.index.redis import RedisIndex
from coverart.maintenance.count_hits import Intake
from coverart.maintenance.hit_log import HitLog
from coverart.maintenance.share_counts import SharedCounts
from coverart.maintenance.sweep import Bounds, Cleanup
from coverart.metrics import Metrics
from coverart.model import MEGABYTE, Entity
from coverart.service.lifecycle import CoverService, DiskThreads, Shared
from coverart.service.listening import Listening, listening_at
from coverart.service.settings import (
    EVENT_UPSTREAM,
    PREFIX,
    UPSTREAM,
    ConfigError,
    Settings,
)
from coverart.store.image_store import ImageStore
from coverart.web.admin import AdminRoutes
from coverart.web.connection_limits import Door, Reception, bound
from coverart.web.covers import CoverRoutes, Ways
from coverart.web.direct_hits import HitsFirst
from coverart.web.operators import OperatorRoutes, Standing
from coverart.web.own_names import OwnNames
from coverart.web.site import make_site

ARCHIVE_DOWNLOADS = "https://archive.org/download/"
"""Where the archive's own hop 1 leads. Where a mirror's leads, only the mirror can tell."""


@attrs.frozen(kw_only=True)
class Keeping:
    """What holds the cache together on disk and in the index; enough to clean and to scan."""

    index: Index
    store: ImageStore
    threads: DiskThreads
    fetches: Fetches
    leadership: Leadership
    shared: Shared | None
    cleanup: Cleanup
    metrics: Metrics


def go_by_monotonic_time(reactor: Any) -> None:
    """
    Let a reactor that does not run yet time its calls by a clock that nobody sets.

    Twisted goes by the time of day: set back by an hour, it makes every call wait for that hour.
    """
    if not reactor.running:
        reactor.seconds = time.monotonic


def keep(
    settings: Settings,
    reactor: Any,
    *,
    now: Callable[[], float] = time.time,
    bounds: Bounds | None = None,
) -> Keeping:
    """
    Join what works without the archive and without HTTP.

    :param now: the time of day, in seconds since the epoch; what ages, ages by it.
    :param bounds: what a sweep keeps to, in place of what the settings say.
    :raises ConfigError: the cache directory can't be used.
    """
    store = open_store(settings, now)
    metrics = Metrics()
    threads = DiskThreads(reactor)
    index, fetches, leadership, shared = index_for(settings, reactor, store.root, now)
    cleanup = Cleanup(
        index=index,
        store=store,
        in_thread=threads,
        leadership=leadership,
        bounds=bounds
        or Bounds(
            max_bytes=settings.max_bytes,
            clean_to_bytes=settings.clean_to_bytes,
            alias_ttl_s=settings.alias_ttl,
        ),
        clock=reactor,
        now=now,
        metrics=metrics,
    )
    return Keeping(
        index=index,
        store=store,
        threads=threads,
        fetches=fetches,
        leadership=leadership,
        shared=shared,
        cleanup=cleanup,
        metrics=metrics,
    )


def assemble(
    settings: Settings,
    reactor: Any,
    *,
    now: Callable[[], float] = time.time,
    endpoints: Sequence[IStreamServerEndpoint] | None = None,
) -> MultiService:
    """
    Join the parts.

    :param now: the time of day, in seconds since the epoch; what ages, ages by it.
    :param endpoints: where to listen, in place of COVER_ART_LISTEN.
    :raises ConfigError: the cache directory can't be used, or an endpoint string is wrong.
    """
    kept = keep(settings, reactor, now=now)
    index, store, threads = kept.index, kept.store, kept.threads
    limits = Limits(
        total_s=settings.upstream_timeout,
        concurrency=settings.upstream_concurrency,
        largest_image_bytes=settings.max_image_size * MEGABYTE,
    )
    rules = rules_for(settings)
    http, pool = make_client(
        reactor,
        rules,
        connections_per_host=settings.upstream_concurrency,
        connect_timeout_s=limits.connect_s,
    )
    # Apart, so that a crowd of new misses keeps no request of a fetch under way waiting.
    asking, misses = Turns(reactor), Turns(reactor)
    upstream = Upstream(
        ArchiveClient(
            http=http,
            clock=reactor,
            breaker=Breaker(),
            limits=limits,
            user_agent=settings.user_agent,
            metrics=kept.metrics,
            now=now,
            turn=asking.next,
        ),
        rules=rules,
        bases={
            Entity.RELEASE: settings.upstream,
            Entity.RELEASE_GROUP: settings.upstream,
            Entity.EVENT: settings.event_upstream,
        },
        downloads={
            owner: ARCHIVE_DOWNLOADS
            for owner, base, archives_own in (
                (Entity.RELEASE, settings.upstream, UPSTREAM),
                (Entity.EVENT, settings.event_upstream, EVENT_UPSTREAM),
            )
            if base == archives_own
        },
        clock=reactor,
    )
    room = Room(store=store, index=index, max_bytes=settings.max_bytes, clock=reactor)
    cache = CoverCache(
        index=index,
        store=store,
        fetcher=Fetcher(
            index=index,
            store=store,
            room=room,
            upstream=upstream,
            in_thread=threads,
            fetches=kept.fetches,
            clock=reactor,
            now=now,
            limits=limits,
        ),
        fetches=kept.fetches,
        lifetimes=settings.lifetimes,
        most_fetches=settings.max_waiting,
        turn=misses.next,
        clock=reactor,
        now=now,
        metrics=kept.metrics,
    )
    counts = SharedCounts(kept.metrics, index)
    service = CoverService(
        reactor=reactor,
        cache=cache,
        cleanup=kept.cleanup,
        leadership=kept.leadership,
        room=room,
        shared=kept.shared,
        metrics=kept.metrics,
        counts=counts,
        threads=threads,
        pool=pool,
        intake=intake_for(settings, kept, reactor),
        limit_bytes=settings.max_bytes,
        interval_s=settings.cache_cleanup_interval,
    )
    names = OwnNames.of(settings.public_url, socket.gethostname())
    standing = Standing(
        cache_dir=str(store.root),
        limit_bytes=settings.max_bytes,
        rebuilding=lambda: service.rebuilding,
        names=names,
    )
    ways = Ways(
        accel=settings.accel,
        public_url=settings.public_url,
        redirect_names=settings.image_mode == "redirect",
    )

    def hit() -> None:
        asking.hit()
        misses.hit()

    reception = Reception(bound(settings.max_connections), kept.metrics, reactor)
    site = make_site(
        HitsFirst(cache, CoverRoutes(cache, ways, threads, hit)),
        OperatorRoutes(cache, kept.metrics, counts, standing).app.resource(),
        AdminRoutes(cache, settings.admin_token, names).app.resource(),
        kept.metrics,
        reactor,
        reception,
    )
    service.drain = site.drain
    everything = MultiService()
    service.setServiceParent(everything)
    for endpoint in listening_at(settings, reactor) if endpoints is None else endpoints:
        Listening(Door(endpoint, reception), site).setServiceParent(everything)
    return everything


def intake_for(settings: Settings, kept: Keeping, reactor: Any) -> Intake | None:
    """Where nginx writes a hit log, what takes it in."""
    if settings.hit_log is None:
        return None
    return Intake(
        HitLog(settings.hit_log, kept.store.root, follow=kept.index.eviction != "oldest"),
        index=kept.index,
        in_thread=kept.threads,
        leadership=kept.leadership,
        clock=reactor,
        metrics=kept.metrics,
    )


def open_store(settings: Settings, now: Callable[[], float] = time.time) -> ImageStore:
    """The cache directory. :raises ConfigError: it can't be used."""
    try:
        return ImageStore(settings.directory(), now)
    except StoreFailed as error:
        raise ConfigError(f"{PREFIX}CACHE_DIR can't be used: {error.detail}") from error


def rules_for(settings: Settings) -> Rules:
    """The allowed hosts, and the hosts of hop 1, which the operator named."""
    hop_1 = []
    for base in (settings.upstream, settings.event_upstream):
        parts = urlsplit(base)
        host = (parts.hostname or "").lower()
        named = f"[{host}]" if ":" in host else host
        port = parts.port or (443 if parts.scheme == "https" else 80)
        # The archive's own hosts need no exception from the rules, only to be allowed.
        public = parts.scheme == "https" and parts.port is None
        hop_1.append(named if public else f"{named}:{port}")
    return Rules((*settings.allowed_hosts, *hop_1))


def index_for(
    settings: Settings, reactor: Any, root: Path, now: Callable[[], float] = time.time
) -> tuple[Index, Fetches, Leadership, Shared | None]:
    """
    The index and what goes with it: all in this process, or shared by Redis.

    :param root: the cache directory.
    """
    if settings.redis_url is None:
        alone = Alone()
        return MemoryIndex(eviction=settings.cache_eviction, now=now), alone, alone, None
    link = RedisLink(settings.redis_url, reactor, reactor)
    mark = Mark(root)
    index = RedisIndex(link, settings.cache_name, mark, eviction=settings.cache_eviction, now=now)
    fetches = RedisFetches(link, index.prefix, reactor, mark)
    name = f"{socket.gethostname()}-{os.getpid()}"
    leadership = RedisLeadership(link, index.prefix, name)
    return index, fetches, leadership, Shared(link=link, fetches=fetches)
