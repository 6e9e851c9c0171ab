"""Every route and answer of the contract (design section 5), through a real socket."""

from __future__ import annotations

import hashlib
import re
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import attrs
import pytest
import pytest_twisted

from coverart.model import SIZES
from coverart.simulator import answers
from coverart.simulator.catalogue import Image
from coverart.simulator.faults import Gate, Rule
from coverart.simulator.service import Simulator
from tests.support.running import Proxy, reached
from tests.support.talk import Answer, becomes, start

IMMUTABLE = "public, max-age=31536000, immutable"
ALIAS = "public, max-age=86400"
EXPOSED = {
    "ETag",
    "Content-Range",
    "Content-Length",
    "Accept-Ranges",
    "Retry-After",
    "Cache-Status",
    "Proxy-Status",
    "X-Request-ID",
    "X-Cache-Status",
    "X-Served-By",
}
"""What the scripts of any page may read."""
TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "pdf": "application/pdf",
}
CAST = {"jpeg": 0, "png": 1, "gif": 2, "animated": 3, "pdf": 4, "large": 11}
VARIES = {"date", "x-request-id", "x-cache-status", "cache-status"}
ALL_SIZES = (None, *SIZES)


@attrs.frozen(kw_only=True)
class Asked:
    """A path, the image it must bring, and whether the path names it for good."""

    path: str
    image: Image
    size: int | None = None
    by_id: bool = False

    @property
    def content_type(self) -> str:
        return TYPES["jpg" if self.size else self.image.ext]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def spellings(base: str, name: str | int, image: Image) -> list[Asked]:
    """Every way to write one name: each size, with and without an extension, right or not."""
    found = []
    for size in ALL_SIZES:
        suffix = "" if size is None else f"-{size}"
        extension = image.ext if size is None else "jpg"
        for ending in ("", f".{extension}", ".jpg", ".PNG", "?download=1&x=/../y"):
            path = f"{base}/{name}{suffix}{ending}"
            found.append(Asked(path=path, image=image, size=size, by_id=isinstance(name, int)))
    return found


def downloads(mbid: str, image: Image) -> list[Asked]:
    """The archive.org spelling of an image in all its sizes."""
    found = []
    for size in ALL_SIZES:
        name = f"_thumb{size}.jpg" if size else f".{image.ext}"
        path = f"/download/mbid-{mbid}/mbid-{mbid}-{image.id}{name}"
        found.append(Asked(path=path, image=image, size=size, by_id=True))
    return found


def check_common(answer: Answer) -> None:
    """What every answer carries, errors too."""
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert set(answer["Access-Control-Expose-Headers"].split(", ")) >= EXPOSED
    assert answer["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["X-Served-By"] == "coverart"
    assert answer.length == len(answer.body)


def check_image(sim: Simulator, asked: Asked, answer: Answer, status: str) -> None:
    """An image as the contract has it: the archive's bytes and every header of the table."""
    whole = sim.studio.archive_bytes(asked.image, asked.size)
    assert answer.status == 200, asked
    assert sha256(answer.body) == sha256(whole), asked
    check_common(answer)
    assert answer["Content-Type"] == asked.content_type
    assert answer["X-Cache-Status"] == status, asked
    assert answer["Cache-Status"].startswith("coverart; ")
    assert ("hit" in answer["Cache-Status"]) == (status != "MISS")
    assert answer["Cache-Control"] == (IMMUTABLE if asked.by_id else ALIAS)
    assert answer["Accept-Ranges"] == "bytes"
    assert answer["ETag"].startswith('"')
    assert answer["ETag"].endswith('"')
    parsedate_to_datetime(answer["Last-Modified"])
    policy = answer["Content-Security-Policy"]
    assert ("sandbox" in policy) == (asked.content_type == "application/pdf")
    assert "frame-ancestors" not in policy


def check_error(answer: Answer, status: int, cache_control: str) -> None:
    """An error as the contract has it: JSON with one field."""
    assert answer.status == status
    check_common(answer)
    assert answer["Content-Type"] == "application/json"
    assert list(answer.json) == ["error"]
    assert answer["Cache-Control"] == cache_control
    assert "default-src 'none'" in answer["Content-Security-Policy"]


async def check_all(sim: Simulator, proxy: Proxy, table: list[Asked]) -> None:
    """Each path of a table: a miss at most once for each image and size, then no request at all."""
    seen: dict[tuple[int | None, bool], Asked] = {}
    for asked in table:
        answer = await proxy.get(asked.path)
        await proxy.settled()
        first = (asked.size, asked.by_id) not in seen
        seen.setdefault((asked.size, asked.by_id), asked)
        check_image(sim, asked, answer, answer["X-Cache-Status"] if first else "HIT")
    sim.counts.clear()
    for asked in seen.values():
        check_image(sim, asked, await proxy.get(asked.path), "HIT")
    assert sim.counts.requests() == 0


# Images


@pytest.mark.parametrize("kind", CAST)
@pytest_twisted.ensureDeferred
async def test_front_of_every_kind(sim, proxy, kind) -> None:
    """A front in every size and spelling: the archive's bytes, exact type, every header."""
    item = sim.catalogue.release(CAST[kind])
    await check_all(sim, proxy, spellings(f"/release/{item.mbid}", "front", item.front))


@pytest.mark.parametrize("kind", CAST)
@pytest_twisted.ensureDeferred
async def test_id_of_every_kind(sim, proxy, kind) -> None:
    """An image by its id, in the cover archive's spelling and in archive.org's."""
    item = sim.catalogue.release(CAST[kind])
    table = spellings(f"/release/{item.mbid}", item.front.id, item.front)
    await check_all(sim, proxy, table + downloads(item.mbid, item.front))


@pytest_twisted.ensureDeferred
async def test_back(sim, proxy) -> None:
    """A back is another image than the front."""
    item = sim.catalogue.release(0)
    assert item.back != item.front
    await check_all(sim, proxy, spellings(f"/release/{item.mbid}", "back", item.back))


@pytest_twisted.ensureDeferred
async def test_group(sim, proxy) -> None:
    """A group's front is that of the release that is chosen for it."""
    group = sim.catalogue.release_group(0)
    front = sim.catalogue.release(0).front
    await check_all(sim, proxy, spellings(f"/release-group/{group.mbid}", "front", front))


@pytest_twisted.ensureDeferred
async def test_event(sim, proxy) -> None:
    """An event has a front and ids, on a host of its own."""
    event = sim.catalogue.event(0)
    base = f"/event/{event.mbid}"
    await check_all(
        sim,
        proxy,
        spellings(base, "front", event.front) + spellings(base, event.front.id, event.front),
    )
    assert sim.counts.requests("release") == 0


@pytest_twisted.ensureDeferred
async def test_merged(sim, proxy) -> None:
    """An MBID that was merged away answers with the images of the one that stays, by id too."""
    gone, item = sim.catalogue.merged(0), sim.catalogue.release(0)
    base = f"/release/{gone.mbid}"
    await check_all(sim, proxy, spellings(base, "front", item.front))
    await check_all(sim, proxy, spellings(base, item.back.id, item.back))
    assert {Path(path).name[:36] for path in proxy.files()} == {item.mbid}


@pytest_twisted.ensureDeferred
async def test_upper_case(sim, proxy) -> None:
    """An MBID in upper case is the same as in lower case, on every entity."""
    item, group = sim.catalogue.release(0), sim.catalogue.release_group(0)
    event = sim.catalogue.event(0)
    upper = f"/release/{item.mbid.upper()}/front-250"
    check_image(sim, Asked(path=upper, image=item.front, size=250), await proxy.get(upper), "MISS")
    lower = await proxy.get(upper.replace(item.mbid.upper(), item.mbid))
    assert lower["X-Cache-Status"] == "HIT"
    for path in (
        f"/release-group/{group.mbid.upper()}/front-250",
        f"/event/{event.mbid.upper()}/front-250",
        f"/release/{item.mbid.upper()}",
        downloads(item.mbid.upper(), item.front)[1].path,
    ):
        assert (await proxy.get(path)).status == 200, path


# Listings


@pytest_twisted.ensureDeferred
async def test_listings(sim, proxy) -> None:
    """A listing of each entity and age passes to the byte, with and without a slash."""
    catalogue = sim.catalogue
    for base, item in (
        (f"/release/{catalogue.release(0).mbid}", catalogue.release(0)),
        (f"/release/{catalogue.release(8).mbid}", catalogue.release(8)),
        (f"/release/{catalogue.release(9).mbid}", catalogue.release(9)),
        (f"/release/{catalogue.merged(0).mbid}", catalogue.release(0)),
        (f"/release-group/{catalogue.release_group(0).mbid}", catalogue.release(0)),
        (f"/event/{catalogue.event(0).mbid}", catalogue.event(0)),
    ):
        for path, status in ((base, "MISS"), (f"{base}/", "HIT"), (f"{base}/?a=b", "HIT")):
            answer = await proxy.get(path)
            assert answer.status == 200
            assert answer.body == answers.listing(item)
            check_common(answer)
            assert answer["Content-Type"] == "application/json"
            assert answer["X-Cache-Status"] == status
            assert answer["Cache-Control"] == "public, max-age=86400"
            assert answer["Accept-Ranges"] == "bytes"
            same = await proxy.get(path, if_none_match=answer["ETag"])
            assert (same.status, same.body) == (304, b"")


# Errors


MBID = "76df3287-6cda-33eb-8e9a-044b5e15ffdd"
MALFORMED = (
    "/release",
    "/release/",
    "/release//front",
    "/release/x/front",
    f"/release/{MBID}/fron",
    f"/release/{MBID}/Front",
    f"/release/{MBID}/-1",
    f"/release/{MBID}/index.json",
    f"/release/{MBID}/%2566ront",
    f"/release/{MBID}/front%00",
    f"/release/{MBID}/front%2f..%2f..%2f..%2f..",
    f"/release/{MBID}/front%6",
    f"/release/{MBID}/../../etc/passwd",
    f"/release/{MBID}/..%2f..%2fetc%2fpasswd",
    f"/release/{MBID[:-1]}/front",
    f"/release/{MBID}0/front",
    f"/release/{MBID.replace('-', '')}/front",
    f"/release/{MBID[:-1]}g/front",
    f"/release/{MBID}/front" + "x" * 9000,
    f"/releases/{MBID}/front",
    f"/artist/{MBID}/front",
    f"/release-group/{MBID}/back",
    f"/release-group/{MBID}/123",
    f"/event/{MBID}/back",
    f"/download/mbid-{MBID}/index.json",
    f"/download/mbid-{MBID}/mbid-{MBID[:-1]}0-12.jpg",
    f"/download/mbid-{MBID}/mbid-{MBID}-12_thumb251.jpg",
    f"/download/mbid-{MBID}/mbid-{MBID}-front.jpg",
    "/.env",
    "/cache-files/release/x.jpg",
    "/healthy",
    "/health/",
    "/<script>alert(1)</script>",
    "//release",
    "//health",
    "/%68ealth",
    f"//admin/purge/release/{MBID}/front",
)


@pytest_twisted.ensureDeferred
async def test_malformed(sim, proxy) -> None:
    """What is no path of the archive is a 400 that quotes nothing and asks nobody."""
    for path in MALFORMED:
        wire = await proxy.wire(path, "Connection: close")
        await wire.end()
        assert wire.status == 400, path
        assert re.fullmatch(rb'\{"error": "no such path: [A-Za-z0-9 ,./-]+"\}', wire.body), path
        assert wire.header("Access-Control-Allow-Origin") == "*"
    check_error(await proxy.get("/release/x/front"), 400, "no-store")
    assert sim.counts.requests() == 0
    assert proxy.files() == []


@pytest_twisted.ensureDeferred
async def test_not_found(sim, proxy) -> None:
    """No art, no front, no such id, no such release: 404, remembered for the next client."""
    catalogue = sim.catalogue
    examples = catalogue.examples()
    release = catalogue.release(0).mbid
    for path in (
        examples["no_art"],
        examples["no_front"],
        examples["no_back"],
        examples["unknown"],
        examples["no_art"].removesuffix("front"),
        f"/release/{release}/42",
        f"/release-group/{release}/front",
        f"/event/{release}/front-250",
    ):
        for status in ("MISS", "ABSENT", "ABSENT"):
            answer = await proxy.get(path)
            check_error(answer, 404, "public, max-age=60")
            assert answer["X-Cache-Status"] == status, path
            assert answer.json == {"error": "no such art"}
        head = await proxy.get(path, "HEAD")
        assert (head.status, head.body) == (404, b"")
        assert head["Content-Length"] == str(answer.length)


@pytest_twisted.ensureDeferred
async def test_methods(sim, proxy) -> None:
    """Only GET, HEAD and OPTIONS; others are told so, and change nothing."""
    path = sim.catalogue.examples()["thumbnail"]
    for where in (path, sim.catalogue.examples()["listing"], "/health", "/"):
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get"):
            answer = await proxy.get(where, method)
            check_error(answer, 405, "no-store")
            assert answer["Allow"] == "GET, HEAD, OPTIONS"
    for where in (path, "/health", f"/release/{MBID}/front"):
        options = await proxy.get(where, "OPTIONS", Origin="https://x", Range="bytes=0-1")
        assert (options.status, options.body) == (200, b"")
        assert options["Allow"] == "GET, HEAD, OPTIONS"
        assert options["Access-Control-Allow-Origin"] == "*"
    assert sim.counts.requests() == 0


@pytest_twisted.ensureDeferred
async def test_post_with_body(sim, proxy) -> None:
    """A POST with a body is refused, and the connection goes on to be of use or ends."""
    path = sim.catalogue.examples()["thumbnail"]
    wire = await proxy.wire()
    wire.transport.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello".encode()
    )
    await wire.end()
    assert wire.status == 405


# HEAD


@pytest.mark.parametrize("kind", ["jpeg", "png", "pdf", "large"])
@pytest_twisted.ensureDeferred
async def test_head(sim, proxy, kind) -> None:
    """HEAD has the headers of GET and the true length, on a miss and on a hit."""
    item = sim.catalogue.release(CAST[kind])
    for size in (None, 250):
        path = f"/release/{item.mbid}/front{'' if size is None else f'-{size}'}"
        length = len(sim.studio.archive_bytes(item.front, size))
        missed = await proxy.get(path, "HEAD")
        await proxy.settled()
        sim.counts.clear()
        hit = await proxy.get(path, "HEAD")
        whole = await proxy.get(path)
        assert sim.counts.requests() == 0
        assert (missed["X-Cache-Status"], hit["X-Cache-Status"]) == ("MISS", "HIT")
        for head in (missed, hit):
            assert (head.status, head.body) == (200, b"")
            assert head["Content-Length"] == str(length)
            wanted = {k: v for k, v in whole.named.items() if k not in VARIES}
            assert {k: v for k, v in head.named.items() if k not in VARIES} == wanted


@pytest_twisted.ensureDeferred
async def test_head_of_listing(sim, proxy) -> None:
    """The same of a listing and of the operator's pages."""
    listing = sim.catalogue.examples()["listing"]
    await proxy.get(listing)
    for path in (listing, "/health", "/ready", "/cache-status", "/"):
        whole, head = await proxy.get(path), await proxy.get(path, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head["Content-Length"] == str(len(whole.body))
        assert head["Content-Type"] == whole["Content-Type"]


# Ranges and conditions


@pytest_twisted.ensureDeferred
async def test_range_single(sim, proxy) -> None:
    """One range of each form gives its bytes, on the miss too."""
    item = sim.catalogue.release(1)
    path = f"/release/{item.mbid}/front"
    whole = sim.studio.archive_bytes(item.front, None)
    size = len(whole)
    for asked, first, last in (
        ("bytes=0-65535", 0, 65535),
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=1000-", 1000, size - 1),
        ("bytes=-500", size - 500, size - 1),
        (f"bytes=-{size + 10}", 0, size - 1),
        (f"bytes={size - 1}-{size + 100}", size - 1, size - 1),
        (f"bytes=0-{size * 9}", 0, size - 1),
        ("bytes= 5 - 9 ", 5, 9),
    ):
        answer = await proxy.get(path, Range=asked)
        assert (answer.status, answer.body) == (206, whole[first : last + 1]), asked
        assert answer["Content-Range"] == f"bytes {first}-{last}/{size}"
        assert answer["Content-Type"] == "image/png"
        check_common(answer)


@pytest_twisted.ensureDeferred
async def test_range_several(sim, proxy) -> None:
    """A request for several ranges gets the whole."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.get(path)
    answer = await proxy.get(path, Range="bytes=0-9, 100-199,-50")
    assert (answer.status, answer.body) == (200, sim.studio.archive_bytes(item.front, 250))
    check_common(answer)


@pytest_twisted.ensureDeferred
async def test_range_unsatisfiable(sim, proxy) -> None:
    """A range beyond the end, or that is none, is a 416 that tells the size."""
    path = sim.catalogue.examples()["thumbnail"]
    size = len((await proxy.get(path)).body)
    for asked in (
        f"bytes={size}-",
        f"bytes={size + 5}-{size + 9}",
        "bytes=-0",
        "bytes=9-5",
        "bytes=",
        "bytes=x-y",
        "bytes=--5",
    ):
        answer = await proxy.get(path, Range=asked)
        check_error(answer, 416, "no-store")
        assert answer["Content-Range"] == f"bytes */{size}"


@pytest_twisted.ensureDeferred
async def test_range_not_understood(sim, proxy) -> None:
    """What is in another unit, or an attack, gets the whole."""
    path = sim.catalogue.examples()["thumbnail"]
    whole = await proxy.get(path)
    many = ",".join(f"{2 * n}-{2 * n}" for n in range(17))
    for asked in (
        "lines=1-2",
        "bytes 1-2",
        "bytes = 1-2",
        f"bytes={many}",
        "bytes=0-,0-,0-",
    ):
        answer = await proxy.get(path, Range=asked)
        assert (answer.status, answer.body) == (200, whole.body), asked


@pytest_twisted.ensureDeferred
async def test_if_none_match(sim, proxy) -> None:
    """A client that holds the bytes is told so with a 304 and the headers it may refresh."""
    for path in (sim.catalogue.examples()["thumbnail"], sim.catalogue.examples()["png"]):
        whole = await proxy.get(path)
        tag = whole["ETag"]
        for sent in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            for method in ("GET", "HEAD"):
                answer = await proxy.get(path, method, if_none_match=sent, Range="bytes=0-1")
                assert (answer.status, answer.body) == (304, b""), sent
                assert answer["ETag"] == tag
                assert answer["Cache-Control"] == whole["Cache-Control"]
                assert answer["Access-Control-Allow-Origin"] == "*"
        other = await proxy.get(path, if_none_match='"x"')
        assert (other.status, other.body) == (200, whole.body)


@pytest_twisted.ensureDeferred
async def test_if_none_match_beats_date(sim, proxy) -> None:
    """If-None-Match decides alone where both are sent (RFC 9110 section 13.2.2)."""
    path = sim.catalogue.examples()["thumbnail"]
    whole = await proxy.get(path)
    later = formatdate(2**32, usegmt=True)
    answer = await proxy.get(path, if_none_match='"x"', if_modified_since=later)
    assert answer.status == 200
    answer = await proxy.get(path, if_none_match=whole["ETag"], if_modified_since="nonsense")
    assert answer.status == 304


@pytest_twisted.ensureDeferred
async def test_if_modified_since(sim, proxy) -> None:
    """304 from the date of the file on, 200 before it or where the date is none."""
    path = sim.catalogue.examples()["thumbnail"]
    whole = await proxy.get(path)
    made = whole["Last-Modified"]
    at = parsedate_to_datetime(made).timestamp()
    for since, status in (
        (made, 304),
        (formatdate(at + 60, usegmt=True), 304),
        (formatdate(at - 60, usegmt=True), 200),
        ("yesterday", 200),
    ):
        answer = await proxy.get(path, if_modified_since=since)
        assert answer.status == status, since
        assert answer.body == (whole.body if status == 200 else b"")


@pytest_twisted.ensureDeferred
async def test_if_range(sim, proxy) -> None:
    """A range of the very bytes the client holds part of; of others, the whole."""
    path = sim.catalogue.examples()["thumbnail"]
    whole = await proxy.get(path)
    for validator, status in (
        (whole["ETag"], 206),
        (whole["Last-Modified"], 206),
        ('"x"', 200),
        (f"W/{whole['ETag']}", 200),
        (formatdate(0, usegmt=True), 200),
    ):
        answer = await proxy.get(path, Range="bytes=0-4", if_range=validator)
        assert answer.status == status, validator
        assert answer.body == (whole.body[:5] if status == 206 else whole.body)


@pytest_twisted.ensureDeferred
async def test_if_match(sim, proxy) -> None:
    """A condition that does not hold is a 412 without a body."""
    path = sim.catalogue.examples()["thumbnail"]
    whole = await proxy.get(path)
    for headers, status in (
        ({"if_match": whole["ETag"]}, 200),
        ({"if_match": "*"}, 200),
        ({"if_match": '"x"'}, 412),
        ({"if_unmodified_since": whole["Last-Modified"]}, 200),
        ({"if_unmodified_since": formatdate(0, usegmt=True)}, 412),
    ):
        answer = await proxy.get(path, **headers)
        assert answer.status == status, headers
        if status == 412:
            check_error(answer, 412, "no-store")


@pytest_twisted.ensureDeferred
async def test_validators_survive_restart(sim, proxy) -> None:
    """What a client holds is still known to be right after a restart."""
    path = sim.catalogue.examples()["jpeg"]
    missed = await proxy.get(path)
    await proxy.settled()
    hit = await proxy.get(path)
    assert (hit["ETag"], hit["Last-Modified"]) == (missed["ETag"], missed["Last-Modified"])
    await proxy.restart()
    assert (await proxy.get(path, if_none_match=missed["ETag"])).status == 304


@pytest_twisted.ensureDeferred
async def test_range_while_arriving(sim, proxy) -> None:
    """A range or a condition on a large image that is still arriving is answered as on a held one."""
    item = sim.catalogue.release(CAST["large"])
    path = f"/release/{item.mbid}/front"
    whole = sim.studio.archive_bytes(item.front, None)
    for asked, first, last in (
        ("bytes=0-65535", 0, 65535),
        ("bytes=-1000", len(whole) - 1000, len(whole) - 1),
    ):
        sim.faults.add(Rule(hop="node", times=1, does=Gate(name=asked)))
        asking = start(proxy.get(path, Range=asked))
        await reached(sim, asked)
        sim.faults.gates.open(asked)
        answer = await asking
        assert answer["X-Cache-Status"] == "MISS"
        assert (answer.status, answer.body) == (206, whole[first : last + 1])
        assert answer["Content-Range"] == f"bytes {first}-{last}/{len(whole)}"
        await proxy.settled()
        for name in proxy.files() + proxy.links():
            (proxy.root / name).unlink()


# Ways of answering


@pytest_twisted.ensureDeferred
async def test_accel(sim, run) -> None:
    """With COVER_ART_ACCEL the answer names the file for nginx to send, and has no body."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/")
    catalogue = sim.catalogue
    item = catalogue.release(0)
    for path, image, size, kind in (
        (f"/release/{item.mbid}/front-250", item.front, 250, "image/jpeg"),
        (f"/release/{item.mbid}/{item.front.id}-500", item.front, 500, "image/jpeg"),
        (
            f"/release-group/{catalogue.release_group(0).mbid}/front-250",
            item.front,
            250,
            "image/jpeg",
        ),
        (catalogue.examples()["pdf"], catalogue.release(4).front, None, "application/pdf"),
    ):
        await proxy.get(path)
        await proxy.settled()
        answer = await proxy.get(path)
        assert (answer.status, answer.body) == (200, b"")
        assert answer["X-Cache-Status"] == "HIT"
        assert answer["Content-Type"] == kind
        prefix, _, name = answer["X-Accel-Redirect"].partition("/cache-files/")
        assert prefix == ""
        file = proxy.root / name
        assert file.is_file()
        assert not file.is_symlink()
        assert file.read_bytes() == sim.studio.archive_bytes(image, size)
    listing = await proxy.get(f"/release/{item.mbid}/")
    assert listing["X-Accel-Redirect"].endswith(f"{item.mbid}.json")
    missing = await proxy.get(catalogue.examples()["no_art"])
    assert (missing.status, missing["X-Accel-Redirect"]) == (404, "")


@pytest_twisted.ensureDeferred
async def test_accel_small_miss(sim, run) -> None:
    """
    A small image is sent from memory, then by nginx; a large one flows from here.

    Who asks before the disk has it has a hit.
    """
    proxy = await run(COVER_ART_ACCEL="/cache-files/")
    path = sim.catalogue.examples()["thumbnail"]
    first, second = await proxy.get(path), await proxy.get(path)
    assert (first["X-Cache-Status"], second["X-Cache-Status"]) == ("MISS", "HIT")
    assert (first["X-Accel-Redirect"], first["X-Served-By"]) == ("", "coverart")
    await proxy.settled()
    small = await proxy.get(path)
    assert small["X-Cache-Status"] == "HIT"
    assert (proxy.root / small["X-Accel-Redirect"].removeprefix("/cache-files/")).is_file()
    item = sim.catalogue.release(CAST["large"])
    large = await proxy.get(f"/release/{item.mbid}/front")
    assert large["X-Accel-Redirect"] == ""
    assert sha256(large.body) == sha256(sim.studio.archive_bytes(item.front, None))


@pytest_twisted.ensureDeferred
async def test_redirect_mode(sim, run) -> None:
    """COVER_ART_IMAGE_MODE=redirect answers a name with this proxy's own URL of the image."""
    proxy = await run(COVER_ART_IMAGE_MODE="redirect")
    catalogue = sim.catalogue
    item, png = catalogue.release(0), catalogue.release(1)
    event = catalogue.event(0)
    for path, location, image, size in (
        (
            f"/release/{item.mbid}/front",
            f"/release/{item.mbid}/{item.front.id}.jpg",
            item.front,
            None,
        ),
        (
            f"/release/{item.mbid}/front-250",
            f"/release/{item.mbid}/{item.front.id}-250.jpg",
            item.front,
            250,
        ),
        (
            f"/release/{png.mbid}/front.jpg",
            f"/release/{png.mbid}/{png.front.id}.png",
            png.front,
            None,
        ),
        (
            f"/release-group/{catalogue.release_group(0).mbid}/front-500",
            f"/release/{item.mbid}/{item.front.id}-500.jpg",
            item.front,
            500,
        ),
        (
            f"/event/{event.mbid}/front",
            f"/event/{event.mbid}/{event.front.id}.jpg",
            event.front,
            None,
        ),
    ):
        answer = await proxy.get(path)
        assert (answer.status, answer["Location"]) == (307, location)
        assert answer["Cache-Control"] == ALIAS
        check_common(answer)
        sim.counts.clear()
        again = await proxy.get(path)
        assert (again.status, again["Location"]) == (307, location)
        assert again["X-Cache-Status"] == "HIT"
        assert sim.counts.requests() == 0
        asked = Asked(path=location, image=image, size=size, by_id=True)
        check_image(sim, asked, await proxy.get(location), "MISS")
    missing = await proxy.get(catalogue.examples()["no_art"])
    check_error(missing, 404, "public, max-age=60")


@pytest_twisted.ensureDeferred
async def test_redirect_mode_public_url(sim, run) -> None:
    """With COVER_ART_PUBLIC_URL the redirect is absolute."""
    proxy = await run(
        COVER_ART_IMAGE_MODE="redirect", COVER_ART_PUBLIC_URL="https://covers.example/art/"
    )
    item = sim.catalogue.release(0)
    answer = await proxy.get(f"/release/{item.mbid}/front-250")
    image = f"/release/{item.mbid}/{item.front.id}-250.jpg"
    assert answer["Location"] == f"https://covers.example/art{image}"


# Operators


@pytest_twisted.ensureDeferred
async def test_health(sim, proxy) -> None:
    """/health says healthy and where; /ready says so only while the directory takes files."""
    health = await proxy.get("/health")
    assert health.status == 200
    assert health.json["status"] == "healthy"
    assert health.json["cache_dir"] == str(proxy.root)
    assert health["Content-Type"] == "application/json"
    assert (await proxy.get("/ready")).status == 200
    proxy.root.rename(proxy.root.with_name("away"))
    assert (await proxy.get("/ready")).status == 503
    assert (await proxy.get("/health")).status == 200


@pytest_twisted.ensureDeferred
async def test_cache_status(sim, proxy) -> None:
    """/cache-status tells what is held and how it came about, in the fields of the contract."""
    catalogue = sim.catalogue
    empty = (await proxy.get("/cache-status")).json
    assert empty["cached_files"] == empty["cache_size_bytes"] == 0
    assert empty["oldest"] is None
    thumbnail = catalogue.examples()["thumbnail"]
    for path in (
        thumbnail,
        thumbnail,
        f"/release-group/{catalogue.release_group(0).mbid}/front-250",
        f"/event/{catalogue.event(0).mbid}/front-250",
        catalogue.examples()["listing"],
        catalogue.examples()["no_art"],
    ):
        await proxy.get(path)
    answer = await proxy.get("/cache-status")
    assert answer["Content-Type"] == "application/json"
    told = answer.json
    size = sum((proxy.root / name).stat().st_size for name in proxy.files())
    assert told["status"] == "running"
    assert told["cached_files"] == len(proxy.files()) == 3
    assert told["release_files"] == 2
    assert told["release_group_files"] == 1
    assert told["cache_size_bytes"] == size
    assert told["cache_size_mb"] == pytest.approx(size / 2**20, abs=0.01)
    assert told["cache_limit_mb"] == 100
    assert told["cache_usage_percent"] == pytest.approx(size / 2**20, abs=0.01)
    assert told["cache_dir"] == str(proxy.root)
    assert told["cache_index_type"] == "memory"
    assert told["redis_available"] is False
    assert (told["hits"], told["misses"], told["stale"], told["evicted"]) == (1, 5, 0, 0)
    assert "leader" in told
    assert told["oldest"] == pytest.approx(proxy.now(), abs=60)


@pytest_twisted.ensureDeferred
async def test_operators_browser(sim, proxy) -> None:
    """A web page in an operator's browser reads covers, but not what is for operators alone."""
    for path in (sim.catalogue.examples()["thumbnail"], "/openapi.json"):
        answer = await proxy.get(path, origin="https://evil.example")
        assert answer["Access-Control-Allow-Origin"] == "*", path
    for path in ("/metrics", "/cache-status", "/health"):
        answer = await proxy.get(path, origin="https://evil.example")
        assert (answer.status, answer["Access-Control-Allow-Origin"]) == (200, ""), path
    for path in ("/admin/purge/release/x", f"/admin/purge/release/{MBID}/front"):
        # What carries a token is asked for leave first.
        assert (await proxy.get(path, "OPTIONS", origin="https://evil.example")).status in (
            400,
            405,
        )


@pytest_twisted.ensureDeferred
async def test_metrics(sim, proxy) -> None:
    """/metrics counts answers by outcome and requests by hop, for Prometheus."""
    path = sim.catalogue.examples()["thumbnail"]
    for _ in range(3):
        await proxy.get(path)
    # Until then its name is not known, and its file is not counted.
    await proxy.settled()
    await proxy.get(path.replace("-250", "-500"))
    await proxy.settled()
    answer = await proxy.get("/metrics")
    assert answer["Content-Type"].startswith("text/plain")
    lines = answer.body.decode().splitlines()
    assert 'coverart_answers_total{outcome="hits"} 2.0' in lines
    assert 'coverart_answers_total{outcome="misses"} 2.0' in lines
    assert 'coverart_hop_skips_total{known="target"} 1.0' in lines
    assert 'coverart_hop_skips_total{known="node"} 1.0' in lines
    assert 'coverart_upstream_requests_total{hop="1",status="307"} 1.0' in lines
    assert "coverart_cache_files 2.0" in lines
    await becomes(
        lambda: proxy.get("/metrics"),
        lambda answer: "coverart_leader 1.0" in answer.body.decode().splitlines(),
        "the process that leads says so, as often as it keeps the lead",
    )


@pytest_twisted.ensureDeferred
async def test_home(proxy) -> None:
    """A person who opens the proxy in a browser sees a page that runs no script."""
    answer = await proxy.get("/")
    assert answer.status == 200
    assert answer["Content-Type"] == "text/html; charset=utf-8"
    assert answer.body.startswith(b"<!doctype html>")
    assert "default-src 'none'" in answer["Content-Security-Policy"]


@pytest_twisted.ensureDeferred
async def test_one_connection(sim, proxy) -> None:
    """Requests of all kinds follow each other on one connection."""
    item = sim.catalogue.release(0)
    path = f"/release/{item.mbid}/front-250"
    await proxy.get(path)
    whole = sim.studio.archive_bytes(item.front, 250)
    wire = await proxy.wire()
    wire.get(path, method="HEAD")
    wire.get("/release/x")
    wire.get(path, "If-None-Match: *")
    wire.get(path, "Range: bytes=0-9")
    wire.get(path, "Connection: close")
    await wire.end()
    stream = bytes(wire.received)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", stream)
    assert statuses == [b"200", b"400", b"304", b"206", b"200"]
    assert stream.endswith(whole)
    lengths = [
        re.findall(rb"Content-Length: (\d+)", each) for each in stream.split(b"HTTP/1.1 ")[1:]
    ]
    size = b"%d" % len(whole)
    # The length of a 304 would be that of a 200 (RFC 9110 section 8.6).
    assert lengths[:1] + lengths[2:] == [[size], [], [b"10"], [size]]


@pytest_twisted.ensureDeferred
async def test_no_other_token(sim, run) -> None:
    """Only the whole token opens the admin routes: no part of it, nothing around it, nothing else."""
    proxy = await run(COVER_ART_ADMIN_TOKEN="secret")  # noqa: S106
    path = sim.catalogue.examples()["thumbnail"]
    assert (await proxy.get(path)).status == 200
    wrong = ("", "Bearer", "Bearer ", "Bearer s", "Bearer secre", "Bearer secrets", "bearer secret")
    for given in (*wrong, "secret", "Basic secret", "Bearer  secret", "Bearer secret, Bearer x"):
        for verb in ("purge", "refresh"):
            answer = await proxy.get(f"/admin/{verb}{path}", "POST", authorization=given)
            assert answer.status == 401, given
    assert (await proxy.get(f"/admin/purge{path}", "POST")).status == 401
    assert (await proxy.get(path))["X-Cache-Status"] == "HIT"
    answer = await proxy.get(f"/admin/purge{path}", "POST", authorization="Bearer secret")
    assert answer.json == {"purged": True}
