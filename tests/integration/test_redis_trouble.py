"""A Redis that is full, refuses logins, forgets, or holds what others wrote: stories told from outside."""

from __future__ import annotations

import os
import random
import uuid
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from coverart.coordination.redis_client import RedisLink
from coverart.coordination.redis_url import parse_address
from coverart.coordination.untold_mark import Mark
from coverart.index.base import Index
from coverart.index.redis import RedisIndex
from coverart.maintenance.sweep import Bounds, Cleanup
from coverart.model import (
    Absence,
    Entity,
    FileEntry,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
)
from coverart.store.image_store import ImageStore
from coverart.store.layout import image_path
from tests.support.contents import holds_what_the_disk_holds, sweep
from tests.support.drawings import whole
from tests.support.redis_server import KEY, RedisServer
from tests.support.running import Proxy
from tests.support.talk import becomes, start, until

DAY_S = 86400


async def available(proxy: Proxy) -> None:
    """Ask until Redis answers again."""
    await back(proxy.cache.index)


async def back(index: Index) -> None:
    """Ask until Redis answers again."""
    await becomes(index.totals, lambda _: index.available, "Redis is back")


async def leads(proxy: Proxy) -> None:
    """Stand until this process leads."""
    await becomes(proxy.leadership.stand, bool, "it leads")


def on_disk(proxy: Any) -> int:
    return sum((proxy.root / name).stat().st_size for name in proxy.files())


# Full


@pytest_twisted.ensureDeferred
async def test_full_from_the_start(sim, run, redis: RedisServer, lines) -> None:
    """Redis full before anybody leads: one is elected, and the disk is kept within its limit."""
    redis.client().set("another", "x" * 100)
    redis.client().config_set("maxmemory", "1")
    proxy = await run(COVER_ART_REDIS_URL=redis.url, COVER_ART_CACHE_MAX_SIZE="1")
    limit = 2**20
    for mbid in sim.catalogue.walk(Entity.RELEASE):
        if on_disk(proxy) > 2 * limit:
            break
        await proxy.get(f"/release/{mbid}/front")
    assert on_disk(proxy) > limit
    assert await proxy.cleanup.sweep() is not None
    assert on_disk(proxy) <= limit
    await holds_what_the_disk_holds(proxy)
    told = [line for line in lines if "refuses writes: out of memory" in line]
    assert len(told) == 1
    assert not [line for line in lines if "is away" in line or "lead was lost" in line]
    redis.client().config_set("maxmemory", "0")
    await proxy.get(sim.catalogue.examples()["thumbnail"])
    await until(lambda: [line for line in lines if "takes writes again" in line], "it is told")


@pytest_twisted.ensureDeferred
async def test_full_later(sim, run, redis: RedisServer) -> None:
    """Who leads goes on to, hits are hits by the index, and a cold cover is one, too."""
    examples = sim.catalogue.examples()
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    await proxy.get(examples["thumbnail"])
    token = proxy.leadership.token
    redis.client().config_set("maxmemory", "1")
    for _ in range(3):
        assert await proxy.leadership.stand() == token
        assert (await proxy.get(examples["thumbnail"]))["x-cache-status"] == "HIT"
    await proxy.get(examples["png"])
    assert (await proxy.get(examples["unknown"])).status == 404
    assert (await proxy.get(examples["unknown"]))["x-cache-status"] == "ABSENT"
    await proxy.settled()
    await holds_what_the_disk_holds(proxy)


@pytest_twisted.async_yield_fixture
async def index(redis: RedisServer, tmp_path):
    """An index in Redis, and nothing else."""
    link = RedisLink(parse_address(redis.url), reactor, reactor)
    link.connect()
    yield RedisIndex(link, "default", Mark(tmp_path))
    await link.close()


@pytest_twisted.ensureDeferred
async def test_absences_are_small(index: RedisIndex, redis: RedisServer) -> None:
    """A remembered 404 takes less than 80 bytes of Redis."""
    dice = random.Random(1)
    absence = Absence(since=4e9, until=4e9 + 3600)

    def some() -> ListingKey:
        return ListingKey(entity=Entity.RELEASE, mbid=str(uuid.UUID(int=dice.getrandbits(128))))

    # So that each of the places where they lie is there.
    for _ in range(10_000):
        await index.put_absence(some(), absence)
    before = redis.client().info("memory")["used_memory"]
    for _ in range(20_000):
        await index.put_absence(some(), absence)
    grown = redis.client().info("memory")["used_memory"] - before
    assert grown / 20_000 < 80


@pytest_twisted.ensureDeferred
async def test_absences_are_bounded(index: RedisIndex, redis: RedisServer) -> None:
    """Of a crawl, the last hundred 404s of a part are known; all go once the last is past its time."""
    dice = random.Random(2)
    keys = [
        ListingKey(entity=Entity.RELEASE, mbid=str(uuid.UUID(int=dice.getrandbits(110))))
        for _ in range(1000)
    ]
    for key in keys:
        await index.put_absence(key, Absence(since=4e9, until=4e9 + 100))
    assert [redis.client().hlen(name) for name in redis.client().keys(KEY + b"no:*")] == [100]
    found = [(await index.find_listing(key)).absence is not None for key in keys]
    assert found == [False] * 900 + [True] * 100
    await index.put_absence(keys[0], Absence(since=5e9, until=5e9 + 100))
    assert 0 < redis.client().pttl(KEY + b"no:000") <= 200_000


@pytest_twisted.ensureDeferred
async def test_takes_no_writes(sim, run, redis: RedisServer, lines) -> None:
    """A Redis that takes no writes is read, the disk is bounded; what came meanwhile is told later."""
    examples = sim.catalogue.examples()
    proxy = await run(COVER_ART_REDIS_URL=redis.url, COVER_ART_CACHE_MAX_SIZE="1")
    await proxy.get(examples["thumbnail"])
    await proxy.settled()
    redis.client().config_set("min-replicas-to-write", 1)
    for status in ("MISS", "HIT", "HIT"):
        answer = await proxy.get(examples["gif"] + "-250")
        assert answer["x-cache-status"] == status
        await proxy.settled()
        assert (await proxy.get(examples["thumbnail"]))["x-cache-status"] == "HIT"
    for mbid in sim.catalogue.walk(Entity.RELEASE):
        if on_disk(proxy) > 2**20:
            break
        await proxy.get(f"/release/{mbid}/front")
    await proxy.settled()
    assert await proxy.cleanup.sweep() is not None
    assert on_disk(proxy) <= 2**20
    assert not await proxy.cache.index.whole()
    assert len([line for line in lines if "refuses writes: it has too few replicas" in line]) == 1
    assert not [line for line in lines if "is away" in line]
    redis.client().config_set("min-replicas-to-write", 0)
    await leads(proxy)
    assert proxy.cache.index.available
    await sweep((proxy,))
    await holds_what_the_disk_holds(proxy)
    assert await proxy.cache.index.whole()


# Logins


@pytest.mark.parametrize("why", ["password", "clients"])
@pytest_twisted.ensureDeferred
async def test_refused_at_first(sim, run, redis: RedisServer, lines, why) -> None:
    """A Redis that refuses a login or one more client is asked again, and one day used."""
    client = redis.client()
    url = redis.url.replace("unix://", "unix://:secret@")
    if why == "clients":
        url = redis.url.replace("db=0", "db=1")
        client.config_set("maxclients", 1)
    else:
        client.config_set("requirepass", "another")
    proxy = await run(COVER_ART_REDIS_URL=url)
    path = sim.catalogue.examples()["thumbnail"]
    assert (await proxy.get(path)).status == 200
    refusals = ["max number of clients"] if why == "clients" else ["WRONGPASS", "invalid password"]
    await until(lambda: [line for line in lines if any(r in line for r in refusals)], "it is told")
    if why == "clients":
        client.config_set("maxclients", 100)
    else:
        client.config_set("requirepass", "secret")
    await available(proxy)
    await leads(proxy)
    await sweep((proxy,))
    await holds_what_the_disk_holds(proxy)
    assert not [line for line in lines if "Traceback" in line or "Unhandled" in line]


@pytest_twisted.ensureDeferred
async def test_user_without_info(sim, run, redis: RedisServer, lines) -> None:
    """A user who may not send what Redis counts as dangerous, INFO among it, has a whole index."""
    filled = await run()
    await filled.get(sim.catalogue.examples()["thumbnail"])
    await filled.stop()
    words = ("on", ">secret", "~*", "&*", "+@all", "-@dangerous")
    redis.client().execute_command("ACL", "SETUSER", "cover", *words)
    proxy = await run(COVER_ART_REDIS_URL=redis.url.replace("unix://", "unix://cover:secret@"))
    await leads(proxy)
    await sweep((proxy,), slices=0)
    await holds_what_the_disk_holds(proxy)
    assert await proxy.cache.index.whole()
    assert not [line for line in lines if "is away" in line]
    assert [line for line in lines if "does not let this user send INFO" in line]


# What was not told, or forgotten


class Blip:
    """A leader that loses Redis at its n-th step, and a disk that takes until it is back."""

    def __init__(self, redis: RedisServer, index: RedisIndex, at: int) -> None:
        self._redis = redis
        self._index = index
        self._left = at

    async def stand(self) -> str | None:
        return ""

    async def resign(self) -> None:
        return

    @property
    def token(self) -> str:
        self._left -= 1
        if self._left == 0:
            self._redis.client().execute_command("CLIENT", "KILL", "TYPE", "normal")
        return ""

    def in_thread(self, call: Any, /, *args: Any) -> Deferred[Any]:
        return start(self._late(call, *args))

    async def _late(self, call: Any, *args: Any) -> Any:
        if self._left <= 0:
            await back(self._index)
        return call(*args)


@pytest.mark.parametrize("at", [5, 7])
@pytest_twisted.ensureDeferred
async def test_blip_while_filling(index: RedisIndex, redis: RedisServer, tmp_path, at: int) -> None:
    """An index that missed a part while it was filled is not whole, and is filled again."""
    folder = tmp_path / "cache"
    store = ImageStore(folder)
    count = 6000
    for number in range(count):
        mbid = str(uuid.UUID(int=number << 115 | 1))
        ref = ImageRef(owner=Entity.RELEASE, mbid=mbid, image_id=number + 1)
        path = folder / image_path(ref.at(250), MediaType.JPEG)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff\xe0")

    async def clean(leadership: Blip) -> None:
        cleanup = Cleanup(
            index=index,
            store=store,
            in_thread=leadership.in_thread,
            leadership=leadership,
            bounds=Bounds(max_bytes=2**40, clean_to_bytes=2**40, alias_ttl_s=DAY_S),
            clock=reactor,
            now=lambda: 1e9,
        )
        await cleanup.sweep(slices=0)

    await index.totals()
    await clean(Blip(redis, index, at))
    await back(index)
    await clean(Blip(redis, index, 10**6))
    assert (await index.totals()).files == count


@pytest_twisted.ensureDeferred
async def test_what_is_missed_while_filling_counts(index: RedisIndex, tmp_path) -> None:
    """Neither a mark left meanwhile nor another filling that has begun is passed over."""
    await index.fill()
    Mark(tmp_path).leave()
    await index.set_whole()
    assert not await index.whole()
    await index.fill()
    other = RedisIndex(index.link, "default", Mark(tmp_path))
    await other.fill()
    await index.set_whole()
    assert not await index.whole()
    await other.set_whole()
    assert await index.whole()


@pytest_twisted.ensureDeferred
async def test_what_was_not_told(index: RedisIndex, redis: RedisServer, tmp_path) -> None:
    """Where Redis was not told of a change, nothing in it is believed until it is filled anew."""
    ref = ImageRef(owner=Entity.RELEASE, mbid=str(uuid.UUID(int=1)), image_id=7)
    entry = FileEntry(size_bytes=100, stored_at=1000.0, media=MediaType.JPEG)
    request = ImageRequest(alias=ref.own_name, size=250)
    other = RedisIndex(index.link, "default", Mark(tmp_path))
    await index.fill()
    await index.put_file(ref.at(250), entry)
    await index.set_whole()
    assert (await other.find_image(request)).entry == entry
    redis.client().config_set("min-replicas-to-write", 1)
    assert await index.forget_file(ref.at(250), entry)
    redis.client().config_set("min-replicas-to-write", 0)
    for each in (index, other):
        assert (await each.find_image(request)).entry is None
        assert not await each.whole()
        assert not each.complete
    await other.fill()
    await other.set_whole()
    for each in (index, other):
        assert (await each.find_image(request)).entry is None
        assert await each.whole()


@pytest_twisted.ensureDeferred
async def test_killed_while_redis_was_away(sim, run, spawn, redis: RedisServer) -> None:
    """What a process stored while Redis was away, and could not tell before it was killed."""
    examples = sim.catalogue.examples()
    first = await run(COVER_ART_REDIS_URL=redis.url)
    await first.get(examples["png"])
    await first.stop()
    child = await spawn(COVER_ART_REDIS_URL=redis.url).ready()
    redis.pause()
    try:
        for name in ("thumbnail", "back", "gif", "listing"):
            assert (await child.get(examples[name])).status == 200
        child.kill()
    finally:
        redis.resume()
    # As if its term had run out.
    redis.client().delete(KEY + b"lead")
    second = await run(COVER_ART_REDIS_URL=redis.url)
    assert len(second.files()) == 5
    await leads(second)
    await sweep((second,), slices=0)
    await holds_what_the_disk_holds(second)


@pytest_twisted.ensureDeferred
async def test_evicted_by_another_while_redis_is_away(sim, run, redis: RedisServer) -> None:
    """
    Who does not keep the disk while Redis is away learns what was evicted, by a sweep of its own.

    Else it would count on past the limit and its slack, and store nothing until Redis is back.
    """
    settings = {"COVER_ART_REDIS_URL": redis.url, "COVER_ART_CACHE_MAX_SIZE": "1"}
    one, other = await run(**settings), await run(**settings)
    redis.kill()
    await one.cleanup.sweep()
    for mbid in sim.catalogue.walk(Entity.RELEASE):
        if other.cache.index.size_bytes > 2 * 2**20:
            break
        await other.get(f"/release/{mbid}/front")
    await other.settled()
    await one.cleanup.sweep()
    assert on_disk(one) <= 2**20
    await other.cleanup.sweep()
    assert other.cache.index.size_bytes == on_disk(other)


@pytest_twisted.ensureDeferred
async def test_back_from_an_older_snapshot(sim, run, redis: RedisServer) -> None:
    """A Redis that was killed and is back as it was earlier: known is what the disk holds."""
    examples = sim.catalogue.examples()
    item = sim.catalogue.release(0)
    front = f"/release/{item.mbid}/front-250"
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    for path in (front, examples["png"], examples["gif"]):
        await proxy.get(path)
    await proxy.settled()
    redis.client().save()
    sim.catalogue.set_front(item.mbid, item.back.id)
    proxy.now.advance(DAY_S + 1)
    await proxy.get(front)
    await proxy.settled()
    moved = await proxy.get(front)
    await proxy.get(examples["listing"])
    png = next(name for name in proxy.files() if name.endswith(".png"))
    os.unlink(proxy.root / png)
    redis.kill()
    await redis.start()
    await available(proxy)
    await leads(proxy)
    await sweep((proxy,), slices=0)
    await holds_what_the_disk_holds(proxy)
    again = await proxy.get(front)
    assert (again["x-cache-status"], again.body) == ("HIT", moved.body)


@pytest_twisted.ensureDeferred
async def test_used_without_redis_in_between(sim, run, redis: RedisServer) -> None:
    """What came while the directory was served with an index in memory is learnt at the start."""
    examples = sim.catalogue.examples()
    for settings in ({"COVER_ART_REDIS_URL": redis.url}, {}, {"COVER_ART_REDIS_URL": redis.url}):
        proxy = await run(**settings)
        await leads(proxy) if settings else None
        await sweep((proxy,), slices=0)
        await holds_what_the_disk_holds(proxy)
        await proxy.get(examples["png"] if settings else examples["thumbnail"])
        await proxy.stop()


@pytest_twisted.ensureDeferred
async def test_moved_while_redis_was_away(sim, run, redis: RedisServer) -> None:
    """No size of a front that moved is told as it was before, once one was told as it is."""
    item = sim.catalogue.release(0)
    base = f"/release/{item.mbid}/front"
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    for suffix in ("-250", "-500"):
        await proxy.get(base + suffix)
    await proxy.settled()
    sim.catalogue.set_front(item.mbid, item.back.id)
    proxy.now.advance(DAY_S + 1)
    redis.pause()
    try:
        await proxy.get(base + "-250")
        await proxy.settled()
        moved = await proxy.get(base + "-250")
    finally:
        redis.resume()
    await available(proxy)
    other = await proxy.get(base + "-500")
    assert other["x-cache-status"] in ("HIT", "MISS")
    assert other.body == whole(sim, item.back, 500)
    assert moved.body == whole(sim, item.back, 250)


@pytest_twisted.ensureDeferred
async def test_hits_while_redis_is_away(sim, run, redis: RedisServer) -> None:
    """A hit stores nothing, so it does not count against the limit of what may be stored."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    path = sim.catalogue.examples()["thumbnail"]
    await proxy.get(path)
    await proxy.settled()
    await leads(proxy)
    await sweep((proxy,), slices=0)
    await proxy.cache.index.totals()
    held = proxy.cache.index.size_bytes
    redis.pause()
    try:
        for _ in range(3):
            assert (await proxy.get(path))["x-cache-status"] == "HIT"
        assert proxy.cache.index.size_bytes == held == on_disk(proxy)
    finally:
        redis.resume()


# What others wrote


@pytest_twisted.ensureDeferred
async def test_garbage(sim, run, redis: RedisServer, lines) -> None:
    """What another program wrote into any key is told of, passed over, and gone with a cleanup."""
    examples = sim.catalogue.examples()
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    for name in ("thumbnail", "png", "listing"):
        await proxy.get(examples[name])
    await proxy.settled()
    client = redis.client()

    def wrong_kind(key: bytes) -> None:
        client.delete(KEY + key)
        client.set(KEY + key, "not ours")

    buckets = client.keys(KEY + b"b:*")
    spoilers: list[Any] = [
        lambda: client.hset(KEY + b"sum", "bytes", "a few"),
        lambda: client.hset(KEY + b"tally", "hits", "\xff"),
        lambda: client.hset(KEY + b"tally", b"\xff", "1"),
        lambda: client.zadd(KEY + b"age", {b"x": 1, b"y" * 300: 2}),
        lambda: client.sadd(KEY + b"doubt", "x", b"\xff" * 26),
        lambda: client.sadd(KEY + b"odd", "x", "99999"),
        lambda: client.zadd(KEY + b"due", {"x": 0, "0": 0}),
        lambda: client.lpush(KEY + b"due:0", "x"),
        lambda: [client.hset(bucket, "x", "y") for bucket in buckets],
        lambda: [client.hset(bucket, b"\xff" * 26, b"\xff" * 13) for bucket in buckets],
        *(lambda key=key: wrong_kind(key) for key in (b"sum", b"age", b"tally", b"doubt")),
        *(lambda key=key: wrong_kind(key) for key in (b"due", b"odd")),
        lambda: wrong_kind(buckets[0].removeprefix(KEY)),
        lambda: (client.delete(KEY + b"whole"), client.lpush(KEY + b"whole", "x")),
    ]
    for number, spoil in enumerate(spoilers):
        spoil()
        for path in ("/metrics", "/cache-status", "/"):
            assert (await proxy.get(path)).status == 200, (number, path)
        for name in ("thumbnail", "png", "listing"):
            assert (await proxy.get(examples[name])).status == 200
        for _ in range(2):
            assert await proxy.cleanup.sweep() is not None
        assert proxy.cache.index.available, number
        await holds_what_the_disk_holds(proxy)
        assert await proxy.cache.index.whole(), number
        assert not client.smembers(KEY + b"doubt"), number
    assert not [line for line in lines if "Traceback" in line]
    assert [line for line in lines if "data that this version can't read" in line]


@pytest_twisted.ensureDeferred
async def test_a_lease_without_an_end(sim, run, redis: RedisServer) -> None:
    """A key that another program wrote in the place of the lead is not taken for one's own."""
    redis.client().set(KEY + b"lead", "not ours")
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    assert await proxy.leadership.stand() is None
    assert 0 < redis.client().pttl(KEY + b"lead") <= 15_000


# Files in doubt


@pytest_twisted.ensureDeferred
async def test_no_doubt_about_what_failed(sim, run, redis: RedisServer) -> None:
    """A fetch that came to nothing leaves nothing in doubt, an original that does not do included."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url, COVER_ART_SUBSTITUTE_MAX_SIZE="0.01")
    examples = sim.catalogue.examples()
    for path in (examples["unknown"].removesuffix("front"), examples["underived_thumb"]):
        assert (await proxy.get(path)).status == 404
    assert (await proxy.get(examples["thumbnail"])).status == 200
    client = redis.client()
    await until(lambda: not client.keys(KEY + b"get:*"), "the leases are given back")
    assert not client.smembers(KEY + b"doubt")
