"""
The log of the hits that nginx sends without asking: the leader counts its lines and empties it.

nginx appends one line for each direct hit: the path of the file under the cache directory, with a
slash in front. Who reads it holds a lock on it, and counts nothing before it is empty: a process
that ends earlier leaves all of it to the next one. Lost is what nginx writes between the last look
and the cut, two system calls, and what a killed process read and did not tell the index yet.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from coverart.cache.uses import MOST_USES_KEPT, tell_uses
from coverart.cache.writer import InThread
from coverart.coordination.leader import Leadership
from coverart.index.base import Index
from coverart.metrics import Metrics
from coverart.model import FileKey
from coverart.store.layout import RETIRED, identify, read_link

BATCH_BYTES = 256 * 1024
"""Limit of what is in memory at once: some 3,000 lines."""
MOST_KNOWN = 20_000
"""Limit of different lines that are remembered while the log is read: 10 MB."""
_LONGEST_LINE = 256
"""No path of a file is as long."""


class HitLog:
    """Counts nginx's hits while this process leads."""

    log = Logger()

    def __init__(
        self,
        path: Path,
        root: Path,
        *,
        index: Index,
        in_thread: InThread,
        leadership: Leadership,
        clock: IReactorTime,
        metrics: Metrics,
    ) -> None:
        """:param root: the cache directory."""
        self._path = os.fspath(path)
        self._root = os.fspath(root)
        self._index = index
        self._in_thread = in_thread
        self._leadership = leadership
        self._clock = clock
        self._metrics = metrics
        self._rest = b""
        """The beginning of a line whose end was not there yet."""
        self._stopping = False
        self._complained = ""

    def stop(self) -> None:
        """What is being read is left to the next process."""
        self._stopping = True

    async def count(self) -> None:
        """Count all lines and cut them off, if this process leads and no other one reads."""
        if self._leadership.token is None:
            return
        try:
            hits, rubbish, uses = await self._in_thread(self._take)
        except (FileNotFoundError, BlockingIOError):
            return  # nginx has not made it yet, or another process reads it.
        except OSError as error:
            self._complain(error)
            return
        self._complained = ""
        self._metrics.direct_hits.inc(hits)
        if rubbish:
            self.log.warn(
                "{count} lines of {path} were skipped: a line must be the path of a file under the "
                "cache directory, with a slash in front, and nothing else",
                count=rubbish,
                path=self._path,
            )
        await tell_uses(self._index, uses, self._clock)

    def _take(self) -> tuple[int, int, Counter[FileKey]]:
        """
        In a thread: read the log to its end and cut it off.

        A symlink in its place could lead to another file of ours.

        :returns: how many lines are hits, how many none, and how often files were sent, of at most
            MOST_USES_KEPT: these order what is evicted, nobody adds them up.
        :raises OSError: it can't be read and cut off.
        """
        hits = rubbish = 0
        uses: Counter[FileKey] = Counter()
        rest = self._rest
        sent = lru_cache(MOST_KNOWN)(self._sent)
        # A pipe would keep us waiting for its other end.
        fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while data := file.read(BATCH_BYTES):
                if self._stopping:
                    return 0, 0, Counter()
                *lines, rest = (rest[:_LONGEST_LINE] + data).split(b"\n")
                for line, times in Counter(lines).items():
                    is_hit, key = sent(line)
                    hits += times if is_hit else 0
                    rubbish += 0 if is_hit else times
                    if key is not None and (key in uses or len(uses) < MOST_USES_KEPT):
                        uses[key] += times
            # Nothing may come between the last look and this.
            file.truncate(0)
        self._rest = rest
        return hits, rubbish, uses

    def _sent(self, line: bytes) -> tuple[bool, FileKey | None]:
        """Whether a line is a hit, and the file that was sent: of a symlink, what it leads to."""
        path = line[1:].decode("latin-1")
        place = identify(path) if line[:1] == b"/" else None
        if place is None or self._index.eviction == "oldest":
            return place is not None, None
        # An alias may have been retired since.
        for name in (path, path + RETIRED):
            with suppress(OSError):
                link = read_link(path, os.readlink(f"{self._root}/{name}"))
                return True, None if link is None else link[0]
        return True, place.file_key

    def _complain(self, error: OSError) -> None:
        """Once for each trouble: this is tried every few seconds."""
        reason = f"{error.filename or self._path}: {error.strerror or error}"
        if reason != self._complained:
            self._complained = reason
            self.log.warn(
                "the hit log {path} can't be read or cut off ({reason}); the user that runs this must be "
                "able to read and write it. What nginx sends without asking is not counted until then",
                path=self._path,
                reason=reason,
            )
