"""
`python -m bench.policies`: which eviction policy misses least, ideal and within the index's means.

Ideal ones are libCacheSim's (`pip install libcachesim`; without it they are left out): they learn
of every use at once and remove one by one. Those called "swept" are bench.eviction's: they learn
in batches and remove in sweeps, as the index does. Every figure follows from the seed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.eviction import (
    Clock,
    GreedyDual,
    LeastRecent,
    MakePolicy,
    Misses,
    Oldest,
    S3Fifo,
    Sieve,
    replay,
)
from bench.traces import ALPHAS, Trace, Zipf

SHARES = (0.01, 0.05, 0.10, 0.25)
"""Limits, as shares of the footprint."""

BATCHES = (300, 3_000, 30_000, 300_000)
"""Requests in 300 s at 1, 10, 100 and 1,000 a second; more than a trace has: never learnt."""

_BATCH = 3_000
_ALPHA, _SHARE = 0.9, 0.05
"""Where only one of each is tried."""

IDEAL = {"oldest": "FIFO", "LRU": "LRU", "SIEVE": "Sieve", "S3-FIFO": "S3FIFO", "GDSF": "GDSF"}
"""libCacheSim's names."""

SWEPT: dict[str, MakePolicy] = {
    "oldest": lambda _sizes, _limit: Oldest(),
    "LRU": lambda _sizes, _limit: LeastRecent(),
    "CLOCK": lambda _sizes, _limit: Clock(),
    "SIEVE": lambda _sizes, _limit: Sieve(),
    "S3-FIFO": lambda _sizes, limit: S3Fifo(limit),
    "GDSF": lambda sizes, _limit: GreedyDual(sizes, fixed=None),
    "GDSF, cost in time": lambda sizes, _limit: GreedyDual(sizes),
}


@attrs.frozen(kw_only=True)
class Result:
    """What one policy missed of one trace at one limit; `policy` tells ideal from swept."""

    part: str
    trace: str
    policy: str
    column: str
    misses: Misses


@attrs.frozen(kw_only=True)
class Sizes:
    """How large the traces are."""

    requests: int
    releases: int
    seed: int

    def zipf(self, alpha: float, *, drift: int = 0, crawl: float = 0.0) -> Zipf:
        return Zipf(
            requests=self.requests,
            releases=self.releases,
            alpha=alpha,
            seed=self.seed,
            drift=drift,
            crawl=crawl,
        )


def simulator() -> Any:
    """libCacheSim, None where it is not installed. It has no types that mypy could see."""
    try:
        return importlib.import_module("libcachesim")
    except ImportError:
        return None


def ideal(trace: Trace, library: Any, policy: str, limit: int, path: Path) -> Misses:
    """:param path: where the trace was written."""
    reader = library.TraceReader(str(path), library.TraceType.ORACLE_GENERAL_TRACE)
    cache = getattr(library, IDEAL[policy])(limit, hashpower=16)
    cache.process_trace(reader, 0, trace.measured_from)
    objects, bytes_ = cache.process_trace(reader, trace.measured_from, -1)
    # It knows nothing of the crawl, all of which misses.
    asked, crawled = trace.measured(), trace.crawled()
    missed = (
        round(objects * (asked[0] + crawled[0])) - crawled[0],
        round(bytes_ * (asked[1] + crawled[1])) - crawled[1],
    )
    return Misses.of(missed, asked)


def by_limit(part: str, trace: Trace) -> Iterator[Result]:
    """Every policy at every limit."""
    library = simulator()
    limits = {f"{share:.0%}": int(trace.footprint * share) for share in SHARES}
    with tempfile.TemporaryDirectory(prefix="coverart-bench-") as directory:
        path = Path(directory) / "trace"
        if library is not None:
            trace.write(path)
        for name in () if library is None else IDEAL:
            for column, limit in limits.items():
                yield Result(
                    part=part,
                    trace=trace.name,
                    policy=f"{name}, ideal",
                    column=column,
                    misses=ideal(trace, library, name, limit, path),
                )
    for name, make in SWEPT.items():
        for column, limit in limits.items():
            yield Result(
                part=part,
                trace=trace.name,
                policy=f"{name}, swept",
                column=column,
                misses=replay(trace, make, limit, batch=_BATCH),
            )


def zipf(sizes: Sizes) -> Iterator[Result]:
    """Popularity that stays as it is."""
    for alpha in ALPHAS:
        yield from by_limit("zipf", sizes.zipf(alpha).trace(f"Zipf {alpha}"))


def drift(sizes: Sizes) -> Iterator[Result]:
    """New releases become popular."""
    every = max(1, 2 * sizes.requests // sizes.releases)
    name = f"Zipf {_ALPHA}, every {every} requests a new release gets popular"
    yield from by_limit("drift", sizes.zipf(_ALPHA, drift=every).trace(name))


def crawl(sizes: Sizes) -> Iterator[Result]:
    """Somebody asks for everything once; only the other requests count."""
    name = f"Zipf {_ALPHA}, for a third of the time every other request is a crawl's"
    yield from by_limit("crawl", sizes.zipf(_ALPHA, crawl=0.5).trace(name))


def batches(sizes: Sizes) -> Iterator[Result]:
    """How much it matters when uses are learnt."""
    name = f"Zipf {_ALPHA}, limit {_SHARE:.0%}: uses learnt every so many requests"
    trace = sizes.zipf(_ALPHA).trace(name)
    limit = int(trace.footprint * _SHARE)
    for policy, make in SWEPT.items():
        for batch in BATCHES:
            yield Result(
                part="batches",
                trace=name,
                policy=f"{policy}, swept",
                column=f"{batch:,}",
                misses=replay(trace, make, limit, batch=batch),
            )
        yield Result(
            part="batches",
            trace=name,
            policy=f"{policy}, swept",
            column="before sweeps",
            misses=replay(trace, make, limit, batch=BATCHES[-1], learn_first=True),
        )


PARTS: dict[str, Callable[[Sizes], Iterator[Result]]] = {
    "zipf": zipf,
    "batches": batches,
    "drift": drift,
    "crawl": crawl,
}


def render(results: Sequence[Result]) -> str:
    """A table for each trace, and one of the means over all limits and alphas."""
    tables = []
    for name in dict.fromkeys(result.trace for result in results):
        cells: dict[str, dict[str, str]] = {}
        for result in results:
            if result.trace == name:
                misses = f"{result.misses.objects:.3f} {result.misses.bytes:.3f}"
                cells.setdefault(result.policy, {})[result.column] = misses
        tables.append(_table(f"{name} (objects, bytes)", cells))
    even = [result for result in results if result.part == "zipf"]
    cells = {}
    for policy in dict.fromkeys(result.policy for result in even):
        mine = [result.misses for result in even if result.policy == policy]
        cells[policy] = {
            field.name: f"{sum(getattr(misses, field.name) for misses in mine) / len(mine):.3f}"
            for field in attrs.fields(Misses)
        }
    if cells:
        tables.append(_table("Mean over all alphas and limits", cells))
    return "\n\n".join(tables)


def _table(title: str, cells: dict[str, dict[str, str]]) -> str:
    columns = list(next(iter(cells.values())))
    names = max(map(len, cells))
    widths = [max(len(column), 11) for column in columns]
    lines = [
        title,
        " ".ljust(names)
        + "".join(f"  {column:>{width}}" for column, width in zip(columns, widths, strict=True)),
    ]
    for policy, row in cells.items():
        filled = zip(columns, widths, strict=True)
        lines.append(policy.ljust(names) + "".join(f"  {row[c]:>{width}}" for c, width in filled))
    return "\n".join(lines)


def main() -> int:
    """Replay what the command line names, all parts if none."""
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas between them")
    parser.add_argument("--requests", type=int, default=100_000, help="in each trace")
    parser.add_argument("--releases", type=int, default=10_000, help="in the catalogue")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="every figure, as JSON")
    args = parser.parse_args()
    names = [name for name in args.parts.split(",") if name]
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if args.requests < 1_000 or args.releases < 100:
        parser.error("at least 1,000 requests and 100 releases")
    if simulator() is None:
        print("without the ideal ones: they need libcachesim", file=sys.stderr)
    sizes = Sizes(requests=args.requests, releases=args.releases, seed=args.seed)
    results: list[Result] = []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        results.extend(PARTS[name](sizes))
    if args.json:
        print(json.dumps([attrs.asdict(result) for result in results], indent=2))
    else:
        print(render(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
