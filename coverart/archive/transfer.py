"""Taking the body of one answer: bounded in time and bytes, and only as fast as it is stored."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from coverart.errors import BadUpstream, CoverError, PassingTrouble, UpstreamTimeout


class Sink(Protocol):
    """Takes the pieces of a body."""

    def begin(self, length: int | None) -> None:
        """A body of this declared length starts. :raises CoverError: it is not wanted."""

    def write(self, data: bytes) -> None:
        """:raises CoverError: no more of it is wanted."""

    def room(self) -> Deferred[None] | None:
        """None while more may come at once; else fires when it may."""


class BytesSink:
    """Keeps a small body in memory."""

    def __init__(self, largest_bytes: int) -> None:
        self._largest_bytes = largest_bytes
        self._pieces: list[bytes] = []
        self._received = 0

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    def begin(self, length: int | None) -> None:
        self._pieces, self._received = [], 0
        self._check(length or 0)

    def write(self, data: bytes) -> None:
        self._received += len(data)
        self._check(self._received)
        self._pieces.append(data)

    def room(self) -> None:
        return None

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._largest_bytes:
            raise BadUpstream(f"the archive's answer is larger than {self._largest_bytes} bytes")


class _Body(TwistedProtocol):
    def __init__(self, sink: Sink, idle_s: float, clock: IReactorTime) -> None:
        self._sink = sink
        self._clock = clock
        self._idle_s = idle_s
        self._idle: IDelayedCall = clock.callLater(idle_s, self._silent)
        self._error: CoverError | None = None
        self._waiting = False
        """The sink is full."""
        self.done: Deferred[None] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:
        if self._error is not None:
            return
        if not self._waiting:
            self._idle.reset(self._idle_s)
        try:
            self._sink.write(data)
        except CoverError as error:
            self._fail(error)
            return
        # One read can hold several chunks: those behind the one that filled the sink come all the same.
        room = None if self._waiting else self._sink.room()
        if room is not None:
            # Waiting for our own disk is no silence of the archive's.
            self._waiting = True
            self._idle.cancel()
            transport: Any = self.transport
            transport.pauseProducing()
            room.addCallback(self._resume)

    def _resume(self, _: None) -> None:
        self._waiting = False
        if self._error is None and not self.done.called:
            self._idle = self._clock.callLater(self._idle_s, self._silent)
            transport: Any = self.transport
            transport.resumeProducing()

    def _silent(self) -> None:
        self._fail(UpstreamTimeout("the archive fell silent in the middle of an answer"))

    def _fail(self, error: CoverError) -> None:
        self._error = error
        self._abort()

    def _abort(self) -> None:
        if self._idle.active():
            self._idle.cancel()
        # The body's transport stands in for the connection and offers only a polite close, for
        # which TLS awaits the other side; a silent one would keep the connection for ever.
        connection = getattr(self.transport, "_producer", None) or self.transport
        abort = getattr(connection, "abortConnection", None)
        if abort is not None:
            abort()
        elif connection is not None:
            connection.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._idle.active():
            self._idle.cancel()
        if self.done.called:
            return
        if self._error is not None:
            self.done.errback(self._error)
        elif reason.check(ResponseDone):
            self.done.callback(None)
        elif reason.check(PotentialDataLoss):
            self.done.errback(
                BadUpstream("the archive's answer had neither length nor framing: it may be cut")
            )
        else:
            self.done.errback(PassingTrouble("the archive's answer was cut"))


def transfer(response: IResponse, sink: Sink, idle_s: float, clock: IReactorTime) -> Deferred[None]:
    """
    Pass the body of a response to `sink`.

    :param idle_s: so many seconds of silence end it.
    :returns: fires when the whole body was taken. Fails with UpstreamTimeout, with BadUpstream
        if it was cut or may have been, or with what the sink raised; the connection is then
        gone. Cancelling it closes the connection.
    """
    length = None if response.length is UNKNOWN_LENGTH else int(response.length)
    body = _Body(sink, idle_s, clock)
    try:
        sink.begin(length)
    except CoverError as error:
        body._error = error  # noqa: SLF001
    response.deliverBody(body)
    if body._error is not None:  # noqa: SLF001
        body._abort()  # noqa: SLF001
    return body.done
