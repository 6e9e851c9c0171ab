"""What a storage node gone bad can send before any body, and how it can hang on to a connection."""

from __future__ import annotations

import os
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Client

from coverart.archive import connection
from tests.support.certificates import TRUSTED, authority, signed
from tests.support.contents import nothing_kept
from tests.support.raw_archive import ALIAS, HOPS, JPEG, KINDS, ok
from tests.support.talk import LOCAL, until

reactor: Any = _reactor

MOST = connection.LARGEST_HEAD_BYTES
HEADS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "headers of many names": (
        b"HTTP/1.1 200 OK\r\n",
        b"".join(b"X-%d: y\r\n" % n for n in range(1000)),
    ),
    "a header in folds": (b"HTTP/1.1 200 OK\r\nX: y\r\n", b" " + b"y" * 1000 + b"\r\n"),
    "cookies": (b"HTTP/1.1 302 Found\r\n", b"Set-Cookie: a=b; expires=Mon, 01 Jan 2040\r\n"),
    "places to go": (b"HTTP/1.1 302 Found\r\n", b"Location: /\r\n"),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "interim answers with headers": (b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"),
}
"""How an answer begins, and what it then repeats without ever coming to a body."""


@pytest.mark.parametrize("head", HEADS)
@pytest_twisted.ensureDeferred
async def test_endless_head(raw, run, lines, head) -> None:
    """Headers without end are not read to any end, at no hop: 502 at once, a few lines of log."""
    raw.hangs_up = False
    proxy = await run(**raw.environment())
    first, again = HEADS[head]
    for hop in HOPS:
        raw.does = {hop: first + again * (3 * MOST // len(again))}
        lines.clear()
        answer = await proxy.get(ALIAS)
        # Waiting for more of them would be a 504, when the fetch's time is up.
        assert answer.status == 502, hop
        await until(lambda: not raw.open, "the connection is given up")
        told = [line for line in lines if "could not be fetched" in line]
        assert f"larger than {MOST} bytes" in told[0], told
        assert len(lines) < 20, lines[:50]
    await nothing_kept(proxy)
    raw.does = {}
    assert (await proxy.get(ALIAS)).body == JPEG


@pytest_twisted.ensureDeferred
async def test_large_head(raw, run) -> None:
    """A head just within its bound, interim answers before it, is read, and the whole body behind it."""
    raw.hangs_up = False
    proxy = await run(**raw.environment())
    body = JPEG * 200
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 5
    cookies = [
        f"Set-Cookie: a=b{n:05}" for n in range((MOST - 1000) // len("Set-Cookie: a=b12345\r\n"))
    ]
    answer = hints + ok(body, *cookies)
    assert MOST - 1000 < answer.index(b"\r\n\r\n\xff") < MOST
    for kind, sent in (
        (ALIAS, answer),
        (KINDS["original"], hints + ok(body)),
        (KINDS["id"], answer),
    ):
        # The bound is of one answer, not of all on a connection.
        raw.does = {"node": sent}
        got = await proxy.get(kind)
        assert (got.status, got.body, got["X-Cache-Status"]) == (200, body, "MISS"), kind


LONG = b"\xff\x1b[31m" * 2_000
QUOTED: dict[str, bytes] = {
    "a status": b"HTTP/1.1 " + LONG + b" OK\r\n\r\n",
    "a version": LONG + b" 200 OK\r\n\r\n",
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: " + LONG + b"\r\n\r\n",
    "a coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + LONG + b"\r\n\r\n",
    "a header": b"HTTP/1.1 200 OK\r\n" + LONG + b"\r\n\r\n",
    "a place to go": b"HTTP/1.1 302 Found\r\nLocation: https://" + b"a" * 15_000 + b"\r\n\r\n",
    "a reason": b"HTTP/1.1 500 " + LONG + b"\r\nContent-Length: 0\r\n\r\n",
}


@pytest_twisted.ensureDeferred
async def test_quoted_in_the_log(raw, run, lines) -> None:
    """What is wrong with an answer is told in a short line that a terminal can show."""
    for number, (name, sent) in enumerate(QUOTED.items()):
        for hop in HOPS:
            proxy = await run(f"cache-{number}-{hop}", **raw.environment())
            raw.does = {hop: sent}
            lines.clear()
            assert (await proxy.get(ALIAS)).status == 502, name
            (told,) = [line for line in lines if "could not be fetched" in line]
            assert len(told) < 500, (name, len(told))
            assert told.isprintable(), (name, told)
            await proxy.stop()


class Clinging(Factory):
    """Answers by TLS with something broken, and then hears nothing any more, not even goodbye."""

    noisy = False

    def __init__(self) -> None:
        self.open: set[Protocol] = set()
        self.came = 0

    class protocol(Protocol):  # noqa: N801 - Twisted's name for it
        """One connection."""

        factory: Any

        def connectionMade(self) -> None:
            self.factory.open.add(self)
            self.factory.came += 1

        def dataReceived(self, data: bytes) -> None:
            transport: Any = self.transport
            transport.write(b"HTTP/1.1 two hundred\r\n\r\n")
            transport.pauseProducing()

        def connectionLost(self, reason: Any = None) -> None:
            self.factory.open.discard(self)


@pytest_twisted.ensureDeferred
async def test_no_goodbye(run, raw, watch, tmp_path, monkeypatch) -> None:
    """A TLS connection that was given up is closed, also if the other side never agrees."""
    monkeypatch.setenv(TRUSTED, os.fspath(tmp_path / "authorities.pem"))
    (tmp_path / "authorities.pem").write_bytes(authority().pem)
    clinging = Clinging()
    options = signed("archive.test", authority()).options()
    listening = reactor.listenSSL(0, clinging, options, interface=LOCAL)
    port = listening.getHost().port
    watch.addresses["archive.test"] = [[LOCAL]]
    proxy = await run(COVER_ART_UPSTREAM=f"https://archive.test:{port}")
    try:
        assert (await proxy.get(ALIAS)).status == 502
        assert clinging.came
        await until(lambda: not _to(port), "no connection is left")
    finally:
        await listening.stopListening()
        for each in list(clinging.open):
            transport: Any = each.transport
            transport.abortConnection()


def _to(port: int) -> list[Any]:
    """Connections of this process to a port, as the reactor has them."""
    watched = {*reactor.getReaders(), *reactor.getWriters()}
    clients = [each for each in watched if isinstance(each, Client)]
    return [each for each in clients if each.getPeer().port == port]
