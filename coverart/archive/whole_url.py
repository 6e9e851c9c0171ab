"""
Plain http through an HTTP proxy: it is sent the whole URL (RFC 9112 section 3.2.2).

CONNECT is for TLS, and most proxies refuse it for other ports. Only a host that the operator named
with its port is asked by plain http at all.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.client import URI, HTTPConnectionPool, ProxyAgent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from coverart.archive.handshakes import basic
from coverart.archive.proxies import Proxies, Proxy


@implementer(IAgent)
class WholeUrls:
    """Sends what goes by plain http through an HTTP proxy in that way, and all else as it is."""

    def __init__(
        self,
        reactor: Any,
        direct: IAgent,
        endpoints: IAgentEndpointFactory,
        proxies: Proxies,
        pool: HTTPConnectionPool,
    ) -> None:
        self._reactor = reactor
        self._direct = direct
        self._endpoints = endpoints
        self._proxies = proxies
        self._pool = pool
        self._agents: dict[Proxy, ProxyAgent] = {}

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See IAgent."""
        parsed = URI.fromBytes(uri)
        proxy = self._proxies.leading_to(
            parsed.scheme.decode("ascii"), parsed.host.decode("ascii"), parsed.port
        )
        if proxy is None or proxy.scheme != "http" or parsed.scheme != b"http":
            return self._direct.request(method, uri, headers, bodyProducer)
        endpoint = self._endpoints.endpointForURI(parsed)
        agent = self._agents.get(proxy)
        if agent is None:
            agent = self._agents[proxy] = ProxyAgent(endpoint, self._reactor, self._pool)
        if proxy.login is not None and headers is not None:
            headers = headers.copy()
            headers.setRawHeaders(b"proxy-authorization", [basic(proxy.login)])
        answer: Deferred[IResponse] = agent.request(
            method, uri.partition(b"#")[0], headers, bodyProducer
        )
        return answer
