"""Covers that nginx finds by itself, against other servers that have them at hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from bench import fronts
from bench.chain import whole
from bench.load import Drawing, drawn, measure_drawn
from bench.processes import LOCAL, Bench
from bench.table import CannotMeasureError, Figure, Goal, Pair, Row, in_turn

CONNECTIONS = 64
COVERS = 1_000
"""The working set where all of it is at hand for everyone."""
SIZES = (15_000, 60_000)
BODIES = 10_000
"""So many bodies of their own among the files of a large cache; the rest are links to these."""
WARM_S = 1.0
IMAGE_ID = 10_000_000_001

OURS = "shipped"
BARE = "bare"
BY_URL = Drawing(files=COVERS, before="/release/", after="/front-250")
BY_FILE = Drawing(files=COVERS, before="/release/@/", after="_front_250.jpg")

Sides = dict[str, tuple[Figure, ...]]


def make_covers(root: Path, count: int, size: int) -> None:
    """So many thumbnails, each with its alias, as the proxy would have put them there."""
    for number in range(count):
        path = Path(_path(root, number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff\xe0" + os.urandom(size - 4))
        alias = path.with_name(f"{drawn(number)}_front_250.jpg")
        alias.symlink_to(path.name)


def make_many(root: Path, count: int, size: int, *, made: int = 0) -> None:
    """
    Thumbnails up to so many, `made` of which are there already.

    After the first ten thousand they are hard links: a million names, but bodies that fit in memory.
    """
    # With plain strings: a million Paths would take longer than the files themselves.
    folders: set[str] = set()
    for number in range(made, count):
        path = _path(root, number)
        folder = os.path.dirname(path)
        if folder not in folders:
            os.makedirs(folder, exist_ok=True)
            folders.add(folder)
        if number < BODIES:
            Path(path).write_bytes(b"\xff\xd8\xff\xe0" + os.urandom(size - 4))
        else:
            os.link(_path(root, number % BODIES), path)


def _path(root: Path, number: int) -> str:
    mbid = drawn(number)
    return f"{root}/release/{mbid[0]}/{mbid[:2]}/{mbid[:3]}/{mbid}_{IMAGE_ID}_250.jpg"


def _all_sides(bench: Bench, size: int) -> tuple[Sides, dict[str, str]]:
    """Figures of all the servers that are installed, and what the others need."""
    root = bench.folder("covers")
    make_covers(root, COVERS, size)
    missing: dict[str, str] = {}
    folder = bench.folder("load")
    seed = 0
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(fronts.shipped(bench, root))
        like, _ = ours
        bare = stack.enter_context(fronts.bare(bench, root, like=like))
        served = {OURS: (ours, BY_URL), BARE: (bare, BY_FILE)}
        caches: dict[str, Callable[[int], AbstractContextManager[fronts.Served]]] = {
            "proxy-cache": lambda origin: fronts.proxy_cache(bench, origin, like),
            "varnish": lambda origin: fronts.varnish(bench, origin),
            "squid": lambda origin: fronts.squid(bench, origin),
        }
        keep = "add_header Cache-Control 'public, max-age=31536000, immutable';"
        with fronts.bare(bench, root, like=like, header=keep) as (_, origin):
            for name, cache in caches.items():
                try:
                    served[name] = (stack.enter_context(cache(origin)), BY_FILE)
                except CannotMeasureError as error:
                    missing[name] = str(error)
                    continue
                (_, port), paths = served[name]
                for number in range(COVERS):
                    whole(f"http://{LOCAL}:{port}{paths.path(number)}")
        # The origin is gone now: whatever is answered from here on was held.
        heads = {
            name: len(whole(f"http://{LOCAL}:{port}{paths.path(0)}")[1])
            for name, ((_, port), paths) in served.items()
        }
        if set(heads.values()) != {size}:
            raise RuntimeError(f"bytes of a body: {heads}")

        def side(name: str, seconds: float) -> Callable[[], Figure]:
            (child, port), paths = served[name]

            def figure() -> Figure:
                nonlocal seed
                seed += 1
                return measure_drawn(
                    *(child, port, paths, folder),
                    connections=CONNECTIONS,
                    seconds=seconds,
                    seed=seed,
                )

            return figure

        for name in served:
            side(name, WARM_S)()
        sides = {name: side(name, bench.seconds) for name in served}
        return in_turn(bench.rounds, sides), missing


def _against(size: int, reference: str) -> Callable[[Bench], list[Pair]]:
    def pairs(bench: Bench) -> list[Pair]:
        sides, missing = bench.kept(f"fronts-{size}", lambda: _all_sides(bench, size))
        if reference in missing:
            raise CannotMeasureError(missing[reference])
        return _paired(sides[reference], sides[OURS])

    return pairs


def _paired(theirs: Sequence[Figure], ours: Sequence[Figure]) -> list[Pair]:
    return [Pair(reference=a, coverart=b) for a, b in zip(theirs, ours, strict=True)]


def _at_scale(count: int | None) -> Callable[[Bench], list[Pair]]:
    """So many files, or as many as the bench says: rows with fewer come first and leave theirs."""

    def pairs(bench: Bench) -> list[Pair]:
        files = bench.files if count is None else count
        if count is not None and count > bench.files:
            raise CannotMeasureError(f"--files {count} or more")
        root = bench.kept("many", lambda: bench.folder("many"))
        made = bench.kept("made", lambda: [0])
        make_many(root, files, SIZES[0], made=made[0])
        made[0] = max(made[0], files)
        by_url = Drawing(files=files, before="/release/", after=f"/{IMAGE_ID}-250")
        by_file = Drawing(files=files, before="/release/@/", after=f"_{IMAGE_ID}_250.jpg")
        folder = bench.folder("load")
        seed = 0
        with (
            fronts.shipped(bench, root) as ours,
            fronts.bare(bench, root, like=ours[0]) as bare,
        ):

            def asked(served: fronts.Served, drawing: Drawing, seconds: float) -> Figure:
                nonlocal seed
                seed += 1
                return measure_drawn(
                    *(*served, drawing, folder),
                    connections=CONNECTIONS,
                    seconds=seconds,
                    seed=seed,
                )

            asked(bare, by_file, WARM_S)
            asked(ours, by_url, WARM_S)
            sides = in_turn(
                bench.rounds,
                {
                    BARE: lambda: asked(bare, by_file, bench.seconds),
                    OURS: lambda: asked(ours, by_url, bench.seconds),
                },
            )
        return _paired(sides[BARE], sides[OURS])

    return pairs


_NAMES = {
    BARE: ("bare nginx", Goal(bound=0.9)),
    "proxy-cache": ("nginx proxy_cache", Goal(bound=1)),
    "varnish": ("Varnish", Goal(bound=1)),
    "squid": ("Squid", Goal(bound=1)),
}

ROWS = (
    *(
        Row(
            name=f"front-{size // 1000}k-{side}",
            what=f"hit of {size // 1000} kB by the shipped nginx, 64 connections",
            reference=reference,
            unit="/s",
            goal=goal,
            measure=_against(size, side),
        )
        for size in SIZES
        for side, (reference, goal) in _NAMES.items()
    ),
    *(
        Row(
            name=f"front-of-{name}",
            what=f"the same of 15 kB among {told} files",
            reference="bare nginx",
            unit="/s",
            goal=Goal(bound=0.9),
            measure=_at_scale(count),
        )
        for name, told, count in (
            ("10k", "10,000", 10_000),
            ("100k", "100,000", 100_000),
            ("all", "--files", None),
        )
    ),
)
