"""
One client starts so many fetches in a minute, through the shipped nginx and without it.

Clients have addresses of their own by X-Forwarded-For, from a proxy that nginx, or the app, trusts.
"""

from __future__ import annotations

import re

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol

from coverart.simulator.faults import Gate, Rule, Status
from tests.support.nginx_server import ACCEL
from tests.support.running import Machine, Proxy, reached
from tests.support.talk import LOCAL, Answer, Wire, connect, start, until, within

ONE, OTHER, NEAR = "192.0.2.1", "198.51.100.2", "10.0.0.9"
NOTHING = "/release/00000000-0000-4000-8000-000000000000/front"


def fronts(sim, first: int, count: int) -> list[str]:
    """Different covers."""
    items = [sim.catalogue.release(n) for n in range(60)]
    usable = [each for each in items if each.front is not None and not each.front.underived]
    return [f"/release/{each.mbid}/front-250" for each in usable[first : first + count]]


def refused(proxy: Proxy) -> float | None:
    return proxy.metrics.value("coverart_overload_total", what="share")


async def statuses(front, paths: list[str], client: str) -> list[int]:
    """How a client's requests are answered, one after the other."""
    return [(await front.get(path, X_Forwarded_For=client)).status for path in paths]


def check_refusal(answer: Answer, most: int) -> None:
    """Everything that a client is told that may start no more."""
    assert answer.status == 429
    wait_s = int(answer["Retry-After"])
    assert 1 <= wait_s <= 60 / most
    assert answer["Cache-Control"] == "no-store"
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert answer["X-Served-By"] == "coverart"
    assert (answer["ETag"], answer["X-Cache-Status"]) == ("", "")
    assert answer.json == {
        "error": f"too many covers fetched for this address, {most} a minute may be: "
        f"try again in {wait_s} s"
    }


@pytest_twisted.ensureDeferred
async def test_through_nginx(sim, run, nginx, lines) -> None:
    """
    Past its share a client gets 429 for what would be fetched, and nothing else changes.

    What is held, remembered 404s and what others fetched it gets; others are as before.
    """
    machine = Machine()
    proxy = await run(machine=machine, COVER_ART_FETCHES_PER_MINUTE="3", **ACCEL)
    front = await nginx(proxy, NGINX_TRUSTED_PROXIES=LOCAL)
    first, second, cold, others, late = fronts(sim, 0, 5)
    assert await statuses(front, [first, second, NOTHING], ONE) == [200, 200, 404]
    await proxy.settled()
    for _ in range(3):
        check_refusal(await front.get(cold, X_Forwarded_For=ONE), 3)
    head = await front.get(cold, "HEAD", X_Forwarded_For=ONE)
    assert (head.status, head.body) == (429, b"")
    listing = cold.removesuffix("front-250")
    assert (await front.get(listing, X_Forwarded_For=ONE)).status == 429
    assert refused(proxy) == 5
    told = [line for line in lines if line.startswith(f"{ONE} starts more than 3 fetches")]
    assert len(told) == 1
    asked = sim.counts.requests()
    # Held, by nginx and by the app: a range that nginx leaves to it; and a remembered 404.
    for path, headers, status, came in (
        (first, {}, 200, "HIT"),
        (second, {"Range": "bytes=5-9"}, 206, "HIT"),
        (NOTHING, {}, 404, "ABSENT"),
    ):
        answer = await front.get(path, X_Forwarded_For=ONE, **headers)
        assert (answer.status, answer["X-Cache-Status"]) == (status, came), path
    assert sim.counts.requests() == asked
    assert (await front.get(others, X_Forwarded_For=OTHER)).status == 200
    await proxy.settled()
    assert (await front.get(others, X_Forwarded_For=ONE)).status == 200
    machine.advance(20)
    assert await statuses(front, [late, cold], ONE) == [200, 429]
    machine.advance(60)
    assert (await front.get(cold, X_Forwarded_For=ONE)).status == 200
    assert proxy.metrics.value("coverart_answers_total", outcome="refused") == 6


@pytest_twisted.ensureDeferred
async def test_who_is_counted(sim, run, nginx) -> None:
    """
    Nothing that a client says makes it another; near addresses are not counted.

    In the rows: the connection's address and its headers. nginx trusts 127.0.0.2 and no other.
    """
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="2", **ACCEL)
    front = await nginx(proxy, NGINX_TRUSTED_PROXIES="127.0.0.2")
    paths = iter(fronts(sim, 0, 50))

    async def status(source: str, *said: str) -> int:
        wire = await connect(front.port, source)
        wire.get(next(paths), "Connection: close", *said)
        await wire.end()
        return wire.status

    said_one, six = f"X-Forwarded-For: {ONE}", "X-Forwarded-For: 2001:db8:1:2::1"
    for who in (said_one, six):
        assert [await status("127.0.0.2", who) for _ in range(3)] == [200, 200, 429]
    for said in (
        [f"X-Forwarded-For: {OTHER}, {ONE}"],
        [f"X-Forwarded-For: {NEAR}, {ONE}"],
        [f"X-Forwarded-For: rubbish, {ONE}"],
        [f"X-Forwarded-For: {ONE}, 127.0.0.2"],
        [f"X-Forwarded-For: ::ffff:{ONE}"],
        [f"X-Forwarded-For: {OTHER}", said_one],
        [said_one, f"X-Real-IP: {OTHER}", f"Forwarded: for={OTHER}", f"X-Client-IP: {OTHER}"],
        ["X-Forwarded-For: 2001:db8:1:2:3:4:5:6"],
    ):
        assert await status("127.0.0.2", *said) == 429, said
    assert await status("127.0.0.2", "X-Forwarded-For: 2001:db8:1:3::1") == 200
    # Not trusted: its word counts for nothing, and its own address is near.
    assert {await status("127.0.0.3", said_one) for _ in range(4)} == {200}
    assert {await status("127.0.0.2", f"X-Forwarded-For: {NEAR}") for _ in range(4)} == {200}
    assert {await status(LOCAL) for _ in range(4)} == {200}


@pytest_twisted.ensureDeferred
async def test_app_alone(sim, run) -> None:
    """The app without nginx believes its own trusted proxies, of many lines the last address."""
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="1")
    wary = await run(root="wary", COVER_ART_FETCHES_PER_MINUTE="1", COVER_ART_TRUSTED_PROXIES="::1")
    first, *cold = fronts(sim, 0, 6)
    assert (await proxy.get(first, X_Forwarded_For=ONE)).status == 200
    for said in (
        [f"X-Forwarded-For: {ONE}:4711"],
        [f"X-Forwarded-For: {OTHER}", f"X-Forwarded-For: {NEAR},,{ONE}"],
        [*[f"X-Forwarded-For: {OTHER}"] * 200, f"X-Forwarded-For: {ONE},{LOCAL},::1"],
        ["X-Forwarded-For: \x7f\x80\xff", f"X-Forwarded-For: {ONE}"],
    ):
        wire = await proxy.wire(cold[0], "Connection: close", *said)
        await wire.end()
        assert wire.status == 429, said
    assert await statuses(wary, [first, *cold], ONE) == [200] * 6


@pytest_twisted.ensureDeferred
async def test_unix_socket(sim, run, tmp_path) -> None:
    """Who connects by a Unix socket is a trusted proxy, and not counted where it names no client."""
    path = str(tmp_path / "socket")
    await run(
        COVER_ART_LISTEN=f"unix:{path}",
        COVER_ART_FETCHES_PER_MINUTE="1",
        COVER_ART_TRUSTED_PROXIES="192.0.2.7",
    )
    cold = iter(fronts(sim, 0, 9))

    async def status(*said: str) -> int:
        wire = Wire()
        await connectProtocol(UNIXClientEndpoint(reactor, path), wire)
        wire.get(next(cold), "Connection: close", *said)
        await wire.end()
        return wire.status

    assert [await status(f"X-Forwarded-For: {ONE}") for _ in range(2)] == [200, 429]
    assert await status(f"X-Forwarded-For: {ONE}, 192.0.2.7") == 429
    assert [await status() for _ in range(3)] == [200] * 3
    assert [await status("X-Forwarded-For: unix:") for _ in range(3)] == [200] * 3


@pytest_twisted.ensureDeferred
async def test_at_once(sim, run, nginx) -> None:
    """Of many requests at the same moment as many start a fetch as may; the others are told at once."""
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="3", **ACCEL)
    front = await nginx(proxy, NGINX_TRUSTED_PROXIES=LOCAL)
    sim.faults.add(Rule(hop="release", does=Gate(name="g")))
    asking = [start(front.get(path, X_Forwarded_For=ONE)) for path in fronts(sim, 0, 12)]
    await until(lambda: sum(each.called for each in asking) == 9, "nine are refused")
    waiting = [each for each in asking if not each.called]
    for each in asking:
        if each not in waiting:
            check_refusal(await each, 3)
    await reached(sim, "g", 3)
    sim.faults.gates.open("g")
    assert [(await within(each)).status for each in waiting] == [200] * 3


@pytest_twisted.ensureDeferred
async def test_joined(sim, run) -> None:
    """Who waits on a fetch that another started, or that it started itself, starts none."""
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="1")
    wanted, cold, other = fronts(sim, 0, 3)
    sim.faults.add(Rule(hop="release", path=wanted.removesuffix("-250") + "*", does=Gate(name="g")))
    asking = [start(proxy.get(wanted, X_Forwarded_For=ONE)) for _ in range(5)]
    await reached(sim, "g")
    await until(lambda: proxy.waiting() == 5, "all of them wait")
    asking += [start(proxy.get(wanted, X_Forwarded_For=OTHER)) for _ in range(5)]
    await until(lambda: proxy.waiting() == 10, "all of them wait")
    assert (await proxy.get(cold, X_Forwarded_For=ONE)).status == 429
    # Ten waited, one of them on its own account.
    assert (await proxy.get(other, X_Forwarded_For=OTHER)).status == 200
    sim.faults.gates.open("g")
    assert {(await within(each)).status for each in asking} == {200}


@pytest_twisted.ensureDeferred
async def test_joined_elsewhere(sim, run, redis) -> None:
    """Who waits on a fetch of another process has started none either."""
    settings = {"COVER_ART_FETCHES_PER_MINUTE": "1", "COVER_ART_REDIS_URL": redis.url}
    here, there = await run(**settings), await run(**settings)
    wanted, cold, colder = fronts(sim, 0, 3)
    sim.faults.add(Rule(hop="release", path=wanted.removesuffix("-250") + "*", does=Gate(name="g")))
    fetching = start(here.get(wanted, X_Forwarded_For=OTHER))
    await reached(sim, "g")
    waiting = start(there.get(wanted, X_Forwarded_For=ONE))
    await until(lambda: there.waiting() == 1, "it waits for the other process")
    sim.faults.gates.open("g")
    for each in (fetching, waiting):
        assert (await within(each)).status == 200
    assert sim.counts.requests("release") == 1
    assert await statuses(there, [cold, colder], ONE) == [200, 429]


@pytest_twisted.ensureDeferred
async def test_left(sim, run) -> None:
    """Who starts fetches and leaves has started them: the archive was asked."""
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="2")
    sim.faults.add(Rule(hop="release", does=Gate(name="g")))
    *left, cold = fronts(sim, 0, 3)
    for number, path in enumerate(left, 1):
        wire = await proxy.wire(path, f"X-Forwarded-For: {ONE}")
        await reached(sim, "g", number)
        wire.leave()
        await wire.end()
    assert (await proxy.get(cold, X_Forwarded_For=ONE)).status == 429
    sim.faults.gates.open("g")


@pytest_twisted.ensureDeferred
async def test_archive_not_asked(sim, run) -> None:
    """While the archive is left alone after a failure, nobody's share is spent."""
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="3")
    sim.faults.add(Rule(hop="release", does=Status(code=503, retry_after="1")))
    paths = fronts(sim, 0, 9)
    assert await statuses(proxy, paths[:8], ONE) == [503] * 8
    assert sim.counts.requests() == 1
    assert refused(proxy) == 0


@pytest_twisted.ensureDeferred
async def test_redirect_mode(sim, run) -> None:
    """Asking where a name points is a question to the archive, and counts; what is known does not."""
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="2", COVER_ART_IMAGE_MODE="redirect")
    paths = fronts(sim, 0, 3)
    assert await statuses(proxy, [*paths, *paths], ONE) == [307, 307, 429, 307, 307, 429]
    check_refusal(await proxy.get(paths[2], X_Forwarded_For=ONE), 2)
    # Known by now, but one.
    assert await statuses(proxy, paths, OTHER) == [307, 307, 307]


@pytest_twisted.ensureDeferred
async def test_on_the_disk(sim, run, redis) -> None:
    """While Redis is away the disk answers, also to who may start no more fetches."""
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="2", COVER_ART_REDIS_URL=redis.url)
    first, second, cold = fronts(sim, 0, 3)
    assert await statuses(proxy, [first, second, cold], ONE) == [200, 200, 429]
    await proxy.settled()
    redis.kill()
    for path in (first, second):
        answer = await proxy.get(path, X_Forwarded_For=ONE)
        assert (answer.status, answer["X-Cache-Status"]) == (200, "HIT")
    assert (await proxy.get(cold, X_Forwarded_For=ONE)).status == 429


@pytest_twisted.ensureDeferred
async def test_off(sim, run) -> None:
    """With 0 everyone may start as many as they like."""
    proxy = await run(COVER_ART_FETCHES_PER_MINUTE="0")
    assert await statuses(proxy, fronts(sim, 0, 12), ONE) == [200] * 12


@pytest_twisted.ensureDeferred
async def test_processes(sim, spawn, redis) -> None:
    """Each process counts for itself: two let a client start twice as many at most, and no more."""
    child = spawn(
        COVER_ART_PROCESSES="2", COVER_ART_REDIS_URL=redis.url, COVER_ART_FETCHES_PER_MINUTE="4"
    )
    await child.ready()
    answers = [await child.get(path, X_Forwarded_For=ONE) for path in fronts(sim, 0, 30)]
    served = [answer.status for answer in answers].count(200)
    assert 4 <= served <= 8
    for answer in answers:
        if answer.status != 200:
            check_refusal(answer, 4)
    told = re.findall(rf"{ONE} starts more than 4 fetches", child.log.read_text())
    assert 1 <= len(told) <= 2
