"""
More than can be done at once, and an archive that asks to be left alone.

What is held is served; who asks for more than can be fetched is told at once when to come back;
the archive sees no more than was promised.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.task import deferLater
from twisted.web.client import ResponseNeverReceived

from coverart.archive import throttle
from coverart.simulator.catalogue import Catalogue
from coverart.simulator.faults import HOPS, Gate, Rule, Status
from coverart.simulator.gallery import Gallery
from coverart.simulator.service import Simulator
from coverart.web import connection_limits
from tests.support.drawings import STUDIO
from tests.support.running import Proxy, ProxyChild, reached
from tests.support.talk import LOCAL, SAFETY_S, Answer, ask, becomes, connect, start, until, within

DAY_S = 86_400
LARGE = 11
CAST = 50


@pytest_twisted.async_yield_fixture
async def sim():
    """An archive with enough for a crowd."""
    archive = Simulator(reactor, Catalogue(seed=11, releases=2000, without_art=0), variants=8)
    archive.studio = STUDIO
    archive.gallery = Gallery(reactor, STUDIO)
    await archive.start()
    yield archive
    await archive.stop()


def fronts(sim: Simulator, count: int) -> list[str]:
    """Different covers, none asked for before."""
    items = (sim.catalogue.release(n) for n in range(CAST, 2000))
    usable = (item for item in items if item.front is not None and not item.front.underived)
    return [f"/release/{next(usable).mbid}/front-250" for _ in range(count)]


def overload(proxy: Proxy, what: str) -> float | None:
    return proxy.metrics.value("coverart_overload_total", what=what)


def connections(proxy: Proxy) -> float | None:
    return proxy.metrics.value("coverart_connections")


# A crowd


@pytest_twisted.ensureDeferred
async def test_crowd(sim, run) -> None:
    """300 slow clients and 500 cold covers: as many as may are fetched, the rest is told so; hits go on."""
    bound, concurrency = 40, 4
    proxy = await run(
        COVER_ART_MAX_WAITING=str(bound), COVER_ART_UPSTREAM_CONCURRENCY=str(concurrency)
    )
    item = sim.catalogue.release(0)
    image, front = f"/release/{item.mbid}/{item.front.id}-250", f"/release/{item.mbid}/front-250"
    large, gone = f"/release/{sim.catalogue.release(LARGE).mbid}/front", "/release/" + "0" * 8
    gone += "-0000-4000-8000-000000000000/front"
    body = (await proxy.get(large)).body
    held = {path: (await proxy.get(path)).body for path in (image, front)}
    assert (await proxy.get(gone)).status == 404
    slow = [await proxy.wire() for _ in range(300)]
    for wire in slow:
        wire.get(large, "Connection: close")
        wire.transport.pauseProducing()
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    sim.counts.clear()
    cold = fronts(sim, 500)
    asking = [start(proxy.get(path)) for path in cold]
    refused = 500 - bound
    await until(lambda: sum(d.called for d in asking) == refused, "so many are told")
    for d in asking:
        if d.called:
            answer = await d
            assert (answer.status, answer["Retry-After"]) == (503, "5")
    assert overload(proxy, "fetch") == refused
    assert sim.faults.gates.waiting("hold") == concurrency
    proxy.now.advance(2 * DAY_S)
    for path, status in ((image, "HIT"), (front, "STALE"), (gone, "MISS")):
        answer = await proxy.get(path)
        if path in held:
            assert (answer.status, answer["X-Cache-Status"]) == (200, status)
            assert answer.body == held[path]
        else:
            assert answer.status == 503
    assert (await proxy.get(f"/release/{item.mbid}/")).status == 503
    sim.faults.gates.open("hold")
    answers = [await d for d in asking]
    assert [answer.status for answer in answers].count(200) == bound
    assert sim.counts.connections("release").peak <= concurrency
    for wire in slow:
        wire.transport.resumeProducing()
    for wire in slow:
        await wire.end()
        assert wire.body == body


@pytest_twisted.ensureDeferred
async def test_crowd_for_one(sim, run, monkeypatch) -> None:
    """A crowd for one cold cover takes one turn in all: the next miss is not behind each of them."""
    proxy = await run()
    held, wanted, other = fronts(sim, 3)
    await proxy.get(held)
    await proxy.settled()
    # So long that a turn for each of the crowd would outlast the test.
    monkeypatch.setattr(throttle, "GAP_S", 0.2)
    monkeypatch.setattr(throttle, "HITS_S", SAFETY_S)
    assert (await proxy.get(held))["x-cache-status"] == "HIT"
    of_the_crowd = wanted.removesuffix("-250") + "*"
    sim.faults.add(Rule(hop="release", path=of_the_crowd, does=Gate(name="hold")))
    crowd = [await proxy.wire(wanted) for _ in range(200)]
    answer = await within(start(proxy.get(other)))
    assert (answer.status, answer["x-cache-status"]) == (200, "MISS")
    assert proxy.waiting() == len(crowd)
    sim.faults.gates.open("hold")
    for wire in crowd:
        await wire.got(1000)
    assert {wire.status for wire in crowd} == {200}
    assert sim.counts.requests("release") == 3


@pytest_twisted.ensureDeferred
async def test_originals_leave_room(sim, run) -> None:
    """Originals that do not come to their end, say for slow readers, hold up no thumbnail or listing."""
    proxy = await run(COVER_ART_UPSTREAM_CONCURRENCY="4", COVER_ART_UPSTREAM_TIMEOUT="10")
    items = [sim.catalogue.release(number) for number in range(CAST, CAST + 20)]
    items = [item for item in items if item.front is not None]
    for item in items:
        sim.faults.add(Rule(hop="node", path=f"*{item.front.id}.*", does=Gate(name="hold")))
    originals = [start(proxy.get(f"/release/{item.mbid}/front")) for item in items]
    await until(lambda: sim.faults.gates.waiting("hold") >= 3, "they are being fetched")
    for path in (*fronts(sim, 3), f"/release/{items[0].mbid}/"):
        answer = await within(start(proxy.get(path)))
        assert (answer.status, answer["x-cache-status"]) == (200, "MISS")
    assert sim.faults.gates.waiting("hold") == 3
    sim.faults.gates.open("hold")
    assert {(await each).status for each in originals} == {200}


@pytest_twisted.ensureDeferred
async def test_absences_go_on(sim, run) -> None:
    """With no room left a remembered 404 is told as ever, also one past its time; joining is free."""
    proxy = await run(COVER_ART_MAX_WAITING="1")
    gone = "/release/00000000-0000-4000-8000-000000000000/front"
    assert (await proxy.get(gone)).status == 404
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    first, other = fronts(sim, 2)
    asking = [start(proxy.get(first)) for _ in range(20)]
    await until(lambda: proxy.waiting() == 20, "all wait for one")
    assert (await proxy.get(other)).status == 503
    for ahead_s in (0, 5000):
        proxy.now.advance(ahead_s)
        answer = await proxy.get(gone)
        assert (answer.status, answer["X-Cache-Status"]) == (404, "ABSENT")
    sim.faults.gates.open("hold")
    assert {(await d).status for d in asking} == {200}
    # Until it is on the disk it takes the room of one.
    await proxy.settled()
    assert (await proxy.get(other)).status == 200


@pytest_twisted.ensureDeferred
async def test_files_go_on(sim, run, redis) -> None:
    """What lies on the disk and a flushed index does not know is found, with no room left."""
    first, other, third = fronts(sim, 3)
    proxy = await run(COVER_ART_MAX_WAITING="1", COVER_ART_REDIS_URL=redis.url)
    body = (await proxy.stored(first)).body
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    asking = start(proxy.get(other))
    await reached(sim, "hold")
    redis.client().flushall()
    answer = await proxy.get(first)
    assert (answer.status, answer.body) == (200, body)
    assert (await proxy.get(third)).status == 503
    sim.faults.gates.open("hold")
    assert (await asking).status == 200


@pytest_twisted.ensureDeferred
async def test_waits_too_long(sim, run) -> None:
    """Who found no place to fetch in for as long as a fetch may take is told to come back."""
    proxy = await run(COVER_ART_UPSTREAM_CONCURRENCY="1", COVER_ART_UPSTREAM_TIMEOUT="0.5")
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    asking = [start(proxy.get(path)) for path in fronts(sim, 6)]
    told = {(await d).status for d in asking}
    assert told <= {503, 504}
    sim.faults.gates.open("hold")


# Connections


@pytest_twisted.ensureDeferred
async def test_busy_keep_their_place(sim, run) -> None:
    """With every connection at work no more are accepted; the next is served when one ends."""
    proxy = await run(COVER_ART_MAX_CONNECTIONS="8")
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    path = fronts(sim, 1)[0]
    wires = [await proxy.wire(path) for _ in range(8)]
    await until(lambda: proxy.waiting() == 8, "all wait")
    late = await proxy.wire("/health")
    assert overload(proxy, "accept") == 1
    assert connections(proxy) == 8
    assert not late.received
    wires[0].leave()
    await late.got(100)
    assert late.status == 200
    sim.faults.gates.open("hold")
    for wire in wires[1:]:
        await wire.got(1000)
        assert wire.status == 200


@pytest_twisted.ensureDeferred
async def test_stalled_reader(sim, run, monkeypatch) -> None:
    """A client that takes nothing for long loses its connection, though it never closes it."""
    monkeypatch.setattr(connection_limits, "STALLED_S", 1)
    proxy = await run()
    path = f"/release/{sim.catalogue.release(LARGE).mbid}/front"
    whole = (await proxy.get(path)).body
    await proxy.settled()
    wires = [await connect(proxy.port) for _ in range(3)]
    for wire, times, more in zip(wires, (1, 8, 8), ([], [], ["Connection: close"]), strict=True):
        wire.transport.pauseProducing()
        for _ in range(times):
            wire.get(path, *more)
    await until(lambda: connections(proxy) == 3, "they are connected")
    await until(lambda: connections(proxy) == 0, "they are given up", seconds=2 * SAFETY_S)
    for wire in wires[1:]:
        wire.transport.resumeProducing()
        await wire.end()
        assert len(wire.received) < 8 * len(whole)
    wires[0].leave()


@pytest_twisted.ensureDeferred
async def test_descriptors_used_up(sim, spawn) -> None:
    """With no descriptor left for newcomers, those who are there are served, and later all."""
    child = await spawn().ready()
    path = fronts(sim, 1)[0]
    known = await connect(child.port)
    known.get(path)
    await known.got(1000)
    size = len(known.received)
    resource.prlimit(child.process.pid, resource.RLIMIT_NOFILE, (60, 60))
    crowd = [await connect(child.port) for _ in range(200)]
    # Those who find no place are closed, not left hanging, so that nothing spins.
    await until(lambda: sum(wire.ended.called for wire in crowd) >= 100, "the rest is closed")
    for turn in range(2, 5):
        known.get("/health")
        await until(lambda turn=turn: known.received.count(b"HTTP/1.1 200") == turn, "an answer")
    assert len(known.received) > size
    for wire in crowd:
        wire.leave()
    assert (await child_answer(child)).status == 200


async def child_answer(child: ProxyChild) -> Answer:
    """Ask until a connection is let in: the places are free in a moment."""

    async def attempt() -> Answer | None:
        with contextlib.suppress(ResponseNeverReceived, ConnectError):
            return await ask(f"{child.url}/health")
        return None

    answer = await becomes(attempt, lambda answer: answer is not None, "somebody is let in")
    assert answer is not None
    return answer


@pytest_twisted.ensureDeferred
async def test_slow_keep_their_place(sim, run, monkeypatch) -> None:
    """A client that still takes its answer is not idle, though the proxy is done with it."""
    monkeypatch.setattr(connection_limits, "IDLE_S", 2.0)
    proxy = await run(COVER_ART_MAX_CONNECTIONS="2")
    path = fronts(sim, 1)[0].removesuffix("-250")
    body = (await proxy.get(path)).body
    slow = await connect(proxy.port)
    slow.transport.pauseProducing()
    slow.get(path)
    answers = proxy.metrics
    await until(lambda: answers.value("coverart_answers_total", outcome="hits") == 1, "written")
    other = await proxy.wire("/health")
    await other.got(100)
    late = await proxy.wire("/health")
    await late.got(100)
    assert not slow.ended.called
    slow.transport.resumeProducing()
    await until(lambda: len(slow.body) == len(body), "all of it")
    assert slow.body == body


@pytest_twisted.ensureDeferred
async def test_active_keep_their_place(sim, run, monkeypatch) -> None:
    """At the bound those that are idle for long are closed, so that others come in, and no others."""
    monkeypatch.setattr(connection_limits, "IDLE_S", 1000.0)
    proxy = await run(COVER_ART_MAX_CONNECTIONS="4")
    wires = []
    for _ in range(4):
        wires.append(await proxy.wire("/health"))
        await wires[-1].got(100)
    assert overload(proxy, "accept") == 1
    late = await proxy.wire("/health")
    for wire in wires:
        size = len(wire.received)
        wire.get("/health")
        await wire.got(size + 100)
    assert not late.received
    assert overload(proxy, "connection") == 0
    monkeypatch.setattr(connection_limits, "IDLE_S", 0.0)
    await late.got(100)
    for wire in wires:
        await wire.end()
    assert (connections(proxy), overload(proxy, "connection")) == (1, 4)


# What one connection may send


@pytest_twisted.ensureDeferred
async def test_large_head(sim, proxy) -> None:
    """A head over 16 kB is a 400 and the end of the connection."""
    wire = await proxy.wire("/health", *(f"X-{n}: {'x' * 1000}" for n in range(17)))
    assert await wire.end() in {ConnectionDone, ConnectionLost}
    assert wire.status == 400


@pytest.mark.parametrize("framing", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
@pytest_twisted.ensureDeferred
async def test_large_body(sim, proxy, framing, monkeypatch) -> None:
    """A body nobody asked for is not kept; one that is too large or does not end is a refusal."""
    monkeypatch.setattr(connection_limits, "KEEP_ALIVE_S", 0.5)
    wire = await proxy.wire()
    wire.get("/health", framing, method="POST")
    piece = b"x" * 10_000
    for _ in range(10):
        chunked = b"%x\r\n%s\r\n" % (len(piece), piece)
        wire.transport.write(chunked if "chunked" in framing else piece)
    assert await wire.end() in {ConnectionDone, ConnectionLost}


@pytest_twisted.ensureDeferred
async def test_pipelined(sim, proxy) -> None:
    """Requests sent ahead are answered in turn; past 16 kB of them no more are read meanwhile."""
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    head = "GET {} HTTP/1.1\r\nHost: test\r\nX: " + "x" * 900 + "\r\n\r\n"
    with socket.create_connection((LOCAL, proxy.port)) as client:
        client.setblocking(False)
        client.send(head.format(fronts(sim, 1)[0]).encode())
        await until(lambda: proxy.waiting() == 1, "it waits")
        # More than the system holds for a connection that nobody reads.
        ahead = head.format("/health").encode() * 20_000
        sent = client.send(ahead)
        assert sent < len(ahead)
        for _ in range(100):
            # In each of these turns it could have read 64 kB.
            assert (await proxy.get("/health")).status == 200
        taken = sent - queued(client)
        # One read of the socket more than the bound, whatever is sent.
        assert taken <= 16_384 + 65_536
        with pytest.raises(BlockingIOError):
            client.recv(1)
        sim.faults.gates.open("hold")
        answers = bytearray()

        def read() -> int:
            with contextlib.suppress(BlockingIOError):
                answers.extend(client.recv(1 << 20))
            return answers.count(b"HTTP/1.1 200")

        complete = sent // len(head.format("/health"))
        await until(lambda: read() == complete + 1, "all are answered")


def queued(client: socket.socket) -> int:
    """How much of what was sent on a connection to this machine lies in the system's buffers."""
    ours, theirs = (f"{name[1]:04X}" for name in (client.getsockname(), client.getpeername()))
    total = 0
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        words = line.split()
        ends = [word.rpartition(":")[2] for word in words[1:3]]
        unsent, unread = (int(size, 16) for size in words[4].split(":"))
        if ends == [ours, theirs]:
            total += unsent
        elif ends == [theirs, ours]:
            total += unread
    return total


# An archive that asks to be left alone


@pytest.mark.parametrize("code", [429, 503])
@pytest_twisted.ensureDeferred
async def test_left_alone(sim, run, code) -> None:
    """However many ask, it sees the requests under way when it said so, and then none."""
    proxy = await run(COVER_ART_UPSTREAM_CONCURRENCY="4")
    sim.faults.add(Rule(hop="release", does=Status(code=code, retry_after="3600")))
    for _ in range(2):
        answers = [await d for d in [start(proxy.get(path)) for path in fronts(sim, 200)]]
        assert {answer.status for answer in answers} == {503}
        # Of an hour's wish ten minutes are honoured.
        assert all(400 <= int(answer["Retry-After"]) <= 600 for answer in answers)
        assert 1 <= sim.counts.requests("release") <= 4
    assert sum(sim.counts.requests(hop) for hop in HOPS) == sim.counts.requests("release")


@pytest_twisted.ensureDeferred
async def test_refused_by_all(sim, run) -> None:
    """With nobody listening, 200 clients are told so at once, and the archive is asked no more."""
    proxy = await run(COVER_ART_UPSTREAM_CONCURRENCY="4")
    for hop in HOPS:
        await sim.stop_hop(hop)
    answers = [await d for d in [start(proxy.get(path)) for path in fronts(sim, 200)]]
    assert {answer.status for answer in answers} == {503}
    assert all(1 <= int(answer["Retry-After"]) <= 60 for answer in answers)
    asked = proxy.metrics.value(
        "coverart_upstream_requests_total", hop="1", status="ConnectionRefusedError"
    )
    assert asked is not None
    assert 1 <= asked <= 4


@pytest_twisted.ensureDeferred
async def test_comes_back(sim, run) -> None:
    """After the pause the archive sees one request, and once it is answered all."""
    proxy = await run(COVER_ART_UPSTREAM_CONCURRENCY="20")
    paths = iter(fronts(sim, 200))
    sim.faults.add(Rule(hop="release", times=1, does=Status(code=503, retry_after="1")))
    refused = await proxy.get(next(paths))
    assert refused.status == 503
    # As a client does that heeds what it is told.
    await deferLater(reactor, int(refused["Retry-After"]))
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    for expected in (1, 20):
        asking = [start(proxy.get(next(paths))) for _ in range(20)]
        await until(
            lambda asking=asking: (
                sum(d.called for d in asking) + sim.faults.gates.waiting("hold") == 20
            ),
            "each is sent or told",
        )
        assert sim.faults.gates.waiting("hold") == expected
        sim.faults.gates.release("hold")
        answers = [await d for d in asking]
        assert [answer.status for answer in answers].count(200) == expected
        assert {answer.status for answer in answers} <= {200, 503}
        assert all(answer["Retry-After"] or answer.status == 200 for answer in answers)
