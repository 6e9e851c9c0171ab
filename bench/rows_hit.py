"""Hits that the application decides, against a Klein route with nothing behind it."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator

from bench import fronts
from bench.chain import whole
from bench.load import measure
from bench.million import start_redis
from bench.processes import LOCAL, ROOT, STOP_S, Bench
from bench.table import Figure, Goal, Pair, Row, interleaved
from coverart.coordination.redis_url import Address

CONNECTIONS = 64
COVERS = 200
FILE_BYTES = 15_000
WARM_S = 1.0
ACCEL_PREFIX = "/cache-files/"


def _hits(
    bench: Bench,
    *,
    body_bytes: int,
    through_nginx: bool = False,
    bare: str = "bare_klein.py",
    **settings: str,
) -> list[Pair]:
    archive = bench.archive()
    cover = b"\xff\xd8\xff\xe0" + bytes(FILE_BYTES - 4)
    data = base64.b64encode(cover).decode()
    archive.rules({"hop": "node", "does": {"kind": "body", "data": data}})
    mbids = archive.releases(COVERS)
    paths = [f"/release/{mbid}/front-250" for mbid in mbids]
    cache_dir = bench.folder("cache")
    folder = bench.folder("load")
    with contextlib.ExitStack() as stack:
        proxy, port = stack.enter_context(
            bench.proxy(COVER_ART_CACHE_DIR=str(cache_dir), **settings)
        )
        for path in paths:
            whole(f"http://{LOCAL}:{port}{path}")
        ours, _ = whole(f"http://{LOCAL}:{port}{paths[0]}")
        server, bare_port = stack.enter_context(
            bare_server(bench, bare, ours, body_bytes, paths[0])
        )

        if through_nginx:
            _, port = stack.enter_context(fronts.shipped(bench, cache_dir, port))
            # An MBID in upper case is one that nginx leaves to the app.
            asked = [f"/release/{mbid.upper()}/front-250" for mbid in mbids]
        else:
            asked = paths

        def coverart(seconds: float = bench.seconds) -> Figure:
            return measure(proxy, port, asked, folder, connections=CONNECTIONS, seconds=seconds)

        def reference(seconds: float = bench.seconds) -> Figure:
            return measure(
                server, bare_port, paths, folder, connections=CONNECTIONS, seconds=seconds
            )

        coverart(WARM_S)
        reference(WARM_S)
        return interleaved(bench.rounds, reference, coverart)


@contextlib.contextmanager
def bare_server(
    bench: Bench, app: str, ours: bytes, body_bytes: int, path: str
) -> Iterator[fronts.Served]:
    """
    A server with nothing behind it, whose answers have as many bytes as ours.

    :param app: the file in this folder that is run.
    :param ours: the head of one of our answers.
    """
    env = {"BENCH_BODY_BYTES": str(body_bytes)}
    with bench.twistd("--python", str(ROOT / "bench" / app), env=env) as child:
        port = child.port()
        theirs, _ = whole(f"http://{LOCAL}:{port}{path}")
        whole(f"http://{LOCAL}:{port}/padding/{max(0, len(ours) - len(theirs))}")
        yield child, port


@contextlib.contextmanager
def redis_server(bench: Bench) -> Iterator[Address]:
    """Where a Redis of the run's own is."""
    process, address = start_redis(bench.folder("redis"))
    try:
        yield address
    finally:
        process.terminate()
        process.wait(STOP_S)


def accel(bench: Bench) -> list[Pair]:
    """The application decides, nginx would send the file: headers only."""
    return _hits(bench, body_bytes=0, COVER_ART_ACCEL=ACCEL_PREFIX)


def accel_web(bench: Bench) -> list[Pair]:
    """The application decides, against what Klein itself stands on."""
    return _hits(bench, body_bytes=0, bare="bare_web.py", COVER_ART_ACCEL=ACCEL_PREFIX)


def accel_redis(bench: Bench) -> list[Pair]:
    """The same with the index in Redis."""
    with redis_server(bench) as address:
        return _hits(
            bench, body_bytes=0, COVER_ART_ACCEL=ACCEL_PREFIX, COVER_ART_REDIS_URL=str(address)
        )


def through(bench: Bench) -> list[Pair]:
    """The application decides, nginx before it sends the file."""
    return _hits(bench, body_bytes=0, through_nginx=True, COVER_ART_ACCEL=ACCEL_PREFIX)


def through_redis(bench: Bench) -> list[Pair]:
    """The same with the index in Redis."""
    with redis_server(bench) as address:
        return _hits(
            bench,
            body_bytes=0,
            through_nginx=True,
            COVER_ART_ACCEL=ACCEL_PREFIX,
            COVER_ART_REDIS_URL=str(address),
        )


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
        name="hit-web",
        what="hit decided by the app (X-Accel), 64 connections",
        reference="bare twisted.web resource",
        unit="/s",
        goal=Goal(bound=0.5),
        measure=accel_web,
    ),
    Row(
        name="hit-redis",
        what="the same with the index in Redis",
        reference="bare Klein route",
        unit="/s",
        goal=Goal(bound=0.8),
        measure=accel_redis,
    ),
    Row(
        name="hit-through",
        what="hit of 15 kB decided by the app, sent by nginx, 64 connections",
        reference="bare Klein route, no body, no nginx",
        unit="/s",
        goal=Goal(bound=0.8),
        measure=through,
    ),
    Row(
        name="hit-through-redis",
        what="the same with the index in Redis",
        reference="bare Klein route, no body, no nginx",
        unit="/s",
        goal=Goal(bound=0.5),
        measure=through_redis,
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
