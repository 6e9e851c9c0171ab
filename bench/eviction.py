"""
Eviction as the index can do it, replayed in plain Python.

The index learns what was used in batches, never at the hit itself, and removes in sweeps: when
the limit is passed, down to a share of it. What a policy keeps must fit a sorted set: a score
for each file, changed for what a batch names, and the lowest taken out in a sweep.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import attrs

from bench.traces import Trace

CLEAN_TO = 0.9
"""The share of the limit that a sweep leaves, as COVER_ART_CACHE_CLEAN_TO does by default."""

HOPS_AS_BYTES = 1_048_576
"""What the redirects of a miss cost, in bytes that could have come in that time."""

_LEAST_SIZE = 4096
"""Smaller files take up a block of the disk all the same."""

_PRECISION = 64
"""Scores are whole numbers: parts of a worth that they can tell apart."""


@attrs.frozen(kw_only=True)
class Misses:
    """Miss ratios: of requests, of bytes, and of the time that clients wait for the archive."""

    objects: float
    bytes: float

    waiting: float
    """Every miss counted as its bytes and HOPS_AS_BYTES."""

    @classmethod
    def of(cls, missed: tuple[int, int], asked: tuple[int, int]) -> Misses:
        """:param missed: requests and bytes, as `asked`."""
        waited, at_most = (bytes_ + number * HOPS_AS_BYTES for number, bytes_ in (missed, asked))
        return cls(
            objects=missed[0] / asked[0], bytes=missed[1] / asked[1], waiting=waited / at_most
        )


class Policy(Protocol):
    """What goes first. `now` is the number of the request."""

    def stored(self, key: int, size: int, now: int) -> None:
        """A file came."""

    def used(self, counts: Mapping[int, int], now: int) -> None:
        """A batch: how often each file was used. Some may be gone meanwhile."""

    def evict(self) -> int:
        """Take out the file that goes next."""


MakePolicy: TypeAlias = Callable[[list[int], int], Policy]
"""Given the sizes by key, and the limit in bytes."""


def replay(
    trace: Trace, make: MakePolicy, limit: int, *, batch: int, learn_first: bool = False
) -> Misses:
    """
    Run a trace through a cache.

    :param batch: requests between two looks at what was used.
    :param learn_first: a sweep takes in what was used until then before it removes anything.
    """
    policy = make(trace.sizes, limit)
    sizes, crawled_from, measured_from = trace.sizes, trace.crawled_from, trace.measured_from
    held: set[int] = set()
    used: Counter[int] = Counter()
    total = missed = missed_bytes = 0
    for now, key in enumerate(trace.keys):
        if key in held:
            used[key] += 1
        else:
            size = sizes[key]
            if now >= measured_from and key < crawled_from:
                missed += 1
                missed_bytes += size
            if size <= limit:
                held.add(key)
                total += size
                policy.stored(key, size, now)
            if total > limit:
                if learn_first:
                    policy.used(used, now)
                    used.clear()
                while total > limit * CLEAN_TO:
                    gone = policy.evict()
                    held.remove(gone)
                    total -= sizes[gone]
        if (now + 1) % batch == 0:
            policy.used(used, now)
            used.clear()
    return Misses.of((missed, missed_bytes), trace.measured())


class _Scored:
    """
    The sorted set, as a heap with one place for each file.

    Scores only rise, so a place that is too low is put right when it comes up, not before.
    """

    def __init__(self) -> None:
        self._scores: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []

    def _put(self, key: int, score: int) -> None:
        self._scores[key] = score
        heapq.heappush(self._heap, (score, key))

    def _raise(self, key: int, score: int) -> None:
        self._scores[key] = score

    def _pop(self) -> tuple[int, int]:
        while True:
            place, key = self._heap[0]
            score = self._scores[key]
            if place == score:
                heapq.heappop(self._heap)
                del self._scores[key]
                return score, key
            heapq.heapreplace(self._heap, (score, key))


class Oldest(_Scored):
    """By download time."""

    def stored(self, key: int, size: int, now: int) -> None:
        del size
        self._put(key, now)

    def used(self, counts: Mapping[int, int], now: int) -> None:
        """It does not matter."""

    def evict(self) -> int:
        return self._pop()[1]


class LeastRecent(Oldest):
    """By the last batch in which a file was used."""

    def used(self, counts: Mapping[int, int], now: int) -> None:
        for key in counts:
            if key in self._scores:
                self._raise(key, now)


class Clock:
    """The oldest, unless it was used since: then it goes to the back once."""

    def __init__(self) -> None:
        self._used: OrderedDict[int, bool] = OrderedDict()

    def stored(self, key: int, size: int, now: int) -> None:
        del size, now
        self._used[key] = False

    def used(self, counts: Mapping[int, int], now: int) -> None:
        del now
        for key in counts:
            if key in self._used:
                self._used[key] = True

    def evict(self) -> int:
        while True:
            key, used = self._used.popitem(last=False)
            if not used:
                return key
            self._used[key] = False


class Sieve:
    """
    A hand goes from the oldest to the newest and around: what was used stays in its place.

    Source: Zhang et al., SIEVE is Simpler than LRU, NSDI 2024.
    """

    def __init__(self) -> None:
        self._used: dict[int, bool] = {}
        self._ahead: list[int] = []
        self._passed: list[int] = []
        self._hand = 0

    def stored(self, key: int, size: int, now: int) -> None:
        del size, now
        self._used[key] = False
        self._ahead.append(key)

    def used(self, counts: Mapping[int, int], now: int) -> None:
        del now
        for key in counts:
            if key in self._used:
                self._used[key] = True

    def evict(self) -> int:
        while True:
            if self._hand == len(self._ahead):
                self._ahead, self._passed, self._hand = self._passed, [], 0
            key = self._ahead[self._hand]
            self._hand += 1
            if not self._used[key]:
                del self._used[key]
                return key
            self._used[key] = False
            self._passed.append(key)


class S3Fifo:
    """
    A tenth for newcomers; who is used there, or comes back soon, moves to the main queue.

    Source: Yang et al., FIFO Queues are All You Need for Cache Eviction, SOSP 2023. It has to
    remember what it evicted, which an index within its budget does not.
    """

    def __init__(self, limit: int) -> None:
        self._newcomers: OrderedDict[int, int] = OrderedDict()
        self._main: OrderedDict[int, int] = OrderedDict()
        self._gone: OrderedDict[int, int] = OrderedDict()
        self._uses: dict[int, int] = {}
        self._newcomers_bytes = self._gone_bytes = 0
        self._most_newcomers = limit // 10
        self._most_gone = limit - limit // 10

    def stored(self, key: int, size: int, now: int) -> None:
        del now
        self._uses[key] = 0
        gone = self._gone.pop(key, None)
        if gone is None:
            self._newcomers[key] = size
            self._newcomers_bytes += size
        else:
            self._gone_bytes -= gone
            self._main[key] = size

    def used(self, counts: Mapping[int, int], now: int) -> None:
        del now
        for key, count in counts.items():
            if key in self._uses:
                self._uses[key] = min(3, self._uses[key] + count)

    def evict(self) -> int:
        while True:
            if self._newcomers_bytes > self._most_newcomers or not self._main:
                key, size = self._newcomers.popitem(last=False)
                self._newcomers_bytes -= size
                if self._uses.pop(key):
                    self._main[key] = size
                    self._uses[key] = 0
                    continue
                self._remember(key, size)
                return key
            key, size = self._main.popitem(last=False)
            if not self._uses[key]:
                del self._uses[key]
                return key
            self._uses[key] -= 1
            self._main[key] = size

    def _remember(self, key: int, size: int) -> None:
        self._gone[key] = size
        self._gone_bytes += size
        while self._gone_bytes > self._most_gone:
            self._gone_bytes -= self._gone.popitem(last=False)[1]


class GreedyDual(_Scored):
    """
    The least worth: score = level + uses * worth, worth = (size + fixed) / size.

    The level is the score of the last one evicted: it rises, so what is not used any more sinks.
    All numbers are whole and the count of uses is the low digit of what is kept as the score, so
    that nothing else is kept of a file.

    :param fixed: what a miss costs beside its bytes, in bytes; None: every miss costs the same.
    :param most_uses: where the count of uses stops.
    Source: Cherkasova, Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency, 1998.
    """

    def __init__(
        self, sizes: list[int], *, fixed: int | None = HOPS_AS_BYTES, most_uses: int = 15
    ) -> None:
        super().__init__()
        self._sizes = sizes
        self._fixed = fixed
        self._most_uses = most_uses
        self._digits = most_uses + 1
        self._level = 0

    def stored(self, key: int, size: int, now: int) -> None:
        del size, now
        self._put(key, self._score(key, 1))

    def used(self, counts: Mapping[int, int], now: int) -> None:
        del now
        for key, count in counts.items():
            score = self._scores.get(key)
            if score is not None:
                uses = min(self._most_uses, score % self._digits + count)
                self._raise(key, self._score(key, uses))

    def evict(self) -> int:
        score, key = self._pop()
        self._level = score // self._digits
        return key

    def _score(self, key: int, uses: int) -> int:
        size = max(self._sizes[key], _LEAST_SIZE)
        cost = HOPS_AS_BYTES if self._fixed is None else size + self._fixed
        return (self._level + uses * (_PRECISION * cost // size)) * self._digits + uses
