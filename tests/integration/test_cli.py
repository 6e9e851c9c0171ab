"""The `coverart` command as an operator runs it, beside a running service or alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.integration.redis_server import RedisServer
from tests.integration.running import ROOT, Proxy


async def coverart(proxy: Proxy, *words: str, **settings: str) -> tuple[int, Any, str]:
    """Run the command on a proxy's directory: its exit code, its JSON, what it said to stderr."""
    done = await deferToThread(
        subprocess.run,
        [sys.executable, "-m", "coverart.cli", *words],
        env={
            "PATH": "",
            "PYTHONPATH": str(ROOT),
            "COVER_ART_CACHE_DIR": str(proxy.root),
            **settings,
        },
        capture_output=True,
        check=False,
        timeout=60,
    )
    told = json.loads(done.stdout) if done.stdout.strip() else None
    return done.returncode, told, done.stderr.decode()


async def filled(proxy: Proxy, sim: Any) -> None:
    for name in ("thumbnail", "group", "png", "listing"):
        await proxy.get(sim.catalogue.examples()[name])


@pytest_twisted.ensureDeferred
async def test_scan_mends_both_ways(sim, run, redis: RedisServer) -> None:
    """Beside the service: a dry run tells and changes nothing, a scan mends, then all is well."""
    shared = {"COVER_ART_REDIS_URL": redis.url}
    proxy = await run(**shared)
    await filled(proxy, sim)
    assert (await coverart(proxy, "scan", "--dry-run", "--json", **shared))[0] == 0
    # One file goes behind the index's back, and one entry behind the disk's.
    victim = next(name for name in proxy.files() if name.endswith("_250.jpg"))
    (proxy.root / victim).unlink()
    index = proxy.cache.index
    key, entry = next(each for each in await index.oldest(9) if each[1].media is None)
    await index.forget_file(key, entry)
    before = await index.totals()
    code, told, _ = await coverart(proxy, "scan", "--dry-run", "--json", **shared)
    assert (code, told["learnt"], told["forgotten"]) == (1, 1, 1)
    assert await index.totals() == before
    code, told, _ = await coverart(proxy, "scan", "--json", **shared)
    assert (code, told["learnt"], told["forgotten"]) == (0, 1, 1)
    totals = await index.totals()
    assert totals.files == told["files"] == len(proxy.files())
    assert (await coverart(proxy, "scan", "--dry-run", "--json", **shared))[0] == 0


@pytest_twisted.ensureDeferred
async def test_scan_finds_damage(sim, run) -> None:
    """Without Redis the disk alone is looked at; what is not what its name says is told."""
    proxy = await run()
    await filled(proxy, sim)
    code, told, _ = await coverart(proxy, "scan", "--verify", "--json")
    assert (code, told["damaged"], told["files"]) == (0, 0, len(proxy.files()))
    name = next(name for name in proxy.files() if name.endswith(".png"))
    Path(proxy.root / name).write_bytes(b"<html>not a picture</html>")
    code, told, _ = await coverart(proxy, "scan", "--verify", "--dry-run", "--json")
    assert (code, told["damaged"]) == (1, 1)
    assert (proxy.root / name).exists()


@pytest_twisted.ensureDeferred
async def test_stats(sim, run, redis: RedisServer) -> None:
    """From Redis, or from the running service; exit code 3 where neither answers."""
    shared = {"COVER_ART_REDIS_URL": redis.url}
    proxy = await run(**shared)
    await filled(proxy, sim)
    code, told, _ = await coverart(proxy, "stats", "--json", **shared)
    assert (code, told["cached_files"]) == (0, len(proxy.files()))
    code, told, _ = await coverart(proxy, "stats", "--json", "--url", proxy.url)
    assert (code, told["cached_files"]) == (0, len(proxy.files()))
    await proxy.stop()
    code, told, said = await coverart(proxy, "stats", "--json", "--url", proxy.url)
    assert (code, told) == (3, None)
    assert proxy.url in said


@pytest_twisted.ensureDeferred
async def test_clean(sim, run, redis: RedisServer) -> None:
    """It takes the lead if nobody has it, and says so if somebody does."""
    shared = {"COVER_ART_REDIS_URL": redis.url}
    proxy = await run(**shared)
    await filled(proxy, sim)
    code, _, said = await coverart(proxy, "clean", "--to", "0", "--json", **shared)
    assert code == 3
    assert said.strip()
    await proxy.stop()
    code, told, _ = await coverart(proxy, "clean", "--to", "0", "--json", **shared)
    assert code == 0
    assert told["evicted"] > 0
    assert proxy.files() == []


@pytest_twisted.ensureDeferred
async def test_wrong_setting(run) -> None:
    """One line, exit code 2."""
    proxy = await run()
    code, told, said = await coverart(proxy, "scan", COVER_ART_CACHE_MAX_SIZE="much")
    assert (code, told) == (2, None)
    assert said.strip().splitlines() == [
        "coverart: COVER_ART_CACHE_MAX_SIZE='much': must be a whole number of MB from 1 up"
    ]
