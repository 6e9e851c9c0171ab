"""
One client's connection: what it may send, how long that may take, and what it is told if not so.

Twisted's own bounds stay (16 kB and 500 lines of headers). Added to them: a request has to be
whole after REQUEST_S however busily its bytes trickle in, an answer has to be taken, a body is
small, since nobody reads it, and after a refusal nothing more is read. Where framing is in doubt
a request is refused, so that nobody on the way can have seen two requests where this saw one.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from coverart.web.headers import RUNS_NOTHING

LARGEST_HEAD_BYTES = 16 * 1024
"""The request line and all headers; more is a 400."""
PIPELINED_BYTES = 16 * 1024
"""Requests sent before the last one was answered wait, so many bytes of them; then none is read."""
REQUEST_S = 30.0
"""So long a request may take to arrive, from its first byte to its last."""
UNREAD_S = 60.0
"""So long a client may take nothing of its answer while more is there."""
LARGEST_BODY_BYTES = 64 * 1024
LONGEST_LENGTH = 40
"""A whole Content-Length line; Python refuses to read numbers of thousands of digits."""


class ClientChannel(HTTPChannel):
    """An HTTP/1.1 connection that ends when its client does not behave."""

    transport: Any
    site: Any
    totalHeadersSize = LARGEST_HEAD_BYTES
    _optimisticEagerReadSize = PIPELINED_BYTES

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        """Part of a request is there."""
        self._answering = False
        self._refused = False
        self._gone = False
        self._late: IDelayedCall | None = None
        self._unread: IDelayedCall | None = None
        self._body_bytes = 0
        self._paused: Any = None
        """The producer that was told to wait and not yet to go on."""

    def connectionMade(self) -> None:
        super().connectionMade()
        # The reception knows a connection from its first moment to its last.
        self.site.reception.came(self)

    def dataReceived(self, data: bytes) -> None:
        if not self._answering:
            self._begun = True
        super().dataReceived(data)
        # Most requests come whole, at once, and need no timer. What waits in LineReceiver's buffer
        # is a line without its end, maybe behind a request that was answered just now.
        begun = self._begun or (bool(self._buffer) and not self._answering)
        if begun and self._late is None and not self._refused:
            self._late = self.callLater(REQUEST_S, self._too_late)

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > LARGEST_BODY_BYTES:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        self._body_bytes = 0
        super().allHeadersReceived()

    def headerReceived(self, line: bytes) -> bool:
        if len(line) > LONGEST_LENGTH and line[:14].lower() == b"content-length":
            self.refuse(HTTPStatus.BAD_REQUEST)
            return False
        accepted: bool = super().headerReceived(line)
        return accepted

    def rawDataReceived(self, data: bytes) -> None:
        if not self._answering:
            self._body_bytes += len(data)
            # A length that was told was looked at before.
            if self.length is None and self._body_bytes > LARGEST_BODY_BYTES:
                self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
        super().rawDataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002
        self.refuse(HTTPStatus.BAD_REQUEST)

    def allContentReceived(self) -> None:
        if self._refused:
            return
        self._begun = False
        self._answering = True
        self._cancel_late()
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        self._answering = False
        super().requestDone(request)

    def refuse(self, status: HTTPStatus) -> None:
        """
        Answer in place of a request that can't be read, and end the connection.

        The headers are those of every error (responses.py), which needs a request to speak to.
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

    def _respondToBadRequestAndDisconnect(self) -> None:
        """What Twisted calls where it finds a request malformed."""
        self.refuse(HTTPStatus.BAD_REQUEST)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        if self._waitingForTransport and not streaming:
            # The client has yet to take what was sent before.
            self._pause_once()

    def pauseProducing(self) -> None:
        """The client takes no more for now."""
        self._expect_reading()
        self._pause_once()

    def _pause_once(self) -> None:
        # The transport says so at each write, and Twisted's adapter for pull producers would then
        # have to be told as often to go on; it is told once.
        if self._paused is None or self._paused is not self._requestProducer:
            self._paused = self._requestProducer
            super().pauseProducing()

    def resumeProducing(self) -> None:
        self._cancel_unread()
        self._paused = None
        super().resumeProducing()

    def loseConnection(self) -> None:
        # What is still to be sent holds the connection open, and may never be taken.
        self._expect_reading()
        super().loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._gone = True
        self._cancel_late()
        self._cancel_unread()
        super().connectionLost(reason)
        self.site.reception.gone(self)

    def _too_late(self) -> None:
        self._late = None
        self.refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _not_taken(self) -> None:
        self._unread = None
        self.transport.abortConnection()

    def _expect_reading(self) -> None:
        if self._unread is None and not self._gone:
            self._unread = self.callLater(UNREAD_S, self._not_taken)

    def _cancel_late(self) -> None:
        late, self._late = self._late, None
        if late is not None:
            late.cancel()

    def _cancel_unread(self) -> None:
        unread, self._unread = self._unread, None
        if unread is not None:
            unread.cancel()


def _unread(data: bytes) -> None:
    """Take nothing in any more."""
