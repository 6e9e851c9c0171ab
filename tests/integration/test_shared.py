"""Several processes on one cache directory and one Redis: once fetched, exactly counted."""

from __future__ import annotations

import os
from typing import Any

import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.logger import formatEvent, globalLogPublisher

from coverart.simulator.faults import Gate, Rule, Status
from coverart.store.layout import image_path
from tests.support.contents import holds_what_the_disk_holds, sweep, until_available
from tests.support.redis_server import KEY, RedisServer
from tests.support.running import reached
from tests.support.talk import start, until, within

KINDS = ("thumbnail", "listing", "png")


@pytest_twisted.async_yield_fixture
async def pair(run, redis: RedisServer):
    """Two proxies that share everything."""
    first = await run(COVER_ART_REDIS_URL=redis.url)
    yield first, await run(COVER_ART_REDIS_URL=redis.url)


@pytest_twisted.ensureDeferred
async def test_one_fetch_for_all(sim, pair) -> None:
    """A thousand clients of two processes, one cold cover: one request at each hop."""
    path = sim.catalogue.examples()["thumbnail"]
    sim.faults.add(Rule(hop="node", does=Gate(name="hold")))
    asked = [start(pair[i % 2].get(path)) for i in range(1000)]
    await reached(sim, "hold")
    await until(lambda: sum(proxy.waiting() for proxy in pair) == 1000, "all wait")
    sim.faults.gates.open("hold")
    answers = await within(gatherResults(asked))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert [sim.counts.requests(hop) for hop in ("release", "archive")] == [1, 1]
    assert sim.counts.requests("node1") + sim.counts.requests("node2") == 1
    await holds_what_the_disk_holds(pair[0])


@pytest_twisted.ensureDeferred
async def test_found_by_the_other(sim, pair) -> None:
    """What one process stored, another has as a hit, without asking anybody."""
    path = sim.catalogue.examples()["group"]
    assert (await pair[0].stored(path))["x-cache-status"] == "MISS"
    sim.counts.clear()
    again = await pair[1].get(path)
    assert again["x-cache-status"] == "HIT"
    assert sim.counts.requests() == 0


@pytest_twisted.ensureDeferred
async def test_failure_reaches_all(sim, pair) -> None:
    """Those who wait in another process get the same error, at once."""
    path = sim.catalogue.examples()["thumbnail"]
    sim.faults.add(Rule(hop="release", does=(Gate(name="hold"), Status(code=503, retry_after="7"))))
    asked = [start(proxy.get(path)) for proxy in pair]
    await reached(sim, "hold")
    await until(lambda: all(proxy.waiting() == 1 for proxy in pair), "both wait")
    sim.faults.gates.open("hold")
    answers = await within(gatherResults(asked), 2)
    assert [answer.status for answer in answers] == [503, 503]
    assert [answer["retry-after"] for answer in answers] == ["7", "7"]
    assert sim.counts.requests() == 1


@pytest_twisted.ensureDeferred
async def test_lease_of_the_dead(sim, pair, redis: RedisServer) -> None:
    """The lease of a process that was killed passes on within its life."""
    mbid = sim.catalogue.examples()["thumbnail"].split("/")[2]
    raw = bytes.fromhex(mbid.replace("-", ""))
    name = bytes([0x20]) + raw + bytes(8) + bytes([1])
    redis.client().set(KEY + b"get:" + name, "a ghost", px=300)
    answer = await within(start(pair[0].get(f"/release/{mbid}/front-250")), 5)
    assert answer.status == 200


@pytest_twisted.ensureDeferred
async def test_redis_flushed(sim, pair, redis: RedisServer) -> None:
    """An index that lost everything is answered for by the disk, and learns it again."""
    paths = [sim.catalogue.examples()[name] for name in ("thumbnail", "group", "png", "listing")]
    for path in paths:
        await pair[0].stored(path)
    before = await pair[0].cache.index.totals()
    redis.client().flushall()
    sim.counts.clear()
    answers = [await pair[1].get(path) for path in paths[:2]]
    assert [answer["x-cache-status"] for answer in answers] == ["HIT", "HIT"]
    await sweep(pair)
    after = await pair[0].cache.index.totals()
    assert (after.files, after.size_bytes) == (before.files, before.size_bytes)
    assert after.aliases == before.aliases
    assert sim.counts.requests() == 0
    await holds_what_the_disk_holds(pair[1])


@pytest_twisted.ensureDeferred
async def test_redis_gone_and_back(sim, pair, redis: RedisServer) -> None:
    """Without Redis all is served and fetched; when it is back, empty, all is known again."""
    examples = sim.catalogue.examples()
    held = await pair[0].stored(examples["thumbnail"])
    redis.kill()
    for proxy in pair:
        answer = await within(start(proxy.get(examples["thumbnail"])), 5)
        assert (answer.status, answer.body) == (200, held.body)
        missed = await within(start(proxy.get(examples["png"] + "-250")), 5)
        assert missed.status == 200
    status = (await pair[0].get("/cache-status")).json
    assert status["redis_available"] is False
    await redis.start()
    await until_available(pair)
    await sweep(pair)
    await holds_what_the_disk_holds(pair[0])
    assert (await pair[0].get("/cache-status")).json["redis_available"] is True
    assert (await pair[1].get(examples["png"] + "-250"))["x-cache-status"] == "HIT"


@pytest_twisted.ensureDeferred
async def test_redis_silent(sim, pair, redis: RedisServer) -> None:
    """A Redis that answers nothing holds up a request once for a second, then nobody."""
    path = sim.catalogue.examples()["thumbnail"]
    held = await pair[0].get(path)
    redis.pause()
    assert (await within(start(pair[0].get(path)), 4)).body == held.body
    assert (await within(start(pair[0].get(path)), 1)).body == held.body
    redis.resume()


@pytest_twisted.ensureDeferred
async def test_redis_full(sim, pair, redis: RedisServer) -> None:
    """A Redis that takes no more is no reason to refuse a cover, nor to forget it."""
    examples = sim.catalogue.examples()
    redis.client().config_set("maxmemory", "1kb")
    answer = await within(start(pair[0].get(examples["thumbnail"])), 5)
    assert answer.status == 200
    redis.client().config_set("maxmemory", "0")
    await until_available(pair)
    await sweep(pair)
    await holds_what_the_disk_holds(pair[1])


@pytest_twisted.ensureDeferred
async def test_everything_removed(sim, pair) -> None:
    """`rm -rf` of everything below the directory: requests repair it, a sweep notices."""
    examples = sim.catalogue.examples()
    paths = [examples["thumbnail"], examples["png"] + "-250", examples["group"] + "-500"]
    for path in paths:
        await pair[0].stored(path)
    os.system(f"rm -rf {pair[0].root}/*")  # noqa: S605 - as an operator would
    assert [(await pair[1].get(path)).status for path in paths] == [200, 200, 200]
    await sweep(pair)
    await holds_what_the_disk_holds(pair[0])


@pytest_twisted.ensureDeferred
async def test_killed_between_file_and_index(sim, pair) -> None:
    """A file whose process died before the index heard of it is found by one sweep."""
    path = sim.catalogue.examples()["thumbnail"]
    answer = await pair[0].stored(path)
    index = pair[0].cache.index
    (name,) = pair[0].files()
    ((key, entry),) = await index.first_to_evict(1)
    # As if the process had been killed: the file is there, in doubt, and unknown.
    assert await index.forget_file(key, entry)
    await index.suspect(key)
    assert name == image_path(key, entry.media)
    await sweep(pair, slices=0)
    await holds_what_the_disk_holds(pair[0])
    assert (await pair[1].get(path)).body == answer.body


@pytest_twisted.ensureDeferred
async def test_redis_not_there_at_start(sim, run, redis: RedisServer) -> None:
    """A proxy starts and serves without its Redis; when that comes, everything is known to it."""
    examples = sim.catalogue.examples()
    redis.kill()
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    first = await within(start(proxy.stored(examples["thumbnail"])), 10)
    assert (first.status, first["x-cache-status"]) == (200, "MISS")
    again = await within(start(proxy.get(examples["thumbnail"])), 10)
    assert (again["x-cache-status"], again.body) == ("HIT", first.body)
    await redis.start()
    await until_available((proxy,))
    await sweep((proxy,))
    await holds_what_the_disk_holds(proxy)


@pytest_twisted.ensureDeferred
async def test_redis_read_only(sim, pair, redis: RedisServer) -> None:
    """A replica that takes no writes, as after a failover, is no reason to refuse or to forget."""
    examples = sim.catalogue.examples()
    redis.client().replicaof("127.0.0.1", 1)
    for path in (examples["thumbnail"], examples["group"]):
        assert (await within(start(pair[0].get(path)), 10)).status == 200
        assert (await within(start(pair[1].get(path)), 10)).status == 200
    redis.client().replicaof("NO", "ONE")
    await until_available(pair)
    await sweep(pair)
    await holds_what_the_disk_holds(pair[0])


@pytest_twisted.ensureDeferred
async def test_warns_of_eviction(sim, run, redis: RedisServer) -> None:
    """A Redis that may throw keys away is told of in one line at the start."""
    told: list[str] = []

    def observe(event: Any) -> None:
        text = formatEvent(event)
        if "noeviction" in text:
            told.append(text)

    observer: Any = observe
    globalLogPublisher.addObserver(observer)
    try:
        await run("good", COVER_ART_REDIS_URL=redis.url)
        redis.client().config_set("maxmemory-policy", "allkeys-lru")
        await run("bad", COVER_ART_REDIS_URL=redis.url)
        await until(lambda: told, "the warning")
    finally:
        globalLogPublisher.removeObserver(observer)
    assert len(told) == 1
    assert "allkeys-lru" in told[0]


@pytest_twisted.ensureDeferred
async def test_written_over(sim, run, redis, lines) -> None:
    """What another program wrote in place of entries costs no answer: the disk tells, Redis learns."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    examples = sim.catalogue.examples()
    bodies = {path: (await proxy.get(path)).body for path in (examples[kind] for kind in KINDS)}
    await proxy.settled()
    client = redis.client()
    for junk in (b"\xff" * 13, b"\xff" * 34, b"\0" * 40, b"\xff" * 4000, b"x", b""):
        for bucket in client.keys(KEY + b"b:*"):
            for key in client.hkeys(bucket):
                client.hset(bucket, key, junk)
        for path, body in bodies.items():
            for _ in range(2):
                answer = await proxy.get(path)
                assert (answer.status, answer.body) == (200, body), (junk[:1], path)
        # Nor does it keep other look-ups from their answers.
        assert not [line for line in lines if "is away" in line], junk[:1]
    # Junk that looks like nothing at all is not told from what was never known.
    assert sim.counts.requests("release") <= 2 * len(KINDS)


@pytest_twisted.ensureDeferred
async def test_refresh_that_fails_ends_its_claims(sim, run, redis: RedisServer) -> None:
    """An operator's refresh that can't have the new image keeps no other process from asking."""
    shared = {"COVER_ART_REDIS_URL": redis.url, "COVER_ART_ADMIN_TOKEN": "t"}
    first, second = await run(**shared), await run(**shared)
    item = sim.catalogue.release(0)
    front = f"/release/{item.mbid}/front-250"
    await first.stored(front)
    sim.catalogue.set_front(item.mbid, item.back.id)
    sim.faults.add(Rule(hop="node", does=Status(code=503)))
    refreshed = await first.get(f"/admin/refresh{front}", "POST", authorization="Bearer t")
    assert refreshed.status == 503
    client = redis.client()
    assert all((client.get(key) or b"-").startswith(b"-") for key in client.keys("*get:*"))
    again = await within(start(second.get(f"/release/{item.mbid}/{item.back.id}-250")), 5)
    assert again.status == 503


@pytest_twisted.ensureDeferred
async def test_size_that_is_not_there_by_id(sim, run, redis: RedisServer) -> None:
    """By an id of which another size is held it is a 404, without a wait for one's own claim."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url, COVER_ART_SUBSTITUTE_MAX_SIZE="0")
    item = sim.catalogue.release(10)
    base = f"/release/{item.mbid}/{item.front.id}"
    await proxy.stored(f"{base}-250")
    answer = await within(start(proxy.get(f"{base}-1200")), 10)
    assert (answer.status, answer["x-cache-status"]) == (404, "MISS")
