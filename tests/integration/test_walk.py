"""`python -m bench.walk` on the real service: figures that are known, so that it can't count nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.running import ROOT

LONGEST_S = 120


@pytest.fixture(scope="module")
def walked() -> dict[str, dict[str, dict[str, Any]]]:
    """By index and kind of request, what one of them took."""
    kinds = "hit by name,miss by name,sweep"
    words = ["-m", "bench.walk", "--rounds", "3", "--no-strace", "--json", "--kinds", kinds]
    said = subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=LONGEST_S
    ).stdout
    return {
        index: {row["kind"]: row["counts"] for row in rows}
        for index, rows in json.loads(said).items()
    }


@pytest.mark.parametrize(("index", "commands"), [("memory", 0), ("redis", 1)])
def test_hit(walked, index: str, commands: int) -> None:
    """A hit asks the index once, and Redis once where it is; no thread, no symlink."""
    hit = walked[index]["hit by name"]
    assert (hit["look_ups"], hit["redis"], hit["hand_overs"], hit["symlinks"]) == (
        1,
        commands,
        0,
        0,
    )
    assert hit["calls"] >= hit["modules"] > 1
    assert hit["system_calls"] is None


@pytest.mark.parametrize("index", ["memory", "redis"])
def test_miss(walked, index: str) -> None:
    """A miss does all that a hit does, asks the archive, and has its file written in a thread."""
    hit, miss = walked[index]["hit by name"], walked[index]["miss by name"]
    assert miss["look_ups"] >= 1
    assert miss["hand_overs"] >= 1
    assert (miss["redis"] >= 2) == (index == "redis")
    for figure in ("calls", "modules", "changes", "deferreds"):
        assert miss[figure] > hit[figure], figure


@pytest.mark.parametrize("index", ["memory", "redis"])
def test_sweep(walked, index: str) -> None:
    """A command is walked from its start to its end."""
    sweep = walked[index]["sweep by coverart clean"]
    assert sweep["calls"] > sweep["modules"] > 1
    assert (sweep["redis"] > 0) == (index == "redis")
