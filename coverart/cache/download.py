"""
An image on its way from the archive to the disk, and to clients that read it while it grows.

Small images stay in memory until they are whole and are then written in one go; larger ones are
written as they come, a piece at a time off the reactor thread. Every reader reads the growing
file at its own pace, so memory stays flat and a slow client holds up nobody.

What can't be stored stays in memory from there on, for its readers alone. `room` bounds that in
all: then what all readers have passed is let go, and the archive is paused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from coverart.cache.size_limits import Room
from coverart.content import ENOUGH, accept
from coverart.errors import BadUpstream, CoverError, NobodyReads, StoreFailed
from coverart.model import FileEntry, ImageKey, MediaType
from coverart.store.atomic_files import Temporary
from coverart.store.image_store import ImageStore

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
        room: Room,
        in_thread: InThread,
        largest_bytes: int,
        stored_at: float,
        announce: Callable[[Incoming], object],
    ) -> None:
        """
        :param stored_at: becomes the file's mtime; readers of the growing file need it before.
        :param announce: called once, when a large image of declared length proved to be one and
            it is known whether the disk takes its first bytes.
        """
        self.key = key
        self.stored_at = stored_at
        self.length: int | None = None
        self.media: MediaType | None = None
        self.received = 0
        self.unstored: str | None = None
        """Why it is not stored, as a token (RFC 9110 section 5.6.2); None as long as it may be."""
        self._store = store
        self._room = room
        self._in_thread = in_thread
        self._largest_bytes = largest_bytes
        self._announce = announce
        self._announced = self._writing = False
        self._whole = False
        """All has come: the rest is written with the commit, so that readers end after that."""
        self._buffer = bytearray()
        self._base = 0
        """Where in the image the buffer begins."""
        self._claimed = 0
        self._head = b""
        self._temporary: Temporary | None = None
        self._flushed = 0
        self._flushing = False
        self._error: CoverError | None = None
        self._ended = False
        self._readers: dict[object, int] = {}
        """How far each has read."""
        self._holds = 0
        self._waiting: list[Deferred[None]] = []

    # The upstream's side

    def begin(self, length: int | None) -> None:
        """
        An answer starts. :param length: as declared; None where the body is chunked.

        :raises BadUpstream: it is over the limit, or part of an earlier answer is written.
        """
        if self._writing or self._announced:
            raise BadUpstream("the archive broke off in the middle of an image")
        self._check_size(0 if length is None else length)
        self._let_go()
        self.unstored = None
        self.length = length
        self.media = None
        self.received = self._base = 0
        self._head = b""
        self._claim(0 if length is None else length)

    def write(self, data: bytes) -> None:
        """
        Take a piece of the body.

        :raises BadUpstream: it is no image, or grew over the limit.
        :raises StoreFailed: it can't be stored, and either there is no memory for it or nobody
            reads it any more.
        """
        if self._error is not None:
            raise self._error
        self.received += len(data)
        self._check_size(self.received)
        if self.media is None:
            self._head = (self._head + data)[:ENOUGH]
            if len(self._head) == ENOUGH:
                self.media = accept(self._head, self.key.size)
        self._buffer += data
        if self.unstored is not None:
            self._room.keep(len(data))
        self._claim(self.received)
        if self.media is not None and self.size_bytes > SMALL_BYTES:
            self._flush()
        self._make_sure_of_memory()

    @property
    def size_bytes(self) -> int:
        """As declared, or what has come, if that is more."""
        return max(self.length or 0, self.received)

    @property
    def _crowded(self) -> bool:
        return self._room.full if self.size_bytes <= SMALL_BYTES else self._room.crowded

    def room(self) -> Deferred[None] | None:
        """None while more may be written; else a Deferred that fires when it may."""
        if self.unstored is not None:
            return self._room.wait() if self._crowded else None
        if len(self._buffer) < BACKLOG_BYTES or not self._flushing:
            return None
        return self._wait()

    async def finish(self) -> FileEntry | None:
        """
        Make the whole image visible at the place of its key.

        :returns: None if it could not be stored: hold() it before this for who wants to read it.
        :raises BadUpstream: the body is shorter than declared, or too short to be an image.
        :raises StoreFailed: it can't be stored, and there is no memory for it.
        """
        if self.media is None or (self.length is not None and self.received != self.length):
            raise BadUpstream(f"the archive sent {self.received} of {self.length} bytes")
        self._whole = True
        while self._flushing:
            await self._wait()
        if self._error is not None:
            raise self._error
        if self.unstored is None:
            data = bytes(self._buffer)
            try:
                self._temporary = await self._in_thread(self._commit, self._temporary, data)
            except OSError as error:
                self._keep_in_memory(self._room.failed(self._path, error))
        if self.unstored is not None:
            self._make_sure_of_memory()
            self._end()
            return None
        self._room.stored()
        self._buffer.clear()
        self._base = self._flushed = self.received
        self._end()
        return FileEntry(size_bytes=self.received, stored_at=self.stored_at, media=self.media)

    def fail(self, error: CoverError) -> None:
        """Give up: readers are told, the temporary file goes."""
        if self._ended:
            return
        self._error = self._error or error
        self._end()

    @property
    def _path(self) -> str:
        return self._store.path_of(self.key, self.media)

    def _commit(self, temporary: Temporary | None, data: bytes) -> Temporary:
        """In a thread: all that is left to write, then the name."""
        temporary = temporary or self._store.begin()
        try:
            self._store.append(temporary, data)
            self._store.commit(temporary, self._path, self.stored_at)
        except OSError:
            if self._temporary is None:
                self._store.abandon(temporary)
            raise
        return temporary

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._largest_bytes:
            raise BadUpstream(f"the archive's image is larger than {self._largest_bytes} bytes")

    # Writing out

    def _claim(self, size_bytes: int) -> None:
        """See to room on the disk for so much in all."""
        more = size_bytes - self._claimed
        if self.unstored is None and more > 0:
            why = self._room.claim(more)
            if why is None:
                self._claimed += more
            else:
                self._keep_in_memory(why)

    def _keep_in_memory(self, why: str) -> None:
        """From here on nothing of it goes to the disk."""
        self.unstored = why
        self._room.keep(len(self._buffer))
        # What was written is on the disk until its readers have it.
        self._give_back(all_but=self.received if self._flushing else self._flushed)

    def _give_back(self, *, all_but: int = 0) -> None:
        count = max(0, self._claimed - all_but)
        self._claimed -= count
        self._room.release(count)

    def _make_sure_of_memory(self) -> None:
        """:raises StoreFailed: it can't be stored, nor be kept in memory for anybody."""
        if self.unstored is None:
            return
        if self._announced and not self._readers and self.received != self.length:
            raise NobodyReads(f"it can't be stored ({self.unstored}), and nobody reads it any more")
        if self._crowded:
            self._trim()
            if self._crowded and self._buffer and not self._readers:
                raise StoreFailed(f"it can't be stored ({self.unstored}), and memory is full, too")

    def _flush(self) -> None:
        if self.unstored is not None:
            self._announce_once()
            self._wake()
        elif self._buffer and not self._flushing and not self._whole:
            data = bytes(self._buffer)
            self._flushing = self._writing = True
            self._in_thread(self._write_out, data).addCallbacks(
                self._written, self._not_written, callbackArgs=(len(data),)
            )

    def _announce_once(self) -> None:
        # Without a declared length there is no telling readers how much will come.
        if self.length is not None and not self._announced and self._error is None:
            self._announced = True
            self._announce(self)

    def _write_out(self, data: bytes) -> None:
        """In a thread."""
        if self._temporary is None:
            self._temporary = self._store.begin()
        self._store.append(self._temporary, data)

    def _written(self, _: None, count: int) -> None:
        self._flushed += count
        if self.unstored is None:
            self._base += count
            del self._buffer[:count]
        self._announce_once()
        self._flush_ended()

    def _not_written(self, failure: Failure) -> None:
        if self.unstored is None:
            self._keep_in_memory(self._room.failed(self._path, failure.value))
        self._flush_ended()

    def _flush_ended(self) -> None:
        self._flushing = False
        if self._error is None:
            self._flush()
        self._wake()
        if self._ended:
            self._close_if_unread()

    # The readers' side

    @property
    def over(self) -> bool:
        """Whether a reader who comes now is too late: the beginning is not to be had from here."""
        if self.unstored is None:
            return self._ended and self._temporary is None
        return self._base > self._flushed or (self._ended and self._error is not None)

    def hold(self) -> None:
        """Somebody may want to read it after its end: it stays readable until release()."""
        self._holds += 1

    def release(self) -> None:
        self._holds -= 1
        if self._ended:
            self._close_if_unread()

    def attach(self, reader: object, offset: int = 0) -> None:
        """
        A reader comes: what was received stays readable until it has called detach().

        From `offset`, that is, and of what is not stored what it has not read yet.
        """
        self._readers[reader] = offset

    def detach(self, reader: object) -> None:
        del self._readers[reader]
        if self._ended:
            self._close_if_unread()
        elif self.unstored is not None and not self._readers:
            self._trim()

    def read(self, reader: object, offset: int, count: int) -> bytes:
        """
        Up to `count` bytes from `offset`; empty if they are not there yet (see more()).

        :raises CoverError: the download failed before it got that far.

        In the reactor thread: what is read was written moments ago and lies in memory.
        """
        data = b""
        if offset < self._flushed and self._temporary is not None:
            data = os.pread(self._temporary.fd, min(count, self._flushed - offset), offset)
        elif self.unstored is not None and self._base <= offset < self.received:
            data = bytes(self._buffer[offset - self._base : offset - self._base + count])
        elif self._error is not None:
            raise self._error
        elif self._ended or offset < self._base:
            raise StoreFailed("an image ended before its reader came")
        self._readers[reader] = offset + len(data)
        if self._room.crowded:
            self._trim()
        return data

    def more(self, offset: int) -> Deferred[None]:
        """Fires when something can be read from `offset`, or the download ended."""
        there = self._flushed if self.unstored is None else self.received
        if offset < there or self._ended or self._error is not None:
            return succeed(None)
        return self._wait()

    def _trim(self) -> None:
        """Let go of what is not stored and all readers have passed."""
        # Those who wait for all of it have to come first.
        if self.unstored is None or (self._holds if self._ended else not self._announced):
            return
        passed = min((self.received, *self._readers.values())) - self._base
        if passed > 0:
            del self._buffer[:passed]
            self._base += passed
            self._room.let_go(passed)

    def _end(self) -> None:
        self._ended = True
        if self._error is None and self.unstored is None:
            # The index counts it from now on; what goes is counted until it has gone.
            self._give_back()
        self._wake()
        self._close_if_unread()

    def _close_if_unread(self) -> None:
        if self._readers or self._holds or self._flushing:
            return
        self._let_go()
        if self._temporary is not None:
            temporary, self._temporary = self._temporary, None
            if self._error is None and self.unstored is None:
                os.close(temporary.fd)
            else:
                self._store.abandon(temporary)
        self._give_back()

    def _let_go(self) -> None:
        """Drop what is in memory."""
        count = len(self._buffer)
        self._buffer = bytearray()
        self._base += count
        if self.unstored is not None:
            self._room.let_go(count)

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
