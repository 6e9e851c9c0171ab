"""
One connection to the archive: how much may come before a body, and that bodies come as they are.

Twisted bounds a line of an answer but not the number of lines, and writes one to the log for each
interim answer (1xx).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import HTTP11ClientProtocol  # type: ignore[attr-defined]
from twisted.web.iweb import IResponse

from coverart.errors import BadUpstream

LARGEST_HEAD_BYTES = 64 * 1024
"""
Status and headers of an answer, and all interim answers before it; the archive's take two kB.

What is read from the socket at once, 64 kB, may come on top.
"""

_SILENT = Logger(observer=lambda _: None)  # type: ignore[arg-type]


class _Connection(HTTP11ClientProtocol):
    """
    A connection on which an answer has to come to its body within LARGEST_HEAD_BYTES.

    Bytes are asked for as they are: images do not compress, and a length can only be checked, and
    a compressed bomb only be refused, where nothing is decoded on the way.
    """

    transport: Any
    _answer: Deferred[Any] | None = None
    _parser: Any
    _head_bytes = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        # Of a GET nothing is left to be sent when it is given up, and TLS would wait for the other
        # side to agree, however long that takes.
        self.transport.loseConnection = self.transport.abortConnection

    def request(self, request: Any) -> Deferred[Any]:
        self._head_bytes = 0
        # Below treq, which asks for gzip and would decode it.
        request.headers.setRawHeaders(b"accept-encoding", [b"identity"])
        answer: Deferred[Any] = super().request(request)
        self._answer = answer
        if self._parser is not None:
            # Twisted offers no other way to it. Its only line is the one for each interim answer.
            self._parser._log = _SILENT  # noqa: SLF001
        return answer.addCallbacks(_plain, self._explain)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self._answer is not None and not self._answer.called:
            self._head_bytes += len(data)
            if self._head_bytes >= LARGEST_HEAD_BYTES:
                self.abort()

    def _explain(self, failure: Failure) -> Failure:
        if self._head_bytes >= LARGEST_HEAD_BYTES:
            said = f"the headers of an answer are larger than {LARGEST_HEAD_BYTES} bytes"
            raise BadUpstream(said) from failure.value
        return failure


def _plain(response: IResponse) -> IResponse:
    for coding in response.headers.getRawHeaders(b"content-encoding", []):
        if coding.strip().lower() not in (b"", b"identity"):
            raise BadUpstream("the archive sent an encoded body that was not asked for")
    return response


def connection_factory(quiescent: Callable[..., None], _endpoint: str) -> Any:
    """What makes a connection of a pool, in place of Twisted's own."""
    factory: Any = Factory.forProtocol(partial(_Connection, quiescent))
    factory.noisy = False
    return factory
