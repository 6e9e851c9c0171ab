"""Slow answers, which put nothing old back, and clocks that were wrong."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest
import pytest_twisted
from twisted.internet import reactor

from coverart.coordination.leader import RedisLeadership
from coverart.coordination.redis_client import RedisLink
from coverart.coordination.redis_url import parse_address
from coverart.model import Entity, ListingKey
from coverart.simulator.faults import Gate, Rule, Stall, Status
from tests.support.running import Proxy, WallClock, reached
from tests.support.talk import Answer, pause, start, until, within

Run: TypeAlias = Callable[..., Awaitable[Proxy]]
TOKEN = "t"  # noqa: S105
HOUR_S = 3600.0


@pytest_twisted.async_yield_fixture(params=["memory", "redis"])
async def proxy(run: Run, redis: Any, request: Any) -> AsyncIterator[Proxy]:
    """A proxy with each kind of index."""
    shared = {"COVER_ART_REDIS_URL": redis.url} if request.param == "redis" else {}
    yield await run(COVER_ART_ADMIN_TOKEN=TOKEN, **shared)


def refresh(proxy: Proxy, path: str) -> Any:
    """Ask the archive again."""
    return proxy.get(f"/admin/refresh{path}", "POST", authorization=f"Bearer {TOKEN}")


def how(answer: Answer) -> tuple[int, str]:
    return answer.status, answer["X-Cache-Status"]


@pytest_twisted.ensureDeferred
async def test_slow_size_of_an_old_front(sim, proxy) -> None:
    """A large size of the old front that lands last leaves the new front where it is."""
    item = sim.catalogue.release(0)
    front = f"/release/{item.mbid}/front"
    await proxy.stored(f"{front}-250")
    sim.faults.add(Rule(hop="node", path="*1200*", times=1, does=Gate(name="hold")))
    slow = start(proxy.get(f"{front}-1200"))
    await reached(sim, "hold")
    sim.catalogue.set_front(item.mbid, item.back.id)
    assert (await refresh(proxy, f"{front}-250")).status == 200
    new = await proxy.get(f"{front}-250")
    assert new.body == sim.studio.archive_bytes(item.back, 250)
    sim.faults.gates.open("hold")
    answer = await within(slow)
    assert answer.body == sim.studio.archive_bytes(item.front, 1200)
    await proxy.settled()
    seen = await proxy.get(f"{front}-250")
    assert (how(seen), seen.body) == ((200, "HIT"), new.body)
    (link,) = proxy.links()
    assert str(item.back.id) in os.readlink(proxy.root / link)
    large = await proxy.get(f"{front}-1200")
    assert large.body == sim.studio.archive_bytes(item.back, 1200)


@pytest_twisted.ensureDeferred
async def test_slow_first_front(sim, proxy) -> None:
    """The same for a name that was asked for the first time: hop 1 told it before it moved."""
    item = sim.catalogue.release(0)
    front = f"/release/{item.mbid}/front"
    sim.faults.add(Rule(hop="node", path="*1200*", times=1, does=Gate(name="hold")))
    slow = start(proxy.get(f"{front}-1200"))
    await reached(sim, "hold")
    sim.catalogue.set_front(item.mbid, item.back.id)
    assert (await refresh(proxy, f"{front}-250")).status == 200
    sim.faults.gates.open("hold")
    await within(slow)
    await proxy.settled()
    seen = await proxy.get(f"{front}-250")
    assert (how(seen), seen.body) == ((200, "HIT"), sim.studio.archive_bytes(item.back, 250))
    assert all(str(item.back.id) in os.readlink(proxy.root / link) for link in proxy.links())


@pytest_twisted.ensureDeferred
async def test_slow_listing(sim, proxy) -> None:
    """A listing that lands after one that was asked for later is thrown away."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/"
    await proxy.get(path)
    sim.faults.add(Rule(hop="node", times=1, does=Stall(after_bytes=10, gate="rest")))
    slow = start(refresh(proxy, path))
    await reached(sim, "rest")
    sim.catalogue.add_art(item.mbid)
    assert (await refresh(proxy, path)).status == 200
    (name,) = proxy.files()
    new = (proxy.root / name).read_bytes()
    sim.faults.gates.open("rest")
    assert (await within(slow)).status == 200
    seen = await proxy.get(path)
    assert (how(seen), len(seen.json["images"])) == ((200, "HIT"), len(item.images) + 1)
    assert (proxy.root / name).read_bytes() == new
    totals = await proxy.cache.index.totals()
    assert (totals.files, totals.size_bytes) == (1, len(new))


@pytest_twisted.ensureDeferred
async def test_slow_listing_of_art_since_removed(sim, proxy) -> None:
    """A listing that lands after a later 404 leaves no file, and the 404 stands as it was asked."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/"
    await proxy.get(path)
    sim.faults.add(Rule(hop="node", times=1, does=Stall(after_bytes=10, gate="rest")))
    slow = start(refresh(proxy, path))
    await reached(sim, "rest")
    sim.catalogue.remove_art(item.mbid)
    assert (await refresh(proxy, path)).status == 200
    key = ListingKey(entity=Entity.RELEASE, mbid=item.mbid)
    known = await proxy.cache.index.find_listing(key)
    sim.faults.gates.open("rest")
    await within(slow)
    assert how(await proxy.get(path)) == (404, "ABSENT")
    assert await proxy.cache.index.find_listing(key) == known
    assert proxy.files() == []
    assert (await proxy.cache.index.totals()).files == 0


@pytest_twisted.ensureDeferred
async def test_slow_404_of_a_listing_since_added(sim, proxy) -> None:
    """A 404 that lands after a listing that was asked for later leaves its file where it is."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/"
    await proxy.get(path)
    sim.faults.add(Rule(hop="release", times=1, does=(Gate(name="hold"), Status(code=404))))
    slow = start(refresh(proxy, path))
    await reached(sim, "hold")
    sim.catalogue.add_art(item.mbid)
    assert (await refresh(proxy, path)).status == 200
    (name,) = proxy.files()
    new = (proxy.root / name).read_bytes()
    sim.faults.add(Rule(hop="release", does=Status(code=503)))
    sim.faults.gates.open("hold")
    assert (await within(slow)).status == 200
    seen = await proxy.get(path)
    assert (how(seen), len(seen.json["images"])) == ((200, "HIT"), len(item.images) + 1)
    assert (proxy.root / name).read_bytes() == new
    totals = await proxy.cache.index.totals()
    assert (totals.files, totals.size_bytes) == (1, len(new))


@pytest.mark.parametrize("processes", [1, 2])
@pytest_twisted.ensureDeferred
async def test_clock_set_back(sim, spawn, redis, tmp_path, processes) -> None:
    """
    The time of day goes back by an hour under a running service: nothing waits for that hour.

    Misses are fetched, the leader sweeps, and a killed process is started again.
    """
    wall = WallClock(tmp_path / "clock")
    shared = {"COVER_ART_PROCESSES": "2", "COVER_ART_REDIS_URL": redis.url}
    child = spawn(
        COVER_ART_CACHE_MAX_SIZE="1",
        COVER_ART_CACHE_CLEANUP_INTERVAL="1",
        **wall.environment,
        **(shared if processes > 1 else {}),
    )
    await child.ready()
    items = [
        item
        for item in map(sim.catalogue.release, range(40))
        if item.front and not item.front.underived
    ]
    fronts = [f"/release/{item.mbid}/front" for item in items]
    assert how(await child.get(f"{fronts[0]}-250")) == (200, "MISS")
    wall.set_ahead(-HOUR_S)
    for front in fronts:
        for size in ("-500", "-1200"):
            assert (await within(start(child.get(front + size)))).status == 200

    async def status() -> Any:
        return (await child.get("/cache-status")).json

    while (await within(start(status())))["evicted"] == 0:
        await pause()
    if processes > 1:
        (victim,) = re.findall(r"process 1 runs as pid (\d+)", child.log.read_text())
        os.kill(int(victim), signal.SIGKILL)
        await until(lambda: child.log.read_text().count("process 1 runs") == 2, "the next")
        for front in fronts:
            assert (await within(start(child.get(f"{front}-250")))).status == 200
    child.process.send_signal(signal.SIGTERM)
    assert await within(start(child.exit_code())) in {0, -signal.SIGTERM}


@pytest.mark.parametrize("index", ["memory", "redis"])
@pytest_twisted.ensureDeferred
async def test_checked_while_the_clock_was_ahead(sim, run, redis, index) -> None:
    """
    An alias stamped by a clock that was an hour ahead is retired by the next sweep, and stale.

    Its links, in the index's sight or not, are out of nginx's; a refresh puts the new front there.
    """
    shared = {"COVER_ART_REDIS_URL": redis.url} if index == "redis" else {}
    proxy = await run(COVER_ART_ALIAS_TTL="60", **shared)
    item = sim.catalogue.release(0)
    front = f"/release/{item.mbid}/front-250"
    proxy.now.advance(HOUR_S)
    await proxy.stored(front)
    proxy.now.advance(-HOUR_S)
    swept = await proxy.cleanup.sweep()
    assert swept.retired == 1
    (link,) = proxy.links()
    assert link.endswith(".stale")
    sim.catalogue.set_front(item.mbid, item.back.id)
    assert how(await proxy.get(front)) == (200, "STALE")
    await proxy.settled()
    seen = await proxy.get(front)
    assert (how(seen), seen.body) == ((200, "HIT"), sim.studio.archive_bytes(item.back, 250))
    (link,) = proxy.links()
    assert not link.endswith(".stale")
    assert str(item.back.id) in os.readlink(proxy.root / link)


@pytest_twisted.ensureDeferred
async def test_lease_of_a_server_whose_clock_was_set_back(redis) -> None:
    """A lease in Redis that would end in an hour, its owner killed, ends after its life."""
    link = RedisLink(parse_address(redis.url), reactor, reactor)
    link.connect()
    redis.client().set("t:lead", "of a killed process", px=int(HOUR_S * 1000))
    leadership = RedisLeadership(link, b"t:", "name", life_s=0.2)
    assert await leadership.stand() is None
    while await within(start(leadership.stand())) is None:
        assert redis.client().pttl("t:lead") <= 200
        await pause()
    await leadership.resign()
    await link.close()
