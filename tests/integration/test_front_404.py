"""404s that the shipped nginx answers by itself: which, for how long, and what ends them."""

from __future__ import annotations

import pytest_twisted

from coverart.simulator.faults import Rule, Stall
from tests.support.nginx_server import ACCEL, NginxServer
from tests.support.running import reached
from tests.support.talk import Answer, becomes

TOKEN = {"COVER_ART_ADMIN_TOKEN": "secret"}
BY_NGINX = (404, "ABSENT", "nginx-cache")
BY_THE_APP = (404, "ABSENT", "coverart")


def told(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer["X-Cache-Status"], answer["X-Served-By"]


async def kept(front: NginxServer, path: str, method: str = "GET") -> Answer:
    """Ask until nginx answers by itself; give that answer."""
    assert told(await front.get(path, method)) == (404, "MISS", "coverart")
    # Once more it asks the app, and keeps what it is told.
    assert told(await front.get(path, method)) == BY_THE_APP
    answer = await front.get(path, method)
    assert told(answer) == BY_NGINX
    return answer


@pytest_twisted.ensureDeferred
async def test_the_same_answer(sim, run, nginx) -> None:
    """What nginx answers is what the app does, for every host and for HEAD; the app may be gone."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["no_art"]
    first = await proxy.get(path)
    await proxy.get(path)
    asked = await front.get(path)
    await front.get(path)
    held = await front.get(path)
    assert told(held) == BY_NGINX
    own = ("date", "x-served-by", "connection", "x-request-id")
    assert held.body == asked.body == first.body
    # Nobody is given the id of another's request.
    assert len({answer["X-Request-ID"] for answer in (first, asked, held)} - {""}) == 3
    assert [(k, v) for k, v in sorted(held.named.items()) if k not in own] == [
        (k, v) for k, v in sorted(asked.named.items()) if k not in own
    ]
    for _ in range(2):
        await front.get(path, "HEAD")
    head = await front.get(path, "HEAD")
    assert (told(head), head.body) == (BY_NGINX, b"")
    for more in ({"If-None-Match": "*"}, {"Range": "bytes=0-9"}, {"Host": "other.test"}):
        answer = await front.get(path, **{k.replace("-", "_"): v for k, v in more.items()})
        assert (told(answer), answer.body) == (BY_NGINX, first.body), more
    await proxy.stop()
    assert told(await front.get(path)) == BY_NGINX


@pytest_twisted.ensureDeferred
async def test_found(sim, run, nginx) -> None:
    """A cover that the app found since is sent at once, though nginx still has the 404."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    item = sim.catalogue.release(5)
    path = f"/release/{item.mbid}/front-250"
    await kept(front, path)
    sim.catalogue.add_art(item.mbid)
    proxy.now.advance(4000)
    # Who asks the app itself has it look again.
    assert (await proxy.get(path)).status == 404
    await proxy.settled()
    found = await front.get(path)
    assert told(found) == (200, "HIT", "nginx-cache")


@pytest_twisted.ensureDeferred
async def test_purged(sim, run, nginx) -> None:
    """After a purge the archive is asked again as soon as the seconds are over that nginx keeps a 404."""
    proxy = await run(**ACCEL, **TOKEN)
    front = await nginx(proxy)
    item = sim.catalogue.release(5)
    path = f"/release/{item.mbid}/front-250"
    await kept(front, path)
    sim.catalogue.add_art(item.mbid)
    purge = await front.get(f"/admin/purge{path}", "POST", Authorization="Bearer secret")
    assert purge.status == 200
    answer = await becomes(
        lambda: front.get(path), lambda answer: told(answer) != BY_NGINX, "nginx asks again"
    )
    assert (answer.status, answer["X-Cache-Status"]) == (200, "MISS")


@pytest_twisted.ensureDeferred
async def test_spellings_share_nothing(sim, run, nginx) -> None:
    """What is no usual spelling of a cover, or no cover, is always asked of the app."""
    proxy = await run(**ACCEL, **TOKEN)
    front = await nginx(proxy)
    item = sim.catalogue.release(5)
    path = f"/release/{item.mbid}/front-250"
    await kept(front, path)
    held = sim.catalogue.examples()["thumbnail"]
    assert (await front.get(held)).status == 200
    for other in (
        f"/release/{item.mbid.upper()}/front-250",
        f"/release/{item.mbid}/%66ront-250",
        f"//release/{item.mbid}/front-250",
        f"/release/{item.mbid}/x/../front-250",
        f"/release/{item.mbid}/",
        f"/release/{item.mbid}/front-251",
        "/.incoming/-",
        "/nothing",
    ):
        answers = [await front.get(other) for _ in range(4)]
        assert {answer["X-Served-By"] for answer in answers} == {"coverart"}, other
    # Other usual spellings of the same thing are the same thing.
    for same in (f"{path}.jpg", f"{path}?x"):
        assert told(await front.get(same)) == BY_NGINX
    for thing in (f"{held}?x", f"/release/{item.mbid}/back-250", f"/release/{item.mbid}/front"):
        assert told(await front.get(thing)) != BY_NGINX, thing
    for _ in range(4):
        for operators in ("/metrics", "/cache-status", f"/admin/purge{path}", "/health", "/ready"):
            answer = await front.get(operators)
            assert answer["X-Served-By"] != "nginx-cache" or answer.status == 403, operators
    post = await front.get(path, "POST")
    assert (post.status, post["X-Served-By"]) == (405, "coverart")


@pytest_twisted.ensureDeferred
async def test_misses_are_as_before(sim, run, nginx) -> None:
    """What is asked for several times while it is fetched flows to all, and a range is a range."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    item = sim.catalogue.release(11)
    path = f"/release/{item.mbid}/front"
    body = sim.studio.archive_bytes(item.front, None)
    sim.faults.add(Rule(hop="node", does=Stall(after_bytes=1_000_000, gate="rest")))
    wires = [await front.wire(path, "Connection: close") for _ in range(3)]
    part = await front.wire(path, "Connection: close", "Range: bytes=0-9")
    await reached(sim, "rest")
    for wire in wires:
        await wire.got(1_000_000)
    sim.faults.gates.open("rest")
    for wire in (*wires, part):
        await wire.end()
    assert {(wire.status, wire.header("X-Cache-Status")) for wire in wires} == {(200, "MISS")}
    assert all(wire.body == body for wire in wires)
    assert (part.status, part.body) == (206, body[:10])
    assert sim.counts.requests() == 3
