"""The simulated archive on real sockets: every hop, every fault, the control port, the service."""

import gzip
import hashlib
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
import pytest_twisted
import treq
from PIL import Image as Pixels
from twisted.internet import error, reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.threads import deferToThread
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH

from coverart.simulator import tap
from coverart.simulator.answers import file_name
from coverart.simulator.catalogue import Catalogue, Image
from coverart.simulator.draw import archive_bytes
from coverart.simulator.faults import (
    Body,
    Chunked,
    ContentType,
    Cut,
    Drip,
    Gate,
    Gzip,
    Html,
    Latency,
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
from coverart.simulator.service import Simulator

ROOT = Path(__file__).parent.parent.parent
LOCAL = b"127.0.0.1"


@pytest_twisted.async_yield_fixture
async def archive():
    """Run a small archive, and stop it again whatever the test did to it."""
    simulator = Simulator(reactor, Catalogue(seed=7, releases=50))
    await simulator.start()
    yield simulator
    await simulator.stop()


@attrs.frozen
class Answer:
    """What came back."""

    status: int
    headers: Headers
    length: object
    body: bytes

    def __getitem__(self, name: str) -> str:
        """Give a header; empty if there is none."""
        values = self.headers.getRawHeaders(name)
        return values[0] if values else ""


async def ask(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    data: bytes | None = None,
) -> Answer:
    """Send one request on a connection of its own; follow and decode nothing."""
    agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
    producer = None if data is None else FileBodyProducer(io.BytesIO(data))
    sent = Headers({name: [value] for name, value in (headers or {}).items()})
    response = await agent.request(method.encode(), url.encode(), sent, producer)
    pieces: list[bytes] = []
    await treq.collect(response, pieces.append)
    return Answer(response.code, response.headers, response.length, b"".join(pieces))


async def chain(archive: Simulator, path: str) -> list[Answer]:
    """Follow the redirects from a path of hop 1."""
    url = archive.url("event" if path.startswith("/event") else "release") + path
    answers = [await ask(url)]
    while location := answers[-1]["Location"]:
        answers.append(await ask(location))
    return answers


class Wire(Protocol):
    """Sends a request and keeps what comes, to the byte and to the end."""

    transport: ITCPTransport

    def __init__(self) -> None:
        self.received = b""
        self.ended: Deferred[type] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(type(reason.value))


async def wire(port: int, path: str, headers: str = "") -> tuple[bytes, bytes, type]:
    """Ask once and give the head, the body as it came, and how the connection ended."""
    protocol = Wire()
    await connectProtocol(HostnameEndpoint(reactor, LOCAL, port), protocol)
    protocol.transport.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    ended = await protocol.ended
    head, _, body = protocol.received.partition(b"\r\n\r\n")
    return head, body, ended


def cover(archive: Simulator) -> Image:
    """Give the front of the first release."""
    front = archive.catalogue.release(0).front
    assert front is not None
    return front


def node_path(archive: Simulator, size: int | None = 250) -> str:
    """Give the path of a cover on a storage node."""
    release = archive.catalogue.release(0)
    return f"/0/items/mbid-{release.mbid}/{file_name(release, cover(archive), size)}"


def expected_bytes(archive: Simulator, size: int | None = 250) -> bytes:
    return archive_bytes(cover(archive), size)


# Hops


@pytest_twisted.ensureDeferred
async def test_chain_to_every_kind(archive) -> None:
    """From hop 1 to hop 3, each example is the file the archive would send, with its type."""
    examples = archive.catalogue.examples()
    for name, kind in {
        "thumbnail": "image/jpeg",
        "jpeg": "image/jpeg",
        "png": "image/png",
        "animated": "image/gif",
        "pdf": "application/pdf",
        "merged": "image/jpeg",
        "group": "image/jpeg",
        "event": "image/jpeg",
        "old_listing": "application/json",
    }.items():
        answers = await chain(archive, examples[name])
        assert [answer.status for answer in answers] == [307, 302, 200], name
        assert answers[2]["Content-Type"].partition(";")[0] == kind
        assert answers[2].length == len(answers[2].body)
    assert archive.counts.requests("release") == 8
    assert archive.counts.requests("node") == 9


@pytest_twisted.ensureDeferred
async def test_exact_bytes(archive) -> None:
    """The helper for comparisons gives the very bytes that hop 3 sends."""
    answers = await chain(archive, archive.catalogue.examples()["thumbnail"])
    assert answers[-1].body == expected_bytes(archive)
    assert Pixels.open(io.BytesIO(answers[-1].body)).format == "JPEG"


@pytest_twisted.ensureDeferred
async def test_missing(archive) -> None:
    """No art ends at hop 1, a thumbnail not derived yet at hop 3; both are HTML."""
    examples = archive.catalogue.examples()
    for name, statuses in {
        "no_art": [404],
        "unknown": [404],
        "underived_thumb": [307, 302, 404],
    }.items():
        answers = await chain(archive, examples[name])
        assert [answer.status for answer in answers] == statuses
        assert answers[-1]["Content-Type"].startswith("text/html")


@pytest_twisted.ensureDeferred
async def test_head_range_conditional(archive) -> None:
    """A node understands HEAD, Range and conditional requests, and sends no CORS header."""
    url = archive.url("node1") + node_path(archive)
    whole = await ask(url)
    head = await ask(url, "HEAD")
    assert (head.body, head["Content-Length"]) == (b"", str(len(whole.body)))
    part = await ask(url, headers={"Range": "bytes=0-99"})
    assert (part.status, part.body) == (206, whole.body[:100])
    same = await ask(url, headers={"If-None-Match": whole["ETag"]})
    assert (same.status, same.body) == (304, b"")
    assert whole["Access-Control-Allow-Origin"] == ""
    zipped = await ask(url, headers={"Accept-Encoding": "gzip"})
    assert zipped["Content-Encoding"] == ""


@pytest_twisted.ensureDeferred
async def test_methods(archive) -> None:
    """Hop 1 tells its methods."""
    url = archive.url("release") + archive.catalogue.examples()["jpeg"]
    options = await ask(url, "OPTIONS")
    assert (options.status, options["Allow"]) == (200, "GET, HEAD, OPTIONS")
    assert (await ask(url, "DELETE")).status == 405


@pytest_twisted.ensureDeferred
async def test_metadata(archive) -> None:
    """archive.org lists the files of an item with the digests of what the nodes send."""
    mbid = archive.catalogue.release(0).mbid
    answer = await ask(f"{archive.url('archive')}/metadata/mbid-{mbid}/files")
    files = {each["name"]: each for each in json.loads(answer.body)["result"]}
    sent = await ask(archive.url("node1") + node_path(archive))
    listed = files[node_path(archive).rpartition("/")[2]]
    assert listed["sha1"] == hashlib.sha1(sent.body).hexdigest()  # noqa: S324
    assert listed["size"] == str(len(sent.body))


@pytest_twisted.ensureDeferred
async def test_alternate_nodes() -> None:
    """On request, archive.org sends the same item to both families in turn."""
    simulator = Simulator(reactor, Catalogue(releases=20), alternate_nodes=True)
    await simulator.start()
    try:
        mbid = simulator.catalogue.release(0).mbid
        url = f"{simulator.url('archive')}/download/mbid-{mbid}/index.json"
        ports = {urlsplit((await ask(url))["Location"]).port for _ in range(2)}
    finally:
        await simulator.stop()
    assert ports == {simulator.ports["node1"], simulator.ports["node2"]}


# Faults


@pytest_twisted.ensureDeferred
async def test_contents_faults(archive) -> None:
    """Statuses, pages, types, bodies, encodings and redirects come as the rules say."""
    url = archive.url("node1") + node_path(archive)

    async def with_rule(does) -> Answer:
        archive.faults.add(Rule(hop="node", times=1, does=does))
        return await ask(url)

    busy = await with_rule(Status(code=503, retry_after="9"))
    assert (busy.status, busy["Retry-After"]) == (503, "9")
    page = await with_rule(Html())
    assert page.status == 200
    assert b"<html>" in page.body
    assert (await with_rule(ContentType(value="text/plain")))["Content-Type"] == "text/plain"
    assert (await with_rule(ContentType(value=None)))["Content-Type"] == ""
    assert (await with_rule(Body(data=b"\xff\xd8\xff!"))).body == b"\xff\xd8\xff!"
    zipped = await with_rule(Gzip())
    assert zipped["Content-Encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == expected_bytes(archive)
    away = await with_rule(Redirect(location="http://10.0.0.1/x", code=301))
    assert (away.status, away["Location"]) == (301, "http://10.0.0.1/x")
    assert (await with_rule(RedirectLoop()))["Location"] == url
    assert (await ask(url)).body == expected_bytes(archive)


@pytest_twisted.ensureDeferred
async def test_transport_faults(archive) -> None:
    """Lengths, framing and endings are wrong on the wire in exactly the way that was asked for."""
    port, path, whole = archive.ports["node1"], node_path(archive), expected_bytes(archive)

    async def with_rule(*does):
        archive.faults.add(Rule(hop="node1", times=1, does=does))
        return await wire(port, path)

    head, body, _ = await with_rule(Cut(after_bytes=1000))
    assert b"Content-Length: %d\r\n" % len(whole) in head
    assert body == whole[:1000]
    head, body, _ = await with_rule(WrongLength(by=7))
    assert b"Content-Length: %d\r\n" % (len(whole) + 7) in head
    assert body == whole
    head, body, _ = await with_rule(WrongLength(by=-7))
    assert b"Content-Length: %d\r\n" % (len(whole) - 7) in head
    assert body == whole
    head, body, _ = await with_rule(NoLength())
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"Content-Length" not in head
    assert b"chunked" not in head
    assert body == whole
    head, body, ended = await with_rule(Reset())
    assert (head, body, ended) == (b"", b"", error.ConnectionLost)
    head, body, ended = await with_rule(Reset(after_bytes=10))
    assert (body, ended) == (whole[:10], error.ConnectionLost)


@pytest_twisted.ensureDeferred
async def test_chunked_and_drip(archive) -> None:
    """A chunked or a dripping body arrives whole, and a drip takes its time."""
    url, whole = archive.url("node1") + node_path(archive), expected_bytes(archive)
    archive.faults.add(Rule(hop="node", times=1, does=Chunked()))
    chunked = await ask(url)
    assert (chunked.length, chunked.body) == (UNKNOWN_LENGTH, whole)
    archive.faults.add(Rule(hop="node", times=1, does=Chunked()))
    head, _, _ = await wire(archive.ports["node1"], node_path(archive), "Connection: close\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Content-Length" not in head
    archive.faults.add(Rule(hop="node", times=1, does=Drip(bytes_per_s=len(whole) * 5)))
    began = reactor.seconds()
    assert (await ask(url)).body == whole
    assert reactor.seconds() - began > 0.15


@pytest_twisted.ensureDeferred
async def test_latency(archive) -> None:
    """A slow hop answers after the time it was given."""
    archive.faults.add(Rule(hop="release", does=Latency(seconds=0.1)))
    began = reactor.seconds()
    await ask(archive.url("release") + archive.catalogue.examples()["no_art"])
    assert reactor.seconds() - began >= 0.1


@pytest_twisted.ensureDeferred
async def test_gate(archive) -> None:
    """Requests meet at a gate, and all get their answer when it opens."""
    archive.faults.add(Rule(hop="release", does=Gate(name="hold")))
    url = archive.url("release") + archive.catalogue.examples()["jpeg"]
    asking = [Deferred.fromCoroutine(ask(url)) for _ in range(5)]
    assert await archive.faults.gates.reached("hold", 5) == 5
    assert archive.counts.connections("release").peak == 5
    assert archive.faults.gates.open("hold") == 5
    assert [(await each).status for each in asking] == [307] * 5


@pytest_twisted.ensureDeferred
async def test_client_leaves_gate(archive) -> None:
    """A client that leaves is no longer held."""
    archive.faults.add(Rule(hop="release", does=Gate(name="hold")))
    protocol = Wire()
    await connectProtocol(HostnameEndpoint(reactor, LOCAL, archive.ports["release"]), protocol)
    protocol.transport.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await archive.faults.gates.reached("hold")
    protocol.transport.abortConnection()
    await protocol.ended
    await archive.stop_hop("release")  # ends when the server has seen the connection go
    assert archive.faults.gates.waiting("hold") == 0
    assert archive.counts.connections("release").current == 0


@pytest_twisted.ensureDeferred
async def test_stall(archive) -> None:
    """A stalled body goes on when its gate opens."""
    archive.faults.add(Rule(hop="node", does=Stall(after_bytes=100, gate="flow")))
    asking = Deferred.fromCoroutine(ask(archive.url("node1") + node_path(archive)))
    await archive.faults.gates.reached("flow")
    archive.faults.gates.open("flow")
    assert (await asking).body == expected_bytes(archive)


@pytest_twisted.ensureDeferred
async def test_refuse(archive) -> None:
    """A refused hop accepts no connection, drops those it has, and comes back on the same port."""
    url = f"{archive.url('archive')}/"
    number = archive.faults.add(Rule(hop="archive", does=Refuse()))
    await archive.settled()
    with pytest.raises(error.ConnectionRefusedError):
        await ask(url)
    archive.faults.remove(number)
    await archive.settled()
    assert (await ask(url)).status == 404
    await archive.stop_hop("archive")
    with pytest.raises(error.ConnectError):
        await ask(url)
    await archive.start_hop("archive")
    assert (await ask(url)).status == 404


@pytest_twisted.ensureDeferred
async def test_requests_are_seen(archive) -> None:
    """Requests are counted by hop and path, and their headers can be read."""
    path = archive.catalogue.examples()["jpeg"]
    for _ in range(3):
        await ask(archive.url("release") + path, headers={"User-Agent": "me/1 ( who )"})
    assert archive.counts.requests("release", path) == 3
    assert archive.counts.recent[-1].header("User-Agent") == "me/1 ( who )"
    archive.counts.clear()
    assert archive.counts.requests() == 0


@pytest_twisted.ensureDeferred
async def test_same_drawing_once(archive) -> None:
    """Many who ask for a cover nobody has drawn yet wait for one drawing and get the same bytes."""
    url = archive.url("node1") + node_path(archive, 500)
    asking = [Deferred.fromCoroutine(ask(url)) for _ in range(6)]
    bodies = {(await each).body for each in asking}
    assert bodies == {expected_bytes(archive, 500)}


# Control port


async def control(archive: Simulator, method: str, path: str, body=None):
    """Speak JSON with the control port."""
    data = None if body is None else json.dumps(body).encode()
    answer = await ask(archive.url("control") + path, method, data=data)
    return answer.status, json.loads(answer.body)


@pytest_twisted.ensureDeferred
async def test_control_health(archive) -> None:
    """Health tells the ports and the settings for a proxy; examples and MBIDs can be had."""
    status, health = await control(archive, "GET", "/health")
    assert (status, health["status"]) == (200, "healthy")
    assert health["environment"] == archive.environment()
    assert await control(archive, "GET", "/examples") == (200, archive.catalogue.examples())
    _, mbids = await control(archive, "GET", "/walk?entity=release&start=3&count=2")
    assert mbids == [archive.catalogue.release(3).mbid, archive.catalogue.release(4).mbid]


@pytest_twisted.ensureDeferred
async def test_control_expected(archive) -> None:
    """What is expected of a path is what following it gives."""
    for name in ("thumbnail", "pdf", "listing", "event", "no_art", "underived_thumb"):
        path = archive.catalogue.examples()[name]
        status, expected = await control(archive, "GET", f"/expected?path={path}")
        answers = await chain(archive, path)
        assert (status, expected["status"]) == (200, answers[-1].status)
        assert (expected["location"] or "") == answers[0]["Location"]
        if answers[-1].status == 200:
            assert expected["sha256"] == hashlib.sha256(answers[-1].body).hexdigest()
            assert expected["length"] == len(answers[-1].body)


@pytest_twisted.ensureDeferred
async def test_control_rules(archive) -> None:
    """Rules can be added, read and removed; a bad one changes nothing and says why."""
    busy = {"hop": "release", "times": 1, "does": [{"kind": "status", "code": 503}]}
    status, added = await control(archive, "POST", "/rules", [busy, busy])
    assert (status, len(added["numbers"])) == (200, 2)
    assert (await ask(archive.url("release"))).status == 503
    _, standing = await control(archive, "GET", "/rules")
    assert [rule["used"] for rule in standing] == [1, 0]
    await control(archive, "DELETE", f"/rules/{added['numbers'][1]}")
    assert (await ask(archive.url("release"))).status == 200
    status, refused = await control(archive, "POST", "/rules", [busy, {"hop": "moon"}])
    assert status == 400
    assert "hop" in refused["error"] or "does" in refused["error"]
    assert len(list(archive.faults)) == 1
    assert (await control(archive, "DELETE", "/rules/99"))[0] == 400
    refuse = {"hop": "event", "does": [{"kind": "refuse"}]}
    await control(archive, "POST", "/rules", refuse)
    with pytest.raises(error.ConnectionRefusedError):
        await ask(archive.url("event"))
    await control(archive, "DELETE", "/rules")
    assert (await ask(archive.url("event"))).status == 200


@pytest_twisted.ensureDeferred
async def test_control_gates(archive) -> None:
    """A gate can be watched and opened over HTTP."""
    archive.faults.add(Rule(hop="release", does=Gate(name="hold")))
    watching = Deferred.fromCoroutine(control(archive, "GET", "/gates/hold?waiting=2"))
    asking = [Deferred.fromCoroutine(ask(archive.url("release"))) for _ in range(2)]
    assert await watching == (200, {"waiting": 2})
    _, gates = await control(archive, "GET", "/gates")
    assert gates == {"hold": {"open": False, "waiting": 2}}
    assert await control(archive, "POST", "/gates/hold/open") == (200, {"released": 2})
    assert [(await each).status for each in asking] == [200, 200]


@pytest_twisted.ensureDeferred
async def test_control_catalogue(archive) -> None:
    """Art can be changed while it runs, and the next request sees it."""
    release = archive.catalogue.release(8)
    other = release.images[3]
    path = f"/release/{release.mbid}/front"
    change = {"change": "set_front", "mbid": release.mbid, "image": other.id}
    assert await control(archive, "POST", "/catalogue", change) == (200, {})
    assert str(other.id) in (await ask(archive.url("release") + path))["Location"]
    gone = {"change": "remove_art", "mbid": release.mbid}
    await control(archive, "POST", "/catalogue", gone)
    assert (await ask(archive.url("release") + path)).status == 404
    status, added = await control(
        archive, "POST", "/catalogue", {"change": "add_art", "mbid": release.mbid}
    )
    assert status == 200
    assert str(added["image"]) in (await ask(archive.url("release") + path))["Location"]
    assert (await control(archive, "POST", "/catalogue", {"change": "burn"}))[0] == 400
    assert (await control(archive, "POST", "/catalogue", {**change, "mbid": "x"}))[0] == 400
    await control(archive, "DELETE", "/catalogue")
    assert archive.catalogue.release(8) == release


@pytest_twisted.ensureDeferred
async def test_control_counts(archive) -> None:
    """Counts can be read and begun again over HTTP."""
    await ask(archive.url("release") + "/robots.txt")
    _, counts = await control(archive, "GET", "/counts")
    assert counts["requests"] == {"release": 1}
    assert counts["paths"] == {"release": {"/robots.txt": 1}}
    assert counts["connections"]["release"]["peak"] == 1
    _, recent = await control(archive, "GET", "/requests")
    assert recent[0]["path"] == "/robots.txt"
    await control(archive, "DELETE", "/counts")
    _, counts = await control(archive, "GET", "/counts")
    assert counts["requests"] == {}


# Service


@pytest_twisted.ensureDeferred
async def test_twistd(tmp_path) -> None:
    """`twistd coverart-archive` serves, says how to use it, and stops when told to."""
    ports_file, log = tmp_path / "ports.json", tmp_path / "log"
    command = [sys.executable, "-m", "twisted", "--log-file", str(log), "coverart-archive"]
    command += ["--base-port", "0", "--ports-file", str(ports_file), "--releases", "30"]
    child = subprocess.Popen(command, cwd=ROOT)
    try:
        await deferToThread(wait_for_file, child, ports_file)
        ports = json.loads(ports_file.read_text())
        assert set(ports) == {"release", "event", "archive", "node1", "node2", "control"}
        answer = await ask(f"http://127.0.0.1:{ports['control']}/examples")
        path = json.loads(answer.body)["thumbnail"]
        first = await ask(f"http://127.0.0.1:{ports['release']}{path}")
        assert urlsplit(first["Location"]).port == ports["archive"]
    finally:
        child.send_signal(signal.SIGTERM)
        await deferToThread(child.wait, 20)
    line = f"COVER_ART_UPSTREAM=http://127.0.0.1:{ports['release']} COVER_ART_EVENT_UPSTREAM="
    assert line in log.read_text()
    assert path in log.read_text()
    # What test.sh and validate.sh ask for by themselves, only the true archive has.
    names = re.search("RELEASE=([0-9a-f-]{36}) GROUP=([0-9a-f-]{36})", log.read_text())
    assert names is not None
    catalogue = Catalogue(0, 30)
    assert catalogue.find("release", names[1]) == catalogue.release(0)
    assert catalogue.find("release-group", names[2]) == catalogue.release(0)


def wait_for_file(child: subprocess.Popen[bytes], path: Path) -> None:
    """Wait in a thread until a child has written a file; it ends early if the child does."""
    while not path.exists():
        try:
            child.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"the child ended with {child.returncode}")


def test_options() -> None:
    """Options have types and limits, and a wrong one is told as such."""
    options = tap.Options()
    options.parseOptions(["--releases", "500", "--without-art", "0.5", "--variants", "4"])
    assert (options["releases"], options["without-art"], options["variants"]) == (500, 0.5, 4)
    assert options["base-port"] == 8190
    for wrong in (["--releases", "3"], ["--base-port", "x"], ["--without-art", "2"]):
        with pytest.raises(usage.UsageError):
            tap.Options().parseOptions(wrong)


WITHOUT_PILLOW = """
import sys
sys.modules["PIL"] = None
from twisted.python import usage
from coverart.simulator import tap
options = tap.Options()
options.parseOptions([])
try:
    tap.makeService(options)
except usage.UsageError as error:
    print(error)
"""


def test_without_pillow() -> None:
    """Without Pillow the service says in one line what to install."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PILLOW], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'coverart-proxy[simulator]'" in done.stdout
