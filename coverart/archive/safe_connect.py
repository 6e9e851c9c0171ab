"""
Connections to the archive: one Agent with a persistent pool that checks where it connects.

The allow list is asked again at connect, and an address is looked at as it is connected to, so that a
name which resolves to a public address for a check and to a private one for the connection gains
nothing. Where a proxy looks up the name, the address can't be known here: the name alone is checked,
and an address in its place.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from typing import Any

from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IHostnameResolver,
    IReactorPluggableNameResolver,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from coverart.archive.connection import connection_factory
from coverart.archive.proxies import Proxies, Proxy
from coverart.archive.tunnels import ResolvedHere, ToProxy, Tunnel
from coverart.archive.url_policy import Rules, is_public
from coverart.archive.whole_url import WholeUrls
from coverart.errors import BadUpstream

IDLE_CONNECTION_S = 30.0
MOST_ENDPOINTS = 500


# What a resolver takes for an address: `127.1`, `0x7f.1` and `2130706433` too.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


@implementer(IReactorPluggableNameResolver)
class _Looking:
    """
    The reactor as an endpoint sees it: it looks names up as told, and looks at addresses.

    A name that has others than public ones is no fault of the archive's host, so no breaker is to
    learn of it (archive_client.py), and the operator is to read what is wrong: as a rule, their own
    resolver.
    """

    def __init__(self, reactor: Any, resolver: IHostnameResolver, *, trusted: bool) -> None:
        self._reactor = reactor
        self._trusted = trusted
        self.nameResolver = resolver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(self, host: str, *where: Any, **how: Any) -> Any:
        if not self._trusted and not is_public(host):
            raise BadUpstream(f"{host} is no public address")
        return self._reactor.connectTCP(host, *where, **how)


@implementer(IAgentEndpointFactory)
class CheckedEndpoints:
    """Makes endpoints only for what the rules allow."""

    def __init__(
        self,
        reactor: Any,
        rules: Rules,
        proxies: Proxies | None = None,
        resolver: IHostnameResolver | None = None,
    ) -> None:
        """:param resolver: looks up the archive's names, never a proxy's; None: the reactor's."""
        self._reactor = reactor
        self._rules = rules
        self._proxies = proxies or Proxies()
        self._resolver = resolver
        self._tls = BrowserLikePolicyForHTTPS()
        # Asked for with each request, though most go over a connection that stands.
        self._made = lru_cache(MOST_ENDPOINTS)(self._make)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """:raises BadUpstream: the rules do not allow this host, port and scheme."""
        return self._made(uri.scheme, uri.host, uri.port)

    def _make(self, scheme: bytes, host: bytes, port: int) -> IStreamClientEndpoint:
        name = host.decode("ascii")
        trusted = self._check(scheme.decode("ascii"), name, port)
        proxy = self._proxies.leading_to(scheme.decode("ascii"), name, port)
        resolver = self._resolver or self._reactor.nameResolver
        endpoint: IStreamClientEndpoint
        if proxy is None:
            endpoint = _named(_Looking(self._reactor, resolver, trusted=trusted), name, port)
        elif scheme == b"http" and proxy.scheme == "http":
            # It is sent the whole URL (whole_url.py).
            self._no_private_address(name, trusted=trusted)
            endpoint = self._to(proxy)
        elif proxy.resolves:
            self._no_private_address(name, trusted=trusted)
            endpoint = Tunnel(self._to(proxy), name, port)
        else:
            endpoint = ResolvedHere(
                resolver,
                name,
                lambda address: Tunnel(self._to(proxy), address, port),
                lambda address: trusted or is_public(address),
            )
        if scheme == b"https":
            return wrapClientTLS(self._tls.creatorForNetloc(host, port), endpoint)
        return endpoint

    def _check(self, scheme: str, name: str, port: int) -> bool:
        """:returns: whether its address does not matter. :raises BadUpstream: not allowed."""
        named = f"[{name}]" if ":" in name else name
        if not self._rules.allows(scheme, named, port):
            raise BadUpstream(f"no connection to {scheme}://{named}:{port}: not allowed")
        return self._rules.trusts(named, port)

    def _no_private_address(self, name: str, *, trusted: bool) -> None:
        """:raises BadUpstream: the name is an address, or may be taken for one, and not public."""
        address = ":" in name or _NUMERIC.fullmatch(name)
        if address and not trusted and not is_public(name):
            raise BadUpstream(f"{name} is no public address")

    def _to(self, proxy: Proxy) -> ToProxy:
        # As the system looks up names: a proxy is the network's own.
        return ToProxy(proxy, _named(self._reactor, proxy.host, proxy.port))


def _named(reactor: Any, name: str, port: int) -> HostnameEndpoint:
    # Who waits for an answer bounds its connection too: archive_client.py.
    no_bound: Any = None
    return HostnameEndpoint(reactor, name, port, timeout=no_bound)


def make_client(
    reactor: Any,
    rules: Rules,
    *,
    clock: IReactorTime,
    connections_per_host: int,
    proxies: Proxies | None = None,
    resolver: IHostnameResolver | None = None,
) -> tuple[HTTPClient, HTTPConnectionPool]:
    """
    The treq client of one process and its pool; close the pool's connections at the end.

    Cookies are neither kept nor sent.

    :param clock: ends connections that are idle.
    :param resolver: looks up the archive's names; None: as the system does.
    """
    pool = HTTPConnectionPool(clock, persistent=True)
    pool.maxPersistentPerHost = connections_per_host
    pool.cachedConnectionTimeout = int(IDLE_CONNECTION_S)
    # Documented, and the only way to bound a head and to have bytes as they are.
    pool._factory = connection_factory  # type: ignore[assignment]  # noqa: SLF001
    endpoints = CheckedEndpoints(reactor, rules, proxies, resolver)
    agent: IAgent = Agent.usingEndpointFactory(reactor, endpoints, pool)
    if proxies is not None and "http" in proxies.by_scheme:
        agent = WholeUrls(reactor, agent, endpoints, proxies, pool)
    no_cookies = IndexableCookieJar(policy=DefaultCookiePolicy(allowed_domains=()))
    return HTTPClient(agent, no_cookies), pool
