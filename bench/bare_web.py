"""
The reference below Klein: a twisted.web resource that answers at once, without a log.

`twistd -n --python bench/bare_web.py`. It answers as many bytes as coverart does; that many of
them are header bytes as /padding/<count> said last.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.resource import Resource
from twisted.web.server import Site


class Bare(Resource):
    """The only resource."""

    isLeaf = True

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._body = body
        self._padding = b""

    def render_GET(self, request: Any) -> bytes:
        """What a cache would answer that had nothing to think about."""
        if request.path.startswith(b"/padding/"):
            self._padding = b"x" * int(request.path.rpartition(b"/")[2])
            return b""
        request.setHeader(b"content-length", b"%d" % len(self._body))
        request.setHeader(b"x-padding", self._padding)
        return self._body


class SilentSite(Site):
    """A site without an access log."""

    def log(self, request: Any) -> None:
        """Say nothing."""


_bare = Bare(bytes(int(os.environ.get("BENCH_BODY_BYTES", "0"))))
_endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
application = Application("bare twisted.web")
StreamServerEndpointService(_endpoint, SilentSite(_bare)).setServiceParent(application)
