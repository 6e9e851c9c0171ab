"""
The reference for hits: a Klein application with one route and nothing behind it, without a log.

`twistd -n --python bench/bare_klein.py`. It answers as many bytes as coverart does; that many of
them are header bytes as /padding/<count> said last.
"""

from __future__ import annotations

import os
from typing import Any

from klein import Klein
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.server import Site


class Bare:
    """The route."""

    app = Klein()

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._padding = b""

    @app.route("/release/<mbid>/<name>")
    def answer(self, request: Any, mbid: str, name: str) -> bytes:  # noqa: ARG002
        """What a cache would answer that had nothing to think about."""
        request.setHeader(b"content-length", b"%d" % len(self._body))
        request.setHeader(b"x-padding", self._padding)
        return self._body

    @app.route("/padding/<int:count>")
    def pad(self, request: Any, count: int) -> bytes:  # noqa: ARG002
        """From now on, a header value of so many bytes."""
        self._padding = b"x" * count
        return b""


class SilentSite(Site):
    """A site without an access log."""

    def log(self, request: Any) -> None:
        """Say nothing."""


_bare = Bare(bytes(int(os.environ.get("BENCH_BODY_BYTES", "0"))))
_endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
application = Application("bare Klein")
StreamServerEndpointService(_endpoint, SilentSite(_bare.app.resource())).setServiceParent(
    application
)
