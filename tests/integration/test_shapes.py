"""One cover in every spelling that the archive answers: one key, one file, one fetch, by every way."""

from __future__ import annotations

from itertools import islice

import pytest_twisted

from tests.support.running import Served
from tests.support.shapes import PLACES, decision, shapes
from tests.support.talk import answers, ask, connect


async def get(server: Served, path: str, method: str = "GET") -> tuple[int, bytes, bytes]:
    """Ask for a path byte for byte, whatever a client's library would make of it."""
    wire = await connect(server.port)
    line = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    wire.transport.write(line.encode("latin-1"))
    await wire.end()
    ((status, head, body),) = answers(bytes(wire.received))
    return status, head, body


@pytest_twisted.ensureDeferred
async def test_generated(sim, run, nginx) -> None:
    """Where hop 1 redirects, the app and the app behind nginx send the file that it names, fetched once."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/")
    alone = await run("alone")
    front = await nginx(proxy)
    statuses = {307: 0, 400: 0, 404: 0}
    places: set[bytes | None] = set()
    for path in islice(shapes(sim.catalogue, 2), 200):
        archives = decision(sim.catalogue, PLACES, path)
        found = [await get(server, path) for server in (alone, front)]
        if archives.status != 307:
            # An MBID in upper case is more than the archive takes.
            both = {status for status, _, _ in found}
            assert len(both) == 1, (path, both)
            assert archives.status in both or both < {200, 400, 404}, (path, archives.status)
            statuses[archives.status] = statuses.get(archives.status, 0) + 1
            continue
        location = archives.header(b"Location") or b""
        file = location.decode().removeprefix(f"{PLACES.archive}/download/")
        second = await ask(f"{sim.url('archive')}/download/{file}")
        right = await ask(second["Location"])
        for status, _, body in found:
            assert status == right.status, path
            assert status != 200 or body == right.body, path
        if right.status == 200:
            places.add(location)
        statuses[307] += 1
    assert min(statuses[307], statuses[400], statuses[404]) > 25, statuses
    assert len(proxy.files()) >= len(places)
    for name in (*proxy.files(), *proxy.links()):
        assert "%" not in name
        assert name.isascii()


SPELLINGS = (
    *("{n}-250", "{n}-2500", "{n}-250px.jpg", "{n}-250.webp", "{n}-250.", "{n}-250/", "{n}-250//"),
    *(
        "{n}-250/500",
        "{n}-250/../x",
        "{n}al-250",
        "{n}%20-250",
        "{n}%0a-250",
        "{n}%2D250",
        "{n}-%32%35%30",
    ),
    *(
        "{n}.jpg-250",
        "{n}-500-250",
        "{n}-250%2fx",
        "{n};v=1-250",
        "./{n}-250",
        "{n}-250/../../../.error",
        "{n}-250/../../../.range",
        "{n}-250/%2e./../../cache-files/x",
        "//{n}-250",
        "%2f{n}-250",
    ),
)


@pytest_twisted.ensureDeferred
async def test_one_fetch(sim, run, nginx) -> None:
    """All spellings of one thumbnail are one fetch and one file, and one symlink under its name."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/")
    front = await nginx(proxy)
    item = sim.catalogue.release(0)
    bodies = set()
    for name in ("front", str(item.front.id), f"00{item.front.id}"):
        for spelling in SPELLINGS:
            path = f"/release/{item.mbid}/{spelling.format(n=name)}"
            status, _, body = await get(front, path)
            assert status == 200, spelling
            bodies.add(body)
    for before in ("//release/", "/release//", "/%72elease/", "/release%2f", "/release/./"):
        assert (await get(front, f"{before}{item.mbid}/front-250"))[0] == 200, before
    assert bodies == {sim.studio.archive_bytes(item.front, 250)}
    assert sim.counts.requests() == 3
    assert (len(proxy.files()), len(proxy.links())) == (1, 1)


REFUSED = {
    "/release/{m}/x": (400, "no such path: an id begins with digits"),
    "/release/{m}/.": (400, "no such path: an id begins with digits"),
    "/release/{m}/%66oo": (400, "no such path: an id begins with digits"),
    "/event/{m}/back": (400, "no such path: an id begins with digits"),
    "/release-group/{m}/back": (400, "no such path: of a release group there is only the front"),
    "/release/{m}0/front": (400, "no such path: an MBID has 8-4-4-4-12 hexadecimal digits"),
    "/release": (400, "no such path: an MBID has 8-4-4-4-12 hexadecimal digits"),
    "/label/{m}/": (400, "no such path: it begins with release, release-group, event or download"),
    "/release/{m}/0": (404, "no such art"),
    "/release/{m}/99999999999999999999": (404, "no such art"),
}


@pytest_twisted.ensureDeferred
async def test_refused(sim, run, nginx) -> None:
    """What the archive refuses is refused with its status, and the body says why, quoting nothing."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/")
    front = await nginx(proxy)
    for path, (status, why) in REFUSED.items():
        asked = path.format(m=sim.catalogue.release(0).mbid)
        for server in (proxy, front):
            answer = await server.get(asked)
            assert (answer.status, answer.json) == (status, {"error": why}), path
    assert sim.counts.requests() == 0


@pytest_twisted.ensureDeferred
async def test_operators_door(sim, run, nginx) -> None:
    """No spelling but the plain one reaches what is for operators: nginx and the app read it alike."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/", COVER_ART_ADMIN_TOKEN="t")  # noqa: S106
    front = await nginx(proxy, NGINX_OPERATORS="10.0.0.0/8")
    mbid = sim.catalogue.release(0).mbid
    for path in ("/metrics", "/cache-status"):
        assert (await get(front, path))[0] == 403
        for spelled in (
            *(f"/{path}", f"{path}/", f"/.{path}", f"/x/..{path}", f"/%2e{path}", f"/%2f{path}"),
            *(f"/%{ord(path[1]):x}{path[2:]}", f"/%25{ord(path[1]):x}{path[2:]}", f"{path}%00"),
            *(f"{path}%20", f"{path};x", path.upper(), f"/release/{mbid}/..{path}", f"{path}#"),
            *(f"/release/{mbid}/front/../../..{path}", f"/release/../..{path}", f"/\\{path[1:]}"),
        ):
            for server in (front, proxy):
                status, _, body = await get(server, spelled)
                assert b"coverart_" not in body, spelled
                assert b"cached_files" not in body, spelled
                assert status in {200, 400} if "front" in spelled else status in {400, 403}, spelled
    for spelled in ("//admin", "/%61dmin", "/./admin", "/admin/", "/x/../admin"):
        path = f"{spelled}/purge/release/{mbid}/front"
        assert (await get(front, path, "POST"))[0] in {400, 403}, path


@pytest_twisted.ensureDeferred
async def test_pages(sim, run, nginx) -> None:
    """What crawlers, browsers and readers of manuals ask for is answered as the archive answers it."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/")
    front = await nginx(proxy, NGINX_OPERATORS="10.0.0.0/8")
    for server in (proxy, front):
        for path in ("/robots.txt", "/api"):
            archives = await ask(sim.url("release") + path)
            for method in ("GET", "HEAD"):
                ours = await server.get(path, method)
                assert ours.status == archives.status, path
                for name in ("Location", "Content-Type", "Access-Control-Allow-Origin"):
                    assert ours[name] == archives[name], (path, name)
                assert ours.body == (archives.body if method == "GET" else b""), path
        icon = await server.get("/favicon.ico")
        assert (icon.status, icon.body, icon["Content-Type"]) == (204, b"", "")
        assert (await server.get("/api", "POST")).status == 405
        assert (await server.get("/robots.txt", "OPTIONS"))["Allow"] == "GET, HEAD, OPTIONS"


@pytest_twisted.ensureDeferred
async def test_redirected(sim, run, nginx) -> None:
    """With IMAGE_MODE=redirect every spelling of a name leads to its image's one URL."""
    mode = {"COVER_ART_IMAGE_MODE": "redirect"}
    proxy = await run(COVER_ART_ACCEL="/cache-files/", **mode)
    front = await nginx(proxy, **mode)
    item = sim.catalogue.release(0)
    for server in (proxy, front):
        for path, file in {
            f"//release/{item.mbid}/%66ront-2500.webp/x": f"{item.front.id}-250.jpg",
            f"/release/./{item.mbid}/front-1000": f"{item.front.id}.{item.front.ext}",
        }.items():
            status, head, _ = await get(server, path)
            assert status == 307, path
            assert f"Location: /release/{item.mbid}/{file}\r\n".encode() in head + b"\r\n", head


@pytest_twisted.ensureDeferred
async def test_purged(sim, run) -> None:
    """What is purged by one spelling is gone by all; only /admin itself has but one."""
    token = {"Authorization": "Bearer t"}
    proxy = await run(COVER_ART_ADMIN_TOKEN="t")  # noqa: S106
    item = sim.catalogue.release(0)
    held = f"/release/{item.mbid}/{item.front.id}-250"
    await proxy.get(held)
    await proxy.settled()
    assert len(proxy.files()) == 1
    loose = f"/release//{item.mbid}/%30{item.front.id}-250.webp/x"
    for path in (f"//admin/purge{loose}", f"/%61dmin/purge{loose}", f"/admin/%70urge{loose}"):
        assert (await ask(proxy.url + path, "POST", token)).status == 400, path
    assert len(proxy.files()) == 1
    assert (await ask(f"{proxy.url}/admin/purge{loose}", "POST", token)).status == 200
    assert proxy.files() == []
