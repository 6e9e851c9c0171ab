"""The sweep over real files, with the index in memory and in Redis, alone and among others."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor

from coverart.cli.command import opened
from coverart.coordination.leader import RedisLeadership
from coverart.maintenance.sweep import Bounds, Cleanup
from coverart.model import Entity
from coverart.service.open_cache import OpenCache, bounds_of
from coverart.service.settings import load
from coverart.simulator.faults import Rule, Status
from tests.support.contents import disk_bytes, fill
from tests.support.redis_server import RedisServer
from tests.support.running import Proxy
from tests.support.talk import start, until, within


@pytest.fixture(params=["memory", "redis"])
def shared(request) -> dict[str, str]:
    """The setting for each kind of index."""
    if request.param == "memory":
        return {}
    return {"COVER_ART_REDIS_URL": request.getfixturevalue("redis").url}


@attrs.frozen
class Kept:
    """What keeps a directory in order."""

    cache: OpenCache
    cleanup: Cleanup


@contextlib.asynccontextmanager
async def keeper(proxy: Proxy, **settings: str) -> AsyncIterator[Kept]:
    """The cache of a proxy, without the service that sweeps by itself."""
    given = load({"COVER_ART_CACHE_DIR": str(proxy.root), **settings})
    async with opened(given, reactor) as cache:
        yield Kept(cache, cache.cleanup(bounds_of(given)))


@pytest_twisted.ensureDeferred
async def test_evicts_exactly_the_oldest(sim, run, shared) -> None:
    """Over the limit, the oldest go until what is left fits; totals and links tell the truth."""
    proxy = await run(**shared)
    proxy.catalogue = sim.catalogue
    paths = await fill(proxy, 6)
    by_age = sorted(proxy.files(), key=lambda name: (proxy.root / name).stat().st_mtime)
    assert len(by_age) == 6
    assert disk_bytes(proxy) > 2**20
    await proxy.stop()
    bounds = {"COVER_ART_CACHE_MAX_SIZE": "1", "COVER_ART_CACHE_CLEAN_TO": "0.6"}
    last = 0
    async with keeper(proxy, **bounds, **shared) as kept:
        size_before = {name: (proxy.root / name).stat().st_size for name in by_age}
        done = await kept.cleanup.sweep()
        left = proxy.files()
        assert done is not None
        assert done.evicted == len(by_age) - len(left) > 0
        assert sorted(by_age[done.evicted :]) == sorted(left)
        last = size_before[by_age[done.evicted - 1]]
        totals = await kept.cache.index.totals()
        assert totals.size_bytes == disk_bytes(proxy)
    # Not one file more than had to go.
    assert disk_bytes(proxy) <= 0.6 * 2**20 < disk_bytes(proxy) + last
    await proxy.start()
    sim.counts.clear()
    assert (await proxy.get(paths[-1]))["x-cache-status"] == "HIT"
    assert (await proxy.get(paths[0]))["x-cache-status"] == "MISS"


@pytest_twisted.ensureDeferred
async def test_expired_alias_leaves_nginx_not_the_cache(sim, run, shared) -> None:
    """
    Past its time an alias has no symlink for nginx, but is known, also after a restart.

    It takes an index up to a minute to hand an alias out.
    """
    proxy = await run(COVER_ART_ALIAS_TTL="100", **shared)
    path = sim.catalogue.examples()["group"] + "-250"
    await proxy.stored(path)
    (link,) = proxy.links()
    await proxy.cleanup.sweep(slices=0)
    assert proxy.links() == [link]
    proxy.now.advance(200)
    done = await proxy.cleanup.sweep(slices=0)
    assert done is not None
    assert done.retired == 1
    assert proxy.links() == [link + ".stale"]
    await proxy.restart()
    sim.faults.add(Rule(hop="release", does=Status(code=500)))
    assert (await proxy.get(path))["x-cache-status"] == "STALE"
    await proxy.settled()
    sim.faults.clear()
    # After a refresh that failed the archive is left in peace for a minute, but not by a new process.
    await proxy.restart()
    assert (await proxy.get(path))["x-cache-status"] == "STALE"
    await proxy.settled()
    assert proxy.links() == [link]
    assert (await proxy.get(path))["x-cache-status"] == "HIT"


@pytest_twisted.ensureDeferred
async def test_mends_both_ways(sim, run, shared) -> None:
    """What lies on the disk unknown is learnt; what is known and gone is forgotten; links too."""
    proxy = await run(**shared)
    examples = sim.catalogue.examples()
    for name in ("thumbnail", "group", "png"):
        await proxy.get(examples[name])
    # An answer can be there before its file.
    await proxy.settled()
    victim, moved, *_ = [name for name in proxy.files() if name.startswith("release/")]
    index = proxy.cache.index
    known = dict(await index.first_to_evict(10))
    # One goes behind the index's back, one comes.
    (proxy.root / victim).unlink()
    key = next(k for k, e in known.items() if proxy.cache.store.path_of(k, e.media) == moved)
    await index.forget_file(key, known[key])
    done = await proxy.cleanup.sweep(slices=4096)
    assert done is not None
    assert (done.learnt, done.forgotten, done.slices) == (1, 1, 4096)
    totals = await index.totals()
    assert (totals.files, totals.size_bytes) == (len(proxy.files()), disk_bytes(proxy))
    assert all(os.path.exists(proxy.root / link) for link in proxy.links())
    again = await proxy.cleanup.sweep(slices=4096)
    assert again is not None
    assert (again.learnt, again.forgotten, again.dangling) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_removes_orphans_only(sim, run, shared) -> None:
    """A temporary file whose writer is gone goes; one that is being written stays."""
    proxy = await run(**shared)
    store = proxy.cache.store
    mine = store.begin()
    (proxy.root / ".incoming" / ("0" * 24)).write_bytes(b"half")
    done = await proxy.cleanup.sweep(slices=0)
    assert done is not None
    assert done.orphans == 1
    assert len(proxy.unfinished()) == 1
    store.abandon(mine)


@pytest_twisted.ensureDeferred
async def test_one_of_three_cleans(sim, run, redis: RedisServer) -> None:
    """Of three processes one cleans, to the mark, and the index names it."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    proxy.catalogue = sim.catalogue
    await fill(proxy, 6)
    by_age = sorted(proxy.files(), key=lambda name: (proxy.root / name).stat().st_mtime)
    await proxy.stop()
    settings = {
        "COVER_ART_REDIS_URL": redis.url,
        "COVER_ART_CACHE_MAX_SIZE": "1",
        "COVER_ART_CACHE_CLEAN_TO": "0.7",
    }
    async with contextlib.AsyncExitStack() as stack:
        three = [await stack.enter_async_context(keeper(proxy, **settings)) for _ in range(3)]
        done = [await kept.cleanup.sweep() for kept in three]
        (only,) = [each for each in done if each is not None]
        assert only.evicted > 0
        assert sorted(proxy.files()) == sorted(by_age[only.evicted :])
        assert disk_bytes(proxy) <= 0.7 * 2**20
        named = {(await kept.cache.index.totals()).leader for kept in three}
        assert named == {
            next(kept.cache.leadership.token for kept in three if kept.cache.leadership.token)
        }


@pytest_twisted.ensureDeferred
async def test_paused_leader_deletes_nothing(sim, run, redis: RedisServer) -> None:
    """
    A leader stopped in the middle of a batch for longer than its term removes no more.

    What it had taken out of the index and left on the disk is known again after one sweep of
    the next leader, which evicts the same files, being the oldest.
    """
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    proxy.catalogue = sim.catalogue
    await fill(proxy, 6)
    before = proxy.files()
    await proxy.stop()
    settings = {
        "COVER_ART_REDIS_URL": redis.url,
        "COVER_ART_CACHE_MAX_SIZE": "1",
        "COVER_ART_CACHE_CLEAN_TO": "0.3",
    }
    ahead_s = [0.0]
    async with keeper(proxy, **settings) as first, keeper(proxy, **settings) as second:
        assert first.cache.link is not None
        leadership = RedisLeadership(
            first.cache.link,
            b"coverart:1:default:",
            "first",
            monotonic=lambda: time.monotonic() + ahead_s[0],
        )
        megabyte = 2**20
        bounds = Bounds(max_bytes=megabyte, clean_to_bytes=int(0.3 * megabyte), alias_ttl_s=86400.0)
        cleanup = Cleanup(
            index=first.cache.index,
            store=first.cache.store,
            in_thread=first.cache.threads,
            leadership=leadership,
            bounds=bounds,
            clock=reactor,
            now=time.time,
        )
        stopped, go_on = threading.Event(), threading.Event()
        store: Any = first.cache.store
        remove = store.remove_entry

        def stop_once(*args: Any) -> Any:
            removed = remove(*args)
            stopped.set()
            go_on.wait(20)
            return removed

        store.remove_entry = stop_once
        sweeping = start(cleanup.sweep(slices=0))
        await until(stopped.is_set, "the leader is at it")
        # As after SIGSTOP: its own time went on, Redis forgot it, and another leads.
        ahead_s[0] = 3600.0
        redis.client().delete(b"coverart:1:default:lead")
        assert await second.cache.leadership.stand() is not None
        go_on.set()
        await within(sweeping)
        assert len(proxy.files()) == len(before) - 1
        done = await second.cleanup.sweep(slices=0)
        assert done is not None
        assert disk_bytes(proxy) <= 0.3 * 2**20
        totals = await second.cache.index.totals()
        assert (totals.files, totals.size_bytes) == (len(proxy.files()), disk_bytes(proxy))
        assert totals.by_entity[Entity.RELEASE] == totals.files
