"""Taking the body of one answer: bounded in time and bytes, and only as fast as it is stored."""

from __future__ import annotations

import math
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from coverart.archive.source import Sink
from coverart.errors import BadUpstream, CoverError, PassingTrouble, UpstreamTimeout

LARGEST_UNREAD_BYTES = 64 * 1024


class BytesSink:
    """Keeps a small body in memory."""

    def __init__(self, largest_bytes: int) -> None:
        self._largest_bytes = largest_bytes
        self.body = b""

    def begin(self, length: int | None) -> None:
        self.body = b""
        self._check(length or 0)

    def write(self, data: bytes) -> None:
        self._check(len(self.body) + len(data))
        self.body += data

    def room(self) -> None:
        return None

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._largest_bytes:
            raise BadUpstream(
                f"the archive's answer is larger than {self._largest_bytes} bytes",
                proxy_error="http_response_body_size",
            )


class _Body(TwistedProtocol):
    """Passes a body to a sink."""

    transport: Any
    _silence: IDelayedCall

    def __init__(
        self, sink: Sink, length: int | None, silence_s: float, clock: IReactorTime
    ) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.transport.loseConnection())
        self._sink = sink
        self._length = length
        self._silence_s = silence_s
        self._clock = clock
        self._full = False
        self._error: CoverError | None = None

    def connectionMade(self) -> None:
        self._silence = self._clock.callLater(self._silence_s, self._silent)
        try:
            self._sink.begin(self._length)
        except CoverError as error:
            self._close(error)

    def dataReceived(self, data: bytes) -> None:
        if self._error is not None:
            return
        if not self._full:
            self._silence.reset(self._silence_s)
        try:
            self._sink.write(data)
        except CoverError as error:
            self._close(error)
            return
        # One read can hold several chunks: those behind the one that filled the sink come all the same.
        if not self._full:
            room = self._sink.room()
            if room is not None:
                # Waiting for our own disk is no silence of the archive's.
                self._silence.reset(math.inf)
                self._full = True
                self.transport.pauseProducing()
                room.addCallback(self._resume)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._silence.active():
            self._silence.cancel()
        if self.done.called:
            return
        if self._error is not None:
            self.done.errback(self._error)
        elif reason.check(ResponseDone):
            self.done.callback(None)
        elif reason.check(PotentialDataLoss):
            self.done.errback(
                BadUpstream(
                    "the archive's answer had neither length nor framing: it may be cut",
                    proxy_error="http_response_incomplete",
                )
            )
        else:
            self.done.errback(
                PassingTrouble(
                    "the archive's answer was cut", proxy_error="http_response_incomplete"
                )
            )

    def _resume(self, _: None) -> None:
        self._full = False
        if self._silence.active():
            self._silence.reset(self._silence_s)
            self.transport.resumeProducing()

    def _silent(self) -> None:
        self._close(
            UpstreamTimeout(
                "the archive fell silent in the middle of an answer",
                proxy_error="connection_read_timeout",
            )
        )

    def _close(self, error: CoverError) -> None:
        self._error = self._error or error
        self.transport.loseConnection()


def transfer(
    response: IResponse, sink: Sink, silence_s: float, clock: IReactorTime
) -> Deferred[None]:
    """
    Pass the body of a response to `sink`.

    :param silence_s: seconds of silence until it ends.
    :returns: fires when the whole body was taken. Fails with UpstreamTimeout, with BadUpstream
        if it was cut or may have been, or with what the sink raised; the connection is then
        gone. Cancelling it closes the connection.
    """
    length = None if response.length is UNKNOWN_LENGTH else int(response.length)
    body = _Body(sink, length, silence_s, clock)
    response.deliverBody(body)
    return body.done


class _Unread(TwistedProtocol):
    """Takes a body that nobody needs, up to LARGEST_UNREAD_BYTES."""

    transport: Any

    def __init__(self) -> None:
        self.over: Deferred[None] = Deferred(lambda _: self.transport.loseConnection())
        self._left = LARGEST_UNREAD_BYTES

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        if not self.over.called:
            self.over.callback(None)


def leave_unread(response: IResponse, longest_s: float, clock: IReactorTime) -> Deferred[None]:
    """
    Take a body that nobody needs, so that its connection can be used again.

    :returns: fires when it ended; or when it proved too large or took longer than `longest_s`,
        and its connection was closed.
    """
    body = _Unread()
    response.deliverBody(body)
    if not body.over.called:
        body.over.addTimeout(longest_s, clock, onTimeoutCancel=_enough)
    return body.over


def _enough(_: object, __: float) -> None:
    """The head of the answer was all that was needed."""
