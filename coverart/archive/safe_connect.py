"""
Connections to the archive: one Agent with a persistent pool that checks where it connects.

The allow list is asked again at connect, and an address is looked at as it is connected to, so that a
name which resolves to a public address for a check and to a private one for the connection gains
nothing.
"""

from __future__ import annotations

from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from typing import Any

from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IReactorPluggableNameResolver,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from coverart.archive.connection import connection_factory
from coverart.archive.url_policy import Rules, is_public
from coverart.errors import BadUpstream

IDLE_CONNECTION_S = 30.0
MOST_ENDPOINTS = 500


@implementer(IReactorPluggableNameResolver)
class _PublicOnly:
    """
    The reactor as an endpoint sees it: it connects to public addresses only.

    A name that has others is no fault of the archive's host, so no breaker is to learn of it
    (archive_client.py), and the operator is to read what is wrong: as a rule, their own resolver.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(self, host: str, *where: Any, **how: Any) -> Any:
        if not is_public(host):
            raise BadUpstream(f"{host} is no public address")
        return self._reactor.connectTCP(host, *where, **how)


@implementer(IAgentEndpointFactory)
class CheckedEndpoints:
    """Makes endpoints only for what the rules allow."""

    def __init__(self, reactor: Any, rules: Rules) -> None:
        self._reactor = reactor
        self._rules = rules
        self._tls = BrowserLikePolicyForHTTPS()
        # Asked for with each request, though most go over a connection that stands.
        self._made = lru_cache(MOST_ENDPOINTS)(self._make)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """:raises BadUpstream: the rules do not allow this host, port and scheme."""
        return self._made(uri.scheme, uri.host, uri.port)

    def _make(self, scheme: bytes, host: bytes, port: int) -> IStreamClientEndpoint:
        name = host.decode("ascii")
        named = f"[{name}]" if ":" in name else name
        if not self._rules.allows(scheme.decode("ascii"), named, port):
            raise BadUpstream(f"no connection to {scheme.decode()}://{named}:{port}: not allowed")
        reactor = self._reactor if self._rules.trusts(named, port) else _PublicOnly(self._reactor)
        # Who waits for an answer bounds its connection too: archive_client.py.
        no_bound: Any = None
        endpoint = HostnameEndpoint(reactor, name, port, timeout=no_bound)
        if scheme == b"https":
            return wrapClientTLS(self._tls.creatorForNetloc(host, port), endpoint)
        return endpoint


def make_client(
    reactor: Any,
    rules: Rules,
    *,
    clock: IReactorTime,
    connections_per_host: int,
) -> tuple[HTTPClient, HTTPConnectionPool]:
    """
    The treq client of one process and its pool; close the pool's connections at the end.

    Cookies are neither kept nor sent.

    :param clock: ends connections that are idle.
    """
    pool = HTTPConnectionPool(clock, persistent=True)
    pool.maxPersistentPerHost = connections_per_host
    pool.cachedConnectionTimeout = int(IDLE_CONNECTION_S)
    # Documented, and the only way to bound a head and to have bytes as they are.
    pool._factory = connection_factory  # type: ignore[assignment]  # noqa: SLF001
    agent = Agent.usingEndpointFactory(reactor, CheckedEndpoints(reactor, rules), pool)
    no_cookies = IndexableCookieJar(policy=DefaultCookiePolicy(allowed_domains=()))
    return HTTPClient(agent, no_cookies), pool
