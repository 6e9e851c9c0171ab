"""Claims of several processes at one real Redis: who fetches, who waits, and what becomes of that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from coverart.coordination.redis_client import RedisLink
from coverart.coordination.redis_url import parse_address
from coverart.coordination.untold_mark import Mark
from coverart.errors import BadUpstream, Unavailable
from coverart.index.redis import RedisIndex
from coverart.model import Alias, Found, Target
from tests.support.index_promises import ALIAS, FRONT, NOW, REF, clock, entry, request
from tests.support.redis_server import RedisServer
from tests.support.talk import start, until, within

KEY = REF.at(250)


class Process:
    """What a process has of Redis."""

    def __init__(self, redis: RedisServer, folder: Path, timers: Any = reactor) -> None:
        self.link = RedisLink(parse_address(redis.url), timers, reactor)
        self.link.connect()
        self.mark = Mark(folder)
        self.index = RedisIndex(self.link, "test", self.mark, now=clock)


@pytest_twisted.async_yield_fixture
async def process(redis: RedisServer, tmp_path: Path):
    """Makes processes on one Redis and one directory."""
    made: list[Process] = []

    def make(timers: Any = reactor) -> Process:
        made.append(Process(redis, tmp_path, timers))
        return made[-1]

    yield make
    for each in made:
        await each.link.close()


def scripts(redis: RedisServer) -> int:
    """How many scripts were run."""
    stats = redis.client().info("commandstats")
    counts = [stats.get(f"cmdstat_{name}", {}) for name in ("eval", "evalsha")]
    # One that the server was not sent yet fails, and is sent.
    return sum(each.get("calls", 0) - each.get("failed_calls", 0) for each in counts)


async def waits(redis: RedisServer, asked: Any) -> None:
    """Until somebody has asked for a claim, and did not get it."""
    before = scripts(redis)
    await until(lambda: scripts(redis) > before + 1, "it was asked for")
    assert not asked.called


@pytest_twisted.ensureDeferred
async def test_waits_for_the_file(redis: RedisServer, process: Callable[..., Process]) -> None:
    """Who claims what another process fetches waits, and is told of the file when it is stored."""
    first, second = process().index, process().index
    _, claim = await first.claim(KEY)
    assert claim is not None
    waiting = start(second.claim(KEY))
    await waits(redis, waiting)
    await first.store(KEY, entry(), alias=(FRONT, ALIAS), claims=[claim])
    assert await within(waiting) == (
        Found(key=KEY, entry=entry(), target=Target(ref=REF)),
        None,
    )


@pytest_twisted.ensureDeferred
async def test_name_after_another(redis: RedisServer, process: Callable[..., Process]) -> None:
    """Who waited for a name is told so: it may be known by now."""
    first, second = process().index, process().index
    claim = await first.claim_name(request(FRONT))
    waiting = start(second.claim_name(request(FRONT)))
    await waits(redis, waiting)
    moved = Alias(target=ALIAS.target, checked_at=NOW + 5)
    await first.store(KEY, entry(), alias=(FRONT, moved), claims=[claim])
    after = await within(waiting)
    assert after.waited
    assert (await second.find_image(request(FRONT))).alias == moved


@pytest.mark.parametrize("error", [BadUpstream("a page"), Unavailable("shut", retry_after_s=7)])
@pytest_twisted.ensureDeferred
async def test_error_is_shared(
    redis: RedisServer, process: Callable[..., Process], error: BadUpstream | Unavailable
) -> None:
    """The error of a fetch is that of those who waited for it, and of nobody who comes later."""
    first, second = process().index, process().index
    _, claim = await first.claim(KEY)
    assert claim is not None
    waiting = start(second.claim(KEY))
    await waits(redis, waiting)
    await first.release([claim], error)
    with pytest.raises(type(error)) as told:
        await within(waiting)
    assert (told.value.detail, told.value.retry_after_s) == (error.detail, error.retry_after_s)
    assert await second.doubtful(9) == []
    _, anew = await second.claim(KEY)
    assert anew is not None
    assert not anew.waited


@pytest_twisted.ensureDeferred
async def test_killed_while_it_fetches(redis: RedisServer, process: Callable[..., Process]) -> None:
    """The claim of a process that was killed ends by itself; its file is in doubt."""
    first, second = process(), process().index
    _, claim = await first.index.claim(KEY)
    assert claim is not None
    await first.link.close()
    waiting = start(second.claim(KEY))
    await waits(redis, waiting)
    (key,) = redis.client().keys("*get:*")
    assert 0 < redis.client().pttl(key) <= 10_000
    # As if its time had come.
    redis.client().pexpire(key, 1)
    found, after = await within(waiting)
    assert found == Found()
    assert after is not None
    assert after.waited
    await second.release([after])
    assert await second.doubtful(9) == [KEY]
    # Ended late, the claim of the one that is gone takes nothing from the next.
    _, again = await second.claim(KEY)
    assert again is not None
    await process().index.release([attrs.evolve(claim)], BadUpstream("late"))
    assert redis.client().get(key) == again.token.encode()


@pytest_twisted.ensureDeferred
async def test_redis_away(redis: RedisServer, process: Callable[..., Process]) -> None:
    """Without Redis everybody may fetch, and a mark says that a file may be there it knows not."""
    one = process()
    await one.index.fill()
    await one.index.set_whole()
    await one.index.find_image(request(FRONT))
    assert one.index.complete
    redis.kill()
    name = await one.index.claim_name(request(FRONT))
    assert (name.token, one.mark.left()) == ("", False)
    found, claim = await one.index.claim(KEY)
    assert found == Found()
    assert claim is not None
    assert (claim.token, one.mark.left(), one.index.complete) == ("", True, False)
    await one.index.release([name, claim])


@pytest_twisted.ensureDeferred
async def test_renewed_together(redis: RedisServer, process: Callable[..., Process]) -> None:
    """All claims of a process are renewed by one command, as long as they are not ended."""
    time = Clock()
    index = process(time).index
    claims = [await index.claim_name(request(FRONT, size)) for size in (250, 500, 1200)]
    client = redis.client()
    keys = client.keys("*get:*")
    assert len(keys) == len(claims)
    for key in keys:
        client.pexpire(key, 5000)
    await index.release(claims[:1])
    before = scripts(redis)
    time.advance(3.4)
    await until(
        lambda: sorted(client.pttl(key) > 5000 for key in keys) == [False, True, True],
        "both are renewed",
    )
    assert scripts(redis) == before + 1
    await index.release(claims[1:])
    assert client.keys("*get:*") == []
