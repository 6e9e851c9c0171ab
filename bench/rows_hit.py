"""Hits that the application decides, against a Klein route with nothing behind it."""

from __future__ import annotations

import base64

from bench.chain import whole
from bench.load import measure
from bench.processes import LOCAL, ROOT, Bench
from bench.table import Figure, Goal, Pair, Row, interleaved

CONNECTIONS = 64
COVERS = 200
FILE_BYTES = 15_000
WARM_S = 1.0


def _hits(bench: Bench, *, body_bytes: int, **settings: str) -> list[Pair]:
    archive = bench.archive()
    cover = b"\xff\xd8\xff\xe0" + bytes(FILE_BYTES - 4)
    data = base64.b64encode(cover).decode()
    archive.rules({"hop": "node", "does": {"kind": "body", "data": data}})
    paths = [f"/release/{mbid}/front-250" for mbid in archive.releases(COVERS)]
    bare_app = str(ROOT / "bench" / "bare_klein.py")
    folder = bench.folder("load")
    with (
        bench.proxy(**settings) as (proxy, port),
        bench.twistd("--python", bare_app, env={"BENCH_BODY_BYTES": str(body_bytes)}) as bare,
    ):
        bare_port = bare.port()
        for path in paths:
            whole(f"http://{LOCAL}:{port}{path}")
        ours, _ = whole(f"http://{LOCAL}:{port}{paths[0]}")
        theirs, _ = whole(f"http://{LOCAL}:{bare_port}{paths[0]}")
        whole(f"http://{LOCAL}:{bare_port}/padding/{max(0, len(ours) - len(theirs))}")

        def coverart(seconds: float = bench.seconds) -> Figure:
            return measure(proxy, port, paths, folder, connections=CONNECTIONS, seconds=seconds)

        def reference(seconds: float = bench.seconds) -> Figure:
            return measure(bare, bare_port, paths, folder, connections=CONNECTIONS, seconds=seconds)

        coverart(WARM_S)
        reference(WARM_S)
        return interleaved(bench.rounds, reference, coverart)


def accel(bench: Bench) -> list[Pair]:
    """The application decides, nginx would send the file: headers only."""
    return _hits(bench, body_bytes=0, COVER_ART_ACCEL="/cache-files/")


def sent(bench: Bench) -> list[Pair]:
    """The application sends the file itself."""
    return _hits(bench, body_bytes=FILE_BYTES)


ROWS = (
    Row(
        name="hit-accel",
        what="hit decided by the app (X-Accel), 64 connections",
        reference="bare Klein route",
        unit="/s",
        goal=Goal(bound=0.8),
        measure=accel,
    ),
    Row(
        name="hit-sent",
        what="hit of 15 kB sent by the app, 64 connections",
        reference="bare Klein route, 15 kB",
        unit="/s",
        goal=None,
        measure=sent,
    ),
)
