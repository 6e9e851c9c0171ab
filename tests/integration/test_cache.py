"""
Stories of the whole cache, told by what reached the archive.

In the manner of varnishtest: a scripted archive, the proxy, a few clients, then exact counts.
Clients meet at gates, not by sleeping, and the time of day is moved by hand.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.web.client import ResponseFailed

from coverart.archive.paths import parse
from coverart.simulator import answers
from coverart.simulator.answers import file_name
from coverart.simulator.catalogue import Image, Item
from coverart.simulator.faults import (
    HOPS,
    Body,
    Chunked,
    ContentType,
    Cut,
    Gate,
    Gzip,
    Html,
    NoLength,
    Redirect,
    RedirectLoop,
    Reset,
    Rule,
    Stall,
    Status,
    WrongLength,
)
from coverart.simulator.service import Simulator
from tests.support.contents import nothing_kept
from tests.support.drawings import whole
from tests.support.running import Machine, free_port, reached
from tests.support.talk import LOCAL, Answer, ask, start, until

DATA = Path(__file__).parent.parent / "data"
DAY_S = 86_400
LARGE = 11


def hops(sim: Simulator) -> tuple[int, int, int]:
    """Requests at hop 1, at archive.org and at the nodes since counting began."""
    one = sim.counts.requests("release") + sim.counts.requests("event")
    return one, sim.counts.requests("archive"), sim.counts.requests("node")


def told(answer: Answer) -> tuple[int, str]:
    return answer.status, answer["X-Cache-Status"]


def check(
    sim: Simulator, answer: Answer, status: str, image: Image | None, size: int | None = 250
) -> None:
    """A whole image that came about in this way."""
    assert told(answer) == (200, status)
    assert answer.body == whole(sim, image, size)


# Hits


@pytest_twisted.ensureDeferred
async def test_miss_then_hit(sim, proxy) -> None:
    """The first request costs one request a hop, the second none at any."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    check(sim, await proxy.get(path), "MISS", item.front)
    assert hops(sim) == (1, 1, 1)
    check(sim, await proxy.get(path), "HIT", item.front)
    assert hops(sim) == (1, 1, 1)


@pytest_twisted.ensureDeferred
async def test_one_file(sim, proxy) -> None:
    """A front, its id and its group's front are one file on disk, fetched once."""
    item, group = sim.catalogue.release(0), sim.catalogue.release_group(0)
    for path, cost in (
        (f"/release-group/{group.mbid}/front-250", (1, 1, 1)),
        (f"/release/{item.mbid}/front-250", (1, 0, 0)),
        (f"/release/{item.mbid}/{item.front.id}-250", (0, 0, 0)),
    ):
        sim.counts.clear()
        answer = await proxy.stored(path)
        assert answer.body == whole(sim, item.front)
        assert hops(sim) == cost
    a, b = item.mbid, group.mbid
    assert proxy.files() == [f"release/{a[0]}/{a[:2]}/{a[:3]}/{a}_{item.front.id}_250.jpg"]
    assert proxy.links() == [
        f"release-group/{b[0]}/{b[:2]}/{b[:3]}/{b}_front_250.jpg",
        f"release/{a[0]}/{a[:2]}/{a[:3]}/{a}_front_250.jpg",
    ]
    names = proxy.files() + proxy.links()
    assert len({(proxy.root / name).stat().st_ino for name in names}) == 1
    assert not any(os.path.isabs(os.readlink(proxy.root / name)) for name in proxy.links())


@pytest_twisted.ensureDeferred
async def test_second_size(sim, proxy) -> None:
    """A second size of a known cover costs one request, to the node that had the first."""
    item = sim.catalogue.release(0)
    await proxy.stored(f"/release/{item.mbid}/front-250")
    for size, suffix in ((500, "-500"), (1200, "-1200"), (None, "")):
        sim.counts.clear()
        answer = await proxy.get(f"/release/{item.mbid}/front{suffix}")
        assert answer.body == whole(sim, item.front, size)
        assert hops(sim) == (0, 0, 1)


@pytest_twisted.ensureDeferred
async def test_node_that_moved(sim, proxy) -> None:
    """A remembered node that fails is asked in vain once; archive.org knows the way."""
    item = sim.catalogue.release(0)
    await proxy.stored(f"/release/{item.mbid}/front-250")
    for fault in (Status(code=404), Status(code=403), Html(), Gzip()):
        sim.counts.clear()
        for name in proxy.files():
            (proxy.root / name).unlink()
        sim.faults.add(Rule(hop="node", times=1, does=fault))
        check(sim, await proxy.stored(f"/release/{item.mbid}/front-250"), "MISS", item.front)
        assert hops(sim) == (0, 1, 2), fault


@pytest_twisted.ensureDeferred
async def test_requests_say_who_asks(sim, run) -> None:
    """Every hop sees the name, version and contact of this proxy, and no wish for encodings."""
    proxy = await run(COVER_ART_CONTACT="me@example.org")
    await proxy.get(
        sim.catalogue.examples()["thumbnail"], Cookie="a=b", User_Agent="x", Range="bytes=0-3"
    )
    assert len(sim.counts.recent) == 3
    for seen in sim.counts.recent:
        name, _, contact = seen.header("User-Agent").partition(" ")
        assert name.startswith("coverart/")
        assert contact == "( me@example.org )"
        assert seen.header("Accept-Encoding") == "identity"
        assert seen.header("Cookie") is None
        assert seen.header("Range") is None
        assert seen.method == "GET"


# Joined misses


@pytest_twisted.ensureDeferred
async def test_five_hundred_clients(sim, proxy) -> None:
    """500 clients for one cold cover are one fetch; half leave midway and the others get it."""
    item = sim.catalogue.release(0)
    sim.faults.add(Rule(hop="node", does=Gate(name="hold")))
    wires = [await proxy.wire(f"/release/{item.mbid}/front-250") for _ in range(500)]
    await reached(sim, "hold")
    await until(lambda: proxy.waiting() == 500, "all 500 wait")
    for wire in wires[::2]:
        wire.leave()
    await until(lambda: proxy.waiting() == 250, "half of them left")
    sim.faults.gates.open("hold")
    body = whole(sim, item.front)
    for wire in wires[1::2]:
        await wire.got(len(body))
        await until(lambda wire=wire: len(wire.body) == len(body), "the whole image")
        assert wire.status == 200
        assert wire.header("X-Cache-Status") == "MISS"
        assert wire.body == body
        wire.leave()
    assert hops(sim) == (1, 1, 1)
    sim.counts.clear()
    check(sim, await proxy.get(f"/release/{item.mbid}/front-250"), "HIT", item.front)
    assert hops(sim) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_everybody_leaves(sim, proxy) -> None:
    """A fetch goes on when its only client leaves, and serves the next one."""
    item = sim.catalogue.release(0)
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    wire = await proxy.wire(f"/release/{item.mbid}/front-250")
    await reached(sim, "hold")
    wire.leave()
    await until(lambda: proxy.waiting() == 0, "the client is seen to have left")
    sim.faults.gates.open("hold")
    await proxy.settled()
    check(sim, await proxy.get(f"/release/{item.mbid}/front-250"), "HIT", item.front)
    assert hops(sim) == (1, 1, 1)


@pytest_twisted.ensureDeferred
async def test_names_of_one_image_meet(sim, proxy) -> None:
    """A front, its id and its group's front asked for at once download one file once."""
    item, group = sim.catalogue.release(0), sim.catalogue.release_group(0)
    sim.faults.add(Rule(hop="node", does=Gate(name="hold")))
    asking = [
        start(proxy.get(path))
        for path in (
            f"/release/{item.mbid}/front-250",
            f"/release/{item.mbid}/{item.front.id}-250",
            f"/release-group/{group.mbid}/front-250",
        )
    ]
    await reached(sim, "hold")
    await until(lambda: proxy.waiting() == 3 and hops(sim)[0] == 3, "all three asked hop 1")
    sim.faults.gates.open("hold")
    for answer in asking:
        check(sim, await answer, "MISS", item.front)
    assert hops(sim) == (3, 1, 1)
    await proxy.settled()
    assert len(proxy.files()) == 1


@pytest_twisted.ensureDeferred
async def test_sizes_of_one_front_meet(sim, proxy) -> None:
    """Three sizes of one front asked for at once ask hop 1 once."""
    item = sim.catalogue.release(0)
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    asking = [start(proxy.get(f"/release/{item.mbid}/front-{size}")) for size in (250, 500, 1200)]
    await until(lambda: proxy.waiting() == 3, "all three wait")
    sim.faults.gates.open("hold")
    for answer, size in zip(asking, (250, 500, 1200), strict=True):
        check(sim, await answer, "MISS", item.front, size)
    assert hops(sim)[0] == 1
    assert hops(sim)[2] == 3


@pytest_twisted.ensureDeferred
async def test_all_waiters_get_the_error(sim, proxy) -> None:
    """Whoever waits is told of the failure at once, with one request a hop for all of them."""
    path = sim.catalogue.examples()["thumbnail"]
    sim.faults.add(Rule(hop="node", does=(Gate(name="hold"), Html())))
    asking = [start(proxy.get(path)) for _ in range(20)]
    await until(lambda: proxy.waiting() == 20, "all wait")
    sim.faults.gates.open("hold")
    answered = [await each for each in asking]
    assert {answer.status for answer in answered} == {502}
    said = {answer.json["error"] for answer in answered}
    (host,) = {answer.json["host"] for answer in answered}
    assert host in {f"{LOCAL}:{sim.ports[node]}" for node in ("node1", "node2")}
    assert said == {f"{host} gave no usable answer; the next request asks it again"}
    # Each of them has an id of its own, though they waited for one fetch.
    assert len({answer["X-Request-ID"] for answer in answered}) == 20
    assert hops(sim) == (1, 1, 1)
    await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_all_waiters_get_the_absence(sim, proxy) -> None:
    """A cold 404 for many is one request."""
    path = sim.catalogue.examples()["no_art"]
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    asking = [start(proxy.get(path)) for _ in range(20)]
    await until(lambda: proxy.waiting() == 20, "all wait")
    sim.faults.gates.open("hold")
    assert {told(await each) for each in asking} == {(404, "MISS")}
    assert hops(sim) == (1, 0, 0)


# Absences


@pytest_twisted.ensureDeferred
async def test_absence(sim, proxy) -> None:
    """A 404 is remembered for an hour, then still answered at once while the archive is asked."""
    item = sim.catalogue.release(5)
    path = f"/release/{item.mbid}/front-250"
    assert told(await proxy.get(path)) == (404, "MISS")
    sim.counts.clear()
    added = sim.catalogue.add_art(item.mbid)
    proxy.now.advance(3500)
    assert told(await proxy.get(path)) == (404, "ABSENT")
    assert hops(sim) == (0, 0, 0)
    proxy.now.advance(200)
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    assert told(await proxy.get(path)) == (404, "ABSENT")
    await reached(sim, "hold")
    sim.faults.gates.open("hold")
    await proxy.settled()
    assert hops(sim) == (1, 1, 1)
    check(sim, await proxy.get(path), "HIT", added)


@pytest_twisted.ensureDeferred
async def test_absence_confirmed(sim, proxy) -> None:
    """A 404 that is confirmed counts for another hour; one long past its time is not served."""
    item = sim.catalogue.release(5)
    path = f"/release/{item.mbid}/front-250"
    await proxy.get(path)
    proxy.now.advance(4000)
    await proxy.get(path)
    await proxy.settled()
    assert hops(sim) == (2, 0, 0)
    proxy.now.advance(3000)
    assert told(await proxy.get(path)) == (404, "ABSENT")
    await proxy.settled()
    assert hops(sim) == (2, 0, 0)
    proxy.now.advance(2 * DAY_S)
    added = sim.catalogue.add_art(item.mbid)
    check(sim, await proxy.get(path), "MISS", added)


@pytest_twisted.ensureDeferred
async def test_absence_outlives_the_archive(sim, proxy) -> None:
    """A remembered 404 is served past its time while the archive is down."""
    path = sim.catalogue.examples()["no_art"]
    await proxy.get(path)
    proxy.now.advance(4000)
    for hop in HOPS:
        await sim.stop_hop(hop)
    assert told(await proxy.get(path)) == (404, "ABSENT")
    await proxy.settled()
    assert told(await proxy.get(path)) == (404, "ABSENT")


@pytest_twisted.ensureDeferred
async def test_thumbnail_not_derived_yet(sim, run) -> None:
    """A size that is not there yet is a 404 for that size only, and comes when it is derived."""
    proxy = await run(COVER_ART_SUBSTITUTE_MAX_SIZE="0")
    item = sim.catalogue.release(10)
    base = f"/release/{item.mbid}/front"
    assert told(await proxy.get(f"{base}-1200")) == (404, "MISS")
    check(sim, await proxy.get(base), "MISS", item.front, None)
    check(sim, await proxy.get(f"{base}-250"), "MISS", item.front)
    assert told(await proxy.get(f"{base}-1200")) == (404, "ABSENT")
    by_id = await proxy.get(f"/release/{item.mbid}/{item.front.id}-1200")
    assert told(by_id) == (404, "ABSENT")
    sim.catalogue.derive(item.mbid)
    sim.counts.clear()
    proxy.now.advance(290)
    assert told(await proxy.get(f"{base}-1200")) == (404, "ABSENT")
    assert hops(sim) == (0, 0, 0)
    proxy.now.advance(20)
    assert told(await proxy.get(f"{base}-1200")) == (404, "ABSENT")
    await proxy.settled()
    check(sim, await proxy.get(f"{base}-1200"), "HIT", item.front, 1200)
    assert (await proxy.get(f"/release/{item.mbid}/{item.front.id}-1200")).status == 200


# Aliases and listings that age


@pytest_twisted.ensureDeferred
async def test_alias_confirmed(sim, proxy) -> None:
    """An expired front is served at once and confirmed by one small request."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.stored(path)
    sim.counts.clear()
    proxy.now.advance(DAY_S - 60)
    check(sim, await proxy.get(path), "HIT", item.front)
    assert hops(sim) == (0, 0, 0)
    proxy.now.advance(120)
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    for _ in range(5):
        check(sim, await proxy.get(path), "STALE", item.front)
    await reached(sim, "hold")
    sim.faults.gates.open("hold")
    await proxy.settled()
    assert hops(sim) == (1, 0, 0)
    check(sim, await proxy.get(path), "HIT", item.front)
    assert hops(sim) == (1, 0, 0)


@pytest_twisted.ensureDeferred
async def test_front_changed(sim, proxy) -> None:
    """A front that became another image: the old at once, then the new, and no old link stays."""
    item = sim.catalogue.release(0)
    base = f"/release/{item.mbid}/front"
    for suffix in ("-250", "-500", ""):
        await proxy.get(base + suffix)
    await proxy.settled()
    assert len(proxy.links()) == 3
    sim.catalogue.set_front(item.mbid, item.back.id)
    proxy.now.advance(DAY_S + 1)
    sim.counts.clear()
    check(sim, await proxy.get(f"{base}-250"), "STALE", item.front)
    await proxy.settled()
    assert hops(sim) == (1, 0, 1)
    check(sim, await proxy.get(f"{base}-250"), "HIT", item.back)
    (link,) = proxy.links()
    assert str(item.back.id) in os.readlink(proxy.root / link)
    sim.counts.clear()
    check(sim, await proxy.get(f"{base}-500"), "MISS", item.back, 500)
    assert hops(sim) == (0, 0, 1)
    check(sim, await proxy.get(f"/release/{item.mbid}/{item.front.id}-250"), "HIT", item.front)


@pytest_twisted.ensureDeferred
async def test_front_changed_then_restart(sim, proxy) -> None:
    """After a change and a restart, the disk tells the new front, with no request."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.stored(path)
    sim.catalogue.set_front(item.mbid, item.back.id)
    proxy.now.advance(DAY_S + 1)
    await proxy.stored(path)
    await proxy.settled()
    sim.counts.clear()
    await proxy.restart()
    check(sim, await proxy.get(path), "HIT", item.back)
    assert hops(sim) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_new_front_can_not_be_had(sim, run) -> None:
    """A front that points elsewhere stays as it was until the new image is held."""
    machine = Machine()
    proxy = await run(machine=machine)
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.stored(path)
    sim.catalogue.set_front(item.mbid, item.back.id)
    proxy.now.advance(DAY_S + 1)
    number = sim.faults.add(Rule(hop="node", does=Html()))
    for _ in range(2):
        check(sim, await proxy.get(path), "STALE", item.front)
        await proxy.settled()
    sim.faults.remove(number)
    machine.advance(120)
    check(sim, await proxy.get(path), "STALE", item.front)
    await proxy.settled()
    check(sim, await proxy.get(path), "HIT", item.back)


@pytest_twisted.ensureDeferred
async def test_failed_refresh_pauses(sim, proxy) -> None:
    """After a refresh failed the archive is left alone for a while, and clients see no error."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.stored(path)
    proxy.now.advance(DAY_S + 1)
    sim.counts.clear()
    sim.faults.add(Rule(hop="release", does=Html()))
    for _ in range(5):
        check(sim, await proxy.get(path), "STALE", item.front)
        await proxy.settled()
    assert hops(sim)[0] == 1


@pytest_twisted.ensureDeferred
async def test_operators_refresh(sim, run) -> None:
    """What is held stays if the archive fails; then it is fetched anew, and goes with a 404."""
    proxy = await run(COVER_ART_ADMIN_TOKEN="t")  # noqa: S106
    item = sim.catalogue.release(0)
    names: set[str] = set()
    for path in (f"/release/{item.mbid}/{item.front.id}-250", f"/release/{item.mbid}/"):

        async def refresh(path: str = path) -> Answer:
            answer: Answer = await proxy.get(
                f"/admin/refresh{path}", "POST", authorization="Bearer t"
            )
            return answer

        held = await proxy.stored(path)
        (name,) = set(proxy.files()) - names
        names.add(name)
        was = (proxy.root / name).stat().st_ino
        number = sim.faults.add(Rule(hop="node", does=Html()))
        assert (await refresh()).status == 502
        assert (proxy.root / name).stat().st_ino == was
        again = await proxy.get(path)
        assert (again["x-cache-status"], again.body) == ("HIT", held.body)
        sim.faults.remove(number)
        assert (await refresh()).json == {"refreshed": True}
        assert (proxy.root / name).stat().st_ino != was
        assert (await proxy.get(path))["x-cache-status"] == "HIT"
        totals = await proxy.cache.index.totals()
        assert totals.size_bytes == sum((proxy.root / n).stat().st_size for n in proxy.files())
    sim.catalogue.remove_art(item.mbid)
    for path in (f"/release/{item.mbid}/{item.front.id}-250", f"/release/{item.mbid}/"):
        answer = await proxy.get(f"/admin/refresh{path}", "POST", authorization="Bearer t")
        assert answer.json == {"refreshed": False}, path
        assert (await proxy.get(path))["x-cache-status"] == "ABSENT"
    assert proxy.files() == []


@pytest_twisted.ensureDeferred
async def test_redirect_mode_asks_for_names_only(sim, run) -> None:
    """COVER_ART_IMAGE_MODE=redirect renews a name by hop 1, and fetches no image for it."""
    proxy = await run(COVER_ART_IMAGE_MODE="redirect")
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.get(path)
    sim.catalogue.set_front(item.mbid, item.back.id)
    sim.counts.clear()
    proxy.now.advance(DAY_S + 1)
    assert (await proxy.get(path))["x-cache-status"] == "STALE"
    await proxy.settled()
    renewed = await proxy.get(path)
    assert renewed["x-cache-status"] == "HIT"
    assert str(item.back.id) in renewed["location"]
    assert hops(sim) == (1, 0, 0)


@pytest_twisted.ensureDeferred
async def test_redirect_mode_after_serve_mode(sim, run) -> None:
    """A link that was made while names were served does not outlive the move of its name."""
    proxy = await run()
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.stored(path)
    assert len(proxy.links()) == 1
    await proxy.stop()
    later = await run("later", COVER_ART_IMAGE_MODE="redirect", COVER_ART_CACHE_DIR=str(proxy.root))
    sim.catalogue.set_front(item.mbid, item.back.id)
    later.now.advance(DAY_S + 1)
    assert (await later.get(path))["x-cache-status"] == "STALE"
    await later.settled()
    assert str(item.back.id) in (await later.get(path))["location"]
    assert proxy.links() == []


@pytest_twisted.ensureDeferred
async def test_art_removed(sim, proxy) -> None:
    """A front that is gone at the archive is a 404 after the refresh; the image by id stays."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.stored(path)
    await proxy.stored(f"/release/{item.mbid}/")
    sim.catalogue.remove_art(item.mbid)
    proxy.now.advance(DAY_S + 1)
    assert told(await proxy.get(path)) == (200, "STALE")
    assert told(await proxy.get(f"/release/{item.mbid}/")) == (200, "STALE")
    await proxy.settled()
    assert told(await proxy.get(path)) == (404, "ABSENT")
    assert told(await proxy.get(f"/release/{item.mbid}/")) == (404, "ABSENT")
    assert proxy.links() == []
    check(sim, await proxy.get(f"/release/{item.mbid}/{item.front.id}-250"), "HIT", item.front)


@pytest_twisted.ensureDeferred
async def test_merge_while_running(sim, proxy) -> None:
    """A release that is merged into another: what was known is overtaken, not an error."""
    item, other = sim.catalogue.release(0), sim.catalogue.release(6)
    base = f"/release/{item.mbid}"
    await proxy.get(f"{base}/front-250")
    sim.catalogue.merge(item.mbid, other.mbid)
    check(sim, await proxy.get(f"{base}/front-500"), "MISS", item.front, 500)
    check(sim, await proxy.get(f"{base}/{item.front.id}-1200"), "MISS", item.front, 1200)
    answer = await proxy.get(f"{base}/front-250")
    assert (answer.status, answer.body) == (200, whole(sim, item.front))


@pytest_twisted.ensureDeferred
async def test_listing_ages(sim, proxy) -> None:
    """An expired listing is served at once, fetched anew, and then the new one is served."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/"
    old = await proxy.get(path)
    sim.catalogue.add_art(item.mbid)
    proxy.now.advance(DAY_S + 1)
    stale = await proxy.get(path)
    assert told(stale) == (200, "STALE")
    assert stale.body == old.body
    await proxy.settled()
    new = await proxy.get(path)
    assert told(new) == (200, "HIT")
    assert new.body == answers.listing(sim.catalogue.release(0)) != old.body


# The archive is down


@pytest_twisted.ensureDeferred
async def test_archive_down(sim, proxy) -> None:
    """With the archive gone, all that is held is served; the rest is told fast."""
    item, group = sim.catalogue.release(0), sim.catalogue.release_group(0)
    event = sim.catalogue.event(0)
    held = [
        f"/release/{item.mbid}/front-250",
        f"/release/{item.mbid}/{item.front.id}",
        f"/release-group/{group.mbid}/front-250",
        f"/event/{event.mbid}/front-250",
        f"/release/{item.mbid}/",
    ]
    before = {path: (await proxy.get(path)).body for path in held}
    await proxy.settled()
    for hop in HOPS:
        await sim.stop_hop(hop)
    for path in held:
        answer = await proxy.get(path)
        assert (told(answer), answer.body) == ((200, "HIT"), before[path])
    proxy.now.advance(400 * DAY_S)
    for path in held:
        for _ in range(2):
            answer = await proxy.get(path)
            fresh = "HIT" if str(item.front.id) in path else "STALE"
            assert (told(answer), answer.body) == ((200, fresh), before[path])
            await proxy.settled()
    for path in (f"/release/{item.mbid}/back-250", f"/release/{item.mbid}/front-500"):
        began = reactor.seconds()
        answer = await proxy.get(path)
        assert answer.status in {502, 503, 504}
        assert answer["Cache-Control"] == "no-store"
        assert reactor.seconds() - began < 5


@pytest_twisted.ensureDeferred
async def test_refused(sim, proxy) -> None:
    """A refused connection is a 503 that says how long the host is left alone, and then it is."""
    path = sim.catalogue.examples()["thumbnail"]
    await sim.stop_hop("release")
    first = await proxy.get(path)
    assert first.status == 503
    assert 1 <= int(first["Retry-After"]) <= 60
    host = f"{LOCAL}:{sim.ports['release']}"
    wait_s = int(first["Retry-After"])
    assert first.json == {
        "error": f"{host} refuses connections; it is asked again in {wait_s} s",
        "cause": "connection_refused",
        "host": host,
        "retry_after_s": wait_s,
        "request_id": first["X-Request-ID"],
    }
    assert first["Proxy-Status"] == (
        f'coverart; error=connection_refused; next-hop="{host}"; details="{first.json["error"]}"'
    )
    second = await proxy.get(path)
    assert second.status == 503
    assert 1 <= int(second["Retry-After"]) <= 60
    await nothing_kept(proxy)


# Large images


def large(sim: Simulator) -> tuple[str, bytes, Item]:
    """A large original, and its bytes."""
    item = sim.catalogue.release(LARGE)
    body = whole(sim, item.front, None)
    assert len(body) > 3_000_000
    return f"/release/{item.mbid}/front", body, item


@pytest_twisted.ensureDeferred
async def test_large_flows_while_it_arrives(sim, proxy) -> None:
    """All who wait, and one who comes late, have the first megabyte before the archive sent more."""
    path, body, _ = large(sim)
    sim.faults.add(Rule(hop="node", does=Stall(after_bytes=1_000_000, gate="rest")))
    wires = [await proxy.wire(path, "Connection: close") for _ in range(3)]
    await reached(sim, "rest")
    for wire in wires:
        await wire.got(1_000_000)
    late = await proxy.wire(path, "Connection: close")
    await late.got(1_000_000)
    assert proxy.files() == []
    sim.faults.gates.open("rest")
    for wire in (*wires, late):
        await wire.end()
        assert wire.status == 200
        assert wire.header("X-Cache-Status") == "MISS"
        assert wire.header("Content-Length") == str(len(body))
        assert wire.header("Content-Type") == "image/jpeg"
        assert wire.body == body
    assert hops(sim) == (1, 1, 1)
    await proxy.settled()
    assert len(proxy.files()) == 1
    assert proxy.unfinished() == []
    answer = await proxy.get(path)
    assert (told(answer), answer.body) == ((200, "HIT"), body)


@pytest_twisted.ensureDeferred
async def test_slow_reader(sim, proxy) -> None:
    """A client that reads nothing holds up neither another one nor the fetch, and gets it all later."""
    path, body, _ = large(sim)
    slow = await proxy.wire()
    sim.faults.add(Rule(hop="node", does=Gate(name="hold")))
    slow.get(path, "Connection: close")
    slow.transport.pauseProducing()
    await reached(sim, "hold")
    fast = await proxy.wire(path, "Connection: close")
    await until(lambda: proxy.waiting() == 2, "both wait")
    sim.faults.gates.open("hold")
    await fast.end()
    assert fast.body == body
    await proxy.settled()
    assert len(proxy.files()) == 1
    assert len(slow.received) == 0
    slow.transport.resumeProducing()
    await slow.end()
    assert slow.body == body
    assert hops(sim) == (1, 1, 1)


@pytest_twisted.ensureDeferred
async def test_slow_reader_of_evicted(sim, proxy) -> None:
    """Whoever is being sent a held image gets all of it, though it is removed meanwhile."""
    path, body, _ = large(sim)
    await proxy.get(path)
    await proxy.settled()
    slow = await proxy.wire(path, "Connection: close")
    await slow.got(1)
    slow.transport.pauseProducing()
    for name in proxy.files():
        (proxy.root / name).unlink()
    slow.transport.resumeProducing()
    await slow.end()
    assert slow.body == body


@pytest.mark.parametrize("fault", [Cut(after_bytes=1_000_000), Reset(after_bytes=1_000_000)])
@pytest_twisted.ensureDeferred
async def test_large_cut_midway(sim, proxy, fault) -> None:
    """An image cut off by the archive ends every connection short; nothing of it is kept."""
    path, body, _ = large(sim)
    number = sim.faults.add(Rule(hop="node", does=(Gate(name="hold"), fault)))
    wires = [await proxy.wire(path, "Connection: close") for _ in range(4)]
    await until(lambda: proxy.waiting() == 4, "all wait")
    sim.faults.gates.open("hold")
    for wire in wires:
        await wire.end()
        if wire.received:
            assert wire.status in {200, 502}
        if wire.received and wire.status == 200:
            assert wire.header("Content-Length") == str(len(body))
            assert len(wire.body) <= 1_000_000
            assert body.startswith(wire.body)
    await nothing_kept(proxy)
    sim.faults.remove(number)
    answer = await proxy.get(path)
    assert (told(answer), answer.body) == ((200, "MISS"), body)


@pytest_twisted.ensureDeferred
async def test_cut_is_an_error_to_clients(sim, proxy) -> None:
    """A real client library sees a cut answer as failed, not as an image."""
    path, _, _ = large(sim)
    sim.faults.add(Rule(hop="node", does=Stall(after_bytes=1_000_000, gate="rest")))
    asking = start(proxy.get(path))
    await reached(sim, "rest")
    watching = await proxy.wire(path)
    await watching.got(900_000)
    await sim.stop_hop("node1")
    await sim.stop_hop("node2")
    with pytest.raises(ResponseFailed):
        await asking
    await watching.end()
    await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_small_cut_once(sim, proxy) -> None:
    """A small image cut once is asked for again, and nobody notices."""
    item = sim.catalogue.release(0)
    sim.faults.add(Rule(hop="node", times=1, does=Cut(after_bytes=1000)))
    check(sim, await proxy.get(f"/release/{item.mbid}/front-250"), "MISS", item.front)
    assert hops(sim) == (1, 2, 2)


# What is not accepted


BROKEN = {
    "html": Html(),
    "text": Body(data=b"This is no image, whatever it says of itself."),
    "empty": Body(data=b""),
    "short": Body(data=b"\xff\xd8\xff"),
    "webp": Body(data=b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(100)),
    "svg": Body(
        data=b'<svg xmlns="http://www.w3.org/2000/svg"/>' * 9, content_type="image/svg+xml"
    ),
    "png thumbnail": Body(data=(DATA / "brick.png").read_bytes(), content_type="image/png"),
    "longer declared": WrongLength(by=7),
    "no length": NoLength(),
    "gzip": Gzip(),
    "cut": Cut(after_bytes=1000),
    "reset": Reset(after_bytes=1000),
    "no answer": Reset(),
    "403": Status(code=403),
    "500": Status(code=500),
    "204": Status(code=204),
    "206": Status(code=206),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest_twisted.ensureDeferred
async def test_broken_image(sim, proxy, name) -> None:
    """What is not a whole image is a 502 of which nothing is kept, and not the next one's trouble."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    number = sim.faults.add(Rule(hop="node", does=BROKEN[name]))
    answer = await proxy.get(path)
    assert answer.status == 502
    assert answer.json["host"] in answer.json["error"]
    assert answer.json["error"].endswith("the next request asks it again")
    assert answer["Cache-Control"] == "no-store"
    await nothing_kept(proxy)
    sim.faults.remove(number)
    check(sim, await proxy.get(path), "MISS", item.front)


@pytest.mark.parametrize(
    "fault",
    [Chunked(), ContentType(value="text/html"), ContentType(value=None)],
    ids=["chunked", "wrong type", "no type"],
)
@pytest_twisted.ensureDeferred
async def test_odd_but_whole(sim, proxy, fault) -> None:
    """An image framed in chunks or announced as something else is known by its bytes."""
    item = sim.catalogue.release(0)
    sim.faults.add(Rule(hop="node", does=fault))
    for suffix, size in (("-250", 250), ("", None)):
        answer = await proxy.get(f"/release/{item.mbid}/front{suffix}")
        check(sim, answer, "MISS", item.front, size)
        assert answer["Content-Type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("file", "content_type"),
    [
        ("rocket.jpg", "image/jpeg"),
        ("brick.png", "image/png"),
        ("python.gif", "image/gif"),
        ("hello-world.pdf", "application/pdf"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_files_from_elsewhere(sim, proxy, file, content_type) -> None:
    """Files that this project did not draw are served as what they are."""
    item = sim.catalogue.release(0)
    body = (DATA / file).read_bytes()
    sim.faults.add(Rule(hop="node", does=Body(data=body, content_type=content_type)))
    for status in ("MISS", "HIT"):
        answer = await proxy.get(f"/release/{item.mbid}/front")
        await proxy.settled()
        assert (told(answer), answer.body) == ((200, status), body)
        assert answer["Content-Type"] == content_type


@pytest.mark.parametrize(
    "fault", [Html(), Body(data=b"[]"), Body(data=b'{"images": 5}'), Cut(after_bytes=50)]
)
@pytest_twisted.ensureDeferred
async def test_broken_listing(sim, proxy, fault) -> None:
    """A listing that does not parse is a 502 and not kept."""
    path = sim.catalogue.examples()["listing"]
    number = sim.faults.add(Rule(hop="node", does=fault))
    assert (await proxy.get(path)).status == 502
    await nothing_kept(proxy)
    sim.faults.remove(number)
    assert told(await proxy.get(path)) == (200, "MISS")


FOREIGN = (
    "http://10.0.0.1/0/items/{name}",
    "https://evil.example/download/{name}",
    "https://archive.org.evil.example/download/{name}",
    "http://{host}:1/download/{name}",
    "http://{host}:{control}/download/{name}",
    "http://user@{host}:{archive}/download/{name}",
    "http://localhost:{archive}/download/{name}",
    "http://[::1]:{archive}/download/{name}",
    "http://2130706433:{archive}/download/{name}",
    "https://{host}/download/{name}",
    "//evil.example/download/{name}",
    "ftp://{host}:{archive}/download/{name}",
    "file:///etc/passwd",
    "",
)


@pytest.mark.parametrize("hop", ["release", "archive", "node"])
@pytest_twisted.ensureDeferred
async def test_redirect_astray(sim, proxy, hop) -> None:
    """A redirect to a host, port or scheme that is not allowed is a 502, and nobody is asked."""
    item = sim.catalogue.release(0)
    name = f"mbid-{item.mbid}/{file_name(item, item.front, 250)}"
    for form in FOREIGN:
        location = form.format(
            host=LOCAL, name=name, control=sim.ports["control"], archive=sim.ports["archive"]
        )
        number = sim.faults.add(Rule(hop=hop, does=Redirect(location=location)))
        answer = await proxy.get(f"/release/{item.mbid}/front-250")
        assert answer.status == 502, location
        sim.faults.remove(number)
    assert sim.counts.connections("control").total == 0
    await nothing_kept(proxy)
    check(sim, await proxy.get(f"/release/{item.mbid}/front-250"), "MISS", item.front)


@pytest.mark.parametrize("hop", ["release", "archive", "node"])
@pytest_twisted.ensureDeferred
async def test_redirect_loop(sim, proxy, hop) -> None:
    """A loop ends after a few requests."""
    path = sim.catalogue.examples()["thumbnail"]
    sim.faults.add(Rule(hop=hop, does=RedirectLoop()))
    assert (await proxy.get(path)).status == 502
    assert sim.counts.requests() <= 5
    await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_redirect_to_another_image(sim, proxy) -> None:
    """Hop 1 is not believed where it leads to something that is no file of a cover art item."""
    path = sim.catalogue.examples()["thumbnail"]
    for target in ("/download/other/x.jpg", "/metadata/mbid-x/files", "/", "/download/../etc"):
        number = sim.faults.add(
            Rule(hop="release", does=Redirect(location=sim.url("archive") + target))
        )
        assert (await proxy.get(path)).status == 502
        sim.faults.remove(number)
    assert sim.counts.requests("archive") == 0


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest_twisted.ensureDeferred
async def test_too_large(sim, run, chunked) -> None:
    """An image over COVER_ART_MAX_IMAGE_SIZE is a 502, declared or not; its thumbnail is served."""
    proxy = await run(COVER_ART_MAX_IMAGE_SIZE="1")
    path, _, item = large(sim)
    if chunked:
        sim.faults.add(Rule(hop="node", path="*.jpg", times=1, does=Chunked()))
    answer = await proxy.get(path)
    assert answer.status == 502
    await nothing_kept(proxy)
    check(sim, await proxy.get(f"{path}-250"), "MISS", item.front)


# Slow and overloaded


@pytest.mark.parametrize("where", ["hop 1", "archive", "node", "body"])
@pytest_twisted.ensureDeferred
async def test_stall(sim, run, where) -> None:
    """An archive that falls silent anywhere is a 504 after COVER_ART_UPSTREAM_TIMEOUT."""
    proxy = await run(COVER_ART_UPSTREAM_TIMEOUT="0.4")
    rule = {
        "hop 1": Rule(hop="release", does=Gate(name="never")),
        "archive": Rule(hop="archive", does=Gate(name="never")),
        "node": Rule(hop="node", does=Gate(name="never")),
        "body": Rule(hop="node", does=Stall(after_bytes=1000)),
    }[where]
    sim.faults.add(rule)
    began = reactor.seconds()
    answer = await proxy.get(sim.catalogue.examples()["thumbnail"])
    assert answer.status == 504
    assert answer.json["host"] in answer.json["error"]
    assert answer.json["cause"] in {"http_response_timeout", "connection_read_timeout"}
    assert answer.json["error"].endswith("; the next request asks it again")
    assert answer["Cache-Control"] == "no-store"
    assert 0.3 < reactor.seconds() - began < 5
    await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_large_stalls(sim, run) -> None:
    """A large image that stops coming ends its readers' connections short."""
    proxy = await run(COVER_ART_UPSTREAM_TIMEOUT="1")
    path, body, _ = large(sim)
    sim.faults.add(Rule(hop="node", does=Stall(after_bytes=1_000_000)))
    wire = await proxy.wire(path)
    await wire.end()
    assert wire.status == 200
    assert 0 < len(wire.body) <= 1_000_000 < len(body)
    await nothing_kept(proxy)


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("hop", ["release", "archive", "node"])
@pytest_twisted.ensureDeferred
async def test_slow_down(sim, proxy, hop, code) -> None:
    """429 and 503 are passed on as 503 with Retry-After, and that host is then left alone."""
    path = sim.catalogue.examples()["thumbnail"]
    sim.faults.add(Rule(hop=hop, does=Status(code=code, retry_after="7")))
    first = await proxy.get(path)
    assert first.status == 503
    assert first["Retry-After"] == "7"
    seen = sim.counts.requests(hop)
    assert seen == 1
    second = await proxy.get(path)
    assert second.status == 503
    assert 1 <= int(second["Retry-After"]) <= 7
    assert sim.counts.requests(hop) == seen
    assert (await proxy.get("/health")).status == 200
    await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_slow_down_without_a_time(sim, proxy) -> None:
    """Without Retry-After the pause is our own, and it is told."""
    path = sim.catalogue.examples()["thumbnail"]
    sim.faults.add(Rule(hop="release", does=Status(code=503)))
    first = await proxy.get(path)
    assert first.status == 503
    assert 1 <= int(first["Retry-After"]) <= 60
    assert (await proxy.get(path)).status == 503
    assert hops(sim) == (1, 0, 0)


@pytest.mark.parametrize("code", [500, 502, 504])
@pytest.mark.parametrize("hop", ["release", "archive", "node"])
@pytest_twisted.ensureDeferred
async def test_trouble_once(sim, proxy, hop, code) -> None:
    """A 5xx that passes is asked again once, and the client sees the image."""
    item = sim.catalogue.release(0)
    sim.faults.add(Rule(hop=hop, times=1, does=Status(code=code)))
    check(sim, await proxy.get(f"/release/{item.mbid}/front-250"), "MISS", item.front)
    assert sim.counts.requests(hop) == 2


@pytest_twisted.ensureDeferred
async def test_concurrency(sim, run) -> None:
    """No more than COVER_ART_UPSTREAM_CONCURRENCY requests are at the archive at once."""
    proxy = await run(COVER_ART_UPSTREAM_CONCURRENCY="3")
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    items = [sim.catalogue.release(n) for n in (0, 1, 2, 3, 8, 9, 7)]
    asking = [start(proxy.get(f"/release/{item.mbid}/front-250")) for item in items]
    await reached(sim, "hold", 3)
    await until(lambda: proxy.waiting() == len(items), "all wait")
    assert hops(sim) == (3, 0, 0)
    sim.faults.gates.open("hold")
    for item, each in zip(items, asking, strict=True):
        check(sim, await each, "MISS", item.front)
    assert sim.counts.connections("release").peak == 3


# The disk is the truth


@pytest_twisted.ensureDeferred
async def test_file_removed_by_hand(sim, proxy) -> None:
    """An image that somebody removed is fetched again, under every name."""
    item = sim.catalogue.release(0)
    for path in (f"/release/{item.mbid}/front-250", f"/release/{item.mbid}/{item.front.id}-250"):
        await proxy.stored(f"/release/{item.mbid}/front-250")
        (name,) = proxy.files()
        (proxy.root / name).unlink()
        sim.counts.clear()
        check(sim, await proxy.stored(path), "MISS", item.front)
        assert hops(sim)[1:] == (0, 1)
        assert proxy.files() == [name]
        check(sim, await proxy.stored(path), "HIT", item.front)
    status = (await proxy.get("/cache-status")).json
    assert status["cached_files"] == 1
    assert status["cache_size_bytes"] == len(whole(sim, item.front))


@pytest_twisted.ensureDeferred
async def test_file_cut_short_by_hand(sim, proxy) -> None:
    """An image that is not as long as it was stored is fetched again, never served."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.stored(path)
    (name,) = proxy.files()
    os.truncate(proxy.root / name, 500)
    check(sim, await proxy.stored(path), "MISS", item.front)
    assert (proxy.root / name).read_bytes() == whole(sim, item.front)
    (proxy.root / name).write_bytes(b"")
    check(sim, await proxy.stored(path), "MISS", item.front)
    check(sim, await proxy.stored(path), "HIT", item.front)


@pytest_twisted.ensureDeferred
async def test_listing_removed_by_hand(sim, proxy) -> None:
    """The same of a listing."""
    path = sim.catalogue.examples()["listing"]
    before = await proxy.get(path)
    (name,) = proxy.files()
    (proxy.root / name).unlink()
    answer = await proxy.get(path)
    assert (told(answer), answer.body) == ((200, "MISS"), before.body)


@pytest_twisted.ensureDeferred
async def test_directory_removed_by_hand(sim, proxy) -> None:
    """A cache directory emptied or removed while running fills up again."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.stored(path)
    shutil.rmtree(proxy.root)
    check(sim, await proxy.stored(path), "MISS", item.front)
    check(sim, await proxy.stored(path), "HIT", item.front)
    assert len(proxy.files()) == 1
    assert len(proxy.links()) == 1
    shutil.rmtree(proxy.root)
    assert (await proxy.stored(f"/release/{item.mbid}/")).status == 200
    large_path, body, _ = large(sim)
    shutil.rmtree(proxy.root)
    assert (await proxy.stored(large_path)).body == body


@pytest_twisted.ensureDeferred
async def test_directory_takes_no_files(sim, proxy) -> None:
    """From a directory that takes no files clients get all the same, uncached; it mends by itself."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    incoming = proxy.root / ".incoming"
    incoming.rmdir()
    incoming.write_text("in the way")
    for _ in range(2):
        answer = await proxy.get(path)
        check(sim, answer, "MISS", item.front)
        assert answer["Cache-Status"] == "coverart; fwd=uri-miss; stored=?0; detail=ENOTDIR"
    incoming.unlink()
    check(sim, await proxy.get(path), "MISS", item.front)


@pytest_twisted.ensureDeferred
async def test_adopted(sim, run, redis) -> None:
    """What lies on the disk and an index that was flushed does not know is served without a fetch."""
    item, group = sim.catalogue.release(0), sim.catalogue.release_group(0)
    one, other = [await run(COVER_ART_REDIS_URL=redis.url) for _ in range(2)]
    png = sim.catalogue.release(1)
    paths = (
        f"/release/{item.mbid}/front-250",
        f"/release/{item.mbid}/{item.back.id}",
        f"/release-group/{group.mbid}/front-500",
        f"/release/{png.mbid}/front",
        f"/release/{item.mbid}/",
    )
    bodies = {path: (await one.get(path)).body for path in paths}
    await one.settled()
    redis.client().flushall()
    sim.counts.clear()
    for path in paths:
        answer = await other.get(path)
        assert (told(answer), answer.body) == ((200, "HIT"), bodies[path])
    assert hops(sim) == (0, 0, 0)
    counted = (await other.get("/cache-status")).json
    assert counted["cached_files"] == len(paths)
    assert counted["cache_size_bytes"] == sum(map(len, bodies.values()))


@pytest_twisted.ensureDeferred
async def test_restart(sim, proxy) -> None:
    """After a restart everything held is a HIT without any request."""
    catalogue = sim.catalogue
    item = catalogue.release(0)
    paths = (
        f"/release/{item.mbid}/front-250",
        f"/release/{item.mbid}/front",
        f"/release/{catalogue.release(4).mbid}/front",
        f"/release/{catalogue.merged(0).mbid}/front-250",
        f"/release/{catalogue.merged(0).mbid}/{item.back.id}-250",
        f"/release-group/{catalogue.release_group(0).mbid}/front-250",
        f"/event/{catalogue.event(0).mbid}/front-500",
        f"/event/{catalogue.event(0).mbid}/",
        f"/release/{item.mbid}/",
    )
    bodies = {path: (await proxy.get(path)).body for path in paths}
    await proxy.settled()
    before = (await proxy.get("/cache-status")).json
    await proxy.restart()
    after = (await proxy.get("/cache-status")).json
    for field in ("cached_files", "cache_size_bytes", "release_files", "release_group_files"):
        assert after[field] == before[field], field
    sim.counts.clear()
    for path in paths:
        answer = await proxy.get(path)
        assert (told(answer), answer.body) == ((200, "HIT"), bodies[path])
    assert hops(sim) == (0, 0, 0)
    proxy.now.advance(DAY_S + 1)
    assert told(await proxy.get(paths[0])) == (200, "STALE")


@pytest_twisted.ensureDeferred
async def test_living_downloads_are_no_orphans(sim, run) -> None:
    """A proxy that starts on the directory of another leaves its running downloads alone."""
    path, body, _ = large(sim)
    proxy = await run()
    sim.faults.add(Rule(hop="node", times=1, does=Stall(after_bytes=1_000_000, gate="rest")))
    asking = start(proxy.get(path))
    await reached(sim, "rest")
    await until(lambda: len(proxy.unfinished()) == 1, "it is being written")
    (proxy.root / ".incoming" / ("0" * 24)).write_bytes(b"by a process that was killed")
    other = await run()
    assert len(other.unfinished()) == 1
    sim.faults.gates.open("rest")
    assert (await asking).body == body
    await proxy.settled()
    sim.counts.clear()
    # Each has an index in memory: this one learns by its comparison of index and disk.
    await other.cleanup.sweep(slices=4096)
    answer = await other.get(path)
    assert (told(answer), answer.body) == ((200, "HIT"), body)
    assert hops(sim) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_foreign_files_are_not_served(sim, proxy, tmp_path) -> None:
    """A symlink that leads out of the cache, or a file of another type, is no answer."""
    item = sim.catalogue.release(0)
    a = item.mbid
    folder = proxy.root / "release" / a[0] / a[:2] / a[:3]
    folder.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xff\xd8\xff secret")
    (folder / f"{a}_front_250.jpg").symlink_to(secret)
    (folder / f"{a}_{item.back.id}_250.jpg").write_bytes(b"no image at all")
    check(sim, await proxy.get(f"/release/{a}/front-250"), "MISS", item.front)
    check(sim, await proxy.get(f"/release/{a}/back-250"), "MISS", item.back)
    assert secret.read_bytes() == b"\xff\xd8\xff secret"
    await proxy.restart()
    check(sim, await proxy.get(f"/release/{a}/front-250"), "HIT", item.front)


# Listings that keep clients inside


@pytest_twisted.ensureDeferred
async def test_public_url(sim, run) -> None:
    """Every URL of a listing, old form and new, leads to this proxy and works when followed."""
    port = free_port()
    public = f"http://{LOCAL}:{port}"
    proxy = await run(COVER_ART_PUBLIC_URL=public, COVER_ART_LISTEN=f"tcp:{port}:interface={LOCAL}")
    catalogue = sim.catalogue
    for path, item in (
        (f"/release/{catalogue.release(1).mbid}/", catalogue.release(1)),
        (f"/release/{catalogue.release(4).mbid}/", catalogue.release(4)),
        (f"/release/{catalogue.release(9).mbid}/", catalogue.release(9)),
        (f"/release-group/{catalogue.release_group(0).mbid}/", catalogue.release(0)),
        (f"/event/{catalogue.event(0).mbid}/", catalogue.event(0)),
    ):
        answer = await proxy.get(path)
        told_images = answer.json["images"]
        assert len(told_images) == len(item.images)
        for entry, image in zip(told_images, item.images, strict=True):
            assert str(entry["id"]) == str(image.id)
            urls: dict[int | None, str] = {None: entry["image"]}
            for name, url in entry["thumbnails"].items():
                urls[{"small": 250, "large": 500}.get(name) or int(name)] = url
            assert len(urls) == (3 if item.old_listing else 4)
            for size, url in urls.items():
                assert url.startswith(f"{public}/{item.entity}/{item.mbid}/{image.id}")
                followed = await ask(url)
                assert followed.status == 200
                assert followed.body == whole(sim, image, size)
        assert answer["Content-Type"] == "application/json"
        again = await proxy.get(path, if_none_match=answer["ETag"])
        assert again.status == 304
        # Stored as received; only what leaves is rewritten.
        mbid = urlsplit(path).path.split("/")[2]
        (name,) = [name for name in proxy.files() if name.endswith(f"{mbid}.json")]
        assert (proxy.root / name).read_bytes() == answers.listing(item)
        head = await proxy.get(path, "HEAD")
        assert head["Content-Length"] == str(len(answer.body))


@pytest_twisted.ensureDeferred
async def test_public_url_never_from_a_header(sim, run) -> None:
    """What a client says of hosts has no way into a listing."""
    proxy = await run(COVER_ART_PUBLIC_URL="https://covers.example/art")
    answer = await proxy.get(
        sim.catalogue.examples()["old_listing"],
        X_Forwarded_Host="evil.example",
        X_Forwarded_Proto="ftp",
        Forwarded="host=evil.example",
    )
    assert b"evil" not in answer.body
    assert b"coverartarchive.org" not in answer.body
    assert b"https://covers.example/art/release/" in answer.body


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("hop", ["release", "archive", "node"])
@pytest.mark.parametrize("what", ["front-250", ""])
async def test_purge_ends_a_fetch_under_way(sim, run, hop: str, what: str) -> None:
    """Nothing that was being fetched when a purge was asked for is held after its answer."""
    proxy = await run()
    path = f"/release/{sim.catalogue.release(3).mbid}/{what}"
    sim.faults.add(Rule(hop=hop, does=Gate(name="hold")))
    asked = start(proxy.get(path))
    await reached(sim, "hold")
    purged = start(proxy.cache.operator_actions.purge(parse(path.encode())))
    sim.faults.clear()
    assert (await asked).status == 200
    await purged
    assert proxy.files() == []
    again = await proxy.get(path)
    assert (again.status, again["X-Cache-Status"]) == (200, "MISS")


@pytest_twisted.ensureDeferred
async def test_refresh_asks_after_a_fetch_under_way(sim, run) -> None:
    """An operator's refresh asks the archive anew, whatever was asked before it."""
    proxy = await run()
    path = f"/release/{sim.catalogue.release(3).mbid}/front-250"
    sim.faults.add(Rule(hop="archive", does=Gate(name="hold")))
    asked = start(proxy.get(path))
    await reached(sim, "hold")
    refreshed = start(proxy.cache.operator_actions.refresh(parse(path.encode())))
    sim.faults.clear()
    assert (await asked).status == 200
    await refreshed
    assert sim.counts.requests("release") == 2
