"""
One client's connection: what it may send, and what it is told if not so.

Twisted's own bounds stay: 16 kB and 500 lines of headers, and 16 kB of requests that are sent
before the last one was answered. A body is dropped as it comes, and after a refusal nothing more is
read. Where framing is in doubt a request is refused, so that nobody on the way can have
seen two requests where this saw one. How long all that may take: connection_limits.py.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from coverart.errors import Refused
from coverart.web.headers import open_to_all, refuse

LARGEST_BODY_BYTES = 64 * 1024


class ClientChannel(HTTPChannel):
    """An HTTP/1.1 connection that ends when its client does not behave."""

    transport: Any
    site: Any

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.connections.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.site.connections.closed(self)

    def dataReceived(self, data: bytes) -> None:
        try:
            super().dataReceived(data)
        except ValueError:
            # Of a Content-Length: Python reads no number of thousands of digits.
            self._respondToBadRequestAndDisconnect()

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > LARGEST_BODY_BYTES:
            self.refuse(413, "request body too large")
            return
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        self.site.connections.asked(self)
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        if self.site.connections.draining:
            self.persistent = False
        if self.persistent:
            # Before: what was sent meanwhile is looked at in there.
            self.site.connections.answered(self)
        super().requestDone(request)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        if self._waitingForTransport:
            # The client has yet to take what was sent before, and the transport says so once.
            producer.pauseProducing()

    def refuse(self, status: int, said: str) -> None:
        """Answer in place of a request that can't be read, and end the connection."""
        self.site.connections.asked(self)
        # One read may hold more behind what was refused, and more may come before the end.
        self.dataReceived = self.lineReceived = self.rawDataReceived = _unread  # type: ignore[method-assign]
        self.persistent = False
        request = self.site.requestFactory(self)
        request.site, request.clientproto = self.site, b"HTTP/1.1"
        open_to_all(request)
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        self.requests = [request]
        request.write(refuse(request, Refused(status, said)))
        request.finish()

    def timeoutConnection(self) -> None:
        """It is too late for the next request: told to who began to send one."""
        if self.requests or self.clearLineBuffer():
            self.refuse(408, "request timeout")
        else:
            self.loseConnection()

    def _respondToBadRequestAndDisconnect(self, *_: object) -> None:
        """What Twisted calls where it finds a request malformed."""
        self.refuse(400, "malformed request")

    lineLengthExceeded = _respondToBadRequestAndDisconnect


def _unread(data: bytes) -> None:
    """Take nothing in any more."""
