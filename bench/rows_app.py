"""What else the application answers without asking anybody: remembered 404s and listings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from bench import fronts
from bench.chain import whole
from bench.load import drawn, measure
from bench.processes import LOCAL, Bench
from bench.rows_hit import bare_server
from bench.table import Figure, Goal, Pair, Row, interleaved

CONNECTIONS = 64
THINGS = 200
WARM_S = 1.0


def _against(
    bench: Bench,
    ours: fronts.Served,
    reference: fronts.Served,
    paths: Sequence[str],
    *,
    status: int = 200,
    their_status: int = 200,
) -> list[Pair]:
    folder = bench.folder("load")

    def side(served: fronts.Served, status: int, seconds: float) -> Figure:
        child, port = served
        return measure(
            *(child, port, paths, folder), connections=CONNECTIONS, seconds=seconds, status=status
        )

    side(ours, status, WARM_S)
    side(reference, their_status, WARM_S)
    return interleaved(
        bench.rounds,
        lambda: side(reference, their_status, bench.seconds),
        lambda: side(ours, status, bench.seconds),
    )


def _no_art() -> list[str]:
    """Releases that the archive does not know."""
    return [f"/release/{drawn(number)}/front-250" for number in range(THINGS)]


def absent(bench: Bench) -> list[Pair]:
    """404s that are remembered, answered by the application."""
    bench.archive().rules()
    paths = _no_art()
    with bench.proxy() as ours:
        for path in paths:
            head, body = whole(f"http://{LOCAL}:{ours[1]}{path}", status=404)
        with bare_server(bench, "bare_klein.py", head, len(body), paths[0]) as bare:
            return _against(bench, ours, bare, paths, status=404)


def absent_front(bench: Bench) -> list[Pair]:
    """The same through the shipped nginx, against an nginx that finds no file."""
    bench.archive().rules()
    paths = _no_art()
    root = bench.folder("cache")
    with contextlib.ExitStack() as stack:
        proxy, app = stack.enter_context(bench.proxy(COVER_ART_CACHE_DIR=str(root)))
        front = stack.enter_context(fronts.shipped(bench, root, app))
        bare = stack.enter_context(fronts.bare(bench, root, like=front[0]))
        for path in paths:
            whole(f"http://{LOCAL}:{front[1]}{path}", status=404)
        proxy.check()
        return _against(bench, front, bare, paths, status=404, their_status=404)


def listing(bench: Bench) -> list[Pair]:
    """Listings that are held, whose URLs lead to the host that is asked."""
    archive = bench.archive()
    archive.rules()
    paths = [f"/release/{mbid}" for mbid in archive.releases(THINGS)]
    with bench.proxy() as ours:
        base = f"http://{LOCAL}:{ours[1]}"
        sizes = []
        for path in paths:
            head, body = whole(f"{base}{path}")
            if f"{base}/release/".encode() not in body:
                raise RuntimeError(f"{path} was not rewritten")
            sizes.append(len(body))
        size = sum(sizes) // len(sizes)
        with bare_server(bench, "bare_klein.py", head, size, "/release/a/b") as bare:
            # Klein's route has a name behind the MBID; of the answer's size that changes nothing.
            folder = bench.folder("load")

            def side(served: fronts.Served, asked: Sequence[str], seconds: float) -> Figure:
                return measure(*(*served, asked, folder), connections=CONNECTIONS, seconds=seconds)

            theirs = [f"{path}/front" for path in paths]
            side(ours, paths, WARM_S)
            side(bare, theirs, WARM_S)
            return interleaved(
                bench.rounds,
                lambda: side(bare, theirs, bench.seconds),
                lambda: side(ours, paths, bench.seconds),
            )


ROWS = (
    Row(
        name="absent",
        what="remembered 404, answered by the app, 64 connections",
        reference="bare Klein route",
        unit="/s",
        goal=Goal(bound=0.8),
        measure=absent,
    ),
    Row(
        name="absent-front",
        what="remembered 404 through the shipped nginx, 64 connections",
        reference="bare nginx, no such file",
        unit="/s",
        goal=Goal(bound=0.5),
        measure=absent_front,
    ),
    Row(
        name="listing",
        what="listing, held, leading to the host that is asked, 64 connections",
        reference="bare Klein route of the same size",
        unit="/s",
        goal=Goal(bound=0.6),
        measure=listing,
    ),
)
