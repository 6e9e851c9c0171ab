"""
One connection to the archive: how much may come before a body, and that it ends when it is told to.

Twisted bounds a line of an answer but not the number of lines, and writes one to the log for each
interim answer (1xx). A TLS connection that is closed waits for the other side to agree, however
long that takes.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web._newclient import HEADER, STATUS, HTTP11ClientProtocol
from twisted.web.client import _HTTP11ClientFactory
from zope.interface import implementer

from coverart.errors import BadUpstream

LARGEST_HEAD_BYTES = 64 * 1024
"""Status and headers of an answer, and all interim answers before it; the archive's take two kB."""
GOODBYE_S = 5.0
"""So long the other side of a TLS connection has to agree to its end."""

_SILENT = Logger(observer=lambda _: None)  # type: ignore[arg-type]


class _Connection(HTTP11ClientProtocol):
    """A connection on which an answer has to come to its body within LARGEST_HEAD_BYTES."""

    _parser: Any
    _head_bytes = 0

    def request(self, request: Any) -> Deferred[Any]:
        self._head_bytes = 0
        answer: Deferred[Any] = super().request(request)
        if self._parser is not None:
            # Its only line is the one for each interim answer.
            self._parser._log = _SILENT  # noqa: SLF001
        return answer

    def dataReceived(self, data: bytes) -> None:
        parser = self._parser
        if not _in_head(parser):
            super().dataReceived(data)
            return
        room = LARGEST_HEAD_BYTES - self._head_bytes
        head, rest = data[:room], data[room:]
        super().dataReceived(head)
        if self._parser is not parser:
            return
        if not _in_head(parser):
            if rest:
                super().dataReceived(rest)
            return
        self._head_bytes += len(head)
        if self._head_bytes >= LARGEST_HEAD_BYTES:
            said = f"the headers of an answer are larger than {LARGEST_HEAD_BYTES} bytes"
            self._giveUp(Failure(BadUpstream(said)))


def _in_head(parser: Any) -> bool:
    return parser is not None and parser.state in (STATUS, HEADER)


class ConnectionFactory(_HTTP11ClientFactory):
    """Makes the connections of a pool; stands in for Twisted's own."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> HTTP11ClientProtocol:  # noqa: ARG002
        """For an address that was connected to."""
        return _Connection(self._quiescentCallback)


class _EndingTLS(BufferingTLSTransport):
    """TLS that ends GOODBYE_S after it was told to at the latest."""

    factory: Any
    _late: IDelayedCall | None = None

    def loseConnection(self) -> None:
        super().loseConnection()
        if self.connected and self._late is None:
            self._late = self.factory.clock.callLater(GOODBYE_S, self._abort)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        late, self._late = self._late, None
        if late is not None and late.active():
            late.cancel()
        super().connectionLost(reason)

    def _abort(self) -> None:
        self._late = None
        self.abortConnection()


class _EndingTLSFactory(TLSMemoryBIOFactory):
    protocol = _EndingTLS

    def __init__(self, creator: Any, wrapped: IProtocolFactory, clock: IReactorTime) -> None:
        super().__init__(creator, True, wrapped, clock)
        self.clock = clock


@implementer(IStreamClientEndpoint)
@attrs.frozen(eq=False)
class TLSEndpoint:
    """Speaks TLS over another endpoint."""

    creator: Any
    endpoint: IStreamClientEndpoint
    clock: IReactorTime

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """To what the endpoint leads to; fires with the protocol within TLS."""
        factory = _EndingTLSFactory(self.creator, protocolFactory, self.clock)
        connecting: Deferred[Any] = self.endpoint.connect(factory)
        return connecting.addCallback(lambda tls: tls.wrappedProtocol)
