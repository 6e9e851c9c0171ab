"""Misses, everything on (checks, fsync, index, alias), against treq following the same redirects."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from bench.load import measure
from bench.processes import LOCAL, ROOT, Bench
from bench.rows_latency import warm
from bench.table import Figure, Goal, Pair, Row, interleaved

IN_FLIGHT = 16
MOST_PER_S = 1_500
"""Paths set aside for each second and side; a side that is faster can't be measured."""
WARM_S = 1.0


def misses(bench: Bench) -> list[Pair]:
    """Distinct cold thumbnails, three hops each, without latency."""
    archive = bench.archive()
    archive.rules()
    warm(archive, 250)
    folder = bench.folder("load")
    listed = folder / "urls"
    base = f"http://{LOCAL}:{archive.ports['release']}"

    def cold(seconds: float) -> list[str]:
        count = int(MOST_PER_S * max(1.0, seconds)) + 2 * IN_FLIGHT
        return [f"/release/{mbid}/front-250" for mbid in archive.releases(count)]

    def reference(seconds: float = bench.seconds) -> Figure:
        listed.write_text("\n".join(base + path for path in cold(seconds + 1)))
        options = ("--in-flight", str(IN_FLIGHT), "--seconds", str(seconds))
        said = subprocess.run(
            [sys.executable, "-m", "bench.treq_loop", *options, str(listed)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        told = json.loads(said)
        return Figure(
            value=told["answers"] / told["seconds"], cpu_s=told["cpu_s"] / told["answers"]
        )

    with bench.proxy() as (proxy, port):

        def coverart(seconds: float = bench.seconds) -> Figure:
            return measure(
                proxy,
                port,
                cold(seconds),
                folder,
                connections=IN_FLIGHT,
                seconds=seconds,
                once=True,
            )

        coverart(WARM_S)
        return interleaved(bench.rounds, reference, coverart)


ROWS = (
    Row(
        name="miss",
        what=f"miss, 3 hops without latency, {IN_FLIGHT} in flight",
        reference="treq loop, persistent pool",
        unit="/s",
        goal=Goal(bound=0.8),
        measure=misses,
    ),
)
