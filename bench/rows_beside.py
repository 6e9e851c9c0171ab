"""One client beside others who ask for much: hits beside misses, a miss beside a crowd or a large file."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bench.chain import whole
from bench.load import measure
from bench.processes import LOCAL, ROOT, Archive, Bench
from bench.rows_latency import warm
from bench.rows_miss import IN_FLIGHT, MOST_PER_S
from bench.table import CannotMeasureError, Figure, Goal, Pair, Row, interleaved

HITS = 20
HIT_EVERY_S = 0.002
CROWD = 800
HOP_S = 0.01
SAMPLES = 5
"""In one round."""
FSYNC_MS = 50
ORIGINAL_BYTES = 60_000_000
HELD_BACK = "last-byte"
SENT_BYTES = 1_000
"""Of a thumbnail, before the archive holds it back."""
GAP_S = 0.05
TIMEOUT_S = 60.0


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


class Hits:
    """Asks for held covers one after the other, from a process of its own."""

    def __init__(self, port: int, paths: Sequence[str]) -> None:
        words = [sys.executable, "-m", "bench.overload_hits", str(port), str(HIT_EVERY_S), *paths]
        self._process = subprocess.Popen(
            words, env=_env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def stop(self) -> list[float]:
        """End it; the seconds that each answer took. :raises RuntimeError: one was no hit."""
        said, _ = self._process.communicate(b"", TIMEOUT_S)
        if self._process.returncode:
            raise RuntimeError("a hit was not answered as one")
        return [float(each) for each in said.split()]

    def __enter__(self) -> Hits:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _held(archive: Archive, port: int) -> list[str]:
    """Covers that are held now."""
    paths = [f"/release/{mbid}/front-250" for mbid in archive.releases(HITS)]
    for path in paths:
        whole(f"http://{LOCAL}:{port}{path}")
    return paths


def hits_beside_misses(bench: Bench) -> list[Pair]:
    """The slowest hundredth of hits, while so many misses are always in flight, and while none is."""
    archive = bench.archive()
    archive.rules()
    warm(archive, 250)
    folder = bench.folder("load")

    def figure(took_s: list[float]) -> Figure:
        hundredths = [1000 * each for each in statistics.quantiles(took_s, n=100)]
        return Figure(value=hundredths[98], p50_ms=hundredths[49], p99_ms=hundredths[98])

    with bench.proxy() as (proxy, port):
        paths = _held(archive, port)

        def alone() -> Figure:
            with Hits(port, paths) as hits:
                time.sleep(bench.seconds)
                return figure(hits.stop())

        def beside() -> Figure:
            count = int(MOST_PER_S * max(1.0, bench.seconds)) + 2 * IN_FLIGHT
            cold = [f"/release/{mbid}/front-250" for mbid in archive.releases(count)]
            with Hits(port, paths) as hits:
                measure(
                    *(proxy, port, cold, folder),
                    connections=IN_FLIGHT,
                    seconds=bench.seconds,
                    once=True,
                )
                return figure(hits.stop())

        return interleaved(bench.rounds, alone, beside)


class Crowd:
    """So many clients for one thing, again and again; see bench/crowd.py."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.crowd", str(port), str(CROWD)],
            env=_env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear("open")

    def ask(self, path: str) -> None:
        """Returns when all have asked."""
        assert self._process.stdin is not None
        self._process.stdin.write(path + "\n")
        self._process.stdin.flush()
        self._hear("asked")

    def answered(self) -> None:
        """Wait until all have their answers. :raises RuntimeError: one was none."""
        statuses = json.loads(self._hear())
        if statuses != {"200": CROWD}:
            raise RuntimeError(f"the crowd was answered {statuses}")
        self._hear("open")

    def _hear(self, word: str = "") -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line or (word and line != word):
            raise RuntimeError(f"the crowd says {line!r}")
        return line

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _crowd(bench: Bench) -> tuple[list[list[float]], list[list[float]]]:
    """By round, the seconds of a miss alone, and of one beside a crowd for another cold cover."""
    archive = bench.archive()
    archive.rules()
    warm(archive, 250)
    archive.rules({"hop": "*", "does": {"kind": "latency", "seconds": HOP_S}})
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    with bench.proxy() as (_, port):
        paths = _held(archive, port)

        def miss_s() -> float:
            (mbid,) = archive.releases(1)
            began = time.perf_counter()
            whole(f"http://{LOCAL}:{port}/release/{mbid}/front-250")
            return time.perf_counter() - began

        miss_s()
        with Crowd(port) as crowd, Hits(port, paths) as hits:
            for _ in range(bench.rounds):
                alone.append([miss_s() for _ in range(SAMPLES)])
                took_s = []
                for _ in range(SAMPLES):
                    (mbid,) = archive.releases(1)
                    crowd.ask(f"/release/{mbid}/front-250")
                    took_s.append(miss_s())
                    crowd.answered()
                beside.append(took_s)
            hits.stop()
    return alone, beside


def crowd_median(bench: Bench) -> list[Pair]:
    """A miss beside a crowd, as it usually is."""
    alone, beside = bench.kept("crowd", lambda: _crowd(bench))
    return [
        Pair(
            reference=Figure(value=1000 * statistics.median(a)),
            coverart=Figure(value=1000 * statistics.median(b)),
        )
        for a, b in zip(alone, beside, strict=True)
    ]


def crowd_worst(bench: Bench) -> list[Pair]:
    """The slowest of all rounds: the same in each pair."""
    alone, beside = bench.kept("crowd", lambda: _crowd(bench))
    worst = Pair(
        reference=Figure(value=1000 * max(map(max, alone))),
        coverart=Figure(value=1000 * max(map(max, beside))),
    )
    return [worst]


@contextlib.contextmanager
def _originals(archive: Archive, port: int) -> Iterator[None]:
    """Ask for one cold original after the other meanwhile."""
    ended = threading.Event()
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            while not ended.is_set():
                (mbid,) = archive.releases(1)
                whole(f"http://{LOCAL}:{port}/release/{mbid}/front")
        except (RuntimeError, OSError) as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()
    if failed:
        raise RuntimeError(f"an original: {failed[0]}")


def _slow_disk(bench: Bench) -> dict[str, str]:
    """The environment of a process whose disk is slow to make anything durable."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        raise CannotMeasureError("a C compiler, not installed")
    library = bench.folder("slow-disk") / "slow_disk.so"
    source = ROOT / "bench" / "slow_disk.c"
    compiler = shutil.which("cc") or "gcc"
    words = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    subprocess.run(words, check=True)
    return {"LD_PRELOAD": str(library), "SLOW_DISK_MS": str(FSYNC_MS)}


def slow_disk(bench: Bench) -> list[Pair]:
    """
    How long after the archive sent the last bytes of a thumbnail they are at the client.

    The archive holds them back until it is told; both sides have that way in common.
    """
    archive = bench.archive()
    archive.rules()
    warm(archive, 250)
    original = b"\xff\xd8\xff\xe0" + bytes(ORIGINAL_BYTES - 4)
    stall = {"kind": "stall", "after_bytes": SENT_BYTES, "gate": HELD_BACK}
    archive.rules(
        {"hop": "node", "path": "*_thumb*", "does": stall},
        {
            "hop": "node",
            "does": {"kind": "body", "data": base64.b64encode(original).decode()},
        },
    )

    def later_s(url: str) -> float:
        ended: list[float] = []

        def ask() -> None:
            whole(url)
            ended.append(time.perf_counter())

        asking = threading.Thread(target=ask)
        asking.start()
        archive.held_at(HELD_BACK)
        # What was sent before it is held back has its way to the client too.
        time.sleep(GAP_S)
        began = time.perf_counter()
        archive.let_go(HELD_BACK)
        asking.join()
        if not ended:
            raise RuntimeError(f"no answer from {url}")
        return ended[0] - began

    def median(url: str) -> Figure:
        took_s = []
        for _ in range(SAMPLES):
            (mbid,) = archive.releases(1)
            took_s.append(later_s(url + f"/release/{mbid}/front-250"))
        return Figure(value=1000 * statistics.median(took_s))

    with bench.proxy(**_slow_disk(bench)) as (_, port):
        direct = _Direct(archive)
        with _originals(archive, port):
            return interleaved(
                bench.rounds,
                lambda: direct.figure(later_s),
                lambda: median(f"http://{LOCAL}:{port}"),
            )


class _Direct:
    """The node's own URLs, which a client finds by following the archive's redirects."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def figure(self, later_s: Any) -> Figure:
        took_s = []
        for _ in range(SAMPLES):
            (mbid,) = self._archive.releases(1)
            port = self._archive.ports["release"]
            url = f"http://{LOCAL}:{port}/release/{mbid}/front-250"
            for _ in range(2):
                url = _location(url)
            took_s.append(later_s(url))
        return Figure(value=1000 * statistics.median(took_s))


def _location(url: str) -> str:
    """Where a URL redirects to."""
    rest = url.removeprefix("http://")
    host, _, path = rest.partition("/")
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", f"/{path}")
        location = connection.getresponse().headers["Location"]
    if location is None:
        raise RuntimeError(f"{url} leads nowhere")
    return str(location)


ROWS = (
    Row(
        name="hits-beside",
        what=f"hits' p99 beside {IN_FLIGHT} misses in flight",
        reference="hits' p99 alone",
        unit="ms",
        goal=Goal(bound=3, at_most=True),
        measure=hits_beside_misses,
    ),
    Row(
        name="slow-disk",
        what=f"last byte of a missed thumbnail, fsync of {FSYNC_MS} ms, originals of 60 MB beside it",
        reference="from the archive's node",
        unit="ms",
        goal=Goal(bound=5, at_most=True, of="later"),
        measure=slow_disk,
    ),
    Row(
        name="crowd",
        what=f"a miss beside a crowd of {CROWD} for another cold cover, hits going on; median",
        reference="alone",
        unit="ms",
        goal=Goal(bound=2, at_most=True),
        measure=crowd_median,
    ),
    Row(
        name="crowd-worst",
        what="the same, the slowest",
        reference="alone",
        unit="ms",
        goal=Goal(bound=250, at_most=True, of="figure"),
        measure=crowd_worst,
    ),
)
