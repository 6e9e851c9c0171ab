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
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from coverart.index.codec import unpack_entry
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
# second to look at. No rank is below 0.
_RANK = struct.Struct(">d")


def _place(rank: float, key: bytes) -> bytes:
    return _RANK.pack(rank) + key


class ByAge:
    """
    The order `oldest` of an index in memory; keys are packed.

    A place that has become stale is dropped or corrected when it comes up, which is cheaper than
    searching for it.
    """

    def __init__(self, rank: Callable[[bytes], float | None]) -> None:
        """:param rank: of a file, the lowest goes first; None if it is not held."""
        self._rank = rank
        # Each file held has a place, that of its rank or one before.
        self._places: list[bytes] = []
        self._held = 0

    def put(self, key: bytes, entry: FileEntry, before: float | None = None) -> None:  # noqa: ARG002
        """A file was stored, or stored anew: then `before` is the rank that it had."""
        self._held += before is None
        rank = self._rank(key)
        if rank is not None and (before is None or rank < before):
            heapq.heappush(self._places, _place(rank, key))
        if len(self._places) > 2 * self._held + 1000:
            # Behind a file that stays in front stale places would pile up.
            keys = {place[_RANK.size :] for place in self._places}
            ranks = [(self._rank(key), key) for key in keys]
            self._places = [_place(rank, key) for rank, key in ranks if rank is not None]
            heapq.heapify(self._places)

    def learn(self, files: Sequence[tuple[bytes, bytes]]) -> None:
        """Many files lie on the disk; their entries are packed too."""
        places, push = self._places, heapq.heappush
        for key, entry in files:
            # As _place packs it, the time stands at the end of an entry; a sign before.
            push(places, entry[5:] + key if entry[5] < 128 else _place(0.0, key))
        self._held += len(files)

    def use(self, key: bytes, entry: FileEntry, times: int) -> None:
        """Being asked for does not make a file younger."""

    def remove(self, key: bytes, *, evicted: bool) -> None:  # noqa: ARG002
        """A file is gone. :param evicted: for want of room."""
        self._held -= 1

    def first(self, count: int) -> list[bytes]:
        """Up to so many files, the first to be evicted in front. They stay in the queue."""
        taken: dict[bytes, bytes] = {}
        while self._places and len(taken) < count:
            place = self._places[0]
            key = place[_RANK.size :]
            rank = self._rank(key)
            right = b"" if rank is None else _place(rank, key)
            if place < right:
                heapq.heapreplace(self._places, right)
                continue
            heapq.heappop(self._places)
            if place == right:
                taken[key] = place
        for place in taken.values():
            heapq.heappush(self._places, place)
        return list(taken)


class ByUse(ByAge):
    """The order `least-useful`, likewise. After a rebuild from disk every file has one use again."""

    def __init__(self) -> None:
        self._scores: dict[bytes, int] = {}
        self._level = 0
        super().__init__(self._scores.get)

    def put(self, key: bytes, entry: FileEntry, before: float | None = None) -> None:
        before = self._scores.get(key)
        self._scores[key] = score(entry.size_bytes, 1, self._level)
        super().put(key, entry, before)

    def learn(self, files: Sequence[tuple[bytes, bytes]]) -> None:
        for key, packed in files:
            self.put(key, unpack_entry(packed))

    def use(self, key: bytes, entry: FileEntry, times: int) -> None:
        known = self._scores.get(key)
        if known is not None:
            uses = min(MOST_USES, known % 16 + times)
            # Its place is raised when it comes up, so the heap does not grow by use.
            self._scores[key] = max(known, score(entry.size_bytes, uses, self._level))

    def remove(self, key: bytes, *, evicted: bool) -> None:
        super().remove(key, evicted=evicted)
        reached = self._scores.pop(key) // 16
        if evicted:
            self._level = max(self._level, reached)
