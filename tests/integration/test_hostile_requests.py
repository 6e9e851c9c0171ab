"""Requests as an attacker writes them, byte for byte, straight at the app."""

from __future__ import annotations

import json
import re
import resource

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from coverart.simulator.faults import Gate, Rule, Status
from coverart.web import connection_limits, http_channel
from tests.support.hostile_bytes import (
    BODIES,
    CHUNKED,
    CHUNKS,
    COVERS,
    END,
    FRAMING,
    LINES,
    MBID,
    SMUGGLED,
    TARGETS,
    TOO_MUCH,
    M,
)
from tests.support.running import Proxy, reached
from tests.support.talk import SAFETY_S, Wire, answers, connect, within

HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "X-Content-Type-Options": "nosniff",
    "X-Served-By": "coverart",
    "Content-Type": "application/json",
    "Cache-Control": "no-store",
}


async def exchange(proxy: Proxy, data: bytes) -> Wire:
    """Send bytes, wait for the end of the connection."""
    wire = await connect(proxy.port)
    wire.transport.write(data)
    await wire.end()
    return wire


def request(target: bytes, *lines: bytes, method: bytes = b"GET") -> bytes:
    """A request that asks for the connection to be closed."""
    first = method + b" " + target + b" HTTP/1.1"
    return b"\r\n".join([first, b"Host: x", b"Connection: close", *lines, b"", b""])


def check_refusal(wire: Wire, name: object, status: int = 400) -> None:
    """One answer, an error in the words of the contract, and nothing after it."""
    ((code, head, body),) = answers(bytes(wire.received))
    assert code == status, (name, head)
    for header, value in HEADERS.items():
        assert wire.header(header) == value, (name, head)
    assert "default-src 'none'" in wire.header("Content-Security-Policy"), name
    said = rb"[a-z ]+|no such path: [A-Za-z0-9 ,./-]+"
    assert re.fullmatch(rb'\{"error": "(' + said + rb')"\}', body), (name, body)


# Targets


@pytest_twisted.ensureDeferred
async def test_targets(sim, proxy, lines) -> None:
    """No spelling reaches a file or the archive: 400, quoting nothing, in one line of the log."""
    for name, target in TARGETS.items():
        for method in (b"GET", b"HEAD"):
            wire = await exchange(proxy, request(target, method=method))
            if method == b"GET":
                check_refusal(wire, name)
            else:
                assert wire.status == 400, name
    wire = await exchange(proxy, request(b"evil.example:443", method=b"CONNECT"))
    check_refusal(wire, "CONNECT")
    # Twisted's own answer, without our headers and without a body.
    ((status, _, body),) = answers(bytes((await exchange(proxy, request(b"*"))).received))
    assert (status, body) == (405, b"")
    assert sim.counts.requests() == 0
    assert proxy.files() == proxy.links() == []
    await no_trace(proxy, lines)


@pytest_twisted.ensureDeferred
async def test_covers(sim, proxy, lines) -> None:
    """Whatever a name is wrapped in, only its canonical key is asked for, kept and logged."""
    for name, target in COVERS.items():
        wire = await exchange(proxy, request(target))
        assert (wire.status, wire.body) == (404, b'{"error": "no such art"}'), name
    # Its front, one of the ids 1 and 7 each; no image can have the id of many digits.
    assert sim.counts.requests() == 3
    assert proxy.files() == proxy.links() == []
    await no_trace(proxy, lines)


async def no_trace(proxy: Proxy, lines: list[str]) -> None:
    """Nothing of what was sent is in the log: each of its lines is of the known form."""
    await proxy.stop()
    for event in lines:
        for line in event.split("\n"):
            assert line.isprintable(), line
            assert not re.search("evil|etc|script|passwd|__class__|forged|Traceback", line), line
            if " hops" in line:
                assert re.fullmatch(ACCESS, line), line


ACCESS = (
    r"(\S+Z )?(GET|HEAD|other) (unknown|/[a-z0-9/-]*) \d+ [A-Za-z+-]+ \d+ B \d+\.\d+ s \d+ hops"
    r"( client left)?( id [0-9a-f]{32})?"
)


# Headers

FORGED = (
    b"X-Accel-Redirect: /etc/passwd",
    b"X-Accel-Redirect: /cache-files/release/x",
    b"X-Sendfile: /etc/passwd",
    b"X-Forwarded-Host: evil.example",
    b"X-Forwarded-Proto: javascript",
    b"X-Forwarded-For: 127.0.0.1, forged",
    b"X-Forwarded-Prefix: /evil",
    b"X-Original-URL: /admin/purge/release/" + M,
    b"X-Rewrite-URL: /metrics",
    b"X-HTTP-Method-Override: DELETE",
    b"Forwarded: host=evil.example;proto=file",
    b"Host: evil.example",
    b"Host: evil.example\t:80",
    b"Referer: http://evil.example/\x1b[31mforged",
    b"User-Agent: \xff\xfe{forged} %(forged)s",
    b"Cookie: TWISTED_SESSION=evil; " + b"a=b;" * 500,
    b"Authorization: Basic " + b"ZXZpbDpldmls" * 50,
    b"Origin: http://evil.example",
    b"Accept-Encoding: gzip, evil",
    b"If-None-Match: " + b'"evil",' * 1000,
    b"If-Modified-Since: Sun, 99 Evil 99999999999999999999 99:99:99 GMT",
    b"If-Range: \x80",
    b"Connection: Content-Length, X-Cache-Status",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    b"Expect: 100-continue",
    b"Expect: evil",
    b"TE: trailers, evil",
    b"X: " + b"y" * 15_000,
)


@pytest_twisted.ensureDeferred
async def test_forged_headers(sim, run, lines) -> None:
    """No header of a request changes the answer to it, or comes back in it, or gets into the log."""
    for root, settings in (("own", {}), ("accel", {"COVER_ART_ACCEL": "/cache-files/"})):
        proxy = await run(root, **settings)
        lines.clear()
        path = sim.catalogue.examples()["thumbnail"].encode()
        await exchange(proxy, request(path))
        await proxy.settled()
        plain = await exchange(proxy, request(path))
        ((_, right, whole),) = answers(bytes(plain.received))
        assert b"X-Cache-Status: HIT" in right
        for header in FORGED:
            wire = await exchange(proxy, request(path, header))
            *_, (status, head, body) = answers(bytes(wire.received))
            assert (status, body) == (200, whole), header
            assert _undated(head) == _undated(right), header
            await exchange(proxy, request(b"/release/x", header))
        await no_trace(proxy, lines)
    assert sim.counts.requests() == 6


def _undated(head: bytes) -> list[bytes]:
    return sorted(line for line in head.split(b"\r\n") if not line.startswith(b"Date"))


HOSTS: dict[str, bytes] = {
    "not UTF-8": b"\xff\xfe",
    "two dots": b"a..b",
    "a dot": b".",
    "a label of 64": b"a" * 64,
    "5,000 letters": b"a" * 5_000,
    "a path": b"x/../y",
    "a bracket": b"[::1",
    "a port of many digits": b"x:" + b"9" * 5_000,
    "nothing": b"",
    "spaces": b"x y",
    "percent": b"%00%0d%0a",
    "right to left": "\u202e".encode(),
    "other digits": "\u0661".encode(),
    "braces": b"{lines}{0.__class__}",
}


@pytest_twisted.ensureDeferred
async def test_odd_hosts(sim, run, lines) -> None:
    """Host decides nothing but who sees operators' pages: covers are answered as ever."""
    proxy = await run(COVER_ART_ADMIN_TOKEN="t")  # noqa: S106
    for number, (name, host) in enumerate(HOSTS.items()):
        mbid = sim.catalogue.release(number).mbid
        for method, path, expected in (
            (b"GET", f"/release/{mbid}/front-250", {200, 404}),
            (b"GET", f"/release/{mbid}/", {200, 404}),
            (b"HEAD", f"/release/{mbid}/front-500", {200, 404}),
            (b"GET", "/health", {200}),
            (b"GET", "/metrics", {200, 403}),
            (b"GET", "/", {200}),
            (b"POST", f"/admin/purge/release/{mbid}/front", {401, 403}),
        ):
            first = method + b" " + path.encode() + b" HTTP/1.1\r\nConnection: close\r\nHost: "
            wire = await exchange(proxy, first + host + END)
            assert wire.status in expected, (name, path)
            assert wire.header("X-Content-Type-Options") == "nosniff"
            assert "text/html" not in wire.header("Content-Type") or path == "/"
        assert not [line for line in lines if "Traceback" in line], name


OWN = (
    *(b"", b"localhost", b"localhost:8080", b"LOCALHOST.", b"127.0.0.1:8080", b"10.1.2.3"),
    *(b"[::1]:8080", b"[2001:db8::7]", b"app:8080", b"coverart_app", b"nas.local", b"x.lan:80"),
    *(b"a.default.svc.cluster.local:8080", b"covers.example", b"Covers.Example.:443"),
)
FOREIGN = (
    *(b"rebound.example", b"rebound.example:8080", b"127.0.0.1.rebound.example", b"evil.com."),
    *(b"localhost.evil.com", b"covers.example.evil.com", b"evil-covers.example", b"x.evil.locale"),
    *(b"127.1", b"[evil.example]", b"a..b", b"127.0.0.1@evil.example", b"localhost, evil.example"),
)


@pytest_twisted.ensureDeferred
async def test_rebinding(run) -> None:
    """What is for operators is told by no name that a web page may have, and to no page at all."""
    proxy = await run(COVER_ART_ADMIN_TOKEN="t", COVER_ART_PUBLIC_URL="https://covers.example/art")  # noqa: S106
    purge = f"/admin/purge/release/{MBID}/front".encode()
    for hosts in (*((host,) for host in OWN + FOREIGN), (b"localhost", b"rebound.example")):
        own = all(host in OWN for host in hosts)
        lines = b"".join(b"Host: " + host + b"\r\n" for host in hosts)
        for method, path, answer in (
            (b"GET", b"/metrics", 200),
            (b"GET", b"/cache-status", 200),
            (b"HEAD", b"/cache-status", 200),
            (b"POST", purge, 401),
        ):
            first = method + b" " + path + b" HTTP/1.1\r\nConnection: close\r\n"
            wire = await exchange(proxy, first + lines + b"\r\n")
            assert wire.status == (answer if own else 403), (hosts, path)
            assert not wire.header("Access-Control-Allow-Origin"), (hosts, path)
        first = b"GET /health HTTP/1.1\r\nConnection: close\r\n"
        wire = await exchange(proxy, first + lines + b"\r\n")
        told = json.loads(wire.body)
        # A monitor may ask by any name; where covers lie is no page's business.
        assert (wire.status, told["status"], "cache_dir" in told) == (200, "healthy", own), hosts
        assert not wire.header("Access-Control-Allow-Origin")
    first = b"GET /metrics HTTP/1.0\r\n\r\n"
    assert (await exchange(proxy, first)).status == 200


@pytest_twisted.ensureDeferred
async def test_too_much(sim, proxy, lines) -> None:
    """Headers over 500 or 16 kB end the connection with a 400."""
    path = sim.catalogue.examples()["thumbnail"].encode()
    for name, header in TOO_MUCH.items():
        check_refusal(await exchange(proxy, request(path, header)), name)
    assert sim.counts.requests() == 0
    await no_trace(proxy, lines)


# Framing: is it one request or two?


@pytest.mark.parametrize("cut", [False, True], ids=["at once", "in two pieces"])
@pytest_twisted.ensureDeferred
async def test_framing_in_doubt(sim, proxy, lines, cut) -> None:
    """Framing that others may read in another way: one 400, and never a second answer."""
    path = sim.catalogue.examples()["thumbnail"].encode()
    for name, header in FRAMING.items():
        for method in (b"GET", b"POST"):
            wire = await connect(proxy.port)
            head = b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: x", header, b"Y: z"])
            wire.transport.write(head + END[: 2 if cut else 4])
            if cut:
                # The rest comes in a read of its own, maybe before the refusal was sent.
                await deferLater(reactor, 0)
                wire.transport.write(END[2:])
            wire.transport.write(b"0\r\n\r\n" + SMUGGLED + SMUGGLED)
            await wire.end()
            check_refusal(wire, (name, method))
    assert sim.counts.requests() == 0
    await no_trace(proxy, lines)


@pytest_twisted.ensureDeferred
async def test_first_lines(proxy, lines) -> None:
    """A first line that is none is a 400."""
    for name, data in LINES.items():
        check_refusal(await exchange(proxy, data + b"\r\n\r\n"), name)
    await no_trace(proxy, lines)


@pytest_twisted.ensureDeferred
async def test_bodies_are_skipped(sim, proxy) -> None:
    """A body framed well is read past, whatever it holds: the next answer is to the next request."""
    path = sim.catalogue.examples()["thumbnail"].encode()
    expected = {b"GET": 200, b"PUT": 405, b"POST": 405, b"TRACE": 405, b"DELETE": 405, b"get": 405}
    await exchange(proxy, request(path))
    for name, rest in BODIES.items():
        for method, status in expected.items():
            data = method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n" + rest
            wire = await exchange(proxy, data + request(b"/release/none"))
            found = [code for code, _, _ in answers(bytes(wire.received)) if code != 100]
            assert found == [status, 400], (name, method)
            assert b"smuggled" not in wire.received


@pytest_twisted.ensureDeferred
async def test_broken_chunks(sim, proxy, lines) -> None:
    """Chunks that others may read in another way: no answer but a 400 or 413."""
    path = sim.catalogue.examples()["thumbnail"].encode()
    for name, chunks in CHUNKS.items():
        head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + CHUNKED + END
        wire = await exchange(proxy, head + chunks + SMUGGLED)
        check_refusal(wire, name, wire.status)
        assert wire.status in (400, 413), name
    await no_trace(proxy, lines)


@pytest_twisted.ensureDeferred
async def test_large_bodies(sim, proxy) -> None:
    """A body that is announced with more than 64 kB is refused at once."""
    path = sim.catalogue.examples()["thumbnail"].encode()
    most = http_channel.LARGEST_BODY_BYTES
    for length in (most + 1, 10**12, 10**19, 10**22, 10**100):
        wire = await connect(proxy.port)
        wire.transport.write(b"PUT " + path + b" HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length)
        await wire.end()
        check_refusal(wire, length, 413)
    wire = await exchange(
        proxy, request(path, b"Content-Length: %d" % most, method=b"PUT") + b"x" * most
    )
    check_refusal(wire, "as large as may be", 405)


# Many on one connection


@pytest_twisted.ensureDeferred
async def test_pipelined(sim, proxy) -> None:
    """Fifty at once, hits, slow misses and errors: as many answers, in the order of asking."""
    catalogue = sim.catalogue
    held, cold, broken = (catalogue.release(number) for number in (0, 1, 2))
    await proxy.get(f"/release/{held.mbid}/front-250")
    sim.faults.add(Rule(hop="*", path=f"*{cold.mbid}*", does=Gate(name="slow")))
    sim.faults.add(Rule(hop="release", path=f"*{broken.mbid}*", does=Status(code=403)))
    cycle = [
        (f"/release/{held.mbid}/front-250", 200, catalogue.release(0).front, 250),
        (f"/release/{cold.mbid}/front-250", 200, cold.front, 250),
        ("/release/nothing", 400, None, None),
        (f"/release/{broken.mbid}/front", 502, None, None),
        (f"/release/{cold.mbid}/front-500?again", 200, cold.front, 500),
    ]
    wire = await connect(proxy.port)
    asked = cycle * 10
    for path, *_ in asked:
        wire.get(path)
    wire.get("/release/last", "Connection: close")
    await reached(sim, "slow")
    assert len(answers(bytes(wire.received))) == 1
    sim.faults.gates.open("slow")
    await wire.end()
    found = answers(bytes(wire.received))
    assert len(found) == len(asked) + 1
    for (path, status, image, size), (code, _, body) in zip(asked, found, strict=False):
        assert code == status, path
        assert image is None or body == sim.studio.archive_bytes(image, size), path


@pytest_twisted.ensureDeferred
async def test_query_flood(sim, proxy) -> None:
    """Ten thousand spellings of one cover's query are one file and one fetch."""
    path = sim.catalogue.examples()["thumbnail"]
    await proxy.stored(path)
    files, links, asked = proxy.files(), proxy.links(), sim.counts.requests()
    wire = await connect(proxy.port)
    for number in range(10_000):
        wire.get(f"{path}?v={number}&x=%2e%2e/{number}", method="HEAD")
    wire.get("/release/last", "Connection: close", method="HEAD")
    await wire.end()
    assert wire.received.count(b"X-Cache-Status: HIT") == 10_000
    assert sim.counts.requests() == asked
    assert (proxy.files(), proxy.links()) == (files, links)
    totals = await proxy.cache.index.totals()
    assert totals.files == len(files) == 1


# Ranges

RANGES: dict[str, tuple[str, int]] = {
    "1,000 ranges": (",".join(f"{n * 2}-{n * 2}" for n in range(1_000)), 200),
    "17 ranges": (",".join(f"{n * 2}-{n * 2}" for n in range(17)), 200),
    "two ranges": ("0-9,20-29", 200),
    "1,000 times all": (",".join(["0-"] * 1_000), 200),
    "16 times all": (",".join(["0-"] * 16), 200),
    "overlapping": ("0-,0-,0-", 200),
    "reversed": ("600-500", 416),
    "a suffix of none": ("-0", 416),
    "behind the end": ("99999999-", 416),
    "a start of 4,000 digits": ("9" * 4_000 + "-", 416),
    "a start of 6,000 digits": ("9" * 6_000 + "-", 416),
    "an end of 6,000 digits": ("0-" + "9" * 6_000, 416),
    "a suffix of 6,000 digits": ("-" + "9" * 6_000, 416),
    "minus minus": ("--5", 416),
    "5,000 commas": ("," * 5_000, 200),
    "nothing": ("", 416),
    "other digits": ("\u0661-\u0662", 416),
    "5,000 spaces": (" " * 5_000 + "0" + " " * 5_000, 416),
}


@pytest.mark.parametrize("kind", ["thumbnail", "large", "listing"])
@pytest_twisted.ensureDeferred
async def test_ranges(sim, run, kind) -> None:
    """One range is served, more ask for the whole: never more bytes than the file has."""
    settings = {"COVER_ART_PUBLIC_URL": "http://x"} if kind == "listing" else {}
    proxy = await run(**settings)
    path = sim.catalogue.examples()["thumbnail" if kind == "large" else kind]
    if kind == "large":
        path = f"/release/{sim.catalogue.release(11).mbid}/front"
    await proxy.get(path)
    await proxy.settled()
    whole = (await proxy.get(path)).body
    for name, (text, expected) in RANGES.items():
        wire = await exchange(proxy, request(path.encode(), b"Range: bytes=" + text.encode()))
        ((status, _, body),) = answers(bytes(wire.received))
        assert status == expected, name
        assert status != 200 or body == whole, name
        assert len(body) <= len(whole), name


# Slow ones


@pytest_twisted.ensureDeferred
async def test_slow_requests(sim, proxy, monkeypatch) -> None:
    """A request that is not whole after KEEP_ALIVE_S is a 408, however busily its bytes trickle in."""
    monkeypatch.setattr(connection_limits, "KEEP_ALIVE_S", 0.4)
    path = sim.catalogue.examples()["thumbnail"].encode()
    await exchange(proxy, request(path))
    begins = {
        "one byte": b"G",
        "a first line": b"GET " + path + b" HTTP/1.1\r\n",
        "headers without end": b"GET " + path + b" HTTP/1.1\r\nX: y\r\n",
        "a body": b"PUT " + path + b" HTTP/1.1\r\nContent-Length: 60000\r\n\r\n",
        "chunks": b"PUT " + path + b" HTTP/1.1\r\n" + CHUNKED + b"\r\n\r\n",
    }
    trickles = {"one byte": b"E", "a body": b"x", "chunks": b"1\r\nx\r\n"}
    wires: dict[str, Wire] = {}
    for name, data in begins.items():
        wires[name] = await connect(proxy.port)
        wires[name].transport.write(data)
    served = await connect(proxy.port)
    served.transport.write(b"GET " + path + b" HTTP/1.1\r\n\r\nGET " + path)
    patience = reactor.seconds() + SAFETY_S
    while not all(wire.ended.called for wire in [*wires.values(), served]):
        assert reactor.seconds() < patience, "never refused"
        for name, wire in wires.items():
            if not wire.received:
                wire.transport.write(trickles.get(name, b"X: y\r\n"))
        await deferLater(reactor, 0.02)
    for name, wire in wires.items():
        check_refusal(wire, name, 408)
    assert [code for code, _, _ in answers(bytes(served.received))] == [200, 408]


@pytest_twisted.ensureDeferred
async def test_waiting_is_not_slow(sim, proxy, monkeypatch) -> None:
    """Only the client's part of a request is timed, not the archive's."""
    monkeypatch.setattr(connection_limits, "KEEP_ALIVE_S", 0.1)
    path = sim.catalogue.examples()["thumbnail"]
    sim.faults.add(Rule(hop="node", does=Gate(name="bytes")))
    wire = await connect(proxy.port)
    wire.get(path)
    wire.transport.write(b"GET /health HTTP/1.1\r\n")
    await reached(sim, "bytes")
    await too_slow(proxy)
    assert not wire.received
    sim.faults.gates.open("bytes")
    await wire.end()
    assert [code for code, _, _ in answers(bytes(wire.received))] == [200, 408]


async def too_slow(proxy: Proxy) -> None:
    """Wait as long as a request may take, by one that takes longer."""
    slow = await connect(proxy.port)
    slow.transport.write(b"G")
    await slow.end()
    check_refusal(slow, "slow", 408)


@pytest_twisted.ensureDeferred
async def test_idle_connections(sim, proxy) -> None:
    """Thousands that say nothing, or half a word, keep nobody from a hit."""
    path = sim.catalogue.examples()["thumbnail"]
    await proxy.get(path)
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = min(2_000, (allowed - 200) // 3)
    wires = [await connect(proxy.port) for _ in range(count)]
    for wire in wires[::2]:
        wire.transport.write(b"GET /rel")
    for _ in range(20):
        answer = await proxy.get(path)
        assert (answer.status, answer["X-Cache-Status"]) == (200, "HIT")
    for wire in wires:
        wire.leave()
    for wire in wires:
        await within(wire.ended)


@pytest_twisted.ensureDeferred
async def test_no_more_descriptors(sim, proxy, monkeypatch, lines) -> None:
    """Out of file descriptors, a hit is a 503 to come back after; what is held stays held."""
    path = sim.catalogue.examples()["thumbnail"]
    await proxy.stored(path)
    files = proxy.files()

    def none_left(path: str) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(proxy.cache.store, "open", none_left)
        answer = await proxy.get(path)
        assert (answer.status, bool(answer["Retry-After"])) == (503, True)
    assert proxy.files() == files
    assert (await proxy.get(path))["X-Cache-Status"] == "HIT"
    assert any("Too many open files" in line for line in lines)
