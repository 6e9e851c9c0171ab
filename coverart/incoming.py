"""
An image on its way from the archive to the disk, and to clients that read it while it grows.

Small images stay in memory until they are whole and are then written in one go; larger ones are
written as they come, a piece at a time off the reactor thread. Every reader reads the growing
file at its own pace, so memory stays flat and a slow client holds up nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from coverart import layout
from coverart.content import ENOUGH, accept
from coverart.directory import Temporary
from coverart.errors import BadUpstream, CoverError, StoreFailed
from coverart.model import FileEntry, ImageKey, MediaType
from coverart.store import ImageStore

SMALL_BYTES = 256 * 1024
"""Up to this declared length an image is answered when it is whole (design section 2)."""
BACKLOG_BYTES = 1024 * 1024
"""So much may wait for the disk before the archive is asked to pause."""


class InThread(Protocol):
    """Runs a blocking call off the reactor thread."""

    def __call__(self, call: Callable[..., Any], /, *args: Any) -> Deferred[Any]: ...


class Incoming:
    """
    The sink of one download.

    The upstream calls begin() when an answer's headers are there, write() for each piece; the
    cache then calls finish() or fail(). Until the first piece went to the disk, begin() may be
    called again and starts over.
    """

    def __init__(
        self,
        key: ImageKey,
        *,
        store: ImageStore,
        in_thread: InThread,
        largest_bytes: int,
        stored_at: float,
        announce: Callable[[Incoming], None],
    ) -> None:
        """
        :param stored_at: becomes the file's mtime; readers of the growing file need it before.
        :param announce: called once, when a large image of declared length proved to be one.
        """
        self.key = key
        self.stored_at = stored_at
        self.length: int | None = None
        self.media: MediaType | None = None
        self.received = 0
        self._store = store
        self._in_thread = in_thread
        self._largest_bytes = largest_bytes
        self._announce = announce
        self._announced = self._writing = False
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._head = b""
        self._temporary: Temporary | None = None
        self._flushed = 0
        self._flushing = False
        self._error: CoverError | None = None
        self._ended = False
        self._readers = 0
        self._waiting: list[Deferred[None]] = []

    # The upstream's side

    def begin(self, length: int | None) -> None:
        """
        An answer starts. :param length: as declared; None where the body is chunked.

        :raises BadUpstream: it is over the limit, or part of an earlier answer is written.
        """
        if self._writing:
            raise BadUpstream("the archive broke off in the middle of an image")
        self._check_size(0 if length is None else length)
        self.length = length
        self.media = None
        self.received = 0
        self._buffer, self._buffered, self._head = [], 0, b""

    def write(self, data: bytes) -> None:
        """
        Take a piece of the body.

        :raises BadUpstream: it is no image, or grew over the limit.
        :raises StoreFailed: an earlier piece could not be written.
        """
        if self._error is not None:
            raise self._error
        self.received += len(data)
        self._check_size(self.received)
        if self.media is None:
            self._head = (self._head + data)[:ENOUGH]
            if len(self._head) == ENOUGH:
                self.media = accept(self._head, self.key.size)
        self._buffer.append(data)
        self._buffered += len(data)
        if self.media is not None and max(self.length or 0, self.received) > SMALL_BYTES:
            # Without a declared length there is no telling readers how much will come.
            if self.length is not None and not self._announced:
                self._announced = True
                self._announce(self)
            self._flush()

    def room(self) -> Deferred[None] | None:
        """None while more may be written; else a Deferred that fires when it may."""
        if self._buffered < BACKLOG_BYTES or not self._flushing:
            return None
        return self._wait()

    async def finish(self) -> FileEntry:
        """
        Make the whole image visible at the place of its key.

        :raises BadUpstream: the body is shorter than declared, or too short to be an image.
        :raises StoreFailed: the disk does not take it.
        """
        if self.media is None or (self.length is not None and self.received != self.length):
            raise BadUpstream(f"the archive sent {self.received} of {self.length} bytes")
        while self._flushing:
            await self._wait()
        if self._error is not None:
            raise self._error
        data, self._buffer = b"".join(self._buffer), []
        path = layout.image_path(self.key, self.media)
        try:
            self._temporary = await self._in_thread(self._commit, self._temporary, data, path)
        except OSError as error:
            raise StoreFailed(f"{path}: {error.strerror}") from error
        self._flushed = self.received
        self._end()
        return FileEntry(size_bytes=self.received, stored_at=self.stored_at, media=self.media)

    def fail(self, error: CoverError) -> None:
        """Give up: readers are told, the temporary file goes."""
        if self._ended:
            return
        self._error = self._error or error
        self._end()

    def _commit(self, temporary: Temporary | None, data: bytes, path: str) -> Temporary:
        """In a thread: all that is left to write, then the name."""
        temporary = temporary or self._store.begin()
        try:
            self._store.append(temporary, data)
            self._store.commit(temporary, path, self.stored_at)
        except OSError:
            if self._temporary is None:
                self._store.abandon(temporary)
            raise
        return temporary

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._largest_bytes:
            raise BadUpstream(f"the archive's image is larger than {self._largest_bytes} bytes")

    # Writing out

    def _flush(self) -> None:
        if self._flushing or not self._buffer:
            return
        data, self._buffer = b"".join(self._buffer), []
        self._flushing = self._writing = True
        self._in_thread(self._write_out, data).addCallbacks(
            self._written, self._not_written, callbackArgs=(len(data),)
        )

    def _write_out(self, data: bytes) -> None:
        """In a thread."""
        if self._temporary is None:
            self._temporary = self._store.begin()
        self._store.append(self._temporary, data)

    def _written(self, _: None, count: int) -> None:
        self._flushed += count
        self._buffered -= count
        self._flush_ended()
        if self._error is None:
            self._flush()

    def _not_written(self, failure: Failure) -> None:
        reason = getattr(failure.value, "strerror", None) or failure.getErrorMessage()
        self._error = StoreFailed(f"can't write an image: {reason}")
        self._flush_ended()

    def _flush_ended(self) -> None:
        self._flushing = False
        self._wake()
        if self._ended:
            self._close_if_unread()

    # The readers' side

    @property
    def over(self) -> bool:
        """Whether a reader who comes now is too late: the image has its place, or there is none."""
        return self._ended and self._temporary is None

    def attach(self) -> None:
        """A reader comes: what was received stays readable until it has called detach()."""
        self._readers += 1

    def detach(self) -> None:
        self._readers -= 1
        if self._ended:
            self._close_if_unread()

    def read(self, offset: int, count: int) -> bytes:
        """
        Up to `count` bytes from `offset`; empty if they are not there yet (see more()).

        :raises CoverError: the download failed before it got that far.

        In the reactor thread: what is read was written moments ago and lies in memory.
        """
        if offset < self._flushed and self._temporary is not None:
            return os.pread(self._temporary.fd, min(count, self._flushed - offset), offset)
        if self._error is not None:
            raise self._error
        if self._ended:
            raise StoreFailed("an image ended before its reader came")
        return b""

    def more(self, offset: int) -> Deferred[None]:
        """Fires when something can be read from `offset`, or the download ended."""
        if offset < self._flushed or self._ended or self._error is not None:
            return succeed(None)
        return self._wait()

    def _end(self) -> None:
        self._ended = True
        self._wake()
        self._close_if_unread()

    def _close_if_unread(self) -> None:
        if self._readers or self._temporary is None or self._flushing:
            return
        temporary, self._temporary = self._temporary, None
        if self._error is None:
            os.close(temporary.fd)
        else:
            self._store.abandon(temporary)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for d in waiting:
            # Not if one that was woken before it made this one leave.
            if not d.called:
                d.callback(None)

    def _wait(self) -> Deferred[None]:
        d: Deferred[None] = Deferred(self._leave)
        self._waiting.append(d)
        return d

    def _leave(self, d: Deferred[None]) -> None:
        if d in self._waiting:
            self._waiting.remove(d)
