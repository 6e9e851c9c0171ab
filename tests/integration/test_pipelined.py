"""Requests that are sent before the last one was answered, for more than the kernel takes."""

from __future__ import annotations

import pytest
import pytest_twisted

from coverart.simulator.faults import Body, Rule
from coverart.web.delivery import PIECE_BYTES as PIECE


@pytest.mark.parametrize("size", [2 * PIECE - 4, 16 * PIECE - 3, 16 * PIECE - 600])
@pytest_twisted.ensureDeferred
async def test_large_images(sim, proxy, size) -> None:
    """Each of them is answered whole, one after the other, as soon as the client takes them."""
    body = b"\xff\xd8\xff" + bytes(size)
    sim.faults.add(Rule(hop="node", does=Body(data=body, content_type="image/jpeg")))
    path = sim.catalogue.examples()["thumbnail"]
    assert (await proxy.get(path)).status == 200
    await proxy.settled()
    for paused in (False, True):
        wire = await proxy.wire()
        if paused:
            wire.transport.pauseProducing()
        for _ in range(7):
            wire.get(path)
        wire.get(path, "Connection: close")
        if paused:
            assert (await proxy.get("/health")).status == 200
            wire.transport.resumeProducing()
        await wire.end()
        assert wire.received.count(body) == 8
