"""
Connections to the archive: one Agent with a persistent pool that checks where it connects.

The allow list is asked again at connect, and a name's addresses are filtered after they were
resolved, so that a name which resolves to a public address for a check and to a private one for
the connection gains nothing: the addresses that pass are the ones connected to.
"""

from __future__ import annotations

from collections.abc import Sequence
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

from coverart.archive.bounded_heads import ConnectionFactory, TLSEndpoint
from coverart.archive.url_policy import Rules, is_public
from coverart.errors import BadUpstream

IDLE_CONNECTION_S = 30.0
MOST_ENDPOINTS = 500


@implementer(IResolutionReceiver)
@attrs.define(eq=False)
class _PublicAddresses:
    """Passes on only the public ones among the addresses of a name, and notes the others."""

    receiver: IResolutionReceiver
    others: list[str]

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self.receiver.resolutionBegan(resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, (IPv4Address, IPv6Address)) and is_public(address.host):
            self.receiver.addressResolved(address)
        else:
            self.others.append(str(getattr(address, "host", address)))

    def resolutionComplete(self) -> None:
        self.receiver.resolutionComplete()


@implementer(IHostnameResolver)
@attrs.define(eq=False)
class _PublicResolver:
    resolver: IHostnameResolver
    others: list[str] = attrs.field(factory=list)
    """The addresses of the last name that were not passed on."""

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        self.others = []
        return self.resolver.resolveHostName(
            _PublicAddresses(resolutionReceiver, self.others),
            hostName,
            portNumber,
            addressTypes,
            transportSemantics,
        )


@implementer(IReactorPluggableNameResolver)
class _PublicReactor:
    """The reactor, seeing no addresses but public ones."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = _PublicResolver(reactor.nameResolver)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        installed: IHostnameResolver = self._reactor.installNameResolver(resolver)
        return installed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IStreamClientEndpoint)
class _PublicEndpoint:
    """
    Connects to a name at its public addresses.

    One that has others only is no fault of the archive's host, so no breaker is to learn of it
    (archive_client.py), and the operator is to read what is wrong: as a rule, their own resolver.
    """

    def __init__(self, reactor: Any, host: str, port: int, timeout_s: float) -> None:
        public = _PublicReactor(reactor)
        self._host = host
        self._resolver = public.nameResolver
        self._endpoint = HostnameEndpoint(public, host, port, timeout=timeout_s)

    def connect(self, protocolFactory: IProtocolFactory) -> Any:
        return self._endpoint.connect(protocolFactory).addErrback(self._explain)

    def _explain(self, failure: Failure) -> Failure:
        if failure.check(DNSLookupError) and self._resolver.others:
            others = ", ".join(self._resolver.others)
            raise BadUpstream(f"{self._host} has no public address ({others})")
        return failure


@implementer(IAgentEndpointFactory)
@attrs.define(eq=False)
class CheckedEndpoints:
    """Makes endpoints only for what the rules allow."""

    reactor: Any
    rules: Rules
    connect_timeout_s: float
    tls: IPolicyForHTTPS = attrs.field(factory=BrowserLikePolicyForHTTPS)
    _made: dict[tuple[str, str, int], IStreamClientEndpoint] = attrs.field(factory=dict, init=False)
    """Asked for with each request, though most go over a connection that stands."""

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """:raises BadUpstream: the rules do not allow this host, port and scheme."""
        scheme, host = uri.scheme.decode("ascii"), uri.host.decode("ascii")
        named = f"[{host}]" if ":" in host else host
        if not self.rules.allows(scheme, named, uri.port):
            raise BadUpstream(f"no connection to {scheme}://{named}:{uri.port}: not allowed")
        made = self._made.get((scheme, host, uri.port))
        if made is not None:
            return made
        timeout_s = self.connect_timeout_s
        endpoint: IStreamClientEndpoint
        if self.rules.trusts(named, uri.port):
            endpoint = HostnameEndpoint(self.reactor, host, uri.port, timeout=timeout_s)
        else:
            endpoint = _PublicEndpoint(self.reactor, host, uri.port, timeout_s)
        if scheme == "https":
            creator = self.tls.creatorForNetloc(uri.host, uri.port)
            endpoint = TLSEndpoint(creator, endpoint, self.reactor)
        if len(self._made) >= MOST_ENDPOINTS:
            self._made.clear()
        self._made[scheme, host, uri.port] = endpoint
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
    connections_per_host: int,
    connect_timeout_s: float,
    tls: IPolicyForHTTPS | None = None,
) -> tuple[HTTPClient, HTTPConnectionPool]:
    """
    The treq client of one process and its pool; close the pool's connections at the end.

    Cookies are neither kept nor sent.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = connections_per_host
    pool.cachedConnectionTimeout = int(IDLE_CONNECTION_S)
    pool._factory = ConnectionFactory  # noqa: SLF001 - documented, and the only way to its bounds
    endpoints = CheckedEndpoints(
        reactor=reactor,
        rules=rules,
        connect_timeout_s=connect_timeout_s,
        tls=BrowserLikePolicyForHTTPS() if tls is None else tls,
    )
    agent = Agent.usingEndpointFactory(reactor, endpoints, pool)
    no_cookies = IndexableCookieJar(policy=DefaultCookiePolicy(allowed_domains=()))
    return HTTPClient(_IdentityAgent(agent), no_cookies), pool
