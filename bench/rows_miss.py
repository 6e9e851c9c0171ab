"""Misses, everything on (checks, fsync, index, alias), against treq following the same redirects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from bench.load import measure
from bench.processes import LOCAL, ROOT, START_S, Bench, Child
from bench.rows_hit import redis_server
from bench.rows_latency import warm
from bench.table import CannotMeasureError, Figure, Goal, Pair, Row, interleaved
from coverart.coordination.redis_url import Address

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


def _floor(bench: Bench, redis: Address | None) -> list[Pair]:
    """Processor time a miss, against what every such server has to do (miss_floor.py)."""
    archive = bench.archive()
    archive.rules()
    warm(archive, 250)
    folder, load = bench.folder("floor"), bench.folder("load")
    port_file = folder / "port"
    base = f"http://{LOCAL}:{archive.ports['release']}"
    words = [sys.executable, "-m", "bench.miss_floor", base, str(folder / "cache"), str(port_file)]
    settings = {}
    if redis is not None:
        words += ["--redis", str(redis.path)]
        settings["COVER_ART_REDIS_URL"] = str(redis)
    env = {"PYTHONPATH": str(ROOT)}
    with bench.program("floor", words, folder, env) as floor, bench.proxy(**settings) as ours:
        began = time.monotonic()
        while not port_file.exists():
            floor.check()
            if time.monotonic() - began > START_S:
                raise RuntimeError("the floor does not start")
            time.sleep(0.02)
        theirs = (floor, int(port_file.read_text()))

        def side(served: tuple[Child, int], seconds: float) -> Figure:
            count = int(MOST_PER_S * max(1.0, seconds)) + 2 * IN_FLIGHT
            cold = [f"/release/{mbid}/front-250" for mbid in archive.releases(count)]
            figure = measure(*served, cold, load, connections=IN_FLIGHT, seconds=seconds, once=True)
            if figure.cpu_s is None:
                raise CannotMeasureError("/proc")
            return Figure(value=1000 * figure.cpu_s)

        side(ours, WARM_S)
        side(theirs, WARM_S)
        return interleaved(
            bench.rounds,
            lambda: side(theirs, bench.seconds),
            lambda: side(ours, bench.seconds),
        )


def floor(bench: Bench) -> list[Pair]:
    """With the index in memory."""
    return _floor(bench, None)


def floor_redis(bench: Bench) -> list[Pair]:
    """With the index in Redis; the floor runs four scripts a miss."""
    with redis_server(bench) as address:
        return _floor(bench, address)


ROWS = (
    Row(
        name="miss-floor",
        what=f"miss, 3 hops without latency, {IN_FLIGHT} in flight, processor time",
        reference="what every such server has to do (bench.miss_floor)",
        unit="ms",
        goal=Goal(bound=1.5, at_most=True),
        measure=floor,
    ),
    Row(
        name="miss-floor-redis",
        what="the same with the index in Redis",
        reference="the same with four scripts in Redis",
        unit="ms",
        goal=Goal(bound=1.5, at_most=True),
        measure=floor_redis,
    ),
    Row(
        name="miss",
        what=f"miss, 3 hops without latency, {IN_FLIGHT} in flight",
        reference="treq loop, persistent pool",
        unit="/s",
        goal=Goal(bound=0.8),
        measure=misses,
    ),
)
