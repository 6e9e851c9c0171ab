"""The shipped nginx configuration in front of the proxy: what it sends, what it asks, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.names import dns
from twisted.names.common import ResolverBase
from twisted.names.server import DNSServerFactory

from coverart.simulator.faults import Cut, Gate, Rule
from tests.integration.nginx_server import NginxServer
from tests.integration.running import Proxy, free_port, reached
from tests.integration.talk import LOCAL, ask, start, until

ACCEL = {"COVER_ART_ACCEL": "/cache-files/"}


def access(nginx: NginxServer) -> list[dict[str, object]]:
    """The lines of the access log."""
    if not nginx.access_log.exists():
        return []
    return [json.loads(line) for line in nginx.access_log.read_text().splitlines()]


@pytest_twisted.ensureDeferred
async def test_miss_then_direct(sim, run, nginx) -> None:
    """A miss goes to the app; from then on nginx answers by itself, the app and the archive gone."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"]
    miss = await front.get(path)
    assert (miss.status, miss["X-Cache-Status"]) == (200, "MISS")
    assert miss["X-Served-By"] == "nginx-cache"
    await proxy.stop()
    hit = await front.get(path)
    assert (hit.status, hit["X-Cache-Status"], hit.body) == (200, "HIT", miss.body)
    assert await front.hits(1) == ["/" + proxy.links()[0]]
    other = await front.get(sim.catalogue.examples()["png"])
    assert (other.status, other.json) == (503, {"error": "busy, try again"})
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
    for name in proxy.files():
        (proxy.root / name).unlink()
    again = await front.get(path)
    assert (again.status, again["X-Cache-Status"], again.body) == (200, "MISS", body)
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
    looked = proxy.cache.store.stat

    def stat_then_evict(name: str) -> os.stat_result | None:
        found = looked(name)
        monkeypatch.undo()
        (proxy.root / name).unlink()
        return found

    monkeypatch.setattr(proxy.cache.store, "stat", stat_then_evict)
    answer = await front.get(path)
    assert (answer.status, answer.body) == (200, body)
    assert not (await front.get("/cache-files/" + proxy.files()[0])).status == 200


@pytest_twisted.ensureDeferred
async def test_large_flows(sim, run, nginx) -> None:
    """The first bytes of a large original pass through nginx while the archive still sends the rest."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    item = sim.catalogue.release(11)
    sim.faults.add(Rule(hop="node", does=[Gate("half", after=300_000)]))
    wire = await front.wire(f"/release/{item.mbid}/front")
    await reached(sim, "half")
    await wire.got(100_000)
    sim.faults.gates.open("half")
    body = sim.studio.archive_bytes(item.front, None)
    await wire.got(len(body))
    await until(lambda: wire.body == body, "the whole came")


@pytest_twisted.ensureDeferred
async def test_cut_is_seen(sim, run, nginx) -> None:
    """An original that the archive breaks off ends the client's connection short through nginx too."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    item = sim.catalogue.release(11)
    sim.faults.add(Rule(hop="node", does=[Cut(after=400_000)]))
    wire = await front.wire(f"/release/{item.mbid}/front")
    await wire.end()
    assert wire.status == 200
    assert len(wire.body) < int(wire.header("Content-Length"))
    assert proxy.files() == []


@pytest_twisted.ensureDeferred
async def test_app_replaced(sim, run, nginx) -> None:
    """Where the app's name leads is looked up again while nginx runs, and one of several may be gone."""
    one, two = await run("one", **ACCEL), await run("two", **ACCEL)
    port = one.port
    names = _Names()
    factory = DNSServerFactory(clients=[names])
    resolver = free_port()
    from twisted.internet import reactor

    udp = reactor.listenUDP(resolver, dns.DNSDatagramProtocol(factory), interface=LOCAL)
    tcp = reactor.listenTCP(resolver, factory, interface=LOCAL)
    try:
        names.addresses = ["127.0.0.1"]
        front = await nginx(
            one, NGINX_APP=f"app.test:{port}", NGINX_RESOLVER=f"{LOCAL}:{resolver} ipv6=off"
        )
        assert (await front.get("/health")).json["cache_dir"] == str(one.root)
        # The container is replaced: same name and port, another address.
        moved = await _also_on(two, "127.0.0.2", port)
        names.addresses = ["127.0.0.2"]
        await one.stop()

        async def answers() -> str:
            answer = await front.get("/health")
            return str(answer.json.get("cache_dir", answer.status))

        while (said := await answers()) != str(two.root):
            assert said in ("503", str(one.root)), said
            await deferToThread(signal.sigtimedwait, [], 0.1)
        moved.stopListening()
    finally:
        udp.stopListening()
        tcp.stopListening()


class _Names(ResolverBase):
    """A name server whose answers the test changes."""

    addresses: list[str]

    def _lookup(self, name: bytes, cls: int, type: int, timeout: object) -> object:  # noqa: A002
        answers = [
            dns.RRHeader(name, dns.A, ttl=1, payload=dns.Record_A(address, ttl=1))
            for address in self.addresses
            if type == dns.A
        ]
        from twisted.internet.defer import succeed

        return succeed((answers, [], []))
