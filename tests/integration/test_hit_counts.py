"""What nginx sends without asking, and what all processes did: counted for the whole cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from coverart.service import upkeep
from tests.support.contents import disk_bytes, fill
from tests.support.redis_server import RedisServer
from tests.support.running import Machine, Proxy
from tests.support.talk import becomes, until


@pytest.fixture(params=["memory", "redis"])
def shared(request) -> dict[str, str]:
    """The setting for each kind of index."""
    if request.param == "memory":
        return {}
    return {"COVER_ART_REDIS_URL": request.getfixturevalue("redis").url}


class NginxLog:
    """The log as nginx writes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hits.log"

    def sent(self, path: str, times: int = 1) -> None:
        """Nginx sent this file, named relative to the cache directory, so many times."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, f"/{path}\n".encode() * times)
        os.close(fd)


@pytest.fixture
def nginx(tmp_path) -> NginxLog:
    return NginxLog(tmp_path)


async def status(proxy: Proxy) -> Any:
    """What /cache-status tells."""
    return (await proxy.get("/cache-status")).json


def did(told: Any) -> tuple[int, int, int]:
    """The counts that nginx and the app have a part in."""
    return told["hits"], told["direct_hits"], told["misses"]


@pytest_twisted.ensureDeferred
async def test_direct_hits_are_hits(sim, run, shared, nginx, tmp_path) -> None:
    """Status and metrics tell nginx's hits with the app's; each line once, also by a restart."""
    proxy = await run(COVER_ART_HIT_LOG=str(nginx.path), **shared)
    path = sim.catalogue.examples()["group"] + "-250"
    for _ in range(3):
        await proxy.get(path)
    await proxy.settled()
    (link,) = proxy.links()
    (file,) = proxy.files()
    nginx.sent(link, 4)
    nginx.sent(file, 3)
    await proxy.upkeep.read_hit_log()
    assert did(await status(proxy)) == (9, 7, 1)
    nginx.sent(link, 2)
    await proxy.upkeep.read_hit_log()
    assert did(await status(proxy)) == (11, 9, 1)
    lines = (await proxy.get("/metrics")).body.decode().splitlines()
    assert "coverart_direct_hits_total 9.0" in lines
    assert 'coverart_answers_total{outcome="hits"} 2.0' in lines
    await proxy.restart()
    nginx.sent(link)
    await until(lambda: not proxy.upkeep.rebuilding, "the index is filled")
    await proxy.upkeep.read_hit_log()
    # Memory forgets what was; it does not count again what stands in the log.
    assert did(await status(proxy)) == ((12, 10, 1) if shared else (1, 1, 0))
    assert [name.name for name in tmp_path.glob("hits.log*")] == ["hits.log"]


@pytest_twisted.ensureDeferred
async def test_between_sweeps(sim, run, nginx) -> None:
    """It needs no cleanup: what nginx sent is told some seconds later."""
    machine = Machine()
    proxy = await run(machine=machine, COVER_ART_HIT_LOG=str(nginx.path))
    await proxy.stored(sim.catalogue.examples()["thumbnail"])
    nginx.sent(proxy.files()[0], 5)
    machine.advance(upkeep.HIT_LOG_EVERY_S)
    told = await becomes(lambda: status(proxy), lambda told: told["direct_hits"], "it is told")
    assert did(told) == (5, 5, 1)


@pytest_twisted.ensureDeferred
async def test_much_used_stays(sim, run, shared, nginx) -> None:
    """Under least-useful what nginx sends often stays, though it came first and Python never saw."""
    proxy = await run(
        COVER_ART_HIT_LOG=str(nginx.path),
        COVER_ART_CACHE_EVICTION="least-useful",
        COVER_ART_CACHE_MAX_SIZE="1",
        COVER_ART_CACHE_CLEAN_TO="0.6",
        **shared,
    )
    proxy.catalogue = sim.catalogue
    await fill(proxy, 2)
    await proxy.settled()
    first = min(proxy.files(), key=lambda name: (proxy.root / name).stat().st_mtime)
    link = next(n for n in proxy.links() if os.path.samefile(proxy.root / n, proxy.root / first))
    nginx.sent(link, 12)
    await proxy.upkeep.read_hit_log()
    await fill(proxy, 6)
    await proxy.settled()
    # Or the service did it, which looks each second whether more is held than may be.
    assert await proxy.cleanup.sweep(slices=0) is not None
    assert disk_bytes(proxy) <= 2**20
    assert first in proxy.files()
    assert len(proxy.files()) <= 4


@pytest_twisted.ensureDeferred
async def test_one_status_for_all(sim, run, redis: RedisServer, nginx) -> None:
    """
    Of two processes with counters of their own either tells what both did.

    Its own at once, the other's once that told it; what is told stays when both end.
    """
    settings = {"COVER_ART_REDIS_URL": redis.url, "COVER_ART_HIT_LOG": str(nginx.path)}
    pair = [await run(**settings) for _ in range(2)]
    path = sim.catalogue.examples()["thumbnail"]
    for proxy in (pair[0], pair[1], pair[1], pair[0]):
        assert (await proxy.stored(path)).status == 200
    assert (await status(pair[0]))["misses"] == 1
    assert (await status(pair[0]))["hits"] >= 1
    nginx.sent(pair[0].files()[0], 10)
    for proxy in pair:
        # Whichever leads takes in the log; the other leaves it alone.
        await proxy.upkeep.read_hit_log()
        await proxy.upkeep.keep_the_lead()
    assert [did(await status(proxy)) for proxy in pair] == [(13, 10, 1)] * 2
    await pair[0].get(path)
    assert did(await status(pair[0])) == (14, 10, 1)
    for proxy in pair:
        await proxy.stop()
    after = await run(**settings)
    assert did(await status(after)) == (14, 10, 1)


@pytest_twisted.ensureDeferred
async def test_redis_away(sim, run, redis: RedisServer, nginx) -> None:
    """While Redis is away nothing is lost: counts wait in the process, nginx's in their log."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url, COVER_ART_HIT_LOG=str(nginx.path))
    path = sim.catalogue.examples()["thumbnail"]
    await proxy.stored(path)
    await proxy.upkeep.keep_the_lead()
    redis.client().replicaof("127.0.0.1", 1)
    await proxy.get(path)
    nginx.sent(proxy.files()[0], 10)
    await proxy.upkeep.keep_the_lead()
    await proxy.upkeep.read_hit_log()
    redis.client().replicaof("NO", "ONE")
    assert redis.client().hgetall(b"coverart:1:default:tally") == {b"misses": b"1"}
    index = proxy.cache.index
    await becomes(index.totals, lambda _: index.available, "Redis is back")
    await proxy.upkeep.keep_the_lead()
    await until(lambda: proxy.leadership.token, "it leads")
    await proxy.upkeep.read_hit_log()
    assert did(await status(proxy)) == (11, 10, 1)
