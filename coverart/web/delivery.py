"""Bodies of files: one that lies on the disk, one that is still arriving."""

from __future__ import annotations

import os
import secrets
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.static import MultipleRangeStaticProducer
from zope.interface import implementer

from coverart.archive.paths import spell
from coverart.cache.download import Incoming
from coverart.errors import CoverError
from coverart.web.conditional import Span

AT_ONCE_BYTES = 64 * 1024
"""Up to this size a body is written in one go, without a producer."""
PIECE_BYTES = 64 * 1024


@attrs.frozen
class Part:
    """A span of a file, and what precedes it in the body."""

    head: bytes
    span: Span

    @property
    def size_bytes(self) -> int:
        return len(self.head) + self.span.stop - self.span.start


def multipart(spans: tuple[Span, ...], size_bytes: int, media_type: str) -> tuple[str, list[Part]]:
    """The Content-Type and the parts of a multipart/byteranges body (RFC 9110 section 14.6)."""
    boundary = secrets.token_hex(12)
    parts = []
    for span in spans:
        head = (
            f"\r\n--{boundary}\r\nContent-Type: {media_type}\r\n"
            f"Content-Range: bytes {span.start}-{span.stop - 1}/{size_bytes}\r\n\r\n"
        )
        parts.append(Part(head.encode(), span))
    parts.append(Part(f"\r\n--{boundary}--\r\n".encode(), Span(0, 0)))
    return f"multipart/byteranges; boundary={boundary}", parts


class FileBody(Resource):
    """Sends parts of an open file and closes it."""

    isLeaf = True

    def __init__(self, fd: int, parts: list[Part]) -> None:
        super().__init__()
        self._fd = fd
        self._parts = parts

    def render(self, request: Request) -> Any:
        if sum(part.size_bytes for part in self._parts) <= AT_ONCE_BYTES:
            try:
                body = b"".join(part.head + _read(self._fd, part.span) for part in self._parts)
            finally:
                os.close(self._fd)
            if body:
                request.write(body)
            request.finish()
        else:
            ranges = [(p.head, p.span.start, p.span.stop - p.span.start) for p in self._parts]
            MultipleRangeStaticProducer(request, os.fdopen(self._fd, "rb"), ranges).start()
        return NOT_DONE_YET


def _read(fd: int, span: Span) -> bytes:
    return os.pread(fd, span.stop - span.start, span.start)


class ArrivingBody(Resource):
    """Sends part of an image while it arrives."""

    isLeaf = True

    def __init__(self, incoming: Incoming, span: Span) -> None:
        super().__init__()
        self._incoming = incoming
        self._span = span

    def render(self, request: Request) -> Any:
        _Follower(request, self._incoming, self._span).start()
        return NOT_DONE_YET


@implementer(IPushProducer)
class _Follower:
    """Follows a growing file at the pace of one client."""

    log = Logger()

    def __init__(self, request: Request, incoming: Incoming, span: Span) -> None:
        self._request = request
        self._incoming = incoming
        self._at = span.start
        self._stop = span.stop
        self._paused = False
        self._waiting: Deferred[None] | None = None
        self._ended = False

    def start(self) -> None:
        self._incoming.attach(self, self._at)
        self._request.registerProducer(self, True)
        self.resumeProducing()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        if self._waiting is None:
            self._go_on()

    def stopProducing(self) -> None:
        """The client left."""
        self._end()

    def _go_on(self, _: object = None) -> None:
        self._waiting = None
        while not self._paused and not self._ended:
            if self._at >= self._stop:
                self._request.unregisterProducer()
                self._end()
                self._request.finish()
                return
            try:
                data = self._incoming.read(self, self._at, min(PIECE_BYTES, self._stop - self._at))
            except (CoverError, OSError) as error:
                self._cut(error)
                return
            if not data:
                self._waiting = self._incoming.more(self._at)
                self._waiting.addCallbacks(self._go_on, lambda _: None)
                return
            self._at += len(data)
            self._request.write(data)

    def _cut(self, error: Exception) -> None:
        """The client was promised more than there is: only a broken connection tells it so."""
        self._request.unregisterProducer()
        self._end()
        key = self._incoming.key
        self.log.warn(
            "{path} breaks off, closing the client's connection: {reason}",
            path=spell(key.own_request),
            reason=str(error),
        )
        transport: Any = self._request.transport
        transport.abortConnection()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._incoming.detach(self)
            if self._waiting is not None:
                self._waiting.cancel()
