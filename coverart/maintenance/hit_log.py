"""
The log of the hits that nginx sends without asking: read in batches, counted, cut off.

nginx appends one line for each direct hit: the path of the file under the cache directory, with a
slash in front. How far it was read stands in `{log}.position`: the log's inode, the offset, and a
checksum of what stands before it, so that a log that was replaced or cut off by hand is noticed,
also once it has grown past the old place. A reader holds a lock on `{log}.lock`, so a process that
was stopped in the middle can't cut off what its successor has not read.

The hits of a batch are told to the index first, then its end is written down: a process that is
killed in between leads to this one batch, of at most BATCH_BYTES, being counted twice, and none
being lost.
A log that was read to its end is cut off once it is large; what nginx writes between the look at
its size and the cut, two system calls, is the only thing that can be lost.

None of these may be a symlink: who else may write in their folder could have another file of
ours cut off or written over.

All of it blocks and belongs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import attrs

from coverart.model import FileKey
from coverart.store.layout import RETIRED, Place, identify, read_link

BATCH_BYTES = 256 * 1024
"""So much is taken in at once: some 3,000 lines, a few hundredths of a second of a thread."""
CUT_BYTES = 1 << 20
"""A log that was read to its end is cut off once it has so many bytes."""
MOST_KNOWN = 20_000
"""Different lines that are remembered from batch to batch: some 10 MB while a log is read."""
_BEFORE_BYTES = 4096
"""So much of what stands before a position tells whether it is still the same log."""

_ITSELF = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""No symlink, and no waiting for the other end of a pipe."""
_LONGEST_POSITION = 100
_POSITION = re.compile(rb"([0-9]{1,20}) ([0-9]{1,19}) ([0-9]{1,10})\n")


@attrs.frozen(kw_only=True)
class Counted:
    """What some lines say: how many are hits, how many none, and which files they were of."""

    hits: int
    rubbish: int
    uses: tuple[tuple[FileKey, int], ...] = ()


@attrs.frozen(kw_only=True)
class Batch:
    """A part of the log, counted, where it ends, and whether it was as large as one may be."""

    counted: Counted
    end: int
    full: bool


def count(
    lines: bytes,
    key_of: Callable[[str, Place], FileKey | None] | None,
    known: dict[bytes, FileKey | None] | None = None,
) -> Counted:
    """
    Count whole lines.

    :param key_of: says which file was sent from a path; None where that matters to nobody.
    :param known: what is known of the lines of earlier batches, added to.
    """
    known = {} if known is None else known
    if len(known) > MOST_KNOWN:
        known.clear()
    hits = rubbish = 0
    uses: Counter[FileKey] = Counter()
    for line, times in Counter(lines.split(b"\n")[:-1]).items():
        if line in known:
            key = known[line]
        else:
            path = line[1:].decode("latin-1")
            place = identify(path) if line[:1] == b"/" else None
            if place is None:
                rubbish += times
                continue
            key = known[line] = None if key_of is None else key_of(path, place)
        hits += times
        if key is not None:
            uses[key] += times
    return Counted(hits=hits, rubbish=rubbish, uses=tuple(uses.items()))


@attrs.frozen
class _Position:
    """How far the log was read: a place in the file of that inode, after what has that checksum."""

    inode: int
    offset: int
    checksum: int


class HitLog:
    """One reader of the log: begin(), read() and done() for each batch in turn, end()."""

    def __init__(self, path: Path, root: Path, *, follow: bool) -> None:
        """
        :param root: the cache directory.
        :param follow: whether to find out which files the lines are of.
        """
        self.path = os.fspath(path)
        self._root = os.fspath(root)
        self._follow = follow
        self._lock: int | None = None
        self._fd: int | None = None
        self._position = _Position(0, 0, 0)
        self._known: dict[bytes, FileKey | None] = {}

    def begin(self) -> bool:
        """
        Open the log, if it is there and nobody else reads it.

        :returns: whether it was opened; end() must follow, here and after an error.
        :raises OSError: it can't be read and cut off.
        """
        if not os.path.exists(self.path):
            return False
        lock = f"{self.path}.lock"
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | _ITSELF, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            # A pipe would keep us waiting for its other end.
            self._fd = os.open(self.path, os.O_RDWR | _ITSELF)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        self._position = self._read_position()
        return True

    def end(self) -> None:
        """Let others read."""
        for fd in (self._fd, self._lock):
            if fd is not None:
                os.close(fd)
        self._fd = self._lock = None
        # By the next time a name may lead elsewhere.
        self._known = {}

    def read(self) -> Batch | None:
        """
        The next whole lines, None if there is none.

        Again from the start if this is not the log that was read before. A line that fills a batch
        and does not end is no path: it is skipped piece by piece, and counted as one.
        """
        fd = self._opened()
        status = os.fstat(fd)
        start = self._position.offset
        before = self._before(start)
        same = (status.st_ino, zlib.crc32(before)) == (
            self._position.inode,
            self._position.checksum,
        )
        if start > status.st_size or not same:
            start, before = 0, b""
        data = os.pread(fd, BATCH_BYTES, start)
        size = data.rfind(b"\n") + 1
        inside = before != b"" and not before.endswith(b"\n")
        if size == 0:
            if len(data) < BATCH_BYTES:
                return None
            skipped = Counted(hits=0, rubbish=0 if inside else 1)
            return Batch(counted=skipped, end=start + len(data), full=True)
        first = data.index(b"\n") + 1 if inside else 0
        key_of = self._key_of if self._follow else None
        counted = count(data[first:size], key_of, self._known)
        return Batch(counted=counted, end=start + size, full=len(data) == BATCH_BYTES)

    def done(self, batch: Batch) -> None:
        """What is in a batch was told: go on behind it, and cut the log off if it can be."""
        fd = self._opened()
        inode = os.fstat(fd).st_ino
        self._note(_Position(inode, batch.end, zlib.crc32(self._before(batch.end))))
        if batch.end < CUT_BYTES or not self._is_still(inode):
            return
        # Nothing may come between these two.
        if os.fstat(fd).st_size == batch.end:
            os.ftruncate(fd, 0)
            # Killed before this is written, the checksum shows that it is another log by now.
            self._note(_Position(inode, 0, 0))

    def _is_still(self, inode: int) -> bool:
        """Say whether the open file is the log: one that was moved away is somebody's archive."""
        try:
            return os.lstat(self.path).st_ino == inode
        except FileNotFoundError:
            return False

    def _key_of(self, path: str, place: Place) -> FileKey | None:
        """The file that was sent from a path: its own, or the one that a symlink leads to."""
        # An alias may have been retired since.
        for name in (path, path + RETIRED):
            try:
                text = os.readlink(f"{self._root}/{name}")
            except FileNotFoundError:
                continue
            except OSError:
                break  # A regular file.
            link = read_link(path, text)
            return None if link is None else link[0]
        return place.file_key

    def _opened(self) -> int:
        if self._fd is None:
            raise ValueError("the log is not open")
        return self._fd

    def _before(self, offset: int) -> bytes:
        size = min(offset, _BEFORE_BYTES)
        return os.pread(self._opened(), size, offset - size)

    def _read_position(self) -> _Position:
        nowhere = _Position(0, 0, 0)
        try:
            fd = os.open(f"{self.path}.position", os.O_RDONLY | _ITSELF)
        except FileNotFoundError:
            return nowhere
        with os.fdopen(fd, "rb") as file:
            text = file.read(_LONGEST_POSITION)
        match = _POSITION.fullmatch(text)
        return nowhere if match is None else _Position(*map(int, match.groups()))

    def _note(self, position: _Position) -> None:
        name = f"{self.path}.position"
        fresh = f"{name}.new"
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _ITSELF, 0o644)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(f"{position.inode} {position.offset} {position.checksum}\n")
            os.replace(fresh, name)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
        self._position = position
