"""
Which file goes first when the cache is over its limit (pure).

`oldest`: the one that was downloaded first.

`least-useful`: GreedyDual-Size with frequency (Cherkasova, HP Labs 1998), with the time that a
miss costs in place of a constant cost: asking for a file takes as long as fetching another
1 MiB, so a small file that is asked for often is worth more of its room than a large one asked
for once. `python -m bench.policies` compares both with what others do.

`lua/changes.lua` works out the same ranks for Redis, where a rank is set in one step with its file;
tests/integration/test_index.py holds both to one order.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from coverart.index.codec import size_of, unpack_entry
from coverart.model import FileEntry

Eviction: TypeAlias = Literal["oldest", "least-useful"]

MOST_USES = 15
_HOPS_BYTES = 1 << 20
_BLOCK_BYTES = 4096


def worth(size_bytes: int) -> int:
    """What one use of a file of this size is worth, from 64 up; small files a few thousand."""
    size = max(size_bytes, _BLOCK_BYTES)
    return 64 * (size + _HOPS_BYTES) // size


def score(size_bytes: int, uses: int, level: int) -> int:
    """
    The rank of a file among those to be evicted, the lowest first; `uses` is its last hex digit.

    :param uses: 1 to MOST_USES, the download included.
    :param level: the rank without uses of the file evicted last: what was not used since sinks
        to it in time. Scores stay below 2^53, exact as a double, for 10^9 turnovers of a cache.
    """
    return (level + uses * worth(size_bytes)) * 16 + uses


# Places in a heap are bytes, the rank in front in an order that bytes sort by, the key behind: a
# million tuples would take half as much memory again, and the garbage collector a tenth of a
# second to look at.
_AGE = struct.Struct(">d")
_SCORE = struct.Struct(">Q")


def place_by_age(at: float, key: bytes) -> bytes:
    """The place of a key in a heap by time, in seconds since the epoch."""
    return _AGE.pack(max(at, 0.0)) + key


def read_age(place: bytes) -> tuple[float, bytes]:
    """The inverse of place_by_age, for times from the epoch on."""
    at: float = _AGE.unpack_from(place)[0]
    return at, place[_AGE.size :]


def mostly_left_over(places: list[bytes], held: int) -> bool:
    """
    Say whether most entries of a heap are stale, so that it has to be built again.

    Stale entries are dropped when they reach the front, which is cheaper than searching for them;
    behind one that stays in front they would pile up.
    """
    return len(places) > 2 * held + 1000


class ByAge:
    """The order `oldest` of an index in memory; keys are packed."""

    def __init__(self, stored_at: Callable[[bytes], float | None]) -> None:
        """:param stored_at: when a file was stored, None if it is not held."""
        self._stored_at = stored_at
        # Each file held has a place, that of when it was stored or before.
        self._places: list[bytes] = []
        self._held = 0

    def put(self, key: bytes, entry: FileEntry, before: float | None = None) -> None:
        """A file was stored, or stored anew: then `before` is when it had been stored."""
        self._held += before is None
        if before is None or entry.stored_at < before:
            heapq.heappush(self._places, place_by_age(entry.stored_at, key))
            if mostly_left_over(self._places, self._held):
                keys = {place[_AGE.size :] for place in self._places}
                held = [(self._stored_at(key), key) for key in keys]
                self._places = [place_by_age(at, key) for at, key in held if at is not None]
                heapq.heapify(self._places)
        else:
            # Its place is raised when it comes up. Correct two stale heap entries per call to spread
            # the work.
            for _ in range(2):
                self._look()

    def learn(self, files: Iterable[tuple[bytes, bytes]]) -> int:
        """Many files lie on the disk; their entries are packed too. :returns: their bytes."""
        places, push = self._places, heapq.heappush
        total = 0
        for key, entry in files:
            total += size_of(entry)
            # As place_by_age packs it, the time stands at the end of an entry; a sign before.
            push(places, entry[5:] + key if entry[5] < 128 else place_by_age(0.0, key))
            self._held += 1
        return total

    def use(self, key: bytes, entry: FileEntry, times: int) -> None:
        """Being asked for does not make a file younger."""

    def remove(self, key: bytes, *, evicted: bool) -> None:  # noqa: ARG002
        """A file is gone. :param evicted: for want of room. Its stale entry is dropped later."""
        self._held -= 1

    def first(self, count: int) -> list[bytes]:
        """Up to so many files, the first to be evicted in front. They stay in the queue."""
        taken: dict[bytes, bytes] = {}
        while len(taken) < count and self._settle():
            place = heapq.heappop(self._places)
            taken[place[_AGE.size :]] = place
        for place in taken.values():
            heapq.heappush(self._places, place)
        return list(taken)

    @property
    def oldest(self) -> float | None:
        return read_age(self._places[0])[0] if self._settle() else None

    def _settle(self) -> bool:
        """Drop or correct stale entries in front. :returns: whether an entry is left."""
        while self._places:
            if self._look():
                return True
        return False

    def _look(self) -> bool:
        """Say whether the entry in front is right; a stale one is dropped or corrected."""
        if not self._places:
            return False
        at, key = read_age(self._places[0])
        stored_at = self._stored_at(key)
        held = None if stored_at is None else max(0.0, stored_at)
        if held is None or held < at:
            heapq.heappop(self._places)
        elif at < held:
            heapq.heapreplace(self._places, place_by_age(held, key))
        return held == at


class ByUse:
    """The order `least-useful`, likewise. After a rebuild from disk every file has one use again."""

    oldest = None

    def __init__(self) -> None:
        self._scores: dict[bytes, int] = {}
        self._places: list[bytes] = []
        self._level = 0

    def put(self, key: bytes, entry: FileEntry, before: float | None = None) -> None:  # noqa: ARG002
        fresh = score(entry.size_bytes, 1, self._level)
        known = self._scores.get(key)
        self._scores[key] = fresh
        if known is None or fresh < known:
            heapq.heappush(self._places, _SCORE.pack(fresh) + key)
            if mostly_left_over(self._places, len(self._scores)):
                self._places = [_SCORE.pack(each) + key for key, each in self._scores.items()]
                heapq.heapify(self._places)

    def learn(self, files: Iterable[tuple[bytes, bytes]]) -> int:
        total = 0
        for key, packed in files:
            entry = unpack_entry(packed)
            total += entry.size_bytes
            self.put(key, entry)
        return total

    def use(self, key: bytes, entry: FileEntry, times: int) -> None:
        known = self._scores.get(key)
        if known is not None:
            uses = min(MOST_USES, known % 16 + times)
            # Its place is raised when it comes up, so the heap does not grow by use.
            self._scores[key] = max(known, score(entry.size_bytes, uses, self._level))

    def remove(self, key: bytes, *, evicted: bool) -> None:
        known = self._scores.pop(key, None)
        if evicted and known is not None:
            self._level = max(self._level, known // 16)

    def first(self, count: int) -> list[bytes]:
        taken: dict[bytes, bytes] = {}
        while self._places and len(taken) < count:
            key = self._places[0][_SCORE.size :]
            (place,) = _SCORE.unpack_from(self._places[0])
            known = self._scores.get(key)
            if known is None or place > known or key in taken:
                heapq.heappop(self._places)
            elif place < known:
                heapq.heapreplace(self._places, _SCORE.pack(known) + key)
            else:
                taken[key] = heapq.heappop(self._places)
        for place_again in taken.values():
            heapq.heappush(self._places, place_again)
        return list(taken)
