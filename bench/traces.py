"""
Made-up traces of requests for covers: Zipf over releases, sizes as in the archive.

A key is a number, four in a row for one release: its thumbnails of 250, 500 and 1200 pixels and
its original. Everything follows from the seed, with the standard library alone, so a trace is
the same on every machine.
"""

from __future__ import annotations

import math
import random
from itertools import accumulate
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import attrs

ALPHAS = (0.8, 0.9, 1.0, 1.1)
"""Exponents of Zipf's law that traces of web caches show."""


class Kind(NamedTuple):
    """One of the sizes a cover is asked for in."""

    name: str
    share: float
    """Of all requests."""
    smallest: int
    largest: int
    """Bytes."""


KINDS = (
    Kind("250", 0.45, 10_000, 20_000),
    Kind("500", 0.30, 40_000, 80_000),
    Kind("1200", 0.10, 150_000, 450_000),
    Kind("original", 0.15, 200_000, 60_000_000),
)
"""The sizes are those of the archive; the shares are a guess at clients that show small covers."""

_ORIGINAL_MEDIAN = 1_500_000
_ORIGINAL_SIGMA = 1.1
_RECORD = Struct("<IQIq")
"""libCacheSim's oracleGeneral: time, key, size, time of the next request (-2: not known)."""


@attrs.frozen(kw_only=True, eq=False)
class Trace:
    """
    Requests in order.

    :ivar keys: one for each request.
    :ivar sizes: bytes, by key.
    :ivar measured_from: the first request that counts; those before fill the cache.
    :ivar crawled_from: keys from here on are asked for once, by a crawl, and don't count.
    """

    name: str
    keys: list[int]
    sizes: list[int]
    measured_from: int
    crawled_from: int

    @property
    def footprint(self) -> int:
        """Bytes that a cache would need to keep everything but what a crawl asks for."""
        return sum(self.sizes[key] for key in set(self.keys) if key < self.crawled_from)

    def measured(self) -> tuple[int, int]:
        """Requests and bytes that count."""
        return self._sum(crawled=False)

    def crawled(self) -> tuple[int, int]:
        """Requests and bytes of the crawl, after the filling of the cache."""
        return self._sum(crawled=True)

    def _sum(self, *, crawled: bool) -> tuple[int, int]:
        sizes = [
            self.sizes[key]
            for key in self.keys[self.measured_from :]
            if (key >= self.crawled_from) is crawled
        ]
        return len(sizes), sum(sizes)

    def write(self, path: Path) -> None:
        """As a file that libCacheSim reads."""
        record = _RECORD.pack
        with path.open("wb") as file:
            file.writelines(
                record(time, key + 1, self.sizes[key], -2) for time, key in enumerate(self.keys)
            )


@attrs.frozen(kw_only=True)
class Zipf:
    """
    How to make a trace.

    :ivar drift: every so many requests a release never seen before becomes popular, in place of
        another: it takes a rank whose logarithm is uniform. 0: popularity stays as it is.
    :ivar crawl: the share of the crawl in the middle third of the measured requests; it asks for
        each of its covers once. 0: no crawl.
    """

    requests: int
    releases: int
    alpha: float
    seed: int
    drift: int = 0
    crawl: float = 0.0

    def trace(self, name: str) -> Trace:
        """The first third of the requests fills the cache, the rest counts."""
        rng = random.Random(self.seed)
        weights = list(accumulate((rank + 1) ** -self.alpha for rank in range(self.releases)))
        ranks = rng.choices(range(self.releases), cum_weights=weights, k=self.requests)
        kinds = rng.choices(range(len(KINDS)), [kind.share for kind in KINDS], k=self.requests)
        measured_from = self.requests // 3
        third = (self.requests - measured_from) // 3
        crawl = range(measured_from + third, measured_from + 2 * third) if self.crawl else range(0)
        # What drifts in and what is crawled comes after the catalogue in the numbering.
        newcomers = -(-self.requests // self.drift) if self.drift else 0
        newcomer = self.releases
        crawled = crawled_from = self.releases + newcomers
        by_rank = list(range(self.releases))
        keys = []
        for number, (rank, kind) in enumerate(zip(ranks, kinds, strict=True)):
            if self.drift and number % self.drift == 0:
                by_rank[int(self.releases ** rng.random()) - 1] = newcomer
                newcomer += 1
            if number in crawl and rng.random() < self.crawl:
                release = crawled
                crawled += 1
            else:
                release = by_rank[rank]
            keys.append(release * len(KINDS) + kind)
        return Trace(
            name=name,
            keys=keys,
            sizes=_sizes(random.Random(self.seed + 1), crawled),
            measured_from=measured_from,
            crawled_from=crawled_from * len(KINDS),
        )


def _sizes(rng: random.Random, releases: int) -> list[int]:
    *thumbnails, original = KINDS
    sizes: list[int] = []
    for _ in range(releases):
        sizes.extend(rng.randrange(kind.smallest, kind.largest) for kind in thumbnails)
        size = int(rng.lognormvariate(math.log(_ORIGINAL_MEDIAN), _ORIGINAL_SIGMA))
        sizes.append(min(max(size, original.smallest), original.largest))
    return sizes
