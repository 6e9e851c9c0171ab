"""Clocks: the time of day jumps, or that of two machines differs."""

from __future__ import annotations

import functools

from coverart.simulator.faults import Gate, Rule
from tests.stories.faults.matrix import Row
from tests.stories.faults.stage import Stage, Thing
from tests.support.running import Proxy, reached
from tests.support.talk import start, until, within

YEAR_S = 365 * 86_400.0
MINUTE_S = 60.0


def _absent(stage: Stage) -> str:
    return stage.sim.catalogue.examples()["no_art"]


async def _mended(stage: Stage, proxy: Proxy, things: list[Thing]) -> None:
    """Everything is fresh once it was asked for again."""
    for thing in things:
        await stage.ask(proxy.port, thing.path)
        await proxy.settled()
        stage.whole(await stage.ask(proxy.port, thing.path), thing, "HIT", "after", of="")
    await proxy.cleanup.sweep()
    await stage.exact(proxy, "after")


async def jumps(stage: Stage, *, by_s: float) -> None:
    """The time of day is set while the proxy runs; later it is set right."""
    proxy = await stage.proxy()
    name, listing = stage.thumbnail(3), stage.listing()
    item = stage.sim.catalogue.release(0)
    assert item.front is not None
    own = Thing(
        name="image by id",
        path=f"/release/{item.mbid}/{item.front.id}-250",
        body=stage.thumbnail().body,
    )
    for thing in (name, listing, own):
        await stage.ask(proxy.port, thing.path)
    await stage.ask(proxy.port, _absent(stage))
    await proxy.settled()
    before = proxy.files()
    proxy.now.advance(by_s)
    await proxy.cleanup.sweep(slices=4096)
    stage.claim("disk", "as before, after a sweep too", proxy.files() == before, proxy.files())
    await stage.exact(proxy)
    for thing in (name, listing):
        seen = await stage.ask(proxy.port, thing.path)
        stage.whole(seen, thing, "STALE", of=thing.name)
        stage.at_once(seen)
    stage.whole(await stage.ask(proxy.port, own.path), own, "HIT", of=own.name)
    seen = await stage.ask(proxy.port, _absent(stage))
    stage.claim("client", "404, asked for anew", seen.how == "404 MISS", seen.how, of="absence")
    await proxy.settled()
    for thing in (name, listing):
        seen = await stage.ask(proxy.port, thing.path)
        stage.whole(seen, thing, "HIT", of=f"{thing.name}, then")
    lines = [line for line in stage.log.about(name.path, listing.path) if "GET" not in line]
    stage.claim("log", "nothing", not lines, lines)
    proxy.now.advance(-by_s)
    await _mended(stage, proxy, [name, listing, own])


async def jumps_in_a_fetch(stage: Stage, *, by_s: float) -> None:
    """The time of day is set while an image is on its way."""
    proxy = await stage.proxy()
    thing = stage.thumbnail()
    stage.sim.faults.add(Rule(hop="node", does=Gate(name="hold")))
    asking = start(stage.ask(proxy.port, thing.path))
    await reached(stage.sim, "hold")
    proxy.now.advance(by_s)
    await proxy.cleanup.sweep()
    stage.sim.faults.gates.open("hold")
    seen = await within(asking)
    stage.whole(seen, thing, "MISS", of="")
    stage.claim("time", "no longer for it", seen.elapsed_s < 20, seen.elapsed_s)
    await proxy.settled()
    stage.claim("disk", "the whole file", len(proxy.files()) == 1 and not proxy.unfinished())
    await stage.exact(proxy)
    lines = [line for line in stage.log.about(thing.path) if "could not" in line]
    stage.claim("log", "nothing", not lines, lines)
    proxy.now.advance(-by_s)
    await _mended(stage, proxy, [thing])


async def apart(stage: Stage, *, by_s: float) -> None:
    """Two machines on one directory and one Redis differ in time; the one ahead leads."""
    server = await stage.redis()
    ahead = await stage.proxy(COVER_ART_REDIS_URL=server.url)
    ahead.now.advance(by_s)
    await ahead.cleanup.sweep()
    behind = await stage.proxy(COVER_ART_REDIS_URL=server.url)
    pair = (ahead, behind)
    for first, other, number in ((ahead, behind, 0), (behind, ahead, 3)):
        thing = stage.thumbnail(number)
        stage.whole(await stage.ask(first.port, thing.path), thing, "MISS", of="one")
        # It was answered before it was stored.
        await first.settled()
        seen = await stage.ask(other.port, thing.path)
        stage.whole(seen, thing, "HIT", of="the other")
        stage.at_once(seen)
    await stage.ask(ahead.port, _absent(stage))
    seen = await stage.ask(behind.port, _absent(stage))
    stage.claim("client", "404 ABSENT", seen.how == "404 ABSENT", seen.how, of="the other's 404")
    # What one is writing, the other's sweep leaves alone.
    large = stage.large()
    from coverart.simulator.faults import Stall

    stage.sim.faults.add(Rule(hop="node", times=1, does=Stall(after_bytes=1_000_000, gate="rest")))
    asking = start(stage.ask(behind.port, large.path))
    await reached(stage.sim, "rest")
    await until(lambda: len(behind.unfinished()) == 1, "it is being written")
    # A few slices only: the archive is silent meanwhile, and silence has its bound.
    swept = [await proxy.cleanup.sweep() for proxy in pair]
    stage.claim("index", "one leads, the one ahead", swept[0] and not swept[1], swept)
    stage.sim.faults.gates.open("rest")
    stage.whole(await within(asking), large, "MISS", of="one")
    for proxy in pair:
        await proxy.settled()
    stage.claim("disk", "all whole", len(behind.files()) == 3 and not behind.unfinished())
    await stage.exact(behind)
    lines = [line for line in stage.log.about(large.path) if "could not" in line]
    stage.claim("log", "nothing", not lines, lines)
    ahead.now.advance(-by_s)
    for proxy in pair:
        for number in (0, 3):
            thing = stage.thumbnail(number)
            stage.whole(await stage.ask(proxy.port, thing.path), thing, "HIT", "after", of="")
    await ahead.cleanup.sweep(slices=4096)
    await stage.exact(ahead, "after")


ROWS = (
    *(
        Row(group="clocks", name=f"{what}{words}", play=functools.partial(call, by_s=by_s))
        for by_s, what in ((YEAR_S, "a year ahead"), (-YEAR_S, "a year back"))
        for call, words in ((jumps, ""), (jumps_in_a_fetch, ", in the middle of a fetch"))
    ),
    Row(
        group="clocks",
        name="two machines 4 minutes apart",
        play=functools.partial(apart, by_s=4 * MINUTE_S),
    ),
)
