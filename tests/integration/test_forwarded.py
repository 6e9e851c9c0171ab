"""Who a client is and how it asked, as the app learns it through the shipped nginx."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

from coverart.web.forwarded import TrustedProxies
from tests.support.running import free_port
from tests.support.talk import LOCAL, connect

reactor: Any = _reactor

PROXIES = TrustedProxies([ip_network("127.0.0.0/8")])


class Told(Resource):
    """An app that answers with what it was told of its client."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        request.setHeader(b"content-type", b"application/json")
        return json.dumps([str(PROXIES.client(request)), PROXIES.scheme(request)]).encode()


@pytest_twisted.ensureDeferred
async def test_through_nginx(run, nginx) -> None:
    """
    Nginx believes its own trusted proxies alone, and passes on one address and one scheme.

    In the rows: the address a client connects from, what it says, whom the app takes it for.
    """
    proxy = await run(COVER_ART_ACCEL="/cache-files/")
    port = free_port()
    listening = reactor.listenTCP(port, Site(Told()), interface=LOCAL)
    front = await nginx(
        proxy, NGINX_APP=f"{LOCAL}:{port}", NGINX_TRUSTED_PROXIES="127.0.0.2,127.0.0.4/31"
    )
    try:
        for source, said, expected in (
            ("127.0.0.1", [], ["127.0.0.1", "http"]),
            ("127.0.0.3", ["X-Forwarded-For: 192.0.2.1"], ["127.0.0.3", "http"]),
            ("127.0.0.3", ["X-Forwarded-Proto: https"], ["127.0.0.3", "http"]),
            ("127.0.0.2", ["X-Forwarded-Proto: https"], ["127.0.0.2", "https"]),
            ("127.0.0.5", ["X-Forwarded-Proto: HTTPS"], ["127.0.0.5", "https"]),
            ("127.0.0.2", ["X-Forwarded-Proto: http, https"], ["127.0.0.2", "https"]),
            ("127.0.0.2", ["X-Forwarded-Proto: https, http"], ["127.0.0.2", "http"]),
            ("127.0.0.2", ["X-Forwarded-Proto: https://x"], ["127.0.0.2", "http"]),
            ("127.0.0.2", ["X-Forwarded-For: 192.0.2.1"], ["192.0.2.1", "http"]),
            ("127.0.0.2", ["X-Forwarded-For: 10.0.0.1, 192.0.2.1"], ["192.0.2.1", "http"]),
            ("127.0.0.2", ["X-Forwarded-For: 192.0.2.1, 127.0.0.5"], ["192.0.2.1", "http"]),
            ("127.0.0.2", ["X-Forwarded-For: ::ffff:192.0.2.1"], ["192.0.2.1", "http"]),
            ("127.0.0.2", ["X-Forwarded-For: 2001:db8::1"], ["2001:db8::1", "http"]),
            ("127.0.0.2", ["X-Forwarded-For: rubbish"], ["127.0.0.2", "http"]),
            (
                "127.0.0.2",
                ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https"],
                ["192.0.2.1", "https"],
            ),
        ):
            wire = await connect(front.port, source)
            wire.get("/release/x", "Connection: close", *said)
            await wire.end()
            assert json.loads(wire.body) == expected, (source, said)
    finally:
        await listening.stopListening()
