"""The shipped nginx configuration in front of the proxy: what it sends, what it asks, what it refuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, succeed
from twisted.names import dns
from twisted.names.common import ResolverBase
from twisted.names.server import DNSServerFactory

from coverart.simulator.faults import Cut, Rule, Stall
from tests.support.nginx_server import ACCEL, START, NginxServer, access
from tests.support.programs import find_nginx
from tests.support.running import HAS_IPV6, free_port, reached
from tests.support.talk import LOCAL, ask, becomes, connect, until
from tests.support.tls_client import variables, write_pair

reactor: Any = _reactor


@pytest_twisted.ensureDeferred
async def test_miss_then_direct(sim, run, nginx) -> None:
    """A miss goes to the app; once it is stored nginx answers by itself, the app and the archive gone."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"]
    miss = await front.get(path)
    assert (miss.status, miss["X-Cache-Status"]) == (200, "MISS")
    assert miss["X-Served-By"] == "coverart"
    await proxy.settled()
    await proxy.stop()
    hit = await front.get(path)
    assert (hit.status, hit["X-Cache-Status"], hit.body) == (200, "HIT", miss.body)
    assert await front.hits(1) == ["/" + proxy.links()[0]]
    other = await front.get(sim.catalogue.examples()["png"])
    assert (other.status, other.json) == (
        503,
        {
            "error": "the app can't be reached, try again in 5 s",
            "cause": "destination_unavailable",
            "retry_after_s": 5,
            "request_id": other["X-Request-ID"],
        },
    )
    assert other["Proxy-Status"] == (
        "coverart; error=destination_unavailable; next-hop=app; "
        'details="the app can\'t be reached, try again in 5 s"'
    )
    assert other["Retry-After"] == "5"
    for name in ("Access-Control-Allow-Origin", "X-Content-Type-Options", "Cache-Control"):
        assert other[name], name
    await until(lambda: len(access(front)) == 2, "both in the access log")
    first, second = access(front)
    assert (first["cache"], first["status"], first["uri"]) == ("MISS", 200, path)
    assert float(str(first["app_seconds"])) >= 0
    assert second["status"] == 503


@pytest_twisted.ensureDeferred
async def test_evicted_alias_falls_through(sim, run, nginx) -> None:
    """A dangling alias, and one past its time, are asked of the app; nobody sees a 404 for them."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"]
    body = (await front.get(path)).body
    await proxy.settled()
    for name in proxy.files():
        (proxy.root / name).unlink()
    again = await front.get(path)
    assert (again.status, again["X-Cache-Status"], again.body) == (200, "MISS", body)
    await proxy.settled()
    proxy.now.advance(86401)
    await proxy.cleanup.sweep()
    assert proxy.links()[0].endswith(".stale")
    stale = await front.get(path)
    assert (stale.status, stale["X-Cache-Status"], stale.body) == (200, "STALE", body)
    await proxy.settled()


@pytest_twisted.ensureDeferred
async def test_gone_after_the_app_looked(sim, run, nginx, monkeypatch) -> None:
    """A file evicted between the app's look and nginx's is fetched, not answered with nginx's own 404."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid.upper()}/front-250"
    body = (await front.get(path)).body
    await proxy.settled()
    looked = proxy.cache.store.stat

    def stat_then_evict(name: str) -> Any:
        found = looked(name)
        monkeypatch.undo()
        (proxy.root / name).unlink()
        return found

    monkeypatch.setattr(proxy.cache.store, "stat", stat_then_evict)
    answer = await front.get(path)
    assert (answer.status, answer.body) == (200, body)
    await proxy.settled()
    assert (await front.get("/cache-files/" + proxy.files()[0])).status != 200


@pytest_twisted.ensureDeferred
async def test_large_flows(sim, run, nginx) -> None:
    """The first bytes of a large original pass through nginx while the archive still sends the rest."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    item = sim.catalogue.release(11)
    body = sim.studio.archive_bytes(item.front, None)
    sim.faults.add(Rule(hop="node", does=Stall(after_bytes=1_000_000, gate="rest")))
    wire = await front.wire(f"/release/{item.mbid}/front", "Connection: close")
    await reached(sim, "rest")
    await wire.got(1_000_000)
    sim.faults.gates.open("rest")
    await wire.end()
    assert (wire.status, wire.body) == (200, body)
    assert wire.header("X-Cache-Status") == "MISS"


@pytest_twisted.ensureDeferred
async def test_cut_is_seen(sim, run, nginx) -> None:
    """An original that the archive breaks off ends short through nginx too, and nothing is kept."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    item = sim.catalogue.release(11)
    sim.faults.add(Rule(hop="node", does=Cut(after_bytes=1_000_000)))
    wire = await front.wire(f"/release/{item.mbid}/front")
    await wire.end()
    if wire.received and wire.status == 200:
        assert len(wire.body) < int(wire.header("Content-Length"))
    assert proxy.files() == []


@pytest_twisted.ensureDeferred
async def test_app_replaced(run, nginx) -> None:
    """Where the app's name leads is looked up again while nginx runs."""
    one = await run("one", **ACCEL)
    # Another container with the same name and port, at another address.
    two = await run("two", COVER_ART_LISTEN=f"tcp:{one.port}:interface=127.0.0.2", **ACCEL)
    names = Names("127.0.0.1")
    port = reactor.listenUDP(0, dns.DNSDatagramProtocol(DNSServerFactory(clients=[names])), LOCAL)
    try:
        front = await nginx(
            one,
            # The first that looks names up again by itself.
            NGINX_BIN=find_nginx((1, 27, 3)),
            NGINX_APP=f"app.test:{one.port}",
            NGINX_RESOLVER=f"{LOCAL}:{port.getHost().port} ipv6=off",
        )
        assert (await answer_of(front, "cache_dir")) == str(one.root)
        names.address = "127.0.0.2"
        await one.stop()
        assert (await answer_of(front, "cache_dir")) == str(two.root)
    finally:
        await port.stopListening()


async def answer_of(front: NginxServer, field: str) -> str:
    """What /health says, as soon as nginx finds an app."""
    answer = await becomes(
        lambda: front.get("/health"), lambda answer: answer.status != 503, "nginx finds an app"
    )
    return str(answer.json[field])


@pytest_twisted.ensureDeferred
async def test_hits_in_the_access_log(sim, run, nginx) -> None:
    """With NGINX_LOG_HITS=on what nginx answers by itself is in the access log too, and counted."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy, NGINX_LOG_HITS="on")
    path = sim.catalogue.examples()["thumbnail"]
    await front.get(path)
    await proxy.settled()
    await front.get(path)
    await until(lambda: len(access(front)) == 2, "both in the access log")
    # Each worker writes its lines when it likes.
    assert {line["cache"] for line in access(front)} == {"MISS", "HIT"}
    assert len(await front.hits(1)) == 1


class Names(ResolverBase):
    """A name server that knows one address for every name."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def _lookup(self, name: bytes, cls: int, type: int, timeout: object) -> Deferred[object]:  # noqa: A002
        if type != dns.A:
            return succeed(([], [], []))
        record = dns.Record_A(self.address, ttl=1)
        return succeed(([dns.RRHeader(name, dns.A, ttl=1, payload=record)], [], []))


@pytest_twisted.ensureDeferred
async def test_app_replaced_with_an_older_nginx(run, nginx, tmp_path) -> None:
    """The same with an nginx that can't look again by itself: start.sh does, and reloads it."""
    one = await run("one", **ACCEL)
    two = await run("two", COVER_ART_LISTEN=f"tcp:{one.port}:interface=127.0.0.2", **ACCEL)
    programs = tmp_path / "bin"
    programs.mkdir()
    known = programs / "address"
    known.write_text("127.0.0.1  STREAM app.test\n")
    scripts = {
        "getent": f'cat "{known}"',
        "nginx": f'[ "$1" != -v ] || {{ echo nginx/1.22.1 >&2; exit; }}; exec {find_nginx()} "$@"',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    front = await nginx(
        one,
        NGINX_BIN=str(programs / "nginx"),
        NGINX_APP=f"app.test:{one.port}",
        PATH=f"{programs}:{os.environ['PATH']}",
    )
    assert (await answer_of(front, "cache_dir")) == str(one.root)
    known.write_text("127.0.0.2  STREAM app.test\n")
    await one.stop()
    assert (await answer_of(front, "cache_dir")) == str(two.root)


@pytest_twisted.ensureDeferred
async def test_another_app_takes_over(sim, run, nginx) -> None:
    """A request whose app is gone is answered by the next one; nobody notices."""
    one = await run(**ACCEL)
    two = await run(COVER_ART_LISTEN=f"tcp:{one.port}:interface=127.0.0.2", **ACCEL)
    front = await nginx(one, NGINX_APPS=f"{LOCAL}:{one.port},127.0.0.2:{one.port}")
    await one.stop()
    paths = [f"/release/{sim.catalogue.release(n).mbid}/front-250" for n in (0, 1, 2, 3)]
    answers = [await front.get(path) for path in paths]
    assert {answer.status for answer in answers} == {200}
    await two.stop()


@pytest_twisted.ensureDeferred
async def test_app_out_of_reach(run, nginx) -> None:
    """An app that takes no connection is told like one that refuses: 503, come back."""
    proxy = await run(**ACCEL)
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind((LOCAL, 0))
        full.listen(0)
        # The queue holds one more than it was told; nothing answers who comes after that.
        for each in (one, two):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        front = await nginx(proxy, NGINX_APP=f"{LOCAL}:{full.getsockname()[1]}")
        answer = await front.get("/health")
    assert (answer.status, answer["Retry-After"]) == (503, "5")
    assert answer.json["error"] == "the app did not answer in time, try again in 5 s"
    assert "error=http_response_timeout; next-hop=app;" in answer["Proxy-Status"]


@pytest_twisted.ensureDeferred
async def test_operators_only(run, nginx) -> None:
    """Counters and purging are for private addresses; a stranger's proxy hides who asks."""
    proxy = await run(COVER_ART_ADMIN_TOKEN="t", **ACCEL)  # noqa: S106
    front = await nginx(proxy)
    shut = await nginx(proxy, NGINX_OPERATORS="192.0.2.1")
    behind = await nginx(proxy, NGINX_TRUSTED_PROXIES=LOCAL, NGINX_OPERATORS="10.0.0.0/8")
    for path, method in (
        ("/metrics", "GET"),
        ("/cache-status?x", "GET"),
        ("/admin/purge/x", "POST"),
    ):
        open_ = (await front.get(path, method)).status
        assert open_ in (200, 400), path
        for header in ("X_Forwarded_For", "Forwarded", "X_Real_IP", "Via"):
            assert (await front.get(path, method, **{header: "192.0.2.9"})).status == 403, header
        # As a page of a name that leads here would have it asked.
        named = await front.get(path, method, Host="rebound.example")
        assert named.status == (400 if open_ == 400 else 403), path
        assert (await shut.get(path, method)).status == 403
        # Through a proxy that is trusted, the client's own address counts.
        assert (await behind.get(path, method, X_Forwarded_For="192.0.2.9")).status == 403
        assert (await behind.get(path, method, X_Forwarded_For="10.1.2.3")).status == open_
    for path in ("/health", "/ready", "/"):
        assert (await shut.get(path)).status == 200, path
    denied = await shut.get("/metrics")
    assert denied.json == {"error": "for operators, not from this address"}
    await until(
        lambda: any(line["client"] == "10.1.2.3" for line in access(behind)), "real address"
    )


@pytest_twisted.ensureDeferred
async def test_limits(sim, run, nginx) -> None:
    """What is too long or too large is refused by nginx with JSON, and the app is not asked."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"]
    long_path = await front.get("/" + "a" * 9000)
    assert (long_path.status, long_path.json) == (414, {"error": "path too long"})
    header = await front.get(path, X_Long="a" * 9000)
    assert (header.status, header.json) == (400, {"error": "bad request"})
    wire = await front.wire(path, "Content-Length: 5000", "Connection: close")
    await wire.end()
    assert wire.status == 413
    wire = await front.wire(path, "Transfer-Encoding: chunked", "Content-Length: 3")
    await wire.end()
    assert wire.status == 400
    assert sim.counts.requests() == 0


@pytest_twisted.ensureDeferred
async def test_access_log_is_json(sim, run, nginx) -> None:
    """Whatever a client writes, each request is one line of JSON, in UTF-8, that says just that."""
    front = await nginx(await run(**ACCEL), NGINX_LOG_HITS="on")
    path = sim.catalogue.examples()["thumbnail"].encode()
    odd = (
        b"\xff\xfe",
        b'"}\\',
        b'", "status": 999, "x": "',
        b"\x7f",
        "caf\u00e9".encode(),
        b"\xed\xa0\x80",
    )
    for each in odd:
        target = each.replace(b" ", b"%20")
        for asked in (b"/" + target, path + b"?" + target):
            wire = await connect(front.port)
            wire.transport.write(
                b"GET " + asked + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                b"User-Agent: " + each + b"\r\nReferer: " + each + b"\r\n\r\n"
            )
            await wire.end()
    await front.get("/release/last")

    def lines() -> list[bytes]:
        return front.access_log.read_bytes().splitlines() if front.access_log.exists() else []

    await until(lambda: len(lines()) == 2 * len(odd) + 1, "a line for each")
    told = [json.loads(line.decode("utf-8")) for line in lines()]
    assert {line["status"] for line in told} <= {200, 400}
    agents = Counter(line["agent"] for line in told)
    assert set(agents) == {"", "(not ASCII)", odd[1].decode(), odd[2].decode()}
    assert agents[odd[1].decode()] == agents[odd[2].decode()] == 2


@pytest_twisted.ensureDeferred
async def test_neighbours_are_out_of_reach(sim, run, nginx, tmp_path) -> None:
    """Nothing beside or inside the cache directory is served under its own name."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"]
    assert (await front.get(path)).status == 200
    (tmp_path / "cache.jpg").write_bytes(b"neighbour")
    (proxy.root / ".jpg").write_bytes(b"inside")
    file = proxy.files()[-1]
    for asked in (
        *("/cache-files/" + file, "/" + file, "/.jpg", "/../cache.jpg", "/.error"),
        *("/cache-files/../../cache.jpg", "/cache-files../cache.jpg", "/.incoming/", "/.range"),
        *(
            "/release/%2e%2e/%2e%2e/cache.jpg",
            "/x/../cache-files/" + file,
            "//" + file,
            "/cache-files",
        ),
    ):
        answer = await front.get(asked)
        assert answer.status in (400, 404), (asked, answer)
        assert answer.json["error"], asked
    forged = await front.get("/release/x/front", X_Accel_Redirect="/cache-files/" + file)
    assert forged.status == 400


@pytest_twisted.ensureDeferred
async def test_restart_and_reload(sim, run, nginx) -> None:
    """Started anew, or told to reload, nginx serves what it served."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"]
    body = (await front.get(path)).body
    front.reload()
    assert (await front.get(path)).body == body
    front.stop()
    await front.start()
    again = await front.get(path)
    assert (again.body, again["X-Cache-Status"]) == (body, "HIT")


@pytest_twisted.ensureDeferred
async def test_unreadable_file(sim, run, nginx) -> None:
    """
    In place of a file that nginx can't read, nor we, a client gets the cover, uncached.

    The first one before the disk said no: the next is told so.
    """
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"]
    body = (await front.get(path)).body
    await proxy.settled()
    (name,) = [each for each in proxy.files() if "_" in each]
    (proxy.root / name).unlink()
    # A directory in its place can be opened by nobody as a file, root included. One that is not
    # empty is left alone, so there is no putting that right by a new download.
    (proxy.root / name / "somebody's").mkdir(parents=True)
    for told in (False, True):
        answer = await front.get(path)
        assert (answer.status, answer["Content-Type"], answer.body) == (200, "image/jpeg", body)
        assert ("stored=?0" in answer["Cache-Status"]) == told
        await proxy.settled()


@pytest_twisted.ensureDeferred
async def test_both_kinds_of_addresses(sim, run, nginx) -> None:
    """A port alone is listened on in IPv4 and, where there is IPv6, in IPv6."""
    proxy = await run(**ACCEL)
    path = sim.catalogue.examples()["thumbnail"]
    front = await nginx(proxy, NGINX_LISTEN=str(free_port()))
    for host in (LOCAL, *(["[::1]"] if HAS_IPV6 else [])):
        answer = await ask(f"http://{host}:{front.port}{path}")
        assert answer.status == 200, host


@pytest_twisted.ensureDeferred
async def test_one_cache_control(sim, run, nginx) -> None:
    """A range that is not there has one Cache-Control, asked of a file that nginx finds or not."""
    proxy = await run(**ACCEL)
    path = sim.catalogue.examples()["thumbnail"]
    for front in (await nginx(proxy), await nginx(proxy, COVER_ART_IMAGE_MODE="redirect")):
        await front.get(path)
        answer = await front.get(path, Range="bytes=9999999-")
        assert answer.status == 416
        assert answer.headers.getRawHeaders("Cache-Control") == ["no-store"]


@pytest_twisted.ensureDeferred
async def test_slow_readers_of_one_address(sim, run, nginx) -> None:
    """
    One client that reads nothing of a hundred hits has its share of connections, no more.

    In IPv6 whoever has one address has its /64; an IPv4 address written in IPv6 is itself.
    """
    proxy = await run(**ACCEL)
    front = await nginx(proxy, NGINX_TRUSTED_PROXIES=LOCAL, NGINX_WORKERS="1", ULIMIT_N="256")
    small = f"/release/{sim.catalogue.release(0).mbid}/front-250"
    assert (await front.get(small)).status == 200
    await proxy.settled()
    (name,) = proxy.files()
    image = name.partition("_")[0]
    # More than the kernel takes off nginx's hands.
    with (proxy.root / f"{image}_7.jpg").open("wb") as file:
        file.truncate(50_000_000)
    large = f"/release/{image.rpartition('/')[2]}/7"
    # A quarter of 256 is for open files; of the rest a connection takes two, a client half.
    slow = []
    for n in range(48):
        wire = await front.wire(large, f"X-Forwarded-For: 2001:db8:0:1::{n:x}")
        await wire.got(1000)
        wire.transport.pauseProducing()
        slow.append(wire)
    refused = await front.get(small, X_Forwarded_For="2001:db8:0:1:ffff::1")
    assert (refused.status, refused["Retry-After"]) == (503, "5")
    for other in ("2001:db8:0:2::1", "192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"):
        answer = await front.get(small, X_Forwarded_For=other)
        assert (answer.status, answer["X-Cache-Status"]) == (200, "HIT"), other
    for wire in slow:
        wire.leave()


def started(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Have start.sh write a configuration and nginx look at it."""
    told = {"NGINX_BIN": find_nginx(), "NGINX_CACHE_DIR": str(tmp_path), **variables}
    return subprocess.run(
        [str(START), "-t"],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), **told},
        capture_output=True,
        text=True,
        check=False,
    )


def test_folder_of_its_own(tmp_path: Path) -> None:
    """Without a word about it the configuration lies in a new folder, which nobody else may write."""
    for count in (1, 2):
        done = started(tmp_path, NGINX_APP="127.0.0.1:1")
        assert done.returncode == 0, done.stderr
        made = list(tmp_path.glob("coverart-nginx.*"))
        assert len(made) == count
    for folder in made:
        assert (folder / "nginx.conf").is_file()
        assert folder.stat().st_uid == os.geteuid()
        assert folder.stat().st_mode & 0o066 == 0


def test_no_access_log(tmp_path: Path) -> None:
    """Who wants no access log says so by /dev/null or off, whether there is a hit log or not."""
    for log in ("/dev/null", "off"):
        for hits in ("", str(tmp_path / "hits.log")):
            done = started(
                tmp_path,
                NGINX_APP="127.0.0.1:1",
                NGINX_ACCESS_LOG=log,
                NGINX_HIT_LOG=hits,
                NGINX_LOG_HITS="on",
            )
            assert done.returncode == 0, done.stderr


def test_folder_of_somebody_else(tmp_path: Path) -> None:
    """A folder that others can write or lead elsewhere is refused in one line, and left as it was."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "nginx.conf").write_text("precious")
    (link := tmp_path / "link").symlink_to(victim)
    (common := tmp_path / "common").mkdir()
    common.chmod(0o1777)
    (theirs := tmp_path / "theirs").mkdir()
    tried = [(link, "symlink"), (common, "anybody may write")]
    if os.geteuid() == 0:
        os.chown(theirs, 12345, 12345)
        tried.append((theirs, "belongs to another user"))
    for folder, why in tried:
        for variable in ("NGINX_RUN_DIR", "NGINX_TEMP_DIR"):
            for told in (f"{folder}", f"{folder}//"):
                done = started(tmp_path, NGINX_APP="127.0.0.1:1", **{variable: told})
                assert done.returncode == 1, told
                (line,) = done.stderr.splitlines()
                assert line.startswith(f"start.sh: {variable}={told}: ")
                assert why in line
    assert (victim / "nginx.conf").read_text() == "precious"
    assert [each for folder in (victim, common, theirs) for each in folder.iterdir()] == [
        victim / "nginx.conf"
    ]


def test_linted(tmp_path: Path) -> None:
    """Gixy finds nothing in the configuration as it is run."""
    (certificates := tmp_path / "certificates").mkdir()
    write_pair(certificates, "covers.test")
    told = variables(certificates) | {"NGINX_REDIRECT_LISTEN": f"{LOCAL}:{free_port()}"}
    told["NGINX_ACME_CHALLENGES"] = str(tmp_path)
    server = NginxServer(tmp_path / "nginx", tmp_path, "localhost:8080", **told)
    gixy = Path(sys.executable).with_name("gixy")
    found = subprocess.run(
        [str(gixy), "--format", "json", str(server.render())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(found.stdout) == [], found.stdout + found.stderr
