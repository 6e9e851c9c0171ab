"""A few bytes of a client or of the archive never cost more time than reading them once."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest_twisted

from tests.support.running import ROOT
from tests.support.talk import within

PROCESSOR_S = 60
"""Linear work needs a sixth of it, the square of the length hours: no machine is slow enough."""


def test_repetitions() -> None:
    """All that reads what comes from outside takes 100,000 repetitions of any piece."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.pumped"],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S, PROCESSOR_S)),
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.splitlines()[-1:]
    assert (last, done.returncode) == (["done"], 0), (last, done.stderr[-2000:])


SPACES = " " * 15_000
HEADERS = {
    "a range": f"Range: bytes=1-{SPACES}x",
    "a suffix": f"Range: bytes=-{SPACES}x",
    "a position": f"Range: bytes={SPACES}1{'0' * 500}-",
    "tags": f'If-None-Match: "x"{SPACES}y',
    "tags not closed": f"If-None-Match: {'W/' * 7_000}",
    "tags to hold": f'If-Match: *, "{SPACES}',
    "a date": f"If-Modified-Since: Sun,{SPACES}x",
    "a date of digits": f"If-Unmodified-Since: {'1 ' * 7_000}",
    "what a range is of": f"If-Range: W/{SPACES}x",
}


@pytest_twisted.ensureDeferred
async def test_headers(sim, spawn) -> None:
    """A process of the app answers 40 requests of each kind in seconds of its own time."""
    proxy = await spawn(COVER_ART_PUBLIC_URL="https://covers.example").ready()
    pid = proxy.process.pid
    images = sim.catalogue.examples()
    paths = images["thumbnail"], f"{images['thumbnail'].rpartition('/')[0]}/"
    for path in paths:
        assert (await proxy.get(path)).status == 200
    used = resource.prlimit(pid, resource.RLIMIT_CPU, (_used_s(pid) + 15, resource.RLIM_INFINITY))
    assert used[0] == resource.RLIM_INFINITY
    for path in paths:
        for name, header in HEADERS.items():
            wire = await proxy.wire()
            for _ in range(40):
                wire.get(path, header, "Connection: keep-alive")
                before = len(wire.received)
                await within(wire.got(before + 1))
            wire.leave()
            assert wire.received.startswith(b"HTTP/1.1 "), name
    assert (await proxy.get("/health")).status == 200


def _used_s(pid: int) -> int:
    """Seconds of processor time that a process has had (proc(5))."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks // os.sysconf("SC_CLK_TCK")
