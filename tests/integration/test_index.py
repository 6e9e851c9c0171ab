"""Every promise of an index, kept by each kind of index; Redis is a real server."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from coverart.coordination.redis_client import RedisLink
from coverart.coordination.redis_url import parse_address
from coverart.coordination.untold_mark import Mark
from coverart.index import codec
from coverart.index.base import Index
from coverart.index.codec import pack_seen
from coverart.index.memory import MemoryIndex
from coverart.index.redis import RedisIndex
from coverart.model import Entity, FileEntry, FileKey, ImageRef, ImageRequest, Target
from tests.support.index_promises import (
    FRONT,
    NOW,
    OWN,
    PROMISES,
    REF,
    Promise,
    clock,
    entry,
    request,
)
from tests.support.redis_server import RedisServer
from tests.support.strategies import MBID


@pytest_twisted.async_yield_fixture(scope="module")
async def shared_redis(tmp_path_factory):
    """One server for all promises; each finds it empty."""
    server = await RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


@pytest_twisted.async_yield_fixture(params=["memory", "redis"])
async def index(request, shared_redis):
    """An empty index of each kind."""
    if request.param == "memory":
        yield MemoryIndex(now=clock)
        return
    shared_redis.client().flushall()
    link = RedisLink(parse_address(shared_redis.url), reactor, reactor)
    link.connect()
    yield RedisIndex(link, "test", Mark(shared_redis.folder), now=clock)
    await link.close()


@pytest_twisted.ensureDeferred
async def test_one_way_for_many(shared_redis) -> None:
    """Of a hundred look-ups at the same moment, one goes at once and the others together."""
    link = RedisLink(parse_address(shared_redis.url), reactor, reactor)
    link.connect()
    index = RedisIndex(link, "test", Mark(shared_redis.folder))
    requests = [ImageRequest(alias=FRONT, size=250)] * 101
    # Teaches the server the script.
    await index.find_image(requests[0])
    client = shared_redis.client()
    client.config_resetstat()
    await gatherResults(Deferred.fromCoroutine(index.find_image(each)) for each in requests)
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 2
    await link.close()


@pytest_twisted.ensureDeferred
async def test_one_more_size(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that the archive may derive some day is found by its image's id like all others."""
    monkeypatch.setitem(codec.SIZE_CODES, 2000, len(codec.SIZE_CODES))
    await index.put_file(REF.at(2000), entry())
    found = await index.find_image(request(OWN, 2000))
    assert (found.key, found.entry) == (REF.at(2000), entry())
    assert (await index.find_image(request(OWN, 250))).target == Target(ref=REF)


@pytest_twisted.ensureDeferred
async def test_least_useful_is_one_order(shared_redis) -> None:
    """
    Both indexes rank by size, uses and what was evicted alike.

    An index in Redis that is in the other order is not whole, and is filled anew.
    """
    shared_redis.client().flushall()
    link = RedisLink(parse_address(shared_redis.url), reactor, reactor)
    link.connect()
    mark = Mark(shared_redis.folder)
    files = {
        ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=number).at(250): entry(
            size, NOW - number
        )
        for number, size in enumerate((100, 5000, 5000, 70_000, 900_000, 20_000_000), start=1)
    }
    aged = RedisIndex(link, "test", mark, now=clock)
    far = RedisIndex(link, "test", mark, eviction="least-useful", now=clock)
    near = MemoryIndex(eviction="least-useful", now=clock)
    for key, held in files.items():
        await aged.put_file(key, held)
        await near.put_file(key, held)
    for redis_index in (aged, far):
        assert not await redis_index.whole()
        await redis_index.fill()
        await redis_index.learn_packed([pack_seen(file) for file in files.items()])
        await redis_index.set_whole()
        assert await redis_index.whole()
        assert (await redis_index.totals()).files == len(files)

    async def in_order() -> list[tuple[FileKey, FileEntry]]:
        order = await near.first_to_evict(9)
        assert await far.first_to_evict(9) == order
        return order

    assert len(await in_order()) == len(files)
    uses = [(key, times) for times, key in enumerate(files) if times]
    for index in (far, near):
        await index.use(uses)
    first = await in_order()
    for index in (far, near):
        assert await index.forget_files(first[:3], "") == first[:3]
        await index.put_file(*first[0])
    assert len(await in_order()) == len(files) - 2
    await link.close()


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest_twisted.ensureDeferred
async def test_promise(index: Index, promise: Promise) -> None:
    """What coverart.index.base.Index promises."""
    await promise(index)
