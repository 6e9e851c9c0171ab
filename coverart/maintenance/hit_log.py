"""
The log of the hits that nginx sends without asking: read in batches, counted, cut off.

nginx appends one line for each direct hit: the path of the file under the cache directory, with a
slash in front. How far it was read stands in `{log}.position`: the log's inode, the offset, and a
checksum of what stands before it, so that a log that was replaced or cut off by hand is noticed,
also once it has grown past the old place. A reader holds a lock on the log, so a process that was
stopped in the middle can't cut off what its successor has not read.

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

import errno
import fcntl
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import attrs

from coverart.model import FileKey
from coverart.store.layout import RETIRED, identify, read_link

BATCH_BYTES = 256 * 1024
"""Limit of one batch: some 3,000 lines, a few hundredths of a second of a thread."""
CUT_BYTES = 1 << 20
"""Size from which a log that was read to its end is cut off."""
MOST_KNOWN = 20_000
"""Limit of different lines that are remembered from batch to batch: 10 MB while a log is read."""
_LONGEST_LINE = 256
"""No path of a file is as long."""
_BEFORE_BYTES = 4096
"""Bytes before a position whose checksum tells whether it is still the same log."""

_ITSELF = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""No symlink, and no waiting for the other end of a pipe."""
_LONGEST_POSITION = 100
_POSITION = re.compile(rb"([0-9]{1,20}) ([0-9]{1,19}) ([0-9]{1,10})\n")

_Position: TypeAlias = tuple[int, ...]
"""How far the log was read: inode, offset, and the checksum of what stands before that."""
_NOWHERE: _Position = (0, 0, 0)


@attrs.frozen(kw_only=True)
class Batch:
    """
    A part of the log: how many lines are hits, how many none, and which files the hits were of.

    `end` is where it ends, `full` whether it was as large as one may be.
    """

    hits: int
    rubbish: int
    uses: Mapping[FileKey, int]
    end: int
    full: bool


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
        self._fd = -1
        self._position = _NOWHERE
        self._known = lru_cache(MOST_KNOWN)(self._sent)

    def begin(self) -> bool:
        """
        Open the log, if it is there and nobody else reads it.

        :returns: whether it was opened; end() must follow, here and after an error.
        :raises OSError: it can't be read and cut off.
        """
        try:
            # A pipe would keep us waiting for its other end.
            self._fd = os.open(self.path, os.O_RDWR | _ITSELF)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._position = self._read_position()
        return True

    def end(self) -> None:
        """Let others read."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        # By the next time a name may lead elsewhere.
        self._known.cache_clear()

    def read(self) -> Batch | None:
        """
        The next whole lines, None if there is none.

        Again from the start if this is not the log that was read before. A line that fills a batch
        and does not end is no path: it is skipped piece by piece, and counted as one.
        """
        status = os.fstat(self._fd)
        inode, start, checksum = self._position
        before = self._before(start)
        if start > status.st_size or (inode, checksum) != (status.st_ino, zlib.crc32(before)):
            start, before = 0, b""
        data = os.pread(self._fd, BATCH_BYTES, start)
        size = data.rfind(b"\n") + 1
        full = len(data) == BATCH_BYTES
        inside = before != b"" and not before.endswith(b"\n")
        if size:
            lines = data[data.index(b"\n") + 1 if inside else 0 : size]
            return self._counted(lines, start + size, full=full)
        if not full:
            return None
        return Batch(hits=0, rubbish=int(not inside), uses={}, end=start + len(data), full=True)

    def _counted(self, lines: bytes, end: int, *, full: bool) -> Batch:
        hits = rubbish = 0
        uses: Counter[FileKey] = Counter()
        for line, times in Counter(lines.split(b"\n")[:-1]).items():
            is_hit, key = self._known(line) if len(line) < _LONGEST_LINE else (False, None)
            hits += times if is_hit else 0
            rubbish += 0 if is_hit else times
            if key is not None:
                uses[key] += times
        return Batch(hits=hits, rubbish=rubbish, uses=uses, end=end, full=full)

    def _sent(self, line: bytes) -> tuple[bool, FileKey | None]:
        """Whether a line is a hit, and the file that was sent: of a symlink, what it leads to."""
        path = line[1:].decode("latin-1")
        place = identify(path) if line[:1] == b"/" else None
        if place is None or not self._follow:
            return place is not None, None
        # An alias may have been retired since.
        for name in (path, path + RETIRED):
            try:
                text = os.readlink(f"{self._root}/{name}")
            except FileNotFoundError:
                continue
            except OSError:
                break  # A regular file.
            link = read_link(path, text)
            return True, None if link is None else link[0]
        return True, place.file_key

    def done(self, batch: Batch) -> None:
        """Note that a batch was counted: go on behind it, and cut the log off if it is large."""
        inode = os.fstat(self._fd).st_ino
        self._note((inode, batch.end, zlib.crc32(self._before(batch.end))))
        if batch.end < CUT_BYTES or not self._is_still(inode):
            return
        # Nothing may come between these two.
        if os.fstat(self._fd).st_size == batch.end:
            os.ftruncate(self._fd, 0)
            # Killed before this is written, the checksum shows that it is another log by now.
            self._note((inode, 0, 0))

    def _is_still(self, inode: int) -> bool:
        """Say whether the open file is the log: one that was moved away is somebody's archive."""
        try:
            return os.lstat(self.path).st_ino == inode
        except FileNotFoundError:
            return False

    def _before(self, offset: int) -> bytes:
        size = min(offset, _BEFORE_BYTES)
        return os.pread(self._fd, size, offset - size)

    def _read_position(self) -> _Position:
        try:
            fd = os.open(f"{self.path}.position", os.O_RDONLY | _ITSELF)
        except FileNotFoundError:
            return _NOWHERE
        with os.fdopen(fd, "rb") as file:
            match = _POSITION.fullmatch(file.read(_LONGEST_POSITION))
        return _NOWHERE if match is None else tuple(map(int, match.groups()))

    def _note(self, position: _Position) -> None:
        name = f"{self.path}.position"
        fresh = f"{name}.new"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _ITSELF, 0o644)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(" ".join(map(str, position)) + "\n")
        os.replace(fresh, name)
        self._position = position
