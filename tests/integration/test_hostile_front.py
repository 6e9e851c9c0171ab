"""Hostile bytes through nginx: it and the app always agree on how many requests there were."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from coverart.simulator.faults import Gate, Rule
from tests.support.hostile_bytes import (
    BODIES,
    CHUNKS,
    COVERS,
    END,
    FRAMING,
    LINES,
    SMUGGLED,
    TARGETS,
    TOO_MUCH,
)
from tests.support.nginx_server import ACCEL, NginxServer, access
from tests.support.talk import connect, start, until

reactor: Any = _reactor


def attacks(path: bytes) -> dict[str, bytes]:
    """Everything that is tried straight at the app, on a path that nginx leaves to it."""
    found = dict(LINES)
    for name, header in FRAMING.items():
        for method in (b"GET", b"POST"):
            head = b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: x", header])
            found[f"{name}, {method.decode()}"] = head + END + b"0\r\n\r\n" + SMUGGLED
    head = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    for name, data in (BODIES | TOO_MUCH).items():
        found[f"{name} in front"] = head + data
    for name, data in CHUNKS.items():
        chunked = b"Transfer-Encoding: chunked\r\n\r\n"
        found[f"chunks: {name}"] = head + chunked + data + SMUGGLED
    for name, target in (TARGETS | COVERS).items():
        found[f"target: {name}"] = head.replace(path, target) + b"\r\n"
    return found


async def sent(front: NginxServer, data: bytes) -> set[int]:
    """Send bytes; the statuses of what comes back until the end, or until no more is to come."""
    wire = await connect(front.port)
    wire.transport.write(data)
    # Some ask for no end, or are not whole: nginx would wait for the rest of them.
    patience = reactor.seconds() + 3
    while not wire.ended.called and reactor.seconds() < patience:
        await deferLater(reactor, 0.02)
    wire.leave()
    return {int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", wire.received)}


@pytest_twisted.ensureDeferred
async def test_one_request_for_both(sim, run, nginx, lines) -> None:
    """What nginx passes on is as many requests for the app as for nginx, whatever was sent."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"].upper().replace("/RELEASE/", "/release/")
    path = path.replace("FRONT", "front")
    assert (await front.get(path)).status == 200
    table = attacks(path.encode())
    told = dict(
        zip(table, await gatherResults([start(sent(front, table[n])) for n in table]), strict=True)
    )
    for name, statuses in told.items():
        # 501: a transfer coding, 505: a version, that nginx does not know.
        assert statuses <= {100, 200, 400, 404, 405, 408, 413, 414, 501, 505}, (name, statuses)
    # The last request tells that all others are in both logs.
    await front.get("/release/last")

    def of_the_app() -> list[str]:
        return [line for event in lines for line in event.split("\n") if " hops" in line]

    def passed_on() -> list[dict[str, object]]:
        return [line for line in access(front) if line["app"]]

    await until(lambda: any(line["uri"] == "/release/last" for line in access(front)), "the last")
    await until(lambda: len(of_the_app()) >= len(passed_on()), "the app has seen as many")
    assert len(of_the_app()) == len(passed_on())
    # A body is never passed on, so nothing in it is taken for a request by the app.
    assert sum("/health" in line for line in of_the_app()) == sum(
        line["uri"] == "/health" for line in passed_on()
    )


@pytest_twisted.ensureDeferred
async def test_slow_through_nginx(sim, run, nginx) -> None:
    """A head or a body that does not come is nginx's to end, in ten seconds; the app never sees it."""
    front = await nginx(await run(**ACCEL))
    path = sim.catalogue.examples()["thumbnail"].encode()
    begins = {
        "nothing": b"",
        "a first line": b"GET " + path + b" HTTP/1.1\r\n",
        "headers without end": b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nX: y\r\n",
        "a body": b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
    }
    wires = {name: await connect(front.port) for name in begins}
    for name, data in begins.items():
        wires[name].transport.write(data)
    for name, wire in wires.items():
        await wire.end()
        # A connection without a request just ends.
        assert not wire.received or wire.status in (400, 408), name
        assert b"200 OK" not in wire.received, name
    assert sim.counts.requests() == 0


@pytest_twisted.ensureDeferred
async def test_one_client_of_many(sim, run, nginx) -> None:
    """One client has 512 requests at most: past that 503, while hits of others go on."""
    front = await nginx(await run(**ACCEL))
    held = sim.catalogue.examples()["thumbnail"]
    assert (await front.get(held)).status == 200
    sim.faults.add(Rule(hop="*", does=Gate(name="hold")))
    cold = f"/release/{sim.catalogue.release(1).mbid}/front-250"
    wires = [await front.wire(cold, "Connection: close") for _ in range(520)]
    await until(lambda: sum(bool(wire.received) for wire in wires) >= 8, "the ones too many")
    other = await connect(front.port, "127.0.0.2")
    other.get(held, "Connection: close")
    await other.end()
    assert other.header("X-Cache-Status") == "HIT"
    sim.faults.gates.open("hold")
    for wire in wires:
        await wire.end()
    found = Counter(wire.status for wire in wires)
    assert found == {200: 512, 503: 8}
    refused = next(wire for wire in wires if wire.status == 503)
    assert refused.header("Retry-After") == "5"
