"""Redis: killed, silent, full, read-only, flushed, and connections to it reset."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs

from tests.stories.faults.matrix import Row
from tests.stories.faults.stage import Stage
from tests.support.contents import until_available
from tests.support.redis_server import KEY, RedisServer
from tests.support.talk import until

PATIENCE_S = 2.0
"""A command is given up after a second; then nothing is asked of Redis for a while."""


@attrs.frozen(kw_only=True)
class Fault:
    """
    What happens to Redis, and how it ends.

    :ivar log: what the log says of it, as a pattern; empty where nothing is wrong.
    :ivar hit: how what is held is answered.
    """

    name: str
    begin: Callable[[RedisServer], Any]
    end: Callable[[RedisServer], Any]
    log: str
    available: bool = False


async def _start(server: RedisServer) -> None:
    await server.start()


def _nothing(_: RedisServer) -> None:
    """It is over at once."""


FAULTS = (
    Fault(name="killed", begin=RedisServer.kill, end=_start, log="is away .*disk answers"),
    Fault(
        name="silent (SIGSTOP)",
        begin=RedisServer.pause,
        end=RedisServer.resume,
        log="is away .*no reply within 1 s.*disk answers",
    ),
    Fault(
        name="full (maxmemory)",
        begin=lambda server: server.client().config_set("maxmemory", "1kb"),
        end=lambda server: server.client().config_set("maxmemory", "0"),
        log="refuses writes.*out of memory",
        available=True,
    ),
    Fault(
        name="a read-only replica",
        begin=lambda server: server.client().replicaof("127.0.0.1", 1),
        end=lambda server: server.client().replicaof("NO", "ONE"),
        log="is away .*(READONLY|read only).*disk answers",
    ),
    Fault(
        name="flushed",
        begin=lambda server: server.client().flushall(),
        end=_nothing,
        log="",
        available=True,
    ),
    Fault(
        name="every connection reset",
        begin=lambda server: server.client().client_kill_filter(_type="normal", skipme=True),
        end=_nothing,
        log="",
        available=True,
    ),
)


async def play(stage: Stage, *, fault: Fault) -> None:
    """Two proxies share everything; Redis fails, and is as before."""
    server = await stage.redis()
    pair = [await stage.proxy(COVER_ART_REDIS_URL=server.url) for _ in range(2)]
    held, thing, listing = stage.thumbnail(3), stage.thumbnail(), stage.listing()
    await stage.ask(pair[0].port, held.path)
    await pair[0].settled()
    done = fault.begin(server)
    if done is not None and hasattr(done, "__await__"):
        await done
    for proxy in pair:
        seen = await stage.ask(proxy.port, held.path)
        stage.whole(seen, held, "HIT", of="held")
        stage.claim("time", "≤ 1 s for Redis", seen.elapsed_s < PATIENCE_S + 8, seen.elapsed_s)
    for cold in (thing, listing):
        seen = await stage.ask(pair[0].port, cold.path)
        stage.whole(seen, cold, "MISS", of="cold")
        await pair[0].settled()
        seen = await stage.ask(pair[1].port, cold.path)
        stage.whole(seen, cold, "HIT", of="just fetched by another")
    for proxy in pair:
        await proxy.settled()
    stage.claim("disk", "the whole files", len(pair[0].files()) == 3, pair[0].files())
    status = (await pair[0].get("/cache-status")).json
    available = status["redis_available"]
    if fault.log:
        stage.claim("index", "told as it is", available == fault.available, available)
        stage.logged(fault.log, server.socket, text=fault.log.replace(".*", "… "))
    else:
        stage.claim("index", "told to be there", available or fault.name != "flushed", available)
        errors = [line for line in stage.log.about(held.path, thing.path) if "could not" in line]
        stage.claim("log", "nothing that is an operator's business", not errors, errors)
    done = fault.end(server)
    if done is not None and hasattr(done, "__await__"):
        await done
    await until_available((pair[0], pair[1]))
    swept = [await proxy.cleanup.sweep() for proxy in pair]
    stage.claim("after", "one leads", sum(each is not None for each in swept) == 1, swept)
    for proxy in pair:
        await stage.exact(proxy, "after")
        for each in (held, thing, listing):
            stage.whole(await stage.ask(proxy.port, each.path), each, "HIT", "after", of="")


async def lease_of_the_dead(stage: Stage) -> None:
    """Somebody holds the lease of a fetch and is gone."""
    server = await stage.redis()
    proxy = await stage.proxy(COVER_ART_REDIS_URL=server.url)
    thing = stage.thumbnail()
    raw = bytes.fromhex(thing.path.split("/")[2].replace("-", ""))
    name = KEY + b"get:" + bytes([0x20]) + raw + bytes(8) + bytes([1])
    server.client().set(name, "a ghost", px=500)
    seen = await stage.ask(proxy.port, thing.path)
    stage.whole(seen, thing, "MISS", of="")
    stage.claim("time", "≤ the lease, 10 s", seen.elapsed_s < 10 + 5, seen.elapsed_s)
    await proxy.settled()
    stage.claim("disk", "the whole file", len(proxy.files()) == 1)
    await stage.exact(proxy)
    lines = [line for line in stage.log.about(thing.path) if "could not" in line]
    stage.claim("log", "nothing", not lines, lines)
    await until(lambda: not server.client().keys(KEY + b"get:*"), "leases are released")
    stage.claim("after", "no lease is left", True)


ROWS: tuple[Row, ...] = (
    *(
        Row(group="Redis", name=fault.name, play=functools.partial(play, fault=fault))
        for fault in FAULTS
    ),
    Row(group="Redis", name="a lease of the dead", play=lease_of_the_dead),
)
