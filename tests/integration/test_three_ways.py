"""The same status, headers and bytes, whoever sends them: nginx by itself, nginx told by the app, the app."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs
import pytest
import pytest_twisted

from coverart.model import SIZES
from tests.support.talk import Answer, ask
from tests.support.tls_client import TlsClient, variables, write_pair

OWN = {"x-served-by", "server", "date", "connection", "x-request-id"}
"""What each server says of itself, and of the moment."""
AUTO = {"COVER_ART_PUBLIC_URL": "auto"}
"""Listings and redirects lead to the Host that all are asked by."""
ALL_SIZES = (None, *SIZES)
FROM_0 = ("bytes=0-99", "bytes=0-9")


@attrs.frozen
class Row:
    """One request, and whether nginx answers it without the app."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = attrs.field(factory=dict)
    direct: bool = True


def paths(catalogue) -> list[str]:
    """Each route in each spelling, for covers of every type."""
    found = []
    for index in (0, 1, 2, 4):
        item = catalogue.release(index)
        front = item.front
        for size in ALL_SIZES:
            suffix, thumb = ("", "") if size is None else (f"-{size}", f"_thumb{size}")
            for name in ("front", front.id):
                base = f"/release/{item.mbid}/{name}{suffix}"
                found += [base, f"{base}.{front.ext}", f"{base}.JPG", f"{base}?download=1"]
            mbid = f"mbid-{item.mbid}"
            found.append(f"/download/{mbid}/{mbid}-{front.id}{thumb}.jpg")
    group = catalogue.release_group(0)
    found += [f"/release-group/{group.mbid}/front{end}" for end in ("", "-250", "-500.jpg")]
    event = catalogue.event(0)
    for name in ("front", event.front.id):
        found += [f"/event/{event.mbid}/{name}{end}" for end in ("", "-250", "-1200.png")]
    with_back = next(item for item in map(catalogue.release, range(60)) if item.back is not None)
    found += [f"/release/{with_back.mbid}/back{end}" for end in ("", "-250")]
    return [*found, *(f"/serve{path}" for path in found)]


def rows(catalogue, answer: Answer, path: str) -> list[Row]:
    """What to ask besides the plain request: methods, conditions, ranges; and what is refused."""
    etag, modified, size = answer["ETag"], answer["Last-Modified"], len(answer.body)
    item = catalogue.release(0)
    pdf = f"/release/{catalogue.release(4).mbid}/front"
    conditions = [
        {"If-None-Match": etag},
        {"If-None-Match": f'W/{etag}, "x"'},
        {"If-None-Match": '"x"'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": modified},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
        {"If-Modified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"},
        {"If-Match": etag},
        {"If-Match": '"x"'},
        {"If-Unmodified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"},
        {"If-Unmodified-Since": modified},
        {"Range": "bytes=0-99"},
        {"Range": "bytes=100-"},
        {"Range": "bytes=-100"},
        {"Range": f"bytes={size - 1}-{size + 100}"},
        {"Range": f"bytes={size}-"},
        {"Range": "bytes=-0"},
        {"Range": "bytes=99-0"},
        {"Range": "lines=0-9"},
        {"Range": "bytes=0-9", "If-Range": etag},
        {"Range": "bytes=0-9", "If-Range": modified},
        {"Range": "bytes=0-9", "If-Range": '"x"'},
        {"Range": "bytes=0-9", "If-None-Match": etag},
        {"Range": "bytes=" + ",".join(f"{i}-{i}" for i in range(100))},
        {"Accept-Encoding": "gzip, br"},
        {"Origin": "https://example.org"},
    ]
    head = [
        # nginx leaves other ranges than from the beginning to the app, and those of a HEAD: a range
        # is for GET alone.
        Row(
            path,
            method,
            sent,
            direct="Range" not in sent or (method == "GET" and sent["Range"] in FROM_0),
        )
        for sent in conditions
        for method in ("GET", "HEAD")
    ]
    others = [
        Row(path, "HEAD"),
        Row(pdf, "HEAD"),
        Row(pdf, headers={"Range": "bytes=0-99"}),
        Row(pdf, headers={"Range": "bytes=100-"}, direct=False),
        Row(pdf, headers={"Range": "bytes=999999999-"}, direct=False),
        Row(pdf, headers={"If-Match": '"x"'}),
        Row(path, "OPTIONS", direct=False),
        Row(path, "POST", direct=False),
        Row(path, "DELETE", direct=False),
        Row(f"/release/{item.mbid}/", direct=False),
        Row(f"/release/{item.mbid}", direct=False),
        Row(f"/release/{item.mbid.upper()}/front-250", direct=False),
        Row(f"/release/{item.mbid}/front-251", direct=False),
        Row(f"//release/{item.mbid}/front-250", direct=False),
        Row(f"/release/{item.mbid}/%66ront-250", direct=False),
        Row(f"/release/x/../{item.mbid}/front-250", direct=False),
        Row(f"/release-group/{item.mbid}/back", direct=False),
        Row(f"/release/{'0' * 8}-0000-0000-0000-{'0' * 12}/front", direct=False),
        Row("/cache-files/release/", direct=False),
        Row("/nothing", direct=False),
        Row("/health", direct=False),
        # Through the app, which has nginx send the file.
        Row(f"/serve/{path}", direct=False),
        Row(f"/serve//release/{item.mbid}/front", direct=False),
        Row(f"/serve/release/{item.mbid}/", direct=False),
        Row(f"/redirect/release/{item.mbid}/", direct=False),
        Row(f"/redirect{path}", direct=False),
        Row(f"/redirect{path}", "HEAD", direct=False),
        Row(f"/redirect/release/{item.mbid}/{item.front.id}", direct=False),
        Row(f"/redirect/release-group/{catalogue.release_group(0).mbid}/front", direct=False),
        Row("/serve/health", direct=False),
    ]
    return head + others


def seen(answer: Answer) -> tuple[int, dict[str, str], str]:
    """What has to be the same; a boundary is drawn anew for each answer."""
    told = {name: value for name, value in answer.named.items() if name not in OWN}
    return answer.status, told, hashlib.sha256(answer.body).hexdigest()


def difference(one: Answer, other: Answer) -> str:
    """Only what is not the same."""
    (status, told, body), (status2, told2, body2) = seen(one), seen(other)
    headers = {
        name: (told.get(name), told2.get(name))
        for name in {*told, *told2}
        if told.get(name) != told2.get(name)
    }
    bodies = "" if body == body2 else f"{one.body[:60]!r} {other.body[:60]!r}"
    return f"{status} {status2} {headers} {bodies}"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("tls", [False, True])
async def test_three_ways(sim, run, nginx, tmp_path, tls: bool) -> None:
    """Every route and spelling, method, condition and range has one answer in three ways of serving."""
    behind = await run(COVER_ART_ACCEL="/cache-files/", **AUTO)
    write_pair(tmp_path, "localhost")
    by_tls = [variables(tmp_path) if tls else {} for _ in range(2)]
    front = await nginx(behind, **by_tls[0])
    # One whose direct way is shut: everything is decided by the app and sent by nginx.
    told = await nginx(behind, COVER_ART_IMAGE_MODE="redirect", **by_tls[1])
    # The app by itself is told so by a proxy; nginx knows.
    by_https = {"X-Forwarded-Proto": "https"} if tls else {}
    agents: list[Any] = [None, None]
    bases = [front.url, told.url]
    if tls:
        agents = [TlsClient(each).agent for each in by_tls]
        bases = ["https://localhost"] * 2
    table = [Row(path) for path in paths(sim.catalogue)]
    for row in table:
        assert (await behind.get(row.path)).status == 200, row
    # An answer may come before its file: the next proxy would fetch that anew, at another time.
    await behind.settled()
    alone = await run(**AUTO)
    path = f"/release/{sim.catalogue.release(0).mbid}/front-500"
    table += rows(sim.catalogue, await alone.get(path), path)
    different = []
    for row in table:
        # The second time each of them has it.
        sent = {"Host": "covers.example:8080", **by_https, **row.headers}
        for _ in range(2):
            by_app, by_nginx, by_both = [
                await ask(base + row.path, row.method, sent, agent)
                for base, agent in zip((alone.url, *bases), (None, *agents), strict=True)
            ]
        assert by_app["X-Served-By"] == "coverart"
        if row.direct and by_nginx.status != 412:
            assert by_nginx["X-Served-By"] == "nginx-cache", (row, by_nginx)
        for name, other in (("direct", by_nginx), ("accelerated", by_both)):
            if seen(other) != seen(by_app):
                different.append(f"{row} {name}: {difference(by_app, other)}")
    assert not different, "\n".join(different)
    hits = await front.hits(len(table) // 2)
    assert all(line.startswith(("/release/", "/release-group/", "/event/")) for line in hits)
