"""
Connections to the archive: one Agent with a persistent pool that checks where it connects.

The allow list is asked again at connect, and a name's addresses are filtered after they were
resolved, so that a name which resolves to a public address for a check and to a private one for
the connection gains nothing: the addresses that pass are the ones connected to.
"""

from __future__ import annotations

from http.cookiejar import DefaultCookiePolicy
from typing import Any

import attrs
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IReactorTime,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import (
    IAgent,
    IAgentEndpointFactory,
    IBodyProducer,
    IPolicyForHTTPS,
    IResponse,
)
from zope.interface import implementer

from coverart.archive.bounded_heads import TLSEndpoint, connection_factory
from coverart.archive.url_policy import Rules, is_public
from coverart.errors import BadUpstream

IDLE_CONNECTION_S = 30.0
MOST_ENDPOINTS = 500


@implementer(IReactorPluggableNameResolver, IHostnameResolver, IResolutionReceiver)
class _PublicAddresses:
    """The reactor as one connection sees it: names have no addresses but public ones."""

    def __init__(self, reactor: Any) -> None:
        self.nameResolver = self
        self.others: list[str] = []
        """The addresses that were not passed on."""
        self._reactor = reactor
        self._receiver: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(
        self, resolutionReceiver: IResolutionReceiver, *asked: Any, **named: Any
    ) -> Any:
        self._receiver = resolutionReceiver
        return self._reactor.nameResolver.resolveHostName(self, *asked, **named)

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self._receiver.resolutionBegan(resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, (IPv4Address, IPv6Address)) and is_public(address.host):
            self._receiver.addressResolved(address)
        else:
            self.others.append(str(getattr(address, "host", address)))

    def resolutionComplete(self) -> None:
        self._receiver.resolutionComplete()


@implementer(IStreamClientEndpoint)
@attrs.frozen(eq=False)
class _PublicEndpoint:
    """
    Connects to a name at its public addresses.

    One that has others only is no fault of the archive's host, so no breaker is to learn of it
    (archive_client.py), and the operator is to read what is wrong: as a rule, their own resolver.
    """

    reactor: Any
    host: str
    port: int

    def connect(self, protocolFactory: IProtocolFactory) -> Any:
        public = _PublicAddresses(self.reactor)

        def explain(failure: Failure) -> Failure:
            if failure.check(DNSLookupError) and public.others:
                others = ", ".join(public.others)
                raise BadUpstream(f"{self.host} has no public address ({others})")
            return failure

        connecting = _endpoint(public, self.host, self.port).connect(protocolFactory)
        return connecting.addErrback(explain)


def _endpoint(reactor: Any, host: str, port: int) -> IStreamClientEndpoint:
    # Who waits for an answer bounds its connection too: archive_client.py.
    no_bound: Any = None
    return HostnameEndpoint(reactor, host, port, timeout=no_bound)


@implementer(IAgentEndpointFactory)
@attrs.define(eq=False)
class CheckedEndpoints:
    """Makes endpoints only for what the rules allow."""

    reactor: Any
    rules: Rules
    tls: IPolicyForHTTPS = attrs.field(factory=BrowserLikePolicyForHTTPS)
    _made: dict[tuple[bytes, bytes, int], IStreamClientEndpoint] = attrs.field(
        factory=dict, init=False
    )
    """Asked for with each request, though most go over a connection that stands."""

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """:raises BadUpstream: the rules do not allow this host, port and scheme."""
        key = (uri.scheme, uri.host, uri.port)
        made = self._made.get(key)
        if made is None:
            made = self._make(uri)
            if len(self._made) >= MOST_ENDPOINTS:
                self._made.clear()
            self._made[key] = made
        return made

    def _make(self, uri: URI) -> IStreamClientEndpoint:
        scheme, host = uri.scheme.decode("ascii"), uri.host.decode("ascii")
        named = f"[{host}]" if ":" in host else host
        if not self.rules.allows(scheme, named, uri.port):
            raise BadUpstream(f"no connection to {scheme}://{named}:{uri.port}: not allowed")
        trusted = self.rules.trusts(named, uri.port)
        connect = _endpoint if trusted else _PublicEndpoint
        endpoint: IStreamClientEndpoint = connect(self.reactor, host, uri.port)
        if scheme == "https":
            endpoint = TLSEndpoint(self.tls.creatorForNetloc(uri.host, uri.port), endpoint)
        return endpoint


@implementer(IAgent)
@attrs.define(eq=False)
class _IdentityAgent:
    """
    Asks for bytes as they are: images do not compress, and a length can only be checked, and a
    compressed bomb only be refused, where nothing is decoded on the way.
    """

    agent: IAgent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Any:
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders(b"accept-encoding", [b"identity"])
        return self.agent.request(method, uri, headers, bodyProducer).addCallback(_plain)


def _plain(response: IResponse) -> IResponse:
    for coding in response.headers.getRawHeaders(b"content-encoding", []):
        if coding.strip().lower() not in (b"", b"identity"):
            raise BadUpstream("the archive sent an encoded body that was not asked for")
    return response


def make_client(
    reactor: Any,
    rules: Rules,
    *,
    clock: IReactorTime,
    connections_per_host: int,
    tls: IPolicyForHTTPS | None = None,
) -> tuple[HTTPClient, HTTPConnectionPool]:
    """
    The treq client of one process and its pool; close the pool's connections at the end.

    Cookies are neither kept nor sent.

    :param clock: ends connections that are idle.
    """
    pool = HTTPConnectionPool(clock, persistent=True)
    pool.maxPersistentPerHost = connections_per_host
    pool.cachedConnectionTimeout = int(IDLE_CONNECTION_S)
    # Documented, and the only way to bound a head.
    pool._factory = connection_factory  # type: ignore[assignment]  # noqa: SLF001
    endpoints = CheckedEndpoints(
        reactor=reactor, rules=rules, tls=BrowserLikePolicyForHTTPS() if tls is None else tls
    )
    agent = Agent.usingEndpointFactory(reactor, endpoints, pool)
    no_cookies = IndexableCookieJar(policy=DefaultCookiePolicy(allowed_domains=()))
    return HTTPClient(_IdentityAgent(agent), no_cookies), pool
