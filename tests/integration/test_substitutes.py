"""A thumbnail that the archive has not made is answered with a larger size, until it is made."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urljoin

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults

from coverart.simulator.faults import Chunked, Drip, Gate, Rule, Status
from tests.support.drawings import whole
from tests.support.running import Machine, WallClock, reached
from tests.support.talk import Answer, ask, becomes, start, until, within

ALL = (250, 500, 1200)
LARGE, PDF = 11, 4
TTL_S = 300
MARK = "X-Cover-Art-Substitute"


def not_made(sim, *sizes: int) -> list[int]:
    """The archive has not made these sizes of anything. :returns: the rules that say so."""
    return [
        sim.faults.add(Rule(hop="node", path=f"*_thumb{size}.jpg", does=Status(code=404)))
        for size in sizes
    ]


def asked(sim, end: str = "") -> int:
    """Requests to the archive for files whose names end so; all of them."""
    return sum(1 for each in sim.counts.recent if each.path.endswith(end))


def told(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer["X-Cache-Status"], answer[MARK]


def short_lived(answer: Answer) -> bool:
    return answer["Cache-Control"] == f"public, max-age={TTL_S}"


@pytest_twisted.ensureDeferred
async def test_next_larger_by_every_name(sim, proxy) -> None:
    """By role, id, group, event and archive.org's spelling; by id too it is not immutable."""
    item, event = sim.catalogue.release(0), sim.catalogue.event(0)
    group, mbid = sim.catalogue.release_group(0), f"mbid-{item.mbid}"
    not_made(sim, 250)
    for path, image in (
        (f"/release/{item.mbid}/front-250", item.front),
        (f"/release/{item.mbid}/{item.front.id}-250.jpg", item.front),
        (f"/release-group/{group.mbid}/front-250", item.front),
        (f"/download/{mbid}/{mbid}-{item.front.id}_thumb250.jpg", item.front),
        (f"/event/{event.mbid}/front-250", event.front),
        (f"/event/{event.mbid}/{event.front.id}-250", event.front),
    ):
        answer = await proxy.stored(path)
        assert (answer.status, answer[MARK], short_lived(answer)) == (200, "500", True), path
        assert answer.body == whole(sim, image, 500)
        sim.counts.clear()
        again = await proxy.get(path)
        assert told(again) == (200, "HIT", "500"), path
        assert short_lived(again)
        assert sim.counts.requests() == 0
        assert (again["ETag"], again.body) == (answer["ETag"], answer.body)
    assert [name for name in proxy.files() + proxy.links() if "_250" in name] == []


@pytest_twisted.ensureDeferred
async def test_none_smaller(sim, proxy) -> None:
    """A size is never answered with a smaller one, though that is held."""
    item = sim.catalogue.release(0)
    base = f"/release/{item.mbid}/front"
    await proxy.stored(f"{base}-500")
    not_made(sim, 1200)
    answer = await proxy.get(f"{base}-1200")
    assert told(answer) == (200, "MISS", "original")
    assert answer.body == whole(sim, item.front, None)


@pytest_twisted.ensureDeferred
async def test_what_is_held_comes_first(sim, proxy) -> None:
    """Of a larger size that is held the archive is asked nothing, whether it has a nearer one or not."""
    item = sim.catalogue.release(0)
    base = f"/release/{item.mbid}/front"
    await proxy.stored(f"{base}-1200")
    not_made(sim, 250)
    sim.counts.clear()
    answer = await proxy.get(f"{base}-250")
    assert told(answer) == (200, "MISS", "1200")
    assert answer.body == whole(sim, item.front, 1200)
    assert asked(sim, "_thumb250.jpg")
    assert not asked(sim, "_thumb500.jpg") + asked(sim, "_thumb1200.jpg")


@pytest_twisted.ensureDeferred
async def test_made_at_last(sim, proxy) -> None:
    """Past its time the old answer goes out once more while the archive is asked, then the true size."""
    item = sim.catalogue.release(0)
    by_role, by_id = (f"/release/{item.mbid}/{name}-250" for name in ("front", item.front.id))
    rules = not_made(sim, 250)
    assert told(await proxy.stored(by_role)) == (200, "MISS", "500")
    for rule in rules:
        sim.faults.remove(rule)
    proxy.now.advance(TTL_S - 10)
    assert told(await proxy.get(by_id)) == (200, "HIT", "500")
    proxy.now.advance(20)
    stale = await proxy.get(by_id)
    assert told(stale) == (200, "STALE", "500")
    assert short_lived(stale)
    await proxy.settled()
    true = await proxy.get(by_id)
    assert told(true) == (200, "HIT", "")
    assert true.body == whole(sim, item.front, 250)
    assert "immutable" in true["Cache-Control"]
    assert told(await proxy.stored(by_role)) == (200, "HIT", "")
    # What a client keeps of the substitute is not taken for the true size.
    assert (await proxy.get(by_id, if_none_match=stale["ETag"])).status == 200


@pytest_twisted.ensureDeferred
async def test_large_original(sim, proxy) -> None:
    """An original over the limit is left at its head, and not asked for again."""
    item = sim.catalogue.release(LARGE)
    not_made(sim, *ALL)
    # Whole, it would take longer than the test may.
    sim.faults.add(Rule(hop="node", path=f"*-{item.front.id}.jpg", does=Drip(bytes_per_s=1000)))
    path = f"/release/{item.mbid}/front-500"
    answer = await within(start(proxy.stored(path)), 10)
    assert told(answer) == (404, "MISS", "")
    assert asked(sim, f"-{item.front.id}.jpg") > 0
    sim.counts.clear()
    for again in (path, f"/release/{item.mbid}/{item.front.id}-500"):
        assert told(await proxy.get(again)) == (404, "ABSENT", "")
    assert sim.counts.requests() == 0
    # Of another size only that is asked.
    assert (await proxy.get(f"/release/{item.mbid}/front-250")).status == 404
    assert asked(sim, "_thumb250.jpg")
    assert not asked(sim, f"-{item.front.id}.jpg")
    assert proxy.files() == []


@pytest_twisted.ensureDeferred
async def test_large_original_that_is_held(sim, run) -> None:
    """One that is held is judged by its entry; with a higher limit it would do."""
    item = sim.catalogue.release(LARGE)
    base = f"/release/{item.mbid}/front"
    for limit, status in (("2", 404), ("4095", 200)):
        proxy = await run(root=limit, COVER_ART_SUBSTITUTE_MAX_SIZE=limit)
        await proxy.stored(base)
        rules = not_made(sim, *ALL)
        answer = await proxy.stored(f"{base}-250")
        assert (answer.status, answer[MARK]) == (status, "original" if status == 200 else "")
        assert (await proxy.get(f"{base}-250"))[MARK] == answer[MARK]
        for rule in rules:
            sim.faults.remove(rule)


@pytest_twisted.ensureDeferred
async def test_never_a_pdf(sim, proxy) -> None:
    """The original of a PDF is not sent, held or not; nor asked for where its type is known."""
    item = sim.catalogue.release(PDF)
    base = f"/release/{item.mbid}"
    not_made(sim, *ALL)
    assert told(await proxy.stored(f"{base}/front-250")) == (404, "MISS", "")
    assert not asked(sim, ".pdf")
    assert told(await proxy.stored(f"{base}/{item.front.id}-500")) == (404, "ABSENT", "")
    assert proxy.files() == []
    assert (await proxy.stored(f"{base}/front")).status == 200
    assert told(await proxy.get(f"{base}/front-250")) == (404, "ABSENT", "")


@pytest_twisted.ensureDeferred
async def test_undeclared_length(sim, proxy) -> None:
    """An original whose length the archive does not declare is not downloaded to find out."""
    item = sim.catalogue.release(0)
    not_made(sim, *ALL)
    sim.faults.add(Rule(hop="node", path=f"*-{item.front.id}.*", does=Chunked()))
    assert told(await proxy.stored(f"/release/{item.mbid}/front-250")) == (404, "MISS", "")
    assert proxy.files() == []


@pytest_twisted.ensureDeferred
async def test_off(sim, run) -> None:
    """With the setting 0 a missing size is a 404, and nothing else is asked for."""
    proxy = await run(COVER_ART_SUBSTITUTE_MAX_SIZE="0")
    path = f"/release/{sim.catalogue.release(0).mbid}/front-250"
    not_made(sim, 250)
    for status in ("MISS", "ABSENT"):
        answer = await proxy.get(path)
        assert told(answer) == (404, status, "")
        assert (answer.json, answer["Cache-Control"]) == (
            {"error": "no such art"},
            "public, max-age=60",
        )
    assert not asked(sim, "_thumb500.jpg")


@pytest_twisted.ensureDeferred
async def test_archive_fails(sim, proxy) -> None:
    """Whether there is a larger size is not known then: the client is told to come again, not 404."""
    path = f"/release/{sim.catalogue.release(0).mbid}/front-250"
    not_made(sim, 250)
    failing = Rule(hop="node", path="*_thumb500.jpg", does=Status(code=503, retry_after="1"))
    rule = sim.faults.add(failing)
    answer = await proxy.get(path)
    assert (answer.status, answer[MARK]) == (503, "")
    assert answer["Retry-After"]
    assert answer["Cache-Control"] == "no-store"
    sim.faults.remove(rule)


@pytest_twisted.ensureDeferred
async def test_evicted_meanwhile(sim, proxy) -> None:
    """A substitute that is gone is fetched again; the missing size is not asked for before its time."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    not_made(sim, 250)
    await proxy.stored(path)
    (file,) = proxy.files()
    (proxy.root / file).unlink()
    sim.counts.clear()
    answer = await proxy.stored(path)
    assert told(answer) == (200, "MISS", "500")
    assert answer.body == whole(sim, item.front, 500)
    assert not asked(sim, "_thumb250.jpg")
    assert told(await proxy.get(path)) == (200, "HIT", "500")


@pytest_twisted.ensureDeferred
async def test_one_deadline(sim, run) -> None:
    """What is asked in place of the missing size has what is left of the fetch's time."""
    machine = Machine()
    proxy = await run(machine=machine)
    path = f"/release/{sim.catalogue.release(0).mbid}/front-250"
    sim.faults.add(Rule(hop="node", path="*_thumb250.jpg", does=(Gate(name="a"), Status(code=404))))
    sim.faults.add(Rule(hop="node", path="*_thumb500.jpg", does=Gate(name="b")))
    answer = start(proxy.get(path))
    await reached(sim, "a")
    machine.advance(25)
    sim.faults.gates.open("a")
    await reached(sim, "b")
    machine.advance(25)
    assert not answer.called
    machine.advance(11)
    assert (await within(answer)).status == 504


@pytest_twisted.ensureDeferred
async def test_others_want_the_original(sim, proxy) -> None:
    """Who asks for the original itself has it, though the fetch it joined gave it up at its head."""
    item = sim.catalogue.release(LARGE)
    not_made(sim, *ALL)
    hold = Rule(hop="node", path=f"*-{item.front.id}.jpg", does=Gate(name="hold"), times=1)
    sim.faults.add(hold)
    base = f"/release/{item.mbid}/front"
    thumb = start(proxy.get(f"{base}-1200"))
    await reached(sim, "hold")
    originals = [start(proxy.get(base)) for _ in range(3)]
    await until(lambda: proxy.waiting() == 4, "all wait")
    sim.faults.gates.open("hold")
    assert (await within(thumb)).status == 404
    for answer in await within(gatherResults(originals)):
        assert (answer.status, answer[MARK]) == (200, "")
        assert answer.body == whole(sim, item.front, None)


@pytest_twisted.ensureDeferred
async def test_original_under_way(sim, proxy) -> None:
    """A large original that is being fetched for others keeps nobody waiting who wants a thumbnail."""
    item = sim.catalogue.release(LARGE)
    base = f"/release/{item.mbid}/front"
    not_made(sim, *ALL)
    size = len(whole(sim, item.front, None))
    slow = Rule(hop="node", path=f"*-{item.front.id}.jpg", does=Drip(bytes_per_s=size // 4))
    rule = sim.faults.add(slow)
    original = start(proxy.get(base))
    assert told(await within(start(proxy.get(f"{base}-250")), 60)) == (404, "MISS", "")
    assert not original.called
    sim.faults.remove(rule)
    assert (await within(original)).body == whole(sim, item.front, None)


@pytest_twisted.ensureDeferred
async def test_purge_and_refresh(sim, run) -> None:
    """A purge of the missing size forgets that it is missing, a refresh asks for it."""
    proxy = await run(COVER_ART_ADMIN_TOKEN="secret")  # noqa: S106
    item = sim.catalogue.release(0)
    for name in ("front", item.front.id):
        path = f"/release/{item.mbid}/{name}-250"
        rules = not_made(sim, 250)

        async def admin(verb: str, path: str = path) -> object:
            sent = {"authorization": "Bearer secret"}
            answer = await ask(f"{proxy.url}/admin/{verb}{path}", "POST", sent)
            assert answer.status == 200
            await proxy.settled()
            return answer.json

        assert (await proxy.stored(path))[MARK] == "500"
        assert await admin("purge") == {"purged": True}
        sim.counts.clear()
        assert told(await proxy.stored(path)) == (200, "MISS", "500")
        assert asked(sim, "_thumb250.jpg")
        assert await admin("refresh") == {"refreshed": True}
        assert told(await proxy.stored(path)) == (200, "HIT", "500")
        for rule in rules:
            sim.faults.remove(rule)
        assert await admin("refresh") == {"refreshed": True}
        assert told(await proxy.get(path)) == (200, "HIT", "")
        assert await admin("purge") == {"purged": True}


@pytest_twisted.ensureDeferred
async def test_redirects(sim, run) -> None:
    """A redirect leads to the URL of the size that was asked for, which is answered by a substitute."""
    proxy = await run(COVER_ART_IMAGE_MODE="redirect")
    item = sim.catalogue.release(0)
    not_made(sim, 250)
    answer = await proxy.get(f"/release/{item.mbid}/front-250")
    assert answer.status == 307
    assert answer["Location"].endswith(f"/release/{item.mbid}/{item.front.id}-250.jpg")
    assert told(await ask(urljoin(proxy.url, answer["Location"]))) == (200, "MISS", "500")


@pytest_twisted.ensureDeferred
async def test_base_urls(sim, proxy) -> None:
    """/redirect leads to /serve and the size that was asked for, by role and by id; there it is sent."""
    item = sim.catalogue.release(0)
    not_made(sim, 250)
    for name in ("front", item.front.id):
        answer = await proxy.get(f"/redirect/release/{item.mbid}/{name}-250")
        assert (answer.status, answer[MARK]) == (307, "")
        assert "/serve/release/" in answer["Location"]
        sent = await ask(urljoin(proxy.url, answer["Location"]))
        assert (sent.status, sent[MARK], short_lived(sent)) == (200, "500", True)
        assert sent.body == whole(sim, item.front, 500)
        await proxy.settled()


@attrs.frozen
class Way:
    """How a request is sent."""

    method: str = "GET"
    headers: dict[str, str] = attrs.field(factory=dict)


@pytest_twisted.ensureDeferred
async def test_three_ways(sim, run, nginx) -> None:
    """While it arrives, from the app and from nginx: one answer, with the headers of the bytes sent."""
    behind = await run(COVER_ART_ACCEL="/cache-files/")
    front = await nginx(behind)
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/{item.front.id}-250"
    not_made(sim, 250)
    first = await front.get(path, "HEAD")
    body = whole(sim, item.front, 500)
    assert told(first) == (200, "MISS", "500")
    assert first["Content-Length"] == str(len(body))
    await behind.settled()
    alone = await run()
    etag = first["ETag"]
    for way in (
        Way(),
        Way("HEAD"),
        Way(headers={"Range": "bytes=10-99"}),
        Way(headers={"Range": "bytes=0-9"}),
        Way(headers={"Range": f"bytes={len(body)}-"}),
        Way("HEAD", {"Range": "bytes=0-9"}),
        Way(headers={"If-None-Match": etag}),
        Way("HEAD", {"If-None-Match": etag}),
        Way(headers={"If-Match": '"x"'}),
        Way(headers={"If-Modified-Since": first["Last-Modified"]}),
        Way(headers={"Range": "bytes=0-9", "If-Range": etag}),
    ):
        answers = [
            await ask(server.url + path, way.method, way.headers) for server in (front, alone)
        ]
        if answers[1]["X-Cache-Status"] == "MISS":
            # This proxy asked anew for what its own index has not remembered.
            answers[1] = await ask(alone.url + path, way.method, way.headers)
        named = [dict(answer.named) for answer in answers]
        for each in named:
            for own in ("x-served-by", "server", "date", "connection", "x-request-id"):
                each.pop(own, None)
        assert named[0] == named[1], way
        assert answers[0].status == answers[1].status
        assert answers[0].body == answers[1].body
        if answers[0].status in (200, 206, 304):
            assert answers[0][MARK] == "500"
            assert answers[0]["ETag"] == etag
            assert short_lived(answers[0])
    served = await front.get(path)
    assert (served["X-Served-By"], served.body) == ("nginx-cache", body)


@pytest_twisted.ensureDeferred
async def test_while_it_arrives(sim, proxy) -> None:
    """A substitute that is large is sent while it comes, marked like one that is held."""
    item = sim.catalogue.release(0)
    not_made(sim, 250, 500)
    body = whole(sim, item.front, 1200)
    assert len(body) > 256 * 1024
    path = f"/release/{item.mbid}/front-250"
    asked = [start(proxy.get(path)) for _ in range(3)]
    for answer in await within(gatherResults(asked)):
        # Who comes when all of it is there may be told HIT before it has its name.
        assert (answer.status, answer[MARK], short_lived(answer)) == (200, "1200", True)
        assert (answer.length, answer.body) == (len(body), body)
    await proxy.settled()
    held = await proxy.get(path)
    assert (held["ETag"], held["Last-Modified"]) == (answer["ETag"], answer["Last-Modified"])


@pytest.mark.parametrize("path", ["front", "id"])
@pytest_twisted.ensureDeferred
async def test_two_processes(sim, run, redis, path: str) -> None:
    """One asks the archive, the other finds it by the index: two look-ups, each in one round trip."""
    pair = [await run(COVER_ART_REDIS_URL=redis.url) for _ in range(2)]
    item = sim.catalogue.release(0)
    asked_by = f"/release/{item.mbid}/{item.front.id if path == 'id' else 'front'}-250"
    rule = Rule(hop="node", path="*_thumb250.jpg", does=(Gate(name="hold"), Status(code=404)))
    sim.faults.add(rule)
    both = [start(proxy.get(asked_by)) for proxy in pair]
    await reached(sim, "hold")
    sim.faults.gates.open("hold")
    for answer in await within(gatherResults(both)):
        assert (answer.status, answer[MARK]) == (200, "500")
        assert answer.body == whole(sim, item.front, 500)
    for proxy in pair:
        await proxy.settled()
    sim.counts.clear()
    before = redis.client().info("commandstats")["cmdstat_evalsha"]["calls"]
    for proxy in pair:
        assert told(await proxy.get(asked_by)) == (200, "HIT", "500")
    after = redis.client().info("commandstats")["cmdstat_evalsha"]["calls"]
    assert after - before == 4
    assert sim.counts.requests() == 0


@pytest_twisted.ensureDeferred
async def test_counted(sim, proxy, lines) -> None:
    """By the size that was sent, each time; the log tells it too."""
    item = sim.catalogue.release(0)
    not_made(sim, *ALL)
    for _ in range(2):
        await proxy.stored(f"/release/{item.mbid}/front-250")
    value = proxy.metrics.value("coverart_substitutes_total", size="original")
    assert value == 2
    for outcome in ("MISS+original", "HIT+original"):
        await until(lambda: any(f" 200 {outcome} " in line for line in lines), "it is logged")  # noqa: B023


@pytest_twisted.ensureDeferred
async def test_processes_behind_nginx(sim, spawn, nginx, redis, tmp_path: Path) -> None:
    """Two processes of twistd on one Redis, one behind nginx: marked there too, then the true size."""
    clock = WallClock(tmp_path / "clock")
    shared = {"COVER_ART_REDIS_URL": redis.url, "COVER_ART_ACCEL": "/cache-files/"}
    pair = [await spawn(**shared, **clock.environment).ready() for _ in range(2)]
    front = await nginx(pair[0])
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/{item.front.id}-250"
    rules = not_made(sim, 250)
    first = await front.get(path, "HEAD")
    assert told(first) == (200, "MISS", "500")
    # It may have been answered before it was stored.
    again = await becomes(
        lambda: front.get(path), lambda seen: seen["X-Served-By"] == "nginx-cache", "it is stored"
    )
    assert told(again) == (200, "HIT", "500")
    assert short_lived(again)
    assert again.body == whole(sim, item.front, 500)
    assert told(await ask(pair[1].url + path, "HEAD")) == (200, "HIT", "500")
    for rule in rules:
        sim.faults.remove(rule)
    clock.set_ahead(TTL_S + 1)
    true = await becomes(lambda: front.get(path), lambda seen: not seen[MARK], "the true size")
    assert true.body == whole(sim, item.front, 250)
    assert "immutable" in true["Cache-Control"]
    direct = await front.get(path)
    assert (direct["X-Served-By"], direct["X-Cache-Status"]) == ("nginx-cache", "HIT")
    assert direct["ETag"] != first["ETag"]


@pytest_twisted.ensureDeferred
async def test_redis_away(sim, run, redis) -> None:
    """What lies on the disk stands in while no index tells of it, and the archive is not asked for it."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    item = sim.catalogue.release(0)
    await proxy.stored(f"/release/{item.mbid}/front-500")
    redis.kill()
    not_made(sim, 250)
    sim.counts.clear()
    for _ in range(2):
        answer = await proxy.stored(f"/release/{item.mbid}/front-250")
        assert told(answer) == (200, "MISS", "500")
        assert answer.body == whole(sim, item.front, 500)
    assert asked(sim, "_thumb250.jpg")
    assert not asked(sim, "_thumb500.jpg")
