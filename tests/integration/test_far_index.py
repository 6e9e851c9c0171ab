"""What clients see of an index that has to be asked elsewhere: nothing."""

from __future__ import annotations

import pytest
import pytest_twisted

from coverart.simulator.faults import Gate, Rule
from tests.support.redis_server import RedisServer
from tests.support.running import reached
from tests.support.talk import becomes, start, until, within

HELD_REQUESTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("GET", {}),
    ("HEAD", {}),
    ("GET", {"Range": "bytes=10-99"}),
    ("GET", {"Range": "bytes=0-4,20-29"}),
    ("GET", {"Range": "bytes=99999999-"}),
    ("GET", {"If-None-Match": "*"}),
    ("GET", {"If-Match": '"other"'}),
    ("HEAD", {"Range": "bytes=10-99"}),
)


@pytest.mark.parametrize("accel", ["", "/cache-files/"])
@pytest_twisted.ensureDeferred
async def test_same_answers_with_either_index(sim, run, redis: RedisServer, accel) -> None:
    """Where the index lies makes no difference to a client: statuses, headers and bodies."""
    examples = sim.catalogue.examples()
    asked = (examples["thumbnail"], examples["jpeg"], examples["no_front"])
    told: list[list[object]] = []
    # One after the other: a process without Redis leaves a mark for those with it.
    for url in ("", redis.url):
        proxy = await run(COVER_ART_REDIS_URL=url, COVER_ART_ACCEL=accel)
        await becomes(proxy.cache.index.whole, bool, "the index knows what the disk holds")
        for path in asked:
            # Fetched by the first, found by the second; each remembers the 404 itself.
            await proxy.get(path)
        await proxy.settled()
        told.append([])
        for path in asked:
            for method, headers in HELD_REQUESTS:
                answer = await proxy.get(path, method, **headers)
                case = (path, method, headers)
                assert answer["x-cache-status"] in ("HIT", "ABSENT") or answer.status >= 412, case
                told[-1].append((case, answer.status, _without_chance(answer.named), answer.body))
    assert told[0] == told[1]


def _without_chance(headers: dict[str, str]) -> dict[str, str]:
    """Without what differs from answer to answer."""
    chance = ("date", "connection", "x-request-id")
    return {name: text for name, text in headers.items() if name not in chance}


@pytest_twisted.ensureDeferred
async def test_client_leaves_while_redis_is_silent(sim, run, redis: RedisServer, lines) -> None:
    """Who does not wait for the index takes nothing with them, and is no error."""
    path = sim.catalogue.examples()["thumbnail"]
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    held = await proxy.get(path)
    redis.pause()
    wire = await proxy.wire(path)
    stays = start(proxy.get(path))
    await until(lambda: len(proxy.site.connections.open) == 2, "both were heard")
    wire.leave()
    await until(lambda: len(proxy.site.connections.open) == 1, "one left")
    redis.resume()
    assert (await within(stays)).body == held.body
    assert (await proxy.get(path))["x-cache-status"] == "HIT"
    assert [text for text in lines if "Traceback" in text or "Unhandled" in text] == []


@pytest_twisted.ensureDeferred
async def test_refused_early_with_either_index(sim, run, redis: RedisServer) -> None:
    """With no room to wait in, a cover that is not held is refused and one that is is served."""
    examples = sim.catalogue.examples()
    proxy = await run(COVER_ART_REDIS_URL=redis.url, COVER_ART_MAX_WAITING="1")
    await proxy.get(examples["thumbnail"])
    # Until it is on the disk it takes the room of one.
    await proxy.settled()
    sim.faults.add(Rule(hop="release", does=Gate(name="hold")))
    waits = start(proxy.get(examples["png"]))
    await reached(sim, "hold")
    refused = await proxy.get(examples["gif"])
    assert (refused.status, refused["x-cache-status"]) == (503, "")
    assert int(refused["retry-after"]) > 0
    assert (await proxy.get(examples["thumbnail"]))["x-cache-status"] == "HIT"
    sim.faults.gates.open("hold")
    assert (await within(waits)).status == 200
