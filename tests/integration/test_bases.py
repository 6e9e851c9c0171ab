"""Where listings and redirects lead: back to the name a client asked by, below /serve and /redirect as it asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS

from coverart.model import SIZES
from coverart.simulator import answers as archives
from coverart.simulator.service import Simulator
from tests.support.certificates import signed
from tests.support.nginx_server import ACCEL
from tests.support.running import Served, free_port
from tests.support.talk import LOCAL, Answer, Wire, answers, ask, connect

AUTO = {"COVER_ART_PUBLIC_URL": "auto"}
BEHIND = {**ACCEL, **AUTO}
PREFIXES = ("", "/serve", "/redirect")
OWN = (
    *("/", "/health", "/ready", "/cache-status", "/metrics", "/openapi.json", "/robots.txt"),
    *("/api", "/favicon.ico", "/admin/purge/release/{m}/front", "/admin/refresh/release/{m}/"),
    *("/cache-files/release/{m}", "/.error"),
)
NO_HOST = (
    b"x y",
    b"user@covers.example",
    b"x;y",
    b"x%2ey",
    b"a..b",
    b"[::1",
    b"x:99999",
    b"b\xc3\xbc",
)


def things(sim: Simulator) -> list[tuple[str, str, Any, int | None]]:
    """Paths of images of each kind, each with where it leads, the image and its size."""
    found: list[tuple[str, str, Any, int | None]] = []
    for number in (0, 1, 4):
        item = sim.catalogue.release(number)
        front = item.front
        assert front is not None
        original = f"/release/{item.mbid}/{front.id}.{front.ext}"
        mbid = f"mbid-{item.mbid}"
        found += [
            (f"/release/{item.mbid}/front", original, front, None),
            (f"/release/{item.mbid}/{front.id}", original, front, None),
            (f"/download/{mbid}/{mbid}-{front.id}.jpg", original, front, None),
        ]
        for size in SIZES:
            thumbnail = f"/release/{item.mbid}/{front.id}-{size}.jpg"
            found += [
                (f"/release/{item.mbid}/front-{size}.jpg", thumbnail, front, size),
                (f"/release/{item.mbid}/{front.id}-{size}", thumbnail, front, size),
                (f"/download/{mbid}/{mbid}-{front.id}_thumb{size}.jpg", thumbnail, front, size),
            ]
    group, event = sim.catalogue.release_group(0), sim.catalogue.event(0)
    item = sim.catalogue.release(0)
    assert item.front is not None
    assert event.front is not None
    to = f"/release/{item.mbid}/{item.front.id}-500.jpg"
    found.append((f"/release-group/{group.mbid}/front-500", to, item.front, 500))
    to = f"/event/{event.mbid}/{event.front.id}.{event.front.ext}"
    found.append((f"/event/{event.mbid}/front", to, event.front, None))
    return found


def urls(listing: Answer) -> list[str]:
    """Every address of an image in a listing."""
    return [
        url
        for image in listing.json["images"]
        for url in (image["image"], *image["thumbnails"].values())
    ]


async def said(server: Served, line: str, *headers: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer to these bytes."""
    wire = await connect(server.port)
    lines = [line.encode(), *headers, b"Connection: close", b"", b""]
    wire.transport.write(b"\r\n".join(lines))
    await wire.end()
    (answer,) = answers(bytes(wire.received))
    return answer


def location(head: bytes) -> str:
    """Where a redirect leads."""
    (found,) = [line for line in head.split(b"\r\n") if line.lower().startswith(b"location: ")]
    return found[10:].decode()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("mode", ["serve", "redirect"])
async def test_images(sim, run, nginx, mode: str) -> None:
    """In both modes /serve sends every image, and /redirect leads there, by one redirect with an absolute URL."""
    setting = {"COVER_ART_IMAGE_MODE": mode}
    alone = await run("alone", **AUTO, **setting)
    proxy = await run(**BEHIND, **setting)
    front = await nginx(proxy, **setting)
    for server in (alone, front):
        for path, to, image, size in things(sim):
            right = sim.studio.archive_bytes(image, size)
            for method in ("HEAD", "GET"):
                told = await server.get(f"/redirect{path}", method)
                assert (told.status, told["Location"]) == (307, f"{server.url}/serve{to}"), path
                assert (told["X-Served-By"], told.body) == ("coverart", b""), path
                assert told["Cache-Control"] == "public, max-age=86400", path
            for url in (told["Location"], f"{server.url}/serve{path}"):
                served = await ask(url)
                assert (served.status, served.body) == (200, right), url
    await proxy.settled()
    before = len(await front.hits(0))
    for path, to, _, _ in things(sim):
        for url in (f"/serve{path}", f"/serve{to}"):
            # The second time it is on the disk by this name.
            await front.get(url)
            await proxy.settled()
            assert (await front.get(url))["X-Served-By"] == "nginx-cache", url
        assert (await front.get(f"/redirect{path}"))["X-Served-By"] == "coverart", path
        direct = (await front.get(path))["X-Served-By"] == "nginx-cache"
        assert direct == (mode == "serve" or "front" not in path), path
    lines = await front.hits(before + 2 * len(things(sim)))
    # As ever: the path of a file, whatever it was asked by.
    assert all(line.startswith(("/release/", "/release-group/", "/event/")) for line in lines)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("mode", ["serve", "redirect"])
async def test_listings(sim, run, nginx, mode: str) -> None:
    """A listing leads to the host and the port that were asked, below the prefix that was asked, and all is there."""
    setting = {"COVER_ART_IMAGE_MODE": mode}
    alone = await run("alone", **AUTO, **setting)
    front = await nginx(await run(**BEHIND, **setting), **setting)
    item, group, event = (
        sim.catalogue.release(4),
        sim.catalogue.release_group(0),
        sim.catalogue.event(0),
    )
    listed = (
        (f"/release/{item.mbid}/", f"/release/{item.mbid}/"),
        (f"/release-group/{group.mbid}", f"/release/{sim.catalogue.release(0).mbid}/"),
        (f"/event/{event.mbid}/", f"/event/{event.mbid}/"),
    )
    for server in (alone, front):
        for path, to in listed:
            etags = set()
            for prefix in PREFIXES:
                for _ in range(2):
                    listing = await server.get(prefix + path)
                    assert listing.status == 200
                    etags.add(listing["ETag"])
                    assert urls(listing)
                    for url in urls(listing):
                        assert url.startswith(f"{server.url}{prefix}{to}"), url
                followed = await ask(urls(listing)[-1])
                assert followed.status == (307 if prefix == "/redirect" else 200)
                if followed.status == 307:
                    followed = await ask(followed["Location"])
                assert (followed.status, followed["Content-Type"]) == (200, "image/jpeg")
            assert len(etags) == len(PREFIXES)


@pytest_twisted.ensureDeferred
async def test_nothing_there(sim, run) -> None:
    """What the archive has not is a 404 below /redirect too; a size it has not is one behind the redirect."""
    proxy = await run(**AUTO)
    mbid = sim.catalogue.release(0).mbid
    for path in (f"/release/{mbid}/1", "/release/00000000-0000-4000-8000-000000000000/front-250"):
        for prefix in PREFIXES:
            for _ in range(2):
                answer = await proxy.get(prefix + path)
                assert (answer.status, answer["Cache-Control"]) == (404, "public, max-age=60"), path


@pytest_twisted.ensureDeferred
async def test_ids_cost_little(sim, run) -> None:
    """Where an id leads below /redirect is not asked of the archive while any size of it is held, nor remembered as a name."""
    proxy = await run(**AUTO)
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/{item.front.id}-250"
    told = await proxy.get(f"/redirect{path}")
    assert (told.status, sim.counts.requests("release"), sim.counts.requests()) == (307, 1, 1)
    assert (await proxy.get(path)).status == 200
    await proxy.settled()
    sim.counts.clear()
    assert (await proxy.get(f"/redirect{path}"))["Location"] == told["Location"]
    assert sim.counts.requests() == 0
    assert (proxy.links(), (await proxy.get("/cache-status")).json["aliases"]) == ([], 0)


@pytest_twisted.ensureDeferred
async def test_operators_have_no_prefix(sim, run, nginx) -> None:
    """Before an operator's path a prefix makes no path of it, however both are spelled, here and through nginx."""
    proxy = await run(COVER_ART_ADMIN_TOKEN="t", **BEHIND)  # noqa: S106
    servers = (proxy, await nginx(proxy), await nginx(proxy, NGINX_OPERATORS="192.0.2.1"))
    item = sim.catalogue.release(0)
    held = f"/release/{item.mbid}/front-250"
    await proxy.stored(held)
    files = proxy.files()
    asked = set()
    for prefix in PREFIXES[1:]:
        name = prefix[1:]
        spelled = (
            *(
                prefix,
                f"/{prefix}",
                f"{prefix}/",
                f"{prefix}/.",
                f"{prefix}/..",
                f"{prefix}/%2e%2e",
            ),
            *(
                f"{prefix}{prefix}",
                f"{prefix}/release/..",
                f"{prefix}/release/../..",
                f"{prefix}%2f..",
            ),
            *(f"/%{ord(name[0]):x}{name[1:]}", f"/{name.upper()}", f"/./{name}", f"/x/../{name}"),
            *(f"{prefix}//", f"{prefix}/%2f", f"{prefix};x", f"{prefix}/x/../..", f"{prefix}\\.."),
        )
        asked |= {before + own.format(m=item.mbid) for before in spelled for own in OWN}
    asked |= {
        "/serve",
        "/redirect",
        "/serve/",
        "/redirect/",
        "/serve?x=/metrics",
        "/serve/?/release",
    }
    asked |= {
        f"/admin/purge/serve{held}",
        f"/admin/purge/redirect{held}",
        f"/admin/serve/purge{held}",
    }
    token = b"Authorization: Bearer t"
    for server in servers:
        for path in sorted(asked):
            for method in ("GET", "POST"):
                status, head, body = await said(
                    server, f"{method} {path} HTTP/1.1", b"Host: localhost", token
                )
                expected = {400, 403, 405} if path.startswith("/admin/") else {400}
                assert status in expected, (path, method, status)
                assert set(json.loads(body)) == {"error"}, path
                assert b"coverart_" not in head + body, path
    assert proxy.files() == files


@pytest_twisted.ensureDeferred
async def test_hosts(sim, run, nginx) -> None:
    """Each Host is led back to itself; two never share an ETag, and X-Forwarded-Host and Forwarded count for nothing."""
    alone = await run("alone", **AUTO)
    front = await nginx(await run(**BEHIND))
    path = sim.catalogue.examples()["listing"]
    lies = {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example;proto=https"}
    for server in (alone, front):
        etags = {}
        for host in ("covers.example", "covers.example:8080", "nas", "[::1]:8080", "192.0.2.7"):
            answer = await ask(server.url + path, headers={"Host": host, **lies})
            assert all(url.startswith(f"http://{host}/release/") for url in urls(answer)), host
            assert b"evil" not in answer.body
            etags[host] = answer["ETag"]
            told = await ask(
                f"{server.url}/redirect{path}front-250", headers={"Host": host, **lies}
            )
            assert told["Location"].startswith(f"http://{host}/serve/release/"), host
        assert len(set(etags.values())) == len(etags)
        for host in etags:
            for other, etag in etags.items():
                sent = {"Host": host, "If-None-Match": etag}
                status = (await ask(server.url + path, headers=sent)).status
                assert status == (304 if other == host else 200)
        upper = await ask(server.url + path, headers={"Host": "Covers.EXAMPLE"})
        assert upper["ETag"] == etags["covers.example"]


@pytest_twisted.ensureDeferred
async def test_no_host(sim, run, nginx) -> None:
    """Without a Host a listing is as it was received, and a redirect has a path alone."""
    alone = await run("alone", **AUTO)
    front = await nginx(await run(**BEHIND))
    item = sim.catalogue.release(0)
    for server in (alone, front):
        for prefix in PREFIXES:
            line = f"GET {prefix}/release/{item.mbid}/ HTTP/1.0"
            status, _, body = await said(server, line)
            assert (status, body) == (200, archives.listing(item)), prefix
        status, head, _ = await said(
            server, f"GET /redirect/release/{item.mbid}/front-250 HTTP/1.0"
        )
        assert status == 307
        assert location(head) == f"/serve/release/{item.mbid}/{item.front.id}-250.jpg"


@pytest_twisted.ensureDeferred
async def test_invalid_hosts(sim, run, nginx) -> None:
    """A Host that is none is a 400 where an answer would hold it, and no matter elsewhere."""
    alone = await run("alone", **AUTO)
    front = await nginx(await run(**BEHIND))
    fixed = await run("fixed", COVER_ART_PUBLIC_URL="https://covers.example")
    item = sim.catalogue.release(0)
    base = f"/release/{item.mbid}"
    for host in NO_HOST:
        for server in (alone, front):
            for path in (f"{base}/", f"/serve{base}/", f"/redirect{base}/front"):
                status, _, body = await said(server, f"GET {path} HTTP/1.1", b"Host: " + host)
                assert (status, set(json.loads(body))) == (400, {"error"}), (host, path)
        assert (await said(alone, f"GET {base}/front-250 HTTP/1.1", b"Host: " + host))[0] == 200
        assert (await said(fixed, f"GET {base}/ HTTP/1.1", b"Host: " + host))[0] == 200
    for server in (alone, front):
        two = await said(server, f"GET {base}/ HTTP/1.1", b"Host: a", b"Host: evil.example")
        assert two[0] == 400


@pytest_twisted.ensureDeferred
async def test_other_forms_of_a_request(sim, run, nginx) -> None:
    """Through nginx the host of a request line in absolute form counts, and Host does not (RFC 9112 section 3.2.2)."""
    front = await nginx(await run(**BEHIND))
    path = f"/redirect/release/{sim.catalogue.release(0).mbid}/front-250"
    for line, host, base in (
        ("http://covers.example:8080", b"covers.example:8080", "covers.example:8080"),
        ("http://covers.example:8080", b"COVERS.example:8080", "covers.example:8080"),
        ("http://covers.example", b"evil.example", "covers.example"),
        ("http://covers.example:8080", b"evil.example:8080", "covers.example"),
        ("", b"covers.example.:8080", "covers.example.:8080"),
        ("", b"_", "_"),
    ):
        status, head, _ = await said(front, f"GET {line}{path} HTTP/1.1", b"Host: " + host)
        assert status == 307
        assert location(head).startswith(f"http://{base}/serve/release/"), (line, host)


@pytest_twisted.ensureDeferred
async def test_fixed_and_off(sim, run) -> None:
    """A URL is the base whatever is asked, prefixes behind it; with off listings are as received and redirects have paths."""
    item = sim.catalogue.release(0)
    base = f"/release/{item.mbid}"
    fixed = await run("fixed", COVER_ART_PUBLIC_URL="https://covers.example/art/")
    off = await run("off", COVER_ART_PUBLIC_URL="off")
    for prefix in PREFIXES:
        listing = await fixed.get(f"{prefix}{base}/")
        assert all(
            url.startswith(f"https://covers.example/art{prefix}{base}/") for url in urls(listing)
        )
        assert (await off.get(f"{prefix}{base}/")).body == archives.listing(item)
    to = f"/serve{base}/{item.front.id}-250.jpg"
    told = await fixed.get(f"/redirect{base}/front-250")
    assert told["Location"] == f"https://covers.example/art{to}"
    assert (await off.get(f"/redirect{base}/front-250"))["Location"] == to


@pytest_twisted.ensureDeferred
async def test_unstored(sim, run) -> None:
    """A listing that can't be stored leads to the host that is asked too, and has an ETag of it."""
    proxy = await run(**AUTO)
    (proxy.root / "release").write_bytes(b"where a folder has to be")
    path = f"/release/{sim.catalogue.release(0).mbid}/"
    etags = set()
    for host in ("one.example", "two.example"):
        answer = await ask(proxy.url + path, headers={"Host": host})
        assert "stored=?0" in answer["Cache-Status"]
        assert all(url.startswith(f"http://{host}/release/") for url in urls(answer))
        etags.add(answer["ETag"])
    assert len(etags) == 2


@pytest_twisted.ensureDeferred
async def test_own_names_stay(run) -> None:
    """That a listing leads to a name makes it none by which operators may ask."""
    proxy = await run(**AUTO)
    for host, status in (("covers.example", 403), (f"{LOCAL}:{free_port()}", 200), ("nas", 200)):
        assert (await ask(f"{proxy.url}/metrics", headers={"Host": host})).status == status


@pytest_twisted.ensureDeferred
async def test_https(sim, run, tmp_path: Path) -> None:
    """Who asks the app's own TLS endpoint is led to https."""
    pem = tmp_path / "pem"
    certificate = signed("localhost", None)
    pem.write_bytes(certificate.key_pem + certificate.pem)
    listen = f"ssl:0:privateKey={pem}:certKey={pem}:interface={LOCAL}"
    proxy = await run(COVER_ART_LISTEN=listen, **AUTO)
    item = sim.catalogue.release(0)
    base = f"https://covers.example:{proxy.port}"
    found = []
    for path in (f"/release/{item.mbid}/", f"/redirect/release/{item.mbid}/front-250"):
        wire = Wire()
        options = optionsForClientTLS("localhost", trustRoot=Certificate.loadPEM(certificate.pem))
        endpoint = wrapClientTLS(options, TCP4ClientEndpoint(reactor, LOCAL, proxy.port))
        await connectProtocol(endpoint, wire)
        head = (
            f"GET {path} HTTP/1.1\r\nHost: covers.example:{proxy.port}\r\nConnection: close\r\n\r\n"
        )
        wire.transport.write(head.encode())
        await wire.end()
        found.append(wire)
    listing, told = found
    assert json.loads(listing.body)["images"][0]["image"].startswith(f"{base}/release/{item.mbid}/")
    assert told.header("Location") == f"{base}/serve/release/{item.mbid}/{item.front.id}-250.jpg"


@pytest_twisted.ensureDeferred
async def test_scheme_of_a_proxy(sim, run, nginx) -> None:
    """The scheme is a trusted proxy's word, and nobody else's; by another scheme a listing has another ETag."""
    alone = await run("alone", **AUTO)
    wary = await run("wary", COVER_ART_TRUSTED_PROXIES="10.0.0.0/8", **AUTO)
    behind = await run(**BEHIND)
    plain, trusting = await nginx(behind), await nginx(behind, NGINX_TRUSTED_PROXIES=LOCAL)
    path = sim.catalogue.examples()["listing"]
    for server, believes in ((alone, True), (wary, False), (plain, False), (trusting, True)):
        etags: dict[str, str] = {}
        for told, scheme in (
            ("https", "https"),
            ("HTTPS", "https"),
            ("http", "http"),
            ("http, https", "https"),
            ("https, http", "http"),
            ("ftp", "http"),
            ("https://evil.example", "http"),
            ("", "http"),
        ):
            sent = {"Host": "covers.example", "X-Forwarded-Proto": told}
            answer = await ask(server.url + path, headers=sent)
            base = f"{scheme if believes else 'http'}://covers.example"
            assert all(url.startswith(f"{base}/release/") for url in urls(answer)), told
            assert etags.setdefault(base, answer["ETag"]) == answer["ETag"]
            moved = await ask(f"{server.url}/redirect{path}front", headers=sent)
            assert moved["Location"].startswith(f"{base}/serve/release/"), told
        assert len(set(etags.values())) == (2 if believes else 1)
