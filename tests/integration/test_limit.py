"""The disk stays within its limit whatever else is wrong: told from outside, with real processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.running import ProxyChild, UnprivilegedChild
from tests.support.talk import ask, until

MEGABYTE = 2**20


async def fill(sim, child: ProxyChild, first: int, count: int) -> list[str]:
    """Ask for so many thumbnails of about 300 kB, one after the other; give their paths."""
    paths: list[str] = []
    for number in range(first, first + 50):
        path = f"/release/{sim.catalogue.release(number).mbid}/front-1200"
        if (await ask(child.url + path)).status == 200:
            paths.append(path)
        if len(paths) == count:
            return paths
    raise AssertionError("the catalogue is too small")


def size(child: ProxyChild) -> int:
    """The bytes of what clients can be served."""
    found = 0
    for name in child.files():
        try:
            found += (child.root / name).stat().st_size
        except FileNotFoundError:
            continue
    return found


async def sweeps(child: ProxyChild) -> int:
    """How many sweeps it has done."""
    text = (await ask(f"{child.url}/metrics")).body.decode()
    (count,) = re.findall(r"^coverart_sweep_seconds_count (\d+)", text, re.MULTILINE)
    return int(count)


async def swept(child: ProxyChild) -> None:
    """Wait for one sweep that begins after this call, from its begin to its end."""
    before = await sweeps(child)
    while await sweeps(child) < before + 2:
        await deferLater(reactor, 0.02)


@pytest_twisted.ensureDeferred
async def test_file_that_cannot_be_removed(sim, tmp_path: Path, children) -> None:
    """
    The oldest file lies in a folder that takes no changes: the next ones go in its place.

    It stays known and is served; the operator is told once, however many sweeps try; once the
    folder takes changes again the file goes.
    """
    child = UnprivilegedChild(
        tmp_path / "cache",
        tmp_path / "cwd",
        **sim.environment(),
        COVER_ART_CACHE_MAX_SIZE="1",
        COVER_ART_CACHE_CLEAN_TO="0.8",
        COVER_ART_CACHE_CLEANUP_INTERVAL="0.2",
    )
    children.append(child)
    await child.ready()
    (oldest,) = await fill(sim, child, 0, 1)
    (kept,) = child.files()
    folder = (child.root / kept).parent
    folder.chmod(0o555)
    try:
        for round_ in range(3):
            await fill(sim, child, 3 + 8 * round_, 5)
            await until(lambda: size(child) <= MEGABYTE, "the next ones are evicted")
        await swept(child)
        assert kept in child.files()
        assert (await ask(child.url + oldest))["x-cache-status"] == "HIT"
        status = (await ask(f"{child.url}/cache-status")).json
        assert (status["cached_files"], status["cache_size_bytes"]) == (
            len(child.files()),
            size(child),
        )
        assert len(re.findall("can't be removed", child.log.read_text())) == 1
    finally:
        folder.chmod(0o755)
    await fill(sim, child, 30, 5)
    await until(lambda: kept not in child.files(), "it goes")
