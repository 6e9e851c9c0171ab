"""The archive's names by name servers of one's own, and names that lead back here."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import maybeDeferred, succeed
from twisted.names import dns, error, server

from coverart.archive import name_lookup
from tests.support.raw_archive import ALIAS, JPEG
from tests.support.running import free_port
from tests.support.talk import LOCAL, until

reactor: Any = _reactor
NAME = "archive.test"


class Zone:
    """What a name server knows. :ivar asked: the names it was asked for."""

    port: int

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], list[Any]] = {}
        self.asked: list[tuple[str, int]] = []

    def knows(self, name: str, *records: Any) -> None:
        for record in records:
            self.records.setdefault((name, record.TYPE), []).append(record)

    def query(self, query: Any, timeout: Any = None) -> Any:
        name = query.name.name.decode()
        self.asked.append((name, query.type))
        if not any(name == known for known, _ in self.records):
            raise error.DNSNameError
        found = self.records.get((name, query.type), [])
        answers = [dns.RRHeader(name, each.TYPE, ttl=1, payload=each) for each in found]
        return succeed((answers, [], []))


@pytest_twisted.async_yield_fixture
async def name_server():
    """A name server on a port of this machine, by IPv4 and, where there is any, IPv6."""
    zone = Zone()
    factory = server.DNSServerFactory(clients=[zone])
    factory.noisy = False
    ports = [reactor.listenUDP(0, dns.DNSDatagramProtocol(factory), interface=LOCAL)]
    zone.port = ports[0].getHost().port
    if socket.has_ipv6:
        protocol = dns.DNSDatagramProtocol(factory)
        ports.append(reactor.listenUDP(zone.port, protocol, interface="::1"))
    yield zone
    for each in ports:
        await maybeDeferred(each.stopListening)


@pytest.mark.parametrize("at", ["127.0.0.1:{}", "[::1]:{}"])
@pytest_twisted.ensureDeferred
async def test_asks_them(raw, name_server, watch, run, at) -> None:
    """The archive's names are looked up there, and the system is not asked."""
    name_server.knows(NAME, dns.Record_A(LOCAL))
    raw.url = f"http://{NAME}:{raw.port}"
    settings = {**raw.environment(f"{NAME}:{raw.port}"), "COVER_ART_UPSTREAM": raw.url}
    proxy = await run(**settings, COVER_ART_RESOLVER=at.format(name_server.port))
    answer = await proxy.get(ALIAS)
    assert (answer.status, answer.body) == (200, JPEG)
    assert set(name_server.asked) == {(NAME, dns.A), (NAME, dns.AAAA)}
    assert watch.names == []


@pytest_twisted.ensureDeferred
async def test_every_address(name_server) -> None:
    """Of both kinds, those first that this machine has a way to; an address stands for itself."""
    name_server.knows(NAME, dns.Record_A(LOCAL), dns.Record_A("127.0.0.2"))
    name_server.knows(NAME, dns.Record_AAAA("100::1"))
    servers = name_lookup.NameServers(reactor, [(LOCAL, name_server.port)])
    found = await name_lookup.addresses_of(servers, NAME)
    assert sorted(found) == ["100::1", LOCAL, "127.0.0.2"]
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        reached = probe.connect_ex(("100::1", 443)) == 0
    assert found.index("100::1") == (0 if reached else 2)
    name_server.asked.clear()
    for address in (LOCAL, "2001:db8::1"):
        assert await name_lookup.addresses_of(servers, address) == [address]
    assert name_server.asked == []


@pytest_twisted.ensureDeferred
async def test_private_address(raw, name_server, run, lines) -> None:
    """What these name servers say is looked at as ever: a private address is not connected to."""
    name_server.knows(NAME, dns.Record_A("10.0.0.1"))
    resolver = f"{LOCAL}:{name_server.port}"
    proxy = await run(COVER_ART_UPSTREAM=f"https://{NAME}", COVER_ART_RESOLVER=resolver)
    assert (await proxy.get(ALIAS)).status == 502
    assert any(f"{NAME}:443: 10.0.0.1 is no public address" in line for line in lines)


@pytest_twisted.ensureDeferred
async def test_unknown_and_silent(raw, name_server, run, lines, monkeypatch) -> None:
    """A name they do not know, and servers that do not answer: 503, and the log says who was asked."""
    monkeypatch.setattr(name_lookup, "QUERY_S", (0.05,))
    silent = reactor.listenUDP(0, dns.DNSDatagramProtocol(None), interface=LOCAL)
    silent.stopReading()
    port = silent.getHost().port
    upstream = {"COVER_ART_UPSTREAM": f"https://{NAME}"}
    proxy = await run(**upstream, COVER_ART_RESOLVER=f"{LOCAL}:{name_server.port}")
    assert (await proxy.get(ALIAS)).status == 503
    told = f"{NAME}: the name servers {LOCAL} (COVER_ART_RESOLVER) gave no address: "
    assert any(told in line for line in lines), lines
    lines.clear()
    other = await run("other", **upstream, COVER_ART_RESOLVER=f"{LOCAL}:{port}")
    assert (await other.get(ALIAS)).status == 503
    assert any(told in line for line in lines), lines
    # The next one is asked in its place.
    name_server.knows(NAME, dns.Record_A("10.0.0.1"))
    lines.clear()
    third = await run(
        "third", **upstream, COVER_ART_RESOLVER=f"{LOCAL}:{port},{LOCAL}:{name_server.port}"
    )
    assert (await third.get(ALIAS)).status == 502
    await silent.stopListening()


@pytest_twisted.ensureDeferred
async def test_name_leads_here(watch, run, lines) -> None:
    """It is said at the start and in /ready, which stays 200, until the name leads out again."""
    watch.addresses["coverartarchive.org"] = [["192.168.1.5"]]
    watch.addresses["eventartarchive.org"] = [["93.184.216.34"]]
    watch.addresses["archive.org"] = [["93.184.216.34"]]
    official = {"COVER_ART_UPSTREAM": "", "COVER_ART_EVENT_UPSTREAM": ""}
    proxy = await run(**official, COVER_ART_ALLOWED_HOSTS="")
    await until(lambda: any("leads to 192.168.1.5" in line for line in lines), "it is logged")
    assert not any("eventartarchive.org leads" in line for line in lines)
    ready = await proxy.get("/ready")
    assert ready.status == 200
    assert ready.json["archive"].startswith("coverartarchive.org: leads to this proxy")
    assert (await proxy.get(ALIAS)).status == 502
    watch.addresses["coverartarchive.org"] = [["93.184.216.34"]]
    await proxy.restart()
    assert "archive" not in (await proxy.get("/ready")).json


@pytest_twisted.ensureDeferred
async def test_asks_itself(run, lines) -> None:
    """A request that comes back waits for nothing: 502 at once, and /ready says why."""
    port = free_port()
    proxy = await run(
        COVER_ART_UPSTREAM=f"http://{LOCAL}:{port}",
        COVER_ART_LISTEN=f"tcp:{port}:interface={LOCAL}",
    )
    assert "archive" not in (await proxy.get("/ready")).json
    assert (await proxy.get(ALIAS)).status == 502
    assert any(f"{LOCAL}:{port} said 508: a loop" in line for line in lines)
    assert sum("came back to this proxy" in line for line in lines) == 1
    assert "come back to this proxy" in (await proxy.get("/ready")).json["archive"]
    # Another's mark is none of ours.
    assert (await proxy.get(ALIAS, cdn_loop="coverart-0123456789abcdef")).status == 502
