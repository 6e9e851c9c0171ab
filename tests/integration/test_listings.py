"""Large listings, and many at once: each is made once, and none fills the memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.defer import gatherResults

from coverart.archive import listings
from coverart.model import Entity, ListingKey
from coverart.simulator.faults import Body, Rule
from coverart.store import layout
from tests.support.talk import start

HERE = "https://covers.example"
PUBLIC = {"COVER_ART_PUBLIC_URL": HERE}
MBID = "353710ec-1509-4df9-8ce2-9bd5011e3b80"
MEGABYTE = 1 << 20


def large(images: int) -> bytes:
    """A listing as the archive writes it, of so many images."""

    def image(number: int) -> dict[str, Any]:
        url = f"https://coverartarchive.org/release/{MBID}/{34782900000 + number}"
        sizes = {"250": 250, "500": 500, "1200": 1200, "small": 250, "large": 500}
        return {
            "approved": True,
            "back": False,
            "comment": f"page {number} \u266a",
            "edit": 96600000 + number,
            "front": number == 0,
            "id": 34782900000 + number,
            "image": f"{url}.png",
            "thumbnails": {name: f"{url}-{size}.jpg" for name, size in sizes.items()},
            "types": ["Booklet"],
        }

    document = {
        "images": [image(number) for number in range(images)],
        "release": f"https://musicbrainz.org/release/{MBID}",
    }
    return json.dumps(document).encode()


LARGE = large(1300)


def most_mb(pid: int) -> float:
    """The most memory that a process has had, in MB (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+([0-9]+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


@pytest_twisted.ensureDeferred
async def test_memory(sim, spawn) -> None:
    """24 of the largest at once, and 60 clients that take nothing of twelve each, cost tens of MB."""
    assert 0.9 * listings.LARGEST_BYTES < len(LARGE) < listings.LARGEST_BYTES
    proxy = await spawn(**PUBLIC).ready()
    assert (await proxy.get(sim.catalogue.examples()["old_listing"])).status == 200
    sim.faults.add(Rule(hop="node", does=Body(data=LARGE, content_type="application/json")))
    before_mb = most_mb(proxy.process.pid)
    items = [sim.catalogue.release(number) for number in range(59, 5, -1)]
    paths = [f"/release/{item.mbid}/" for item in items if item.images][:24]
    found = await gatherResults([start(proxy.get(path)) for path in paths])
    right = LARGE.replace(b"https://coverartarchive.org", HERE.encode())
    assert all(json.loads(answer.body) == json.loads(right) for answer in found)
    slow = []
    for number in range(60):
        wire = await proxy.wire()
        # The kernel takes several MB for a client that takes nothing; what is more, waits here.
        for _ in range(11):
            wire.get(paths[number % 24 if number % 3 == 0 else 0])
        wire.get(paths[number % 24], "Connection: close")
        await wire.got(1)
        wire.transport.pauseProducing()
        slow.append(wire)
    assert (await proxy.get("/health")).status == 200
    assert most_mb(proxy.process.pid) - before_mb < 100
    for wire in slow[:4]:
        wire.transport.resumeProducing()
        await wire.end()
        assert wire.received.count(found[0].body) == 12
    for wire in slow[4:]:
        wire.leave()


@pytest_twisted.ensureDeferred
async def test_made_once(sim, run, monkeypatch) -> None:
    """A listing is cut for the first who wants it, for all others until it changes."""
    made: list[int] = []
    cut = listings.cut

    def counted(body: bytes) -> tuple[bytes, ...]:
        made.append(len(body))
        return cut(body)

    monkeypatch.setattr(listings, "cut", counted)
    proxy = await run(**PUBLIC)
    number = sim.faults.add(Rule(hop="node", does=Body(data=LARGE)))
    path = f"/release/{sim.catalogue.release(0).mbid}/"
    answers = await gatherResults([start(proxy.get(path)) for _ in range(8)])
    answers += [await proxy.get(path) for _ in range(8)]
    assert len({(answer.status, answer.body, answer["ETag"]) for answer in answers}) == 1
    whole, etag = answers[0].body, answers[0]["ETag"]
    head = await proxy.get(path, "HEAD")
    assert (head["Content-Length"], head["ETag"]) == (str(len(whole)), etag)
    for first, last in ((0, 9), (70_000, 70_009), (100, 500_000), (len(whole) - 5, len(whole) + 5)):
        part = await proxy.get(path, range=f"bytes={first}-{last}", if_range=etag)
        assert (part.status, part.body) == (206, whole[first : last + 1])
    assert (await proxy.get(path, range="bytes=9999999-")).status == 416
    assert made == [len(LARGE)]
    await proxy.restart()
    answer = await proxy.get(path, if_none_match=etag)
    assert (answer.status, answer["ETag"], answer.body) == (304, etag, b"")
    assert (await proxy.get(path, if_match='"other"')).status == 412
    assert made == [len(LARGE)] * 2
    sim.faults.remove(number)
    proxy.now.advance(100_000)
    assert (await proxy.get(path)).body == whole
    await proxy.settled()
    fresh = await proxy.get(path, if_none_match=etag)
    assert fresh.status == 200
    assert fresh["ETag"] != etag
    assert len(fresh.json["images"]) == len(sim.catalogue.release(0).images)


@pytest_twisted.ensureDeferred
async def test_by_another_url(sim, run) -> None:
    """The same listing by another public URL is another answer, and has another ETag."""
    path = sim.catalogue.examples()["listing"]
    proxy = await run(**PUBLIC)
    etag = (await proxy.get(path))["ETag"]
    await proxy.stop()
    other = await run(COVER_ART_PUBLIC_URL="https://art.example")
    answer = await other.get(path, if_none_match=etag)
    assert (answer.status, b"https://art.example/" in answer.body) == (200, True)


@pytest_twisted.ensureDeferred
async def test_too_large(sim, run) -> None:
    """A listing past the bound is refused, and one on the disk is taken for spoilt, not read."""
    proxy = await run(**PUBLIC)
    number = sim.faults.add(Rule(hop="node", does=Body(data=large(1600))))
    mbid = sim.catalogue.release(0).mbid
    assert (await proxy.get(f"/release/{mbid}/")).status == 502
    sim.faults.remove(number)
    await proxy.stop()
    path = proxy.root / layout.listing_path(ListingKey(entity=Entity.RELEASE, mbid=mbid))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    await proxy.start()
    answer = await proxy.get(f"/release/{mbid}/")
    assert (answer.status, len(answer.json["images"])) == (
        200,
        len(sim.catalogue.release(0).images),
    )
