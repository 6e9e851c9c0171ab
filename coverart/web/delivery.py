"""
Sends bodies, each by the same producer: a file, an image while it arrives, a listing in memory.

What nginx sends in our place: accel.py.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from coverart.cache.download import Download
from coverart.errors import CoverError, StoreFailed
from coverart.web.access_log import LoggedRequest
from coverart.web.conditional import Span

PIECE_BYTES = 64 * 1024
"""Limit of one read and one write."""


class Source:
    """Where the bytes of a body are read: here, from memory."""

    def __init__(self, body: bytes = b"") -> None:
        self._body = body

    def read(self, at: int, count: int) -> bytes:
        """
        Up to `count` bytes from `at`; none if they are not there yet.

        :raises CoverError: they never will be.
        :raises OSError: likewise.
        """
        return self._body[at : at + count]

    def more(self, at: int) -> Deferred[None]:
        """
        Fires when there is something to read from `at`, or never will be.

        :raises CoverError: that is known already.
        """
        raise StoreFailed(f"nothing is there from byte {at} on")

    def close(self) -> None:
        """Nothing is read any more."""


class OpenFile(Source):
    """A file on the disk."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, at: int, count: int) -> bytes:
        return os.pread(self.fd, count, at)

    def close(self) -> None:
        os.close(self.fd)


class Arriving(Source):
    """An image that is being downloaded, at the pace of one client."""

    def __init__(self, download: Download, at: int) -> None:
        """:param at: where its client begins to read."""
        self._download = download
        download.attach(self, at)

    def read(self, at: int, count: int) -> bytes:
        return self._download.read(self, at, count)

    def more(self, at: int) -> Deferred[None]:
        return self._download.more(at)

    def close(self) -> None:
        self._download.detach(self)


@implementer(IPushProducer)
class Body(Resource):
    """Sends part of a source at the pace of its client, then closes it."""

    isLeaf = True
    log = Logger()

    def __init__(self, source: Source, span: Span | None) -> None:
        """:param span: None for headers alone."""
        super().__init__()
        self._source = source
        self._at, self._stop = (0, 0) if span is None else (span.start, span.stop)
        self._request: Any = None
        self._paused = False
        self._waiting: Deferred[None] | None = None
        self._ended = False

    def render(self, request: LoggedRequest) -> int:
        self._request = request
        if self._at == self._stop:
            # Not as bytes: Twisted would declare the length of nothing.
            self._end()
            request.finish()
            return NOT_DONE_YET
        # Before the first piece: the client may have to take another answer first.
        request.registerProducer(self, True)
        self._go_on()
        return NOT_DONE_YET

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:
        """The client left."""
        self._end()

    def _go_on(self) -> None:
        while not (self._paused or self._ended or self._waiting):
            try:
                data = self._source.read(self._at, min(PIECE_BYTES, self._stop - self._at))
                if not data:
                    self._waiting = self._source.more(self._at)
                    self._waiting.addCallbacks(self._woken, lambda _: None)
                    return
            except (CoverError, OSError) as error:
                self._break_off(error)
                return
            self._at += len(data)
            self._request.write(data)
            if self._at >= self._stop:
                self._request.unregisterProducer()
                self._end()
                self._request.finish()

    def _woken(self, _: None) -> None:
        self._waiting = None
        self._go_on()

    def _break_off(self, error: Exception) -> None:
        """The client was promised more than there is: only a broken connection tells it so."""
        self._request.unregisterProducer()
        self._end()
        self.log.warn(
            "{key} breaks off, closing the client's connection: {reason} (request {id})",
            key=self._request.key,
            id=self._request.identify(),
            reason=str(error),
        )
        self._request.transport.abortConnection()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._source.close()
            if self._waiting is not None:
                self._waiting.cancel()
