"""Hostile bytes through nginx: it and the app always agree on how many requests there were."""

from __future__ import annotations

import re
from typing import Any

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from tests.integration.nginx_server import NginxServer
from tests.integration.talk import connect, start, until
from tests.integration.test_hostile_requests import (
    BODIES,
    CHUNKS,
    END,
    FRAMING,
    LINES,
    SMUGGLED,
    TARGETS,
    TOO_MUCH,
)
from tests.integration.test_nginx import ACCEL, access

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
    for name, target in TARGETS.items():
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
