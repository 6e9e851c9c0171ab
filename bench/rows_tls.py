"""Hits over TLS through the shipped nginx, against an nginx that has the files at hand."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import fronts
from bench.load import measure
from bench.processes import Bench
from bench.rows_front import BY_FILE, BY_URL, COVERS, SIZES, make_covers
from bench.table import CannotMeasureError, Figure, Goal, Pair, Row, interleaved

CONNECTIONS = 64
STREAMS = 8
"""Of each connection of HTTP/2."""
H2_CONNECTIONS = CONNECTIONS // STREAMS
WARM_S = 1.0

Side = Callable[[fronts.Served, Sequence[str], Path, float], Figure]


def _hits(served: fronts.Served, paths: Sequence[str], folder: Path, seconds: float) -> Figure:
    """On connections that are kept."""
    return _by_h2load(served, paths, folder, seconds, "--h1", f"-c{CONNECTIONS}")


def _handshakes(
    served: fronts.Served, paths: Sequence[str], folder: Path, seconds: float
) -> Figure:
    """A connection for each answer; wrk resumes no session."""
    return measure(
        *(*served, paths, folder),
        connections=CONNECTIONS,
        seconds=seconds,
        scheme="https",
        header="Connection: close",
    )


def _http_2(served: fronts.Served, paths: Sequence[str], folder: Path, seconds: float) -> Figure:
    """Several streams on each connection."""
    options = (f"-c{H2_CONNECTIONS}", f"-m{STREAMS}")
    return _by_h2load(served, paths, folder, seconds, *options)


def _by_h2load(
    served: fronts.Served, paths: Sequence[str], folder: Path, seconds: float, *options: str
) -> Figure:
    # wrk with a script takes more processor time for TLS than nginx does.
    if shutil.which("h2load") is None:
        raise CannotMeasureError("h2load, not installed")
    child, port = served
    listed = folder / "urls"
    listed.write_text("".join(f"https://localhost:{port}{path}\n" for path in paths))
    words = ["h2load", "-t1", *options, f"-D{max(1, round(seconds))}"]
    cpu_before_s = child.cpu_s()
    said = subprocess.run(
        [*words, "-i", str(listed)], capture_output=True, text=True, check=True
    ).stdout
    cpu_after_s = child.cpu_s()
    counts = re.search(r"requests: .* ([0-9]+) succeeded, ([0-9]+) failed", said)
    rate = re.search(r"finished in [^,]*, ([0-9.]+) req/s", said)
    good = re.search(r"status codes: ([0-9]+) 2xx, 0 3xx, 0 4xx, 0 5xx", said)
    if counts is None or rate is None or good is None or not int(counts[1]):
        raise RuntimeError(f"h2load said {said!r}")
    cpu_s = None
    if cpu_before_s is not None and cpu_after_s is not None:
        cpu_s = (cpu_after_s - cpu_before_s) / int(counts[1])
    return Figure(value=float(rate[1]), cpu_s=cpu_s)


def _against(side: Side) -> Callable[[Bench], list[Pair]]:
    def pairs(bench: Bench) -> list[Pair]:
        root, folder = bench.folder("covers"), bench.folder("load")
        make_covers(root, COVERS, SIZES[0])
        by_url = [BY_URL.path(number) for number in range(COVERS)]
        by_file = [BY_FILE.path(number) for number in range(COVERS)]
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(fronts.shipped(bench, root, tls=True))
            bare = stack.enter_context(fronts.bare_tls(bench, root, like=ours[0]))
            side(bare, by_file, folder, WARM_S)
            side(ours, by_url, folder, WARM_S)
            return interleaved(
                bench.rounds,
                lambda: side(bare, by_file, folder, bench.seconds),
                lambda: side(ours, by_url, folder, bench.seconds),
            )

    return pairs


ROWS = tuple(
    Row(
        name=name,
        what=what,
        reference="bare nginx over TLS",
        unit="/s",
        goal=Goal(bound=0.9),
        measure=_against(side),
    )
    for name, what, side in (
        ("tls-hit", "hit of 15 kB over TLS, 64 connections", _hits),
        ("tls-handshake", "the same, a new connection for each", _handshakes),
        ("tls-h2", "the same by HTTP/2, 8 connections of 8 streams", _http_2),
    )
)
