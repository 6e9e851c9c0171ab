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
from coverart.index.memory import MemoryIndex
from coverart.index.redis import RedisIndex
from coverart.model import ImageRequest, Target
from tests.support.index_promises import (
    FRONT,
    OWN,
    PROMISES,
    REF,
    Promise,
    clock,
    entry,
    request,
)
from tests.support.redis_server import RedisServer


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


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest_twisted.ensureDeferred
async def test_promise(index: Index, promise: Promise) -> None:
    """What coverart.index.base.Index promises."""
    await promise(index)
