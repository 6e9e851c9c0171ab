"""
One client's connection: what it may send, and what it is told if not so.

Twisted's own bounds stay: 16 kB and 500 lines of headers; so many bytes of requests wait that were
sent before the last one was answered. A body is dropped as it comes, and after a refusal nothing
more is read. Where framing is in doubt a request is refused, so that nobody on the way can have
seen two requests where this saw one. How long all that may take: connection_limits.py.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from coverart.web.headers import RUNS_NOTHING

LARGEST_BODY_BYTES = 64 * 1024
LONGEST_LENGTH = 40
"""A whole Content-Length line; Python refuses to read numbers of thousands of digits."""


class ClientChannel(HTTPChannel):
    """An HTTP/1.1 connection that ends when its client does not behave."""

    transport: Any
    site: Any

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        """Part of a request is there."""
        self._answering = False
        self._refused = False
        self._body_bytes = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.connections.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.site.connections.closed(self)

    def dataReceived(self, data: bytes) -> None:
        if not self._answering:
            self._begun = True
        super().dataReceived(data)
        # Most requests come whole. What waits in LineReceiver's buffer is a line without its end,
        # maybe behind a request that was answered just now.
        if (self._begun or self._buffer) and not self._answering and not self._refused:
            self.site.connections.arriving(self)

    def headerReceived(self, line: bytes) -> bool:
        if len(line) > LONGEST_LENGTH and line[:14].lower() == b"content-length":
            self.refuse(HTTPStatus.BAD_REQUEST)
            return False
        accepted: bool = super().headerReceived(line)
        return accepted

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > LARGEST_BODY_BYTES:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        self._body_bytes = 0
        super().allHeadersReceived()

    def rawDataReceived(self, data: bytes) -> None:
        if self.length is None:
            self._body_bytes += len(data)
            if self._body_bytes > LARGEST_BODY_BYTES:
                self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
        super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        if self._refused:
            return
        self._begun = False
        self._answering = True
        self.site.connections.asked(self)
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        self._answering = False
        # Before: what was sent meanwhile is looked at in there.
        self.site.connections.answered(self)
        if self.site.connections.draining:
            self.persistent = False
        super().requestDone(request)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        if self._waitingForTransport:
            # The client has yet to take what was sent before, and the transport says so once.
            producer.pauseProducing()

    def refuse(self, status: HTTPStatus) -> None:
        """
        Answer in place of a request that can't be read, and end the connection.

        The headers are those of every error (headers.py), which needs a request to speak to.
        """
        if self._refused:
            return
        self._refused = True
        # One read may hold more behind what was refused, and more may come before the end.
        self.dataReceived = self.lineReceived = self.rawDataReceived = _unread  # type: ignore[method-assign]
        said = "malformed request" if status == HTTPStatus.BAD_REQUEST else status.phrase.lower()
        body = json.dumps({"error": said}).encode()
        lines = [
            b"HTTP/1.1 %d %s" % (status, status.phrase.encode()),
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(body),
            b"Content-Security-Policy: " + RUNS_NOTHING,
            b"Cache-Control: no-store",
            b"Access-Control-Allow-Origin: *",
            b"X-Content-Type-Options: nosniff",
            b"X-Served-By: coverart",
            b"Connection: close",
        ]
        self.site.metrics.request("refused", len(body), 0.0)
        self.site.access_log.tell(f"other unknown {status:d} unread {len(body)} B 0.0000 s 0 hops")
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.loseConnection()

    def refuse_late(self) -> None:
        """The request does not arrive in time."""
        self.refuse(HTTPStatus.REQUEST_TIMEOUT)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002
        self.refuse(HTTPStatus.BAD_REQUEST)

    def _respondToBadRequestAndDisconnect(self) -> None:
        """What Twisted calls where it finds a request malformed."""
        self.refuse(HTTPStatus.BAD_REQUEST)


def _unread(data: bytes) -> None:
    """Take nothing in any more."""
