"""Bytes that are no cover, from the archive and on the disk: nothing is served that runs."""

from __future__ import annotations

import gzip
import json
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList
from twisted.internet.threads import deferToThread

from tests.support.contents import nothing_kept
from tests.support.raw_archive import ALIAS, JPEG, LISTING, MBID, ok, redirect
from tests.support.talk import Answer, start, within

ORIGINAL = f"/release/{MBID}/front"
LIST = f"/release/{MBID}/"
HTML = b"<!DOCTYPE html><html><script>alert(document.domain)</script></html>"
RUNS = b"<script>alert(document.domain)</script>"
PNG = b"\x89PNG\r\n\x1a\n"
PDF = b"%PDF-1.4\n"
SAFE = {"image/jpeg", "image/png", "image/gif", "application/pdf", "application/json"}
MB = 1 << 20


def check_inert(answer: Answer, name: object) -> None:
    """Whatever the bytes are, nobody takes them for anything that runs."""
    assert answer["Content-Type"] in SAFE, (name, answer["Content-Type"])
    assert answer["X-Content-Type-Options"] == "nosniff", name
    assert answer["Content-Encoding"] == "", name
    assert answer["Content-Disposition"] == "", name
    assert answer["Set-Cookie"] == "", name
    if answer.status != 200 or answer["Content-Type"] == "application/pdf":
        assert "default-src 'none'" in answer["Content-Security-Policy"], name
        assert "sandbox" in answer["Content-Security-Policy"], name


# Files that are no images

REFUSED: dict[str, bytes] = {
    "HTML": ok(HTML, "Content-Type: text/html"),
    "HTML called JPEG": ok(HTML, "Content-Type: image/jpeg"),
    "HTML behind white space": ok(b"\r\n \t" + HTML, "Content-Type: image/jpeg"),
    "HTML behind a byte order mark": ok(b"\xef\xbb\xbf" + HTML, "Content-Type: image/jpeg"),
    "HTML before a JPEG": ok(HTML + JPEG, "Content-Type: image/jpeg"),
    "SVG": ok(b'<svg xmlns="http://www.w3.org/2000/svg">' + RUNS, "Content-Type: image/svg+xml"),
    "SVG in XML": ok(b'<?xml version="1.0"?><svg onload="alert(1)"/>', "Content-Type: image/png"),
    "script": ok(b"alert(document.domain)", "Content-Type: text/javascript"),
    "XML": ok(b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>&a;'),
    "ZIP": ok(b"PK\x03\x04" + bytes(100), "Content-Type: application/zip"),
    "gzip": ok(gzip.compress(JPEG), "Content-Type: image/jpeg"),
    "executable": ok(b"\x7fELF" + bytes(100)),
    "WebP": ok(b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(100), "Content-Type: image/webp"),
    "Flash": ok(b"CWS\x0a" + bytes(100), "Content-Type: image/jpeg"),
    "MHTML": ok(b"MIME-Version: 1.0\r\n\r\n" + HTML, "Content-Type: image/jpeg"),
    "a wrong byte before a JPEG": ok(b"\n" + JPEG),
    "two thirds of the magic": ok(b"\xff\xd8" + HTML),
    "GIF of another year": ok(b"GIF88a" + bytes(100)),
    "PDF not at the start": ok(b" " + PDF + bytes(100)),
    "empty": ok(b""),
    "empty and chunked": ok(b"0\r\n\r\n", "Transfer-Encoding: chunked"),
    "three bytes": ok(JPEG[:3]),
    "a listing": ok(LISTING, "Content-Type: application/json"),
    "multipart": ok(
        b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG + b"\r\n--x--\r\n",
        "Content-Type: multipart/mixed; boundary=x",
    ),
    "multipart of ranges": redirect().replace(b"302 Found", b"206 Partial Content"),
    "compressed": ok(gzip.compress(JPEG), "Content-Encoding: gzip"),
    "compressed twice": ok(gzip.compress(gzip.compress(JPEG)), "Content-Encoding: gzip, gzip"),
    "deflated": ok(zlib.compress(JPEG), "Content-Encoding: deflate"),
    "brotli": ok(JPEG, "Content-Encoding: br"),
    "identity, then gzip": ok(JPEG, "Content-Encoding: identity", "Content-Encoding: gzip"),
    "a bomb": ok(gzip.compress(bytes(64 * MB)), "Content-Encoding: gzip"),
    "a coding of the transfer": ok(gzip.compress(JPEG), "Transfer-Encoding: gzip"),
    "chunks in a coding": ok(gzip.compress(JPEG), "Transfer-Encoding: gzip, chunked"),
    "two lengths": ok(JPEG, "Content-Length: 10", f"Content-Length: {len(JPEG)}"),
    "lengths in a list": ok(JPEG, f"Content-Length: {len(JPEG)}, 10"),
    "a length of less than none": ok(JPEG, "Content-Length: -1"),
    "a length with a sign": ok(JPEG, f"Content-Length: +{len(JPEG)}"),
    "a length of 5,000 digits": ok(JPEG, "Content-Length: " + "9" * 5_000),
    "more than is sent": ok(JPEG, f"Content-Length: {len(JPEG) + 1}"),
    "chunks that are none": ok(b"zz\r\n" + JPEG, "Transfer-Encoding: chunked"),
    "chunks cut": ok(b"%x\r\n" % len(JPEG) + JPEG, "Transfer-Encoding: chunked"),
    "no framing at all": b"HTTP/1.1 200 OK\r\n\r\n" + JPEG,
    "HTTP/0.9": JPEG,
    "headers without end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * (2 * MB),
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    "a status of many digits": b"HTTP/1.1 " + b"2" * 6_000 + b" OK\r\n\r\n" + JPEG,
    "another protocol": b"SSH-2.0-OpenSSH_9.0\r\n",
}
"""What the node answers, byte for byte."""


@pytest.mark.parametrize("path", [ALIAS, ORIGINAL, f"/event/{MBID}/7-500"])
@pytest_twisted.ensureDeferred
async def test_refused(raw, run, lines, path) -> None:
    """What is no image, or not surely whole, is a 502 of which nothing is kept, and no crash."""
    proxy = await run(**raw.environment())
    for name, answered in REFUSED.items():
        raw.does = {"node": answered}
        answer = await proxy.get(path)
        assert answer.status == 502, (name, answer)
        check_inert(answer, name)
        assert answer.json["host"] in answer.json["error"], name
        assert not [line for line in lines if "Traceback" in line], name
    await nothing_kept(proxy)
    raw.does = {}
    assert (await proxy.get(path)).body == JPEG


@attrs.frozen
class Polyglot:
    body: bytes
    content_type: str


POLYGLOTS: dict[str, Polyglot] = {
    "GIF and script": Polyglot(b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)//", "image/gif"),
    "GIF of 1987 and script": Polyglot(b"GIF87a=1;alert(document.domain)", "image/gif"),
    "JPEG and HTML": Polyglot(b"\xff\xd8\xff\xfe" + HTML, "image/jpeg"),
    "JPEG and script": Polyglot(b"\xff\xd8\xff\xe0/*" + RUNS + b"*/", "image/jpeg"),
    "JPEG and ZIP": Polyglot(JPEG + b"PK\x03\x04" + bytes(50), "image/jpeg"),
    "PNG and HTML": Polyglot(PNG + HTML, "image/png"),
    "PNG and PHP": Polyglot(PNG + b"<?php system($_GET[0]); ?>", "image/png"),
    "PDF and HTML": Polyglot(PDF + HTML, "application/pdf"),
    "PDF and script": Polyglot(
        PDF + b"1 0 obj<</S/JavaScript/JS(app.alert(1))>>", "application/pdf"
    ),
}
DECLARED = (
    ("Content-Type: text/html; charset=utf-7",),
    ("Content-Type: image/svg+xml",),
    ("Content-Type: image/jpeg\x0bX", "Content-Disposition: inline; filename=x.html"),
    ("Set-Cookie: a=b", "Refresh: 0; url=http://evil", "Link: <http://evil>; rel=preload"),
    ("Content-Type: application/json", "X-Accel-Redirect: /etc/passwd", "X-Served-By: evil"),
    (),
)


@pytest_twisted.ensureDeferred
async def test_polyglots(raw, run) -> None:
    """Valid first bytes get exactly their own type and nosniff, a PDF a policy; no other header."""
    for number, (name, polyglot) in enumerate(POLYGLOTS.items()):
        for again, headers in enumerate(DECLARED):
            proxy = await run(f"cache-{number}-{again}", **raw.environment())
            raw.does = {"node": ok(polyglot.body, *headers)}
            for status in ("MISS", "HIT"):
                answer = await proxy.get(ORIGINAL)
                await proxy.settled()
                assert (answer.status, answer["X-Cache-Status"]) == (200, status), name
                assert answer.body == polyglot.body
                assert answer["Content-Type"] == polyglot.content_type, (name, headers)
                check_inert(answer, name)
                assert "evil" not in str(answer.headers)
                for header in ("X-Accel-Redirect", "Refresh", "Link"):
                    assert answer[header] == "", (name, header)
            part = await proxy.get(ORIGINAL, range="bytes=6-")
            assert (part.status, part["Content-Type"]) == (206, polyglot.content_type)
            assert part["X-Content-Type-Options"] == "nosniff"
            await proxy.stop()


@pytest_twisted.ensureDeferred
async def test_only_jpeg_thumbnails(raw, run) -> None:
    """The archive's thumbnails are JPEG: any other type in place of one is not kept."""
    proxy = await run(**raw.environment())
    for name, polyglot in POLYGLOTS.items():
        if polyglot.content_type != "image/jpeg":
            raw.does = {"node": ok(polyglot.body)}
            assert (await proxy.get(ALIAS)).status == 502, name
    await nothing_kept(proxy)


@pytest.mark.parametrize(
    "framing",
    ["declared", "declared less", "chunked", "one endless chunk"],
)
@pytest_twisted.ensureDeferred
async def test_too_large(raw, run, lines, framing) -> None:
    """An image over COVER_ART_MAX_IMAGE_SIZE is not read to its end, however it is framed."""
    proxy = await run(COVER_ART_MAX_IMAGE_SIZE="1", **raw.environment())
    body = JPEG + bytes(3 * MB)
    chunk = b"10000\r\n" + JPEG[:10] + bytes(0x10000 - 10) + b"\r\n"
    raw.does = {
        "node": {
            "declared": ok(body),
            # Nobody reads what is behind the length: it is no part of the image.
            "declared less": ok(body, f"Content-Length: {MB + 1}"),
            "chunked": ok(chunk * 40 + b"0\r\n\r\n", "Transfer-Encoding: chunked"),
            "one endless chunk": ok(b"fffffffff\r\n" + body, "Transfer-Encoding: chunked"),
        }[framing]
    }
    answer = await proxy.get(ORIGINAL)
    assert answer.status == 502
    check_inert(answer, framing)
    (told,) = [line for line in lines if "could not be fetched" in line]
    assert f"larger than {MB} bytes" in told
    await nothing_kept(proxy)


@pytest.mark.parametrize("hangs_up", [True, False])
@pytest_twisted.ensureDeferred
async def test_large_in_chunks(raw, run, hangs_up) -> None:
    """A large image in chunks is whole, though the disk is slower than the archive."""
    raw.hangs_up = hangs_up
    proxy = await run(COVER_ART_MAX_IMAGE_SIZE="16", **raw.environment())
    size = 0x400
    body = JPEG[:10] + bytes(10 * MB - 10)
    chunks = b"".join(b"400\r\n" + body[n : n + size] + b"\r\n" for n in range(0, len(body), size))
    raw.does = {"node": ok(chunks + b"0\r\n\r\n", "Transfer-Encoding: chunked")}
    answer = await proxy.get(ORIGINAL)
    assert (answer.status, answer.body) == (200, body)
    await proxy.settled()
    assert (await proxy.get(ORIGINAL))["X-Cache-Status"] == "HIT"


@pytest_twisted.ensureDeferred
async def test_chunks_with_trailers(raw, run) -> None:
    """Trailers and extensions of chunks are read past; none becomes a header of ours."""
    proxy = await run(**raw.environment())
    chunked = b"%x;a=b\r\n" % len(JPEG) + JPEG + b"\r\n0\r\n"
    trailers = b"Content-Type: text/html\r\nX-Evil: evil\r\nContent-Length: 0\r\n\r\n"
    raw.does = {"node": ok(chunked + trailers, "Transfer-Encoding: chunked", "Trailer: X-Evil")}
    answer = await proxy.get(ORIGINAL)
    assert (answer.status, answer.body) == (200, JPEG)
    assert answer["Content-Type"] == "image/jpeg"
    assert "vil" not in str(answer.headers)


# Listings


def listing(images: str, more: str = "") -> bytes:
    return f'{{"images":[{images}]{more}}}'.encode()


IMAGE = f'{{"id":7,"image":"http://coverartarchive.org/release/{MBID}/7.jpg"}}'
NO_LISTINGS: dict[str, bytes] = {
    "HTML": HTML,
    "empty": b"",
    "a list": b"[]",
    "a text": b'"images"',
    "no images": b"{}",
    "images that are none": b'{"images":[1]}',
    "cut": listing(IMAGE)[:-1],
    "two documents": listing(IMAGE) * 2,
    "10,000 deep in lists": listing("", ',"x":' + "[" * 10_000 + "]" * 10_000),
    "10,000 deep in objects": listing("", ',"x":' + '{"x":' * 10_000 + "1" + "}" * 10_000),
    "100 deep": listing("", ',"x":' + "[" * 100 + "]" * 100),
    "unclosed": b'{"images":' + b"[" * 100_000,
    "latin-1": b'{"images":[],"comment":"\xe9"}',
    "UTF-16": listing(IMAGE).decode().encode("utf-16"),
    "UTF-32": listing(IMAGE).decode().encode("utf-32"),
    "a byte order mark": b"\xef\xbb\xbf" + listing(IMAGE),
    "NUL": listing(IMAGE) + b"\0",
    "NaN": listing('{"id":NaN}'),
    "Infinity": listing("", ',"n":Infinity'),
    "minus Infinity": listing("", ',"n":-Infinity'),
    "1e999": listing('{"id":1e999}'),
    "-1e999": listing("", ',"n":-1e999'),
    "5,000 digits": listing("", ',"n":' + "9" * 5_000),
    "over 4 MB": listing("", ',"x":"' + "y" * (4 * MB) + '"'),
    "comments": b'/*x*/{"images":[]}',
    "single quotes": b"{'images':[]}",
}


@pytest.mark.parametrize("public", ["", "https://covers.example"])
@pytest_twisted.ensureDeferred
async def test_no_listings(raw, run, public) -> None:
    """What is no listing is a 502 and not kept, the same with COVER_ART_PUBLIC_URL and without."""
    proxy = await run(COVER_ART_PUBLIC_URL=public, **raw.environment())
    for name, body in NO_LISTINGS.items():
        for headers in ((), ("Content-Type: application/json",)):
            raw.does = {"node": ok(body, *headers)}
            answer = await proxy.get(LIST)
            assert answer.status == 502, name
            check_inert(answer, name)
    raw.does = {"node": ok(gzip.compress(LISTING), "Content-Encoding: gzip")}
    assert (await proxy.get(LIST)).status == 502
    await nothing_kept(proxy)


THUMBNAILS = ',"thumbnails":{"250":"%s","small":"%s"}'
LIES: dict[str, bytes] = {
    url: listing(f'{{"image":{json.dumps(url)}' + THUMBNAILS.replace("%s", url) + "}")
    for url in (
        "javascript:alert(1)",
        "data:text/html,x",
        "http://evil.example/x.jpg",
        f"http://evil.example/release/{MBID}/",
        f"http://evil.example/release/{MBID}/7.jpg?x=evil",
        f"http://evil.example/release/{MBID}/7.jpg#evil",
        f"http://evil.example/x/release/{MBID}/7.jpg",
        f"http://evil.example/release/{MBID}/../evil",
        f"//evil.example/release/{MBID}/7.jpg",
        f"ftp://evil.example/release/{MBID}/7.jpg",
        "file:///etc/evil",
        "evil",
        " http://evil.example/x",
    )
} | {
    "a key twice": listing('{"image":"http://evil.example/x","image":"javascript:evil"}'),
    "thumbnails twice": listing(
        '{"thumbnails":"http://evil.example/x","thumbnails":{"250":"http://evil.example"}}'
    ),
    "thumbnails in a list": listing('{"thumbnails":["http://evil.example/x"]}'),
    "an image in a list": listing('{"image":["http://evil.example/x"]}'),
    "an image in an object": listing('{"image":{"url":"http://evil.example/x"}}'),
}


@pytest_twisted.ensureDeferred
async def test_lies(raw, run) -> None:
    """With COVER_ART_PUBLIC_URL no image URL of a listing leads elsewhere, whatever it holds."""
    for number, (name, body) in enumerate(LIES.items()):
        proxy = await run(
            f"cache-{number}", COVER_ART_PUBLIC_URL="https://covers.example", **raw.environment()
        )
        raw.does = {"node": ok(body)}
        for status in ("MISS", "HIT"):
            answer = await proxy.get(LIST)
            assert (answer.status, answer["X-Cache-Status"]) == (200, status), name
            check_inert(answer, name)
            assert b"evil" not in answer.body, (name, answer.body)
            assert b":text" not in answer.body
            assert b"script" not in answer.body
        await proxy.stop()


@pytest_twisted.ensureDeferred
async def test_greatest_listing(raw, run) -> None:
    """A listing as large as is taken keeps no other request waiting while it is rewritten."""
    url = f"http://coverartarchive.org/release/{MBID}"
    image = f'{{"image":"{url}/7.jpg","thumbnails":{{"250":"{url}/7-250.jpg"}}}}'
    body = listing(",".join([image] * 5_000))
    assert 0.9 * MB < len(body) < MB
    proxy = await run(COVER_ART_PUBLIC_URL="https://covers.example", **raw.environment())
    raw.does = {"node": ok(body)}
    here: list[int] = []
    decode = json.JSONDecoder.raw_decode
    reactor_thread = threading.get_ident()

    def raw_decode(*arguments: Any, **named: Any) -> Any:
        here.append(threading.get_ident())
        return decode(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("json.JSONDecoder.raw_decode", raw_decode)
        assert (await proxy.get(LIST)).status == 200
        answer = await proxy.get(LIST)
    assert answer["X-Cache-Status"] == "HIT"
    assert answer.body.count(b"https://covers.example/release/") == 10_000
    assert here
    assert reactor_thread not in here


# What lies on the disk

IMAGE_FILE = f"release/7/76/76d/{MBID}_7_250.jpg"
LIST_FILE = f"release/7/76/76d/{MBID}.json"
BY_ID = f"/release/{MBID}/7-250"


def _html(path: Path, _: Path) -> None:
    path.write_bytes(HTML)


def _html_of_that_size(path: Path, _: Path) -> None:
    size = path.stat().st_size if path.exists() else len(JPEG)
    when = path.stat().st_mtime if path.exists() else None
    path.write_bytes(HTML[:size].ljust(size))
    if when is not None:
        os.utime(path, (when, when))


def _symlink_out(path: Path, outside: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(outside)


def _symlink_to_device(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _loop(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def _dangling(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def _fifo(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _symlink_to_fifo(path: Path, outside: Path) -> None:
    path.unlink(missing_ok=True)
    pipe = outside.with_name("pipe")
    if not pipe.exists():
        os.mkfifo(pipe)
    path.symlink_to(pipe)


def _folder(path: Path, _: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def _unreadable(path: Path, _: Path) -> None:
    if not path.exists():
        path.write_bytes(HTML)
    path.chmod(0)


BAD: dict[str, Callable[[Path, Path], None]] = {
    "HTML": _html,
    "HTML of the same size": _html_of_that_size,
    "a symlink out of the cache": _symlink_out,
    "a symlink to a device": _symlink_to_device,
    "a symlink to itself": _loop,
    "a symlink to nothing": _dangling,
    "a pipe": _fifo,
    "a symlink to a pipe": _symlink_to_fifo,
    "an empty folder": _folder,
    "an empty file": _empty,
    "a file of no mode": _unreadable,
}


@pytest.mark.parametrize("when", ["before the start", "unknown", "known"])
@pytest.mark.parametrize("bad", BAD)
@pytest_twisted.ensureDeferred
async def test_bad_file(raw, run, tmp_path, bad, when) -> None:
    """
    What lies under a cover's name and is none is neither served nor waited for: it is replaced.

    The disk is the truth of what is there; that it is a cover has to be seen.
    """
    outside = tmp_path / "outside"
    outside.write_bytes(b"\xff\xd8\xff\xe0" + b"s" * (len(JPEG) - 4))
    proxy = await run(COVER_ART_PUBLIC_URL="https://covers.example", **raw.environment())
    paths = {BY_ID: JPEG, LIST: None}
    files = [proxy.root / IMAGE_FILE, proxy.root / LIST_FILE]
    if when == "known":
        for path in paths:
            assert (await proxy.get(path)).status == 200
        await proxy.settled()
    else:
        files[0].parent.mkdir(parents=True)
    if when == "before the start":
        await proxy.stop()
    for file in files:
        BAD[bad](file, outside)
    if when == "before the start":
        await proxy.start()
    for path, body in paths.items():
        for _ in range(2):
            answer = await proxy.get(path)
            await proxy.settled()
            assert answer.status == 200, (path, answer)
            check_inert(answer, bad)
            if not (bad == "a file of no mode" and when == "known"):
                assert body is None or answer.body == body
            assert b"script" not in answer.body
            assert b"ssss" not in answer.body
    assert answer["X-Cache-Status"] == "HIT"
    assert outside.read_bytes().startswith(b"\xff\xd8\xff\xe0s")
    for file in files:
        assert file.is_file()
        assert not file.is_symlink()


@pytest_twisted.ensureDeferred
async def test_unreadable(raw, run, monkeypatch) -> None:
    """A file that may not be read is replaced, whoever it belongs to."""
    proxy = await run(**raw.environment())
    assert (await proxy.get(BY_ID)).status == 200
    await proxy.settled()
    number = (proxy.root / IMAGE_FILE).stat().st_ino
    opened = proxy.cache.store.open

    def refused(path: str) -> int:
        # Root, as in a container, is refused nothing.
        if (proxy.root / path).stat().st_ino == number:
            raise PermissionError(13, "Permission denied", path)
        found: int = opened(path)
        return found

    monkeypatch.setattr(proxy.cache.store, "open", refused)
    (proxy.root / "keeps-the-inode").hardlink_to(proxy.root / IMAGE_FILE)
    for status in ("MISS", "HIT"):
        answer = await proxy.get(BY_ID)
        await proxy.settled()
        assert (answer.status, answer["X-Cache-Status"], answer.body) == (200, status, JPEG)


@pytest_twisted.ensureDeferred
async def test_full_folder(raw, run, lines) -> None:
    """A folder with something in it is left alone: sent uncached, and the operator reads where it is."""
    proxy = await run(**raw.environment())
    for file in (IMAGE_FILE, LIST_FILE):
        (proxy.root / file).mkdir(parents=True)
        (proxy.root / file / "mine").write_bytes(b"precious")
    # The first one is sent before the disk said no.
    assert (await proxy.stored(BY_ID)).body == JPEG
    for path, file in ((BY_ID, IMAGE_FILE), (LIST, LIST_FILE)):
        answer = await proxy.get(path)
        assert answer.status == 200
        assert answer["Cache-Status"].endswith("stored=?0; detail=ENOTEMPTY")
        check_inert(answer, path)
        assert (proxy.root / file / "mine").read_bytes() == b"precious"
    (told,) = [line for line in lines if "are not stored" in line]
    assert f"{IMAGE_FILE}: Directory not empty" in told
    assert proxy.unfinished() == []


@pytest_twisted.ensureDeferred
async def test_pipes_keep_no_thread(raw, run) -> None:
    """More pipes than there are threads for the disk, here and among unfinished files: all goes on."""
    proxy = await run(**raw.environment())
    folder = proxy.root / "release/7/76/76d"
    folder.mkdir(parents=True)
    for number in range(10, 40):
        os.mkfifo(folder / f"{MBID}_{number}_250.jpg")
        os.mkfifo(proxy.root / ".incoming" / f"{number:024x}")
    asking = [start(proxy.get(f"/release/{MBID}/{number}-250")) for number in range(10, 40)]
    for success, answer in await within(DeferredList(asking)):
        assert success
        assert (answer.status, answer.body) == (200, JPEG)
    await within(start(proxy.cleanup.sweep()))
    await proxy.settled()
    assert await within(deferToThread(lambda: 7)) == 7


@pytest_twisted.ensureDeferred
async def test_accel_of_bad_files(raw, run, tmp_path) -> None:
    """Nginx is not sent to what is no regular file any more."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/", **raw.environment())
    outside = tmp_path / "outside"
    outside.write_bytes(b"s" * len(JPEG))
    for bad in ("a symlink out of the cache", "a pipe", "an empty folder", "a symlink to a pipe"):
        await proxy.stored(BY_ID)
        BAD[bad](proxy.root / IMAGE_FILE, outside)
        answer = await proxy.stored(BY_ID)
        assert (answer["X-Cache-Status"], answer.body) == ("MISS", JPEG), bad
        answer = await proxy.get(BY_ID)
        assert answer["X-Accel-Redirect"] == f"/cache-files/{IMAGE_FILE}"
        assert (proxy.root / IMAGE_FILE).read_bytes() == JPEG


@pytest.mark.parametrize("bad", ["HTML", "a symlink out of the cache", "an empty file"])
@pytest_twisted.ensureDeferred
async def test_accel_of_unknown_files(raw, run, tmp_path, bad) -> None:
    """Nor to what the index does not know and is no cover: nginx looks at no first bytes."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/", **raw.environment())
    outside = tmp_path / "outside"
    outside.write_bytes(JPEG)
    (proxy.root / IMAGE_FILE).parent.mkdir(parents=True)
    BAD[bad](proxy.root / IMAGE_FILE, outside)
    answer = await proxy.stored(BY_ID)
    assert (answer.status, answer["X-Cache-Status"]) == (200, "MISS")
    assert not (proxy.root / IMAGE_FILE).is_symlink()
    assert (proxy.root / IMAGE_FILE).read_bytes() == JPEG
