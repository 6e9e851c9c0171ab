"""Reading a large cache directory, against os.scandir with stat and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.million import make_files
from bench.processes import ROOT, Bench
from bench.table import Figure, Goal, Pair, Row, interleaved


def _side(what: str, root: Path, files: int) -> Figure:
    said = subprocess.run(
        [sys.executable, "-m", "bench.scan_side", what, str(root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    told = json.loads(said)
    return Figure(value=told["seconds"] * 1000, cpu_s=told["cpu_s"] / files)


def _read(bench: Bench, what: str) -> list[Pair]:
    root = bench.directory / "large-cache"
    if not root.exists():
        make_files(root, bench.files)
    _side("bare", root, bench.files)
    return interleaved(
        bench.rounds,
        lambda: _side("bare", root, bench.files),
        lambda: _side(what, root, bench.files),
    )


def rebuild(bench: Bench) -> list[Pair]:
    """Fill the index in memory from the disk, as at each start."""
    return _read(bench, "rebuild")


def scan(bench: Bench) -> list[Pair]:
    """`coverart scan`, without a Redis to compare with."""
    return _read(bench, "scan")


ROWS = (
    Row(
        name="rebuild",
        what="index in memory filled from --files files",
        reference="os.scandir with stat",
        unit="ms",
        goal=Goal(bound=2.0, at_most=True),
        measure=rebuild,
    ),
    Row(
        name="scan",
        what="coverart scan of --files files",
        reference="os.scandir with stat",
        unit="ms",
        goal=Goal(bound=2.0, at_most=True),
        measure=scan,
    ),
)
