"""One id finds a request in nginx's log, in the app's and in the answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest_twisted

from coverart.simulator.faults import Html, Rule
from tests.support.nginx_server import ACCEL
from tests.support.talk import becomes

OURS = "0123456789abcdef" * 2
"""An id as nginx makes them."""


async def access_lines(front, path: str) -> list[dict[str, Any]]:
    """What nginx's access log says of a path, once it says something."""

    async def look() -> list[dict[str, Any]]:
        told = map(json.loads, front.access_log.read_text().splitlines())
        return [line for line in told if line["uri"] == path]

    return await becomes(look, bool, "nginx writes its log")


def app_lines(proxy, lines: list[str], wanted: str) -> list[str]:
    """What the app's log says of an id, at once."""
    proxy.site.look()
    return [line for event in lines for line in event.splitlines() if wanted in line]


@pytest_twisted.ensureDeferred
async def test_through_nginx(sim, run, nginx, lines) -> None:
    """A failure is found by its id from end to end; what a client calls itself counts for nothing."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    sim.faults.add(Rule(hop="node", does=Html()))
    path = sim.catalogue.examples()["thumbnail"]
    answer = await front.get(path, X_Request_ID=OURS)
    told = answer["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", told)
    assert told != OURS
    assert (answer.status, answer.json["request_id"]) == (502, told)
    (seen,) = await access_lines(front, path)
    assert (seen["request"], seen["status"]) == (told, 502)
    (line,) = app_lines(proxy, lines, told)
    assert f" {path.removesuffix('.jpg')} 502 BadUpstream " in line
    assert line.endswith(f" id {told}")


@pytest_twisted.ensureDeferred
async def test_all_but_direct_hits(sim, run, nginx, lines) -> None:
    """A miss has one, and what nginx sends by the app's word; nginx's own errors too."""
    proxy = await run(**ACCEL)
    front = await nginx(proxy)
    path = sim.catalogue.examples()["thumbnail"]
    missed = await front.get(path)
    await proxy.settled()
    assert app_lines(proxy, lines, missed["X-Request-ID"])
    direct = await front.get(path)
    assert (direct["X-Served-By"], direct["X-Request-ID"]) == ("nginx-cache", "")
    # A doubled slash is the app's to read.
    accelerated = await front.get(f"/{path}")
    assert (accelerated["X-Served-By"], accelerated["X-Cache-Status"]) == ("nginx-cache", "HIT")
    part = await front.get(path, Range="bytes=10-")
    await proxy.stop()
    gone = await front.get("/release/x/front")
    assert gone.status == 503
    assert gone.json["request_id"] == gone["X-Request-ID"]
    told = [answer["X-Request-ID"] for answer in (missed, accelerated, part, gone)]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in told), told
    assert len(set(told)) == len(told)


@pytest_twisted.ensureDeferred
async def test_whose_counts(run) -> None:
    """The app takes an id of a trusted proxy, if it is one; else it makes its own, for each request."""
    trusting = await run()
    assert (await trusting.get("/nothing", X_Request_ID=OURS))["X-Request-ID"] == OURS
    for given in ("", "x", OURS.upper(), OURS + "0", f"{OURS} x"):
        made = (await trusting.get("/nothing", X_Request_ID=given))["X-Request-ID"]
        assert re.fullmatch("[0-9a-f]{32}", made), given
    wary = await run(COVER_ART_TRUSTED_PROXIES="10.0.0.0/8")
    made = [(await wary.get("/nothing", X_Request_ID=OURS))["X-Request-ID"] for _ in range(3)]
    assert OURS not in made
    assert len(set(made)) == 3
