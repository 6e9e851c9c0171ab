"""
An image on its way from the archive to its readers and to the disk.

Up to 256 kB it stays in memory until it is whole; then all who wait are sent it from there, while the
disk takes it. A larger one is written a piece at a time as it comes, off the reactor thread, and every
reader reads what is there at its own pace: memory stays flat and a slow client holds up nobody.

What can't be stored stays in memory, for its readers alone. `room` bounds all that is in memory:
past that the archive is paused, and unstored bytes that every reader has read are freed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from coverart.cache.size_limits import Room
from coverart.cache.writer import Link, NewFile, Writer
from coverart.content import ENOUGH, accept
from coverart.errors import BadUpstream, CoverError, NobodyReads, NotWanted, StoreFailed
from coverart.model import FileEntry, ImageKey, MediaType
from coverart.store.atomic_files import Temporary
from coverart.store.image_store import ImageStore

SMALL_BYTES = 256 * 1024
"""Up to this length an image is answered when it is whole; a larger one while it arrives."""
BACKLOG_BYTES = 1024 * 1024
"""Limit of bytes that wait for the disk; past it the archive is paused."""

Wanted = Callable[[int | None, MediaType | None], bool]
"""
Says whether an image is wanted, as soon as the archive has declared its length or sent its first
bytes; None is what is not known.
"""


class Download:
    """
    The sink of one fetch of an image.

    The archive's side calls begin() when an answer's headers are there and write() for each piece;
    the cache then calls finish(), and end() when the flight is over. Until the first
    piece went to the disk, begin() may be called again and starts over.
    """

    def __init__(
        self,
        key: ImageKey,
        *,
        store: ImageStore,
        room: Room,
        writer: Writer,
        stored_at: float,
        announce: Callable[[Download], object],
        wanted: Wanted | None = None,
    ) -> None:
        """
        :param stored_at: becomes the file's mtime; readers need it before.
        :param announce: called once, when readers may come: of a large image of declared length
            when it is known whether the disk takes its first bytes, of others when all is there.
            All readers have called attach() by the time it returns.
        :param wanted: what it says no to is not taken any further; None: everything is wanted.
        """
        self.key = key
        self.stored_at = stored_at
        self.length: int | None = None
        self.media: MediaType | None = None
        self.received = 0
        self.size_bytes = 0
        """As declared, or what has come, if that is more."""
        self.whole = False
        """Whether all of it has come, and is an image."""
        self.unstored: str | None = None
        """Why it is not stored, as a token (RFC 9110 section 5.6.2); None as long as it may be."""
        self._store = store
        self._room = room
        self._writer = writer
        self._announce = announce
        self._wanted = wanted
        self._announced = False
        self._buffer = bytearray()
        self._base = 0
        """Where in the image the buffer begins."""
        self._reserved = 0
        self._temporary: Temporary | None = None
        self._flushed = 0
        """How many bytes of it lie in the file."""
        self._flushing = False
        self._error: CoverError | None = None
        self._ended = False
        self._readers: dict[object, int] = {}
        """How far each has read."""
        self._waiting: list[Deferred[None]] = []

    # The archive's side

    def begin(self, length: int | None) -> None:
        """
        An answer starts. :param length: as declared; None where the body is chunked.

        :raises BadUpstream: it is over the limit, or part of an earlier answer is written.
        :raises NotWanted: it is not wanted; its body is left to the archive.
        """
        self._make_sure_it_is_wanted(length)
        if self._flushing or self._announced or self._temporary is not None:
            raise BadUpstream("the archive broke off in the middle of an image")
        if self._buffer:
            self._drop(len(self._buffer))
        self.unstored = None
        self.length = length
        self.media = None
        self.received = self._base = 0
        self._expect(length or 0)

    def write(self, data: bytes) -> None:
        """
        Take a piece of the body.

        :raises BadUpstream: it is no image, or grew over the limit.
        :raises StoreFailed: it can't be stored, and either there is no memory for it or nobody
            reads it any more; or it is not wanted.
        """
        self.received += len(data)
        if self.received > self.size_bytes:
            self._expect(self.received)
        self._buffer += data
        self._room.keep(len(data))
        # None of it is let go of before its type is known.
        if self.media is None and self.received >= ENOUGH:
            self.media = accept(bytes(self._buffer[:ENOUGH]), self.key.size)
            self._make_sure_it_is_wanted(self.length)
        if self.media is not None and self.size_bytes > SMALL_BYTES:
            self._flush()
        if self.unstored is not None:
            self._make_sure_of_memory()

    def _make_sure_it_is_wanted(self, length: int | None) -> None:
        if self._wanted is not None and not self._wanted(length, self.media):
            raise NotWanted(f"{length or 'an undeclared number of'} bytes, {self.media}")

    @property
    def _crowded(self) -> bool:
        return self._room.crowded(small=self.size_bytes <= SMALL_BYTES)

    def room(self) -> Deferred[None] | None:
        """None while more may be written; else a Deferred that fires when it may."""
        if self._crowded:
            return self._room.wait(small=self.size_bytes <= SMALL_BYTES)
        if len(self._buffer) < BACKLOG_BYTES or not self._flushing:
            return None
        return self._wait()

    async def finish(self, link: Link | None = None) -> FileEntry | None:
        """
        Hand the whole image to its readers and give it its name.

        :returns: None if it could not be stored.
        :raises BadUpstream: the body is shorter than declared, or too short to be an image.
        :raises StoreFailed: it can't be stored, and there is no memory for it.
        """
        if self.media is None or (self.length is not None and self.received != self.length):
            raise BadUpstream(f"the archive sent {self.received} of {self.length} bytes")
        self.whole = True
        while self._flushing:
            await self._wait()
        if self.unstored is None:
            if self._room.takes_files:
                # Readers are answered before the commit. Where the disk failed last, it is asked first.
                self._announce_once()
            await self._commit(link)
        if self.unstored is not None:
            self._make_sure_of_memory()
        self._announce_once()
        self._wake()
        if self.unstored is not None:
            return None
        return FileEntry(size_bytes=self.received, stored_at=self.stored_at, media=self.media)

    def end(self, error: CoverError | None = None) -> None:
        """
        The flight is over: who comes now finds the file, or fetches anew.

        :param error: why it is given up; readers are told, the temporary file goes.
        """
        if self._ended:
            return
        self._error, self._ended = error, True
        if error is None and self.unstored is None:
            # The index counts it from now on; what goes is counted until it has gone.
            self._give_back()
        self._wake()
        self._close_if_unread()

    async def _commit(self, link: Link | None) -> None:
        file = NewFile(
            key=self.key,
            media=self.media,
            body=bytes(self._buffer),
            stored_at=self.stored_at,
            temporary=self._temporary,
            link=link,
        )
        try:
            written = await self._writer.commit(file)
        except OSError as error:
            self._keep_in_memory(self._room.failed(self._path, error))
            return
        self._room.stored()
        self._temporary = written.temporary
        self._flushed = self.received
        self._drop(len(self._buffer))

    @property
    def _path(self) -> str:
        return self._store.path_of(self.key, self.media)

    # Writing out

    def _expect(self, size_bytes: int) -> None:
        """Reserve the size that is known now. :raises BadUpstream: it is over the limit."""
        self._room.check_image(size_bytes)
        self.size_bytes = size_bytes
        more = size_bytes - self._reserved
        if self.unstored is None and more > 0:
            why = self._room.reserve(more)
            if why is None:
                self._reserved += more
            else:
                self._keep_in_memory(why)

    def _keep_in_memory(self, why: str) -> None:
        """From here on nothing of it goes to the disk."""
        self.unstored = why
        # What was written is on the disk until its readers have it.
        self._give_back(all_but=self.received if self._flushing else self._flushed)

    def _give_back(self, *, all_but: int = 0) -> None:
        count = max(0, self._reserved - all_but)
        self._reserved -= count
        self._room.release(count)

    def _make_sure_of_memory(self) -> None:
        """:raises StoreFailed: it can't be stored, nor be kept in memory for anybody."""
        if self._announced and not self._readers and self.received < self.size_bytes:
            raise NobodyReads(f"the image can't be stored ({self.unstored}) and has no readers")
        if self._crowded:
            self._trim()
            if self._crowded and self._buffer and not self._readers and not self._announced:
                raise StoreFailed(f"it can't be stored ({self.unstored}), and memory is full, too")

    def _flush(self) -> None:
        if self.unstored is not None:
            self._announce_once()
        elif not self._flushing and self._buffer and not self.whole:
            self._flushing = True
            data = bytes(self._buffer)
            self._writer.append(self._temporary, data).addCallbacks(
                self._written, self._not_written, callbackArgs=(len(data),)
            )
        self._wake()

    def _announce_once(self) -> None:
        # Without a declared length there is no telling readers how much will come.
        if not self._announced and not self._ended and (self.length is not None or self.whole):
            self._announce(self)
            self._announced = True

    def _written(self, temporary: Temporary, count: int) -> None:
        self._temporary = temporary
        self._flushed += count
        if self.unstored is None:
            self._drop(count)
        self._announce_once()
        self._flush_ended()

    def _not_written(self, failure: Failure) -> None:
        if self.unstored is None:
            self._keep_in_memory(self._room.failed(self._path, failure.value))
        self._flush_ended()

    def _flush_ended(self) -> None:
        self._flushing = False
        if self._ended:
            self._close_if_unread()
        else:
            self._flush()

    # The readers' side

    @property
    def over(self) -> bool:
        """Whether a reader who comes now is too late: the beginning is not to be had from here."""
        return self._ended or self._base > self._flushed

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
        elif self._base <= offset < self.received:
            start = offset - self._base
            data = bytes(self._buffer[start : start + count])
        elif self._error is not None:
            raise self._error
        elif self._ended or offset < self._base:
            raise StoreFailed("an image ended before its reader came")
        self._readers[reader] = offset + len(data)
        if self.unstored is not None and self._crowded:
            self._trim()
        return data

    def more(self, offset: int) -> Deferred[None]:
        """Fires when something can be read from `offset`, or the download ended."""
        return succeed(None) if offset < self.received or self._ended else self._wait()

    def _trim(self) -> None:
        """Free unstored bytes that every reader has read."""
        # All readers have called attach() by then.
        if self.unstored is not None and self._announced:
            passed = min((self.received, *self._readers.values())) - self._base
            if passed > 0:
                self._drop(passed)

    def _close_if_unread(self) -> None:
        if self._readers or self._flushing:
            return
        self._drop(len(self._buffer))
        if self._temporary is not None:
            temporary, self._temporary = self._temporary, None
            if self._error is None and self.unstored is None:
                os.close(temporary.fd)
            else:
                self._store.abandon(temporary)
        self._give_back()

    def _drop(self, count: int) -> None:
        """Let go of the first bytes in memory."""
        del self._buffer[:count]
        self._base += count
        self._room.let_go(count)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for d in waiting:
            d.callback(None)

    def _wait(self) -> Deferred[None]:
        # One that is cancelled stays here till then, and takes no notice.
        d: Deferred[None] = Deferred()
        self._waiting.append(d)
        return d
