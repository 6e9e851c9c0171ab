"""
How large an image may be, how much may still be stored, how much may wait in memory for that.

A fetch reserves its length on the disk before it writes. Past the bound, or where the disk takes
nothing, an answer of the archive goes to its clients from memory. What is not on the disk, yet or
at all, is one account: past it the archive is paused.
"""

from __future__ import annotations

import errno
import os

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from coverart.errors import BadUpstream
from coverart.index.base import Index
from coverart.store.image_store import ImageStore

SLACK_BYTES = 64 * 1024 * 1024
"""Least slack; above a tenth only if the maximum is below 640 MB, which one original can fill."""
RESERVE_BYTES = 64 * 1024 * 1024
"""Left free on the file system for what else lies there; a hundredth of it if that is less."""
MOST_IN_MEMORY_BYTES = 48 * 1024 * 1024
FOR_SMALL_BYTES = 16 * 1024 * 1024
"""Extra memory that only small images may use: slow clients of large ones keep nobody from those."""
LARGEST_IMAGE_BYTES = 128 * 1024 * 1024
TELL_EVERY_S = 60.0


class Room:
    """The bounds of one process on what it stores, and on what it has in memory."""

    log = Logger()

    def __init__(
        self,
        *,
        store: ImageStore,
        index: Index,
        max_bytes: int,
        clock: IReactorTime,
        largest_image_bytes: int = LARGEST_IMAGE_BYTES,
    ) -> None:
        """:param max_bytes: what the cache may hold; a sweep is due past that."""
        self._largest_image_bytes = largest_image_bytes
        self._store = store
        self._index = index
        self._most_bytes = max_bytes + max(max_bytes // 10, SLACK_BYTES)
        self._clock = clock
        self._reserved = 0
        self._in_memory = 0
        self._failing = False
        self._waiting: dict[bool, list[Deferred[None]]] = {True: [], False: []}
        """The fetches that are paused: of small images, and of others."""
        self._tell_at = self._since = float("-inf")
        self._count = 0
        """Answers that were not stored since it was told that they are."""
        self._told = False
        """Whether the operator was told of them."""

    @property
    def takes_files(self) -> bool:
        """Whether the disk took the last file, and looks as if it takes the next."""
        return not self._failing and self._store.usable()

    def check_image(self, size_bytes: int) -> None:
        """:raises BadUpstream: an image is larger than COVER_ART_MAX_IMAGE_SIZE."""
        if size_bytes > self._largest_image_bytes:
            raise BadUpstream(
                f"the archive's image is larger than {self._largest_image_bytes} bytes"
            )

    def reserve(self, size_bytes: int) -> str | None:
        """
        Reserve room on the disk.

        :returns: None, or why there is none, as a token; nothing is reserved then.

        Call release() when the bytes are stored and the index knows them, or are not stored.
        """
        reserved = self._reserved + size_bytes
        if self._index.size_bytes + reserved > self._most_bytes:
            return self._not_stored(
                "cache-full", "more is held than COVER_ART_CACHE_MAX_SIZE and its slack"
            )
        try:
            disk = os.statvfs(self._store.root)
        except OSError:
            # Gone, and perhaps made anew when a file is begun.
            disk = None
        if disk is not None and disk.f_blocks:
            left_free = min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 100)
            if disk.f_bavail * disk.f_frsize < reserved + left_free:
                return self._not_stored("disk-full", "the file system is nearly full")
        self._reserved = reserved
        return None

    def release(self, size_bytes: int) -> None:
        """Give back what was reserved."""
        self._reserved -= size_bytes

    def failed(self, path: str, error: BaseException | None) -> str:
        """The disk did not take a file. :returns: why, as a token."""
        self._failing = True
        code = errno.errorcode.get(getattr(error, "errno", None) or errno.EIO, "EIO")
        reason = getattr(error, "strerror", None) or str(error)
        return self._not_stored(code, f"{path}: {reason}")

    def stored(self) -> None:
        """An answer was stored."""
        self._failing = False
        if self._told:
            self.log.info(
                "covers are stored in {dir} again; {count} in {seconds:.0f} s were not",
                dir=str(self._store.root),
                count=self._count,
                seconds=self._clock.seconds() - self._since,
            )
            self._count, self._told = 0, False

    def _not_stored(self, why: str, reason: str) -> str:
        now = self._clock.seconds()
        if not self._count:
            self._since = now
        self._count += 1
        if now >= self._tell_at:
            self._tell_at, self._told = now + TELL_EVERY_S, True
            self.log.warn(
                "covers are not stored in {dir}: {reason}; {count} in the last {seconds:.0f} s. They "
                "are sent without being stored, hits go on, and the next ones are tried again",
                dir=str(self._store.root),
                reason=reason,
                count=self._count,
                seconds=now - self._since,
            )
        return why

    # What is in memory

    def crowded(self, *, small: bool) -> bool:
        """Say whether no more should be taken into memory, of small images or of others."""
        return self._in_memory > MOST_IN_MEMORY_BYTES + (FOR_SMALL_BYTES if small else 0)

    def keep(self, size_bytes: int) -> None:
        """Count bytes that are in memory and not on the disk."""
        self._in_memory += size_bytes

    def let_go(self, size_bytes: int) -> None:
        """They are on the disk, or nobody wants them any more."""
        self._in_memory -= size_bytes
        for small, waiting in self._waiting.items():
            if waiting and not self.crowded(small=small):
                woken = waiting.copy()
                waiting.clear()
                for d in woken:
                    # Nothing comes of it if the wait was called off.
                    d.callback(None)

    def wait(self, *, small: bool) -> Deferred[None]:
        """Fires when it is not crowded any more for images like this one."""
        d: Deferred[None] = Deferred()
        self._waiting[small].append(d)
        return d
