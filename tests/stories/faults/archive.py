"""The archive misbehaves: every fault of the simulator, at each hop, for each kind of thing."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import FirstError, gatherResults
from twisted.python.failure import Failure

from coverart.simulator.faults import (
    Behaviour,
    Body,
    Chunked,
    ContentType,
    Cut,
    Drip,
    Gate,
    Gzip,
    Html,
    NoLength,
    Redirect,
    RedirectLoop,
    Refuse,
    Reset,
    Rule,
    Stall,
    Status,
    WrongLength,
)
from tests.stories.faults.matrix import Row
from tests.stories.faults.stage import Seen, Stage, Thing
from tests.support.running import Proxy
from tests.support.talk import Wire, connect, start, until, within

HOPS = {"1": "release", "2": "archive", "node": "node"}
DAY_S = 86_400.0
TIMEOUT = "COVER_ART_UPSTREAM_TIMEOUT"
TIMEOUT_S = 60.0
"""Its default."""
LONGEST_PAUSE_S = 7.0
"""The breaker's first pause is 5 s and up to a quarter of jitter."""
REFRESH_PAUSE_S = 61.0


@attrs.frozen(kw_only=True)
class End:
    """
    How a request ends that meets a fault.

    :ivar log: what the log says, as a pattern; empty where nothing went wrong.
    :ivar pause_s: after so long the archive is asked again.
    :ivar forget_s: after so long a remembered 404 is asked for again.
    """

    status: int
    said: str = ""
    log: str = ""
    retry_after: str = ""
    pause_s: float = 0.0
    forget_s: float = 0.0
    plain: str = "what went wrong"
    """The log's line, for the table."""


@attrs.frozen(kw_only=True)
class Fault:
    """A behaviour, and how requests end that meet it: at the hops of redirects, at the node."""

    name: str
    does: Behaviour
    ends: Mapping[str, End]
    """By hop."""
    flows: bool = False
    """It comes in the middle: a large image from a node is on its way to the client by then."""
    only_large: bool = False


HOST = r"127\.0\.0\.1:\d+"
UNHARMED = End(status=200)
UNREACHED = End(
    status=503,
    said=rf"{HOST} refuses connections; it is asked again in \d+ s",
    log=r"127\.0\.0\.1:\d+: .*refused.*not asked for \d+ s",
    pause_s=LONGEST_PAUSE_S,
    plain="HOST:PORT: … refused; not asked for N s",
)
GONE = End(status=404, said="no such art", log="", forget_s=2 * 3600 + 1)
SLOW = End(
    status=504,
    said=rf"{HOST} (did not answer in time|fell silent in the middle of an answer); "
    r"(the next request asks it again|it may be asked again in \d+ s)",
    log=r"did not answer in time|not done after|fell silent",
    plain="did not answer in time, fell silent, or not done after N s",
)


def bad(log: str) -> End:
    plain = re.sub(r"\\d\+", "PORT", log).replace("127\\.0\\.0\\.1", "HOST").replace("\\", "")
    said = rf"({HOST}|the answer of {HOST}) .*; the next request asks it again"
    return End(status=502, said=said, log=log, plain=plain.replace("|", " or "))


def later(code: int, retry_after: str = "") -> End:
    return End(
        status=503,
        said=rf"{HOST} answered {code}; it is asked again in \d+ s",
        log=rf"127\.0\.0\.1:\d+ said {code}; not asked for \d+ s",
        plain=f"HOST:PORT said {code}; not asked for N s",
        retry_after=retry_after,
        pause_s=float(retry_after or LONGEST_PAUSE_S) + 1,
    )


def everywhere(end: End) -> dict[str, End]:
    return dict.fromkeys(HOPS, end)


def at_node(end: End) -> dict[str, End]:
    """Only the image's own hop: of a redirect nothing but its head counts."""
    return {"1": UNHARMED, "2": UNHARMED, "node": end}


GARBAGE = {
    "1": bad("said 200"),
    "2": bad("no JPEG|no JSON|sent 0 of 0 bytes"),
    "node": bad("no JPEG|no JSON|sent 0 of 0 bytes"),
}

FAULTS = (
    Fault(name="refuses", does=Refuse(), ends=everywhere(UNREACHED)),
    Fault(name="resets", does=Reset(), ends=everywhere(bad(r"127\.0\.0\.1:\d+ broke off"))),
    Fault(
        flows=True,
        name="resets in the body",
        does=Reset(after_bytes=20),
        ends=at_node(bad("was cut|broke off")),
    ),
    Fault(name="stalls before headers", does=Gate(name="never"), ends=everywhere(SLOW)),
    Fault(flows=True, name="stalls in the body", does=Stall(after_bytes=20), ends=at_node(SLOW)),
    Fault(
        name="stalls after 1 MB",
        does=Stall(after_bytes=1_000_000),
        ends={"node": SLOW},
        flows=True,
        only_large=True,
    ),
    Fault(flows=True, name="drips", does=Drip(bytes_per_s=40), ends=at_node(SLOW)),
    Fault(
        name="drips at 600 kB/s",
        does=Drip(bytes_per_s=600_000),
        ends={"node": SLOW},
        flows=True,
        only_large=True,
    ),
    Fault(
        flows=True,
        name="cuts the body",
        does=Cut(after_bytes=20),
        ends=at_node(bad("was cut|broke off")),
    ),
    Fault(
        name="cuts after 1 MB",
        does=Cut(after_bytes=1_000_000),
        ends={"node": bad("was cut|broke off")},
        flows=True,
        only_large=True,
    ),
    Fault(
        flows=True,
        name="tells 7 bytes too many",
        does=WrongLength(by=7),
        ends=at_node(bad("was cut|broke off")),
    ),
    Fault(name="tells no length", does=NoLength(), ends=at_node(bad("neither length nor framing"))),
    Fault(name="sends chunks", does=Chunked(), ends=everywhere(UNHARMED)),
    Fault(name="tells a wrong type", does=ContentType(value="x/y"), ends=everywhere(UNHARMED)),
    Fault(name="sends HTML with 200", does=Html(), ends=GARBAGE),
    Fault(name="sends garbage with 200", does=Body(data=bytes(range(256))), ends=GARBAGE),
    Fault(name="sends nothing with 200", does=Body(data=b""), ends=GARBAGE),
    Fault(name="sends gzip", does=Gzip(), ends=everywhere(bad("encoded body"))),
    Fault(name="404", does=Status(code=404), ends=everywhere(GONE)),
    Fault(name="403", does=Status(code=403), ends=everywhere(bad("said 403"))),
    Fault(name="500", does=Status(code=500), ends=everywhere(bad("said 500"))),
    Fault(
        name="429 with Retry-After",
        does=Status(code=429, retry_after="7"),
        ends=everywhere(later(429, "7")),
    ),
    Fault(name="503", does=Status(code=503), ends=everywhere(later(503))),
    Fault(
        name="503 with Retry-After",
        does=Status(code=503, retry_after="7"),
        ends=everywhere(later(503, "7")),
    ),
    Fault(
        name="redirects in a circle",
        does=RedirectLoop(),
        ends={
            "1": bad("leads to something that is no file"),
            "2": bad("redirects without end"),
            "node": bad("redirects without end"),
        },
    ),
    Fault(
        name="redirects astray",
        does=Redirect(location="https://evil.example/"),
        ends=everywhere(bad(r"evil\.example:443, not allowed")),
    ),
)


async def play(stage: Stage, *, fault: Fault, hop: str) -> None:
    """Ask for each kind of thing, cold and with an older answer held, each of a new proxy."""
    cold = [stage.thumbnail(), stage.listing()]
    held = [stage.listing(8)]
    if hop == "1":
        cold.append(stage.group())
        held.append(stage.thumbnail(3))
    if hop == "node":
        cold.append(stage.large())
    if fault.only_large:
        cold, held = [stage.large()], []
    proxies = {thing: await stage.proxy(thing.name) for thing in cold}
    for thing in held:
        proxies[thing] = await stage.proxy(f"old {thing.name}")
        await stage.ask(proxies[thing].port, thing.path)
        await proxies[thing].settled()
        proxies[thing].now.advance(DAY_S + 1)
    stage.sim.counts.clear()
    number = stage.sim.faults.add(Rule(hop=HOPS[hop], does=fault.does))
    await stage.sim.settled()
    end = fault.ends[hop]
    # A listing's node is remembered, so that a refresh does not ask at hop 2.
    old_end = UNHARMED if hop == "2" else end
    wires = {thing: await connect(proxies[thing].port) for thing in cold}
    asked = [start(_cold(stage, proxies[thing], thing, end, fault, wires[thing])) for thing in cold]
    answered: list[Thing] = []
    asked += [start(_held(stage, proxies[thing], thing, old_end, answered)) for thing in held]
    done = gatherResults(asked, consumeErrors=True)
    if end is SLOW:
        # Time passes when all have met the fault, what flows has begun to, and old answers were given.
        flows = [wires[thing] for thing in cold if fault.flows and thing.name == "large original"]
        await until(
            lambda: (
                (
                    stage.sim.counts.requests(HOPS[hop]) >= len(cold) + len(held) * (hop != "2")
                    and all(len(wire.body) > 0 for wire in flows)
                    and len(answered) == len(held)
                )
                or done.called
            ),
            "the fault is met",
        )
        await stage.machine.wait_for(lambda: done.called, TIMEOUT_S)
    await within(done).addErrback(_first)
    stage.sim.faults.remove(number)
    await stage.sim.settled()
    stage.machine.advance(end.pause_s)
    asked = [start(_cold_again(stage, proxies[thing], thing, end)) for thing in cold]
    asked += [start(_held_again(stage, proxies[thing], thing, old_end)) for thing in held]
    await within(gatherResults(asked, consumeErrors=True)).addErrback(_first)


def _first(failure: Failure) -> None:
    """The error of the first that failed, in place of what wraps it."""
    failure.trap(FirstError)
    first: Any = failure.value
    raise first.subFailure.value


async def _cold(
    stage: Stage, proxy: Proxy, thing: Thing, end: End, fault: Fault, wire: Wire
) -> None:
    """Nothing is held of it."""
    of = thing.name
    seen = await stage.ask(proxy.port, thing.path, wire)
    await proxy.settled()
    if end.status == 200:
        stage.whole(seen, thing, "MISS", of=of)
        stage.claim("disk", "the whole file", len(proxy.files()) == 1, proxy.files(), of=of)
        lines = [line for line in stage.log.about(thing.path) if "could not" in line]
        stage.claim("log", "nothing", not lines, lines, of=of)
    else:
        flowed = of == "large original" and fault.flows
        _told(stage, seen, thing, end, flowed=flowed)
        await stage.nothing_kept(proxy, of=of)
        if end.status == 404:
            lines = stage.log.about(thing.path)
            stage.claim("log", "nothing but the 404", not lines, lines, of=of)
        else:
            stage.logged(f"could not be fetched: .*({end.log})", thing.path, text=end.plain, of=of)
    await stage.exact(proxy, of=of)
    if end is SLOW:
        stage.bounded(seen, TIMEOUT, TIMEOUT_S, of=of)
    else:
        stage.at_once(seen, of=of)


def _told(stage: Stage, seen: Seen, thing: Thing, end: End, *, flowed: bool) -> None:
    of = thing.name
    if flowed:
        part = seen.status == 200 and seen.cut and thing.body.startswith(seen.body)
        stage.claim("client", "200, then the connection is cut", part, seen.how, of=of)
        return
    stage.refused(seen, end.status, end.said, of=of)
    if end.status == 503:
        told = seen.head("Retry-After")
        right = told == end.retry_after if end.retry_after else 1 <= int(told) <= LONGEST_PAUSE_S
        stage.claim("client", f"Retry-After: {end.retry_after or 'our pause'}", right, told, of=of)


async def _held(stage: Stage, proxy: Proxy, thing: Thing, end: End, answered: list[Thing]) -> None:
    """An older answer is held: it is served, whatever the archive does, and at once."""
    of = f"old {thing.name}"
    files = proxy.files()
    # A 404 is an answer: the second time it is told.
    for _ in range(1 if end.status == 404 else 2):
        seen = await stage.ask(proxy.port, thing.path)
        # The second may find it refreshed where the fault does no harm.
        unharmed = end.status == 200 and seen.head("X-Cache-Status") == "HIT"
        stage.whole(seen, thing, "HIT" if unharmed else "STALE", of=of)
        stage.at_once(seen, of=of)
    answered.append(thing)
    await proxy.settled()
    if end.status in (200, 404):
        return
    stage.claim("disk", "as before", proxy.files() == files, proxy.files(), of=of)
    mbid = thing.path.split("/")[2]
    stage.logged("serving the old answer: .", mbid, of=of, text="serving the old answer, and why")
    stage.logged(end.log, mbid, of=of, text="serving the old answer, and why")
    await stage.exact(proxy, of=of)


async def _cold_again(stage: Stage, proxy: Proxy, thing: Thing, end: End) -> None:
    of = thing.name
    seen = await stage.ask(proxy.port, thing.path)
    if end.status == 200:
        stage.whole(seen, thing, "HIT", "after", of=of)
        return
    if end.status == 404:
        told = (seen.status, seen.head("X-Cache-Status"))
        stage.claim("after", "404 ABSENT for its time", told == (404, "ABSENT"), seen.how, of=of)
        proxy.now.advance(end.forget_s)
        seen = await stage.ask(proxy.port, thing.path)
    stage.whole(seen, thing, "MISS", "after", of=of)
    await proxy.settled()
    await stage.exact(proxy, "after", of=of)


async def _held_again(stage: Stage, proxy: Proxy, thing: Thing, end: End) -> None:
    """A refresh that failed is tried again after a minute, and then the answer is fresh."""
    of = f"old {thing.name}"
    if end.status == 404:
        seen = await stage.ask(proxy.port, thing.path)
        stage.claim("after", "404 ABSENT for its time", seen.status == 404, seen.how, of=of)
        return
    stage.machine.advance(REFRESH_PAUSE_S)
    seen = await stage.ask(proxy.port, thing.path)
    await proxy.settled()
    seen = await stage.ask(proxy.port, thing.path)
    stage.whole(seen, thing, "HIT", "after", of=of)


ROWS = tuple(
    Row(
        group="archive",
        name=f"hop {hop} {fault.name}" if hop != "node" else f"node {fault.name}",
        play=functools.partial(play, fault=fault, hop=hop),
    )
    for fault in FAULTS
    for hop in fault.ends
)
