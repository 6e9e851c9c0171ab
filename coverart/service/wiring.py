"""The one place that joins the parts."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import MultiService
from twisted.internet.interfaces import IHostnameResolver, IStreamServerEndpoint
from twisted.web.http import Request

from coverart.archive.archive_client import ArchiveClient, Limits
from coverart.archive.circuit_breaker import Breaker
from coverart.archive.coarse_clock import CoarseClock
from coverart.archive.follow_redirects import Redirects
from coverart.archive.leads_here import LeadsHere, mark_of
from coverart.archive.name_lookup import NameServers
from coverart.archive.safe_connect import make_client
from coverart.archive.throttle import Turns
from coverart.archive.upstream import Upstream
from coverart.archive.url_policy import Rules
from coverart.cache.fair_shares import FairShares, Share
from coverart.cache.lookup import CoverCache
from coverart.cache.miss import Fetcher
from coverart.cache.size_limits import Room
from coverart.cache.substitutes import Substitutes
from coverart.maintenance.hit_log import HitLog
from coverart.model import MEGABYTE, Entity
from coverart.service.lifecycle import CoverService, Parts
from coverart.service.listening import Listening, listening_at
from coverart.service.open_cache import OpenCache, bounds_of, open_cache
from coverart.service.settings import (
    EVENT_UPSTREAM,
    UPSTREAM,
    Settings,
)
from coverart.service.upkeep import Upkeep
from coverart.web.connection_limits import Connections, GatedEndpoint, raise_file_limit
from coverart.web.covers import Covers, DeliveryMode
from coverart.web.forwarded import TrustedProxies
from coverart.web.operator_hosts import OwnNames
from coverart.web.operators import OperatorRoutes
from coverart.web.public_url import public_url
from coverart.web.site import CoverSite, Front

ARCHIVE_DOWNLOADS = "https://archive.org/download/"
"""Where the archive's own hop 1 leads. Where a mirror's leads, only the mirror can tell."""


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
    opened = open_cache(settings, reactor, now)
    index, store, threads = opened.index, opened.store, opened.threads
    limits = Limits(
        total_s=settings.upstream_timeout,
        concurrency=settings.upstream_concurrency,
    )
    rules = rules_for(settings)
    # Bounds are taken back as a rule, so that one timer does for all of them.
    coarse = CoarseClock(reactor)
    resolver: IHostnameResolver = reactor.nameResolver
    if settings.resolver is not None:
        resolver = NameServers(reactor, settings.resolver)
    leads_here = LeadsHere(
        mark_of(opened.store.root), reactor, _looked_up(settings, rules), resolver
    )
    http, pool = make_client(
        reactor,
        rules,
        clock=coarse,
        connections_per_host=settings.upstream_concurrency,
        proxies=settings.proxies,
        resolver=resolver,
    )
    # Apart, so that a crowd of new misses keeps no request of a fetch under way waiting.
    asking, misses = Turns(reactor), Turns(reactor)
    client = ArchiveClient(
        http=http,
        clock=coarse,
        breaker=Breaker(),
        limits=limits,
        user_agent=settings.user_agent,
        metrics=opened.metrics,
        turn=asking.next,
        proxies=settings.proxies,
        mark=leads_here.mark,
    )
    upstream = Upstream(
        Redirects(client, rules, reactor),
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
        metrics=opened.metrics,
    )
    room = Room(
        store=store,
        index=index,
        max_bytes=settings.max_bytes,
        clock=reactor,
        largest_image_bytes=settings.max_image_size * MEGABYTE,
    )
    cache = CoverCache(
        index=index,
        store=store,
        fetcher=Fetcher(
            index=index,
            store=store,
            room=room,
            upstream=upstream,
            in_thread=threads,
            clock=coarse,
            now=now,
            limits=limits,
        ),
        lifetimes=settings.lifetimes,
        substitutes=Substitutes(most_bytes=int(settings.substitute_max_size * MEGABYTE)),
        most_fetches=settings.max_waiting,
        turn=misses.next,
        clock=reactor,
        now=now,
        metrics=opened.metrics,
    )
    upkeep = Upkeep(
        opened,
        cache,
        opened.cleanup(bounds_of(settings)),
        _hit_log(settings, opened),
        limit_bytes=settings.max_bytes,
        interval_s=settings.cache_cleanup_interval,
    )
    operators = OperatorRoutes(
        cache=cache,
        metrics=opened.metrics,
        counts=opened.counts,
        names=OwnNames.of(settings.public_url, socket.gethostname()),
        limit_bytes=settings.max_bytes,
        rebuilding=lambda: upkeep.rebuilding,
        leads_here=leads_here,
        admin_token=settings.admin_token,
    )

    proxies = TrustedProxies(settings.trusted_proxies)
    mode = DeliveryMode(
        accel=settings.accel,
        public_url=public_url(settings.public_url, proxies.scheme),
        redirect_names=settings.image_mode == "redirect",
    )

    def hit() -> None:
        asking.hit()
        misses.hit()

    shares = FairShares(settings.fetches_per_minute, reactor, opened.metrics)

    def share(request: Request) -> Share | None:
        return shares.of(proxies.client(request))

    most = raise_file_limit(settings.max_connections)
    connections = Connections(most, opened.metrics, reactor)
    covers = Covers(cache, mode, threads, leads_here, hit, share)
    front = Front(covers, operators.app.resource())
    site = CoverSite(front, opened.metrics, connections, reactor, proxies.trusts)

    def look() -> None:
        site.look()
        coarse.look()

    parts = Parts(
        opened=opened,
        cache=cache,
        upkeep=upkeep,
        pool=pool,
        look=look,
        drain=site.drain,
        proxies=settings.proxies,
        leads_here=leads_here,
    )
    everything = MultiService()
    CoverService(parts).setServiceParent(everything)
    for endpoint in listening_at(settings, reactor) if endpoints is None else endpoints:
        Listening(GatedEndpoint(endpoint, connections.watch), site).setServiceParent(everything)
    return everything


def _hit_log(settings: Settings, opened: OpenCache) -> HitLog | None:
    """What reads the hit log, where nginx writes one."""
    if settings.hit_log is None:
        return None
    return HitLog(
        settings.hit_log,
        opened.store.root,
        index=opened.index,
        in_thread=opened.threads,
        leadership=opened.leadership,
        clock=opened.reactor,
        metrics=opened.metrics,
    )


def _looked_up(settings: Settings, rules: Rules) -> list[str]:
    """The archive's own hosts, as far as their names are looked up here."""
    bases = dict.fromkeys((settings.upstream, settings.event_upstream))
    if {UPSTREAM, EVENT_UPSTREAM} & set(bases):
        bases[ARCHIVE_DOWNLOADS] = None
    names = []
    for base in bases:
        parts = urlsplit(base)
        host = (parts.hostname or "").lower()
        proxy = settings.proxies.leading_to("https", host, 443)
        # Where a host was named with its port its address does not matter.
        if parts.netloc.lower() == host and rules.allows("https", host, 443):
            names += [host] if proxy is None or not proxy.resolves else []
    return names


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
