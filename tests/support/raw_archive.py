"""An archive that answers with bytes as they are told, and a watch over where the proxy goes."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from tests.support.talk import LOCAL

MBID = "76df3287-6cda-33eb-8e9a-044b5e15ffdd"
JPEG = b"\xff\xd8\xff\xe0" + b"a cover, drawn by nobody " * 40
LISTING = b'{"images":[{"id":7,"front":true}],"release":"https://musicbrainz.org/release/x"}'

ALIAS = f"/release/{MBID}/front-250"
KINDS = {
    "thumbnail": ALIAS,
    "original": f"/release/{MBID}/front",
    "id": f"/release/{MBID}/7-500",
    "listing": f"/release/{MBID}/",
    "group": f"/release-group/{MBID}/front-250",
    "event": f"/event/{MBID}/front-250",
}
HOPS = ("1", "2", "node")


def ok(body: bytes, *headers: str) -> bytes:
    """A whole 200; its length is told unless the headers say how the body is framed."""
    lines = ["HTTP/1.1 200 OK", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-enc")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(*locations: bytes) -> bytes:
    """A 302 with these Location headers, byte for byte."""
    lines = [b"HTTP/1.1 302 Found", *[b"Location: " + each for each in locations]]
    return b"\r\n".join([*lines, b"Content-Length: 0", b"", b""])


class RawArchive(Factory):
    """
    All hops on one port. `does` tells what a hop answers in place of what it should.

    :ivar hangs_up: whether the connection ends with such an answer.
    :ivar asked: hop and path of every request that came.
    """

    noisy = False

    def __init__(self) -> None:
        self.does: dict[str, bytes | Callable[[str], bytes]] = {}
        self.hangs_up = True
        self.asked: list[tuple[str, str]] = []
        self.open: set[Protocol] = set()
        listen: Any = reactor.listenTCP
        self.listening = listen(0, self, interface=LOCAL)
        self.port: int = self.listening.getHost().port
        self.url = f"http://{LOCAL}:{self.port}"

    def buildProtocol(self, addr: object) -> Protocol:
        return _Hop(self)

    async def stop(self) -> None:
        await self.listening.stopListening()
        for each in list(self.open):
            transport: Any = each.transport
            transport.abortConnection()

    def environment(self, *also_allowed: str) -> dict[str, str]:
        """The settings that lead a proxy here."""
        return {
            "COVER_ART_UPSTREAM": self.url,
            "COVER_ART_EVENT_UPSTREAM": self.url,
            "COVER_ART_ALLOWED_HOSTS": ",".join([f"{LOCAL}:{self.port}", *also_allowed]),
        }

    def location(self, hop: str, path: str) -> str:
        """Where a hop sends to when nothing is wrong."""
        if hop == "1":
            asked = re.match("[0-9]+", path.rpartition("/")[2].partition("-")[0] or "-")
            name = f"mbid-{MBID}-{asked[0] if asked else 7}.jpg"
            name = "index.json" if path.count("/") == 2 else name
            return f"{self.url}/download/mbid-{MBID}/{name}"
        return f"{self.url}/0/items/{path.removeprefix('/download/')}"

    def answer(self, path: str) -> bytes:
        hop = "2" if path.startswith("/download/") else "node" if "/items/" in path else "1"
        self.asked.append((hop, path))
        told = self.does.get(hop)
        if told is not None:
            return told if isinstance(told, bytes) else told(path)
        if hop != "node":
            return redirect(self.location(hop, path).encode())
        return ok(LISTING if path.endswith(".json") else JPEG)


class _Hop(Protocol):
    def __init__(self, archive: RawArchive) -> None:
        self._archive = archive
        self._received = b""

    def connectionMade(self) -> None:
        self._archive.open.add(self)

    def connectionLost(self, reason: object = None) -> None:
        self._archive.open.discard(self)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        transport: Any = self.transport
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            told = self._archive.hangs_up and bool(self._archive.does)
            transport.write(self._archive.answer(head.split(b" ")[1].decode()))
            if told:
                # What was told may be cut or without framing.
                transport.loseConnection()


class Trap(Factory):
    """A place that must not be reached, on every address of this machine."""

    noisy = False

    def __init__(self) -> None:
        self.connections = 0
        listen: Any = reactor.listenTCP
        self._listening = [listen(0, self, interface="0.0.0.0")]
        self.port: int = self._listening[0].getHost().port
        if socket.has_ipv6:
            # A machine without IPv6 can't be led there either.
            with contextlib.suppress(CannotListenError):
                self._listening.append(listen(self.port, self, interface="::1"))

    def buildProtocol(self, addr: object) -> None:
        """Count, and hang up."""
        self.connections += 1

    async def stop(self) -> None:
        for listening in self._listening:
            await listening.stopListening()


@implementer(IHostResolution)
@attrs.frozen
class _Resolution:
    name: str

    def cancel(self) -> None:
        """Too late."""


@implementer(IHostnameResolver)
class Watch:
    """
    Stands in for the resolver and for connecting, and writes down what was tried.

    Addresses of this machine are connected to. Any other leads to `trap`, which hangs up, so that
    no test reaches the world.

    :ivar addresses: what a name resolves to, each list used once, the last for good.
    :ivar names: names that were looked up.
    :ivar tried: addresses not of this machine, or the trap's own, that were connected to.
    """

    def __init__(self, trap: Trap) -> None:
        self.addresses: dict[str, list[list[str]]] = {}
        self.names: list[str] = []
        self.tried: list[tuple[str, int]] = []
        self._trap = trap
        self._connect: Any = None

    def install(self, monkeypatch: Any) -> None:
        self._connect = reactor.connectTCP
        monkeypatch.setattr(reactor, "connectTCP", self.connect)
        before = reactor.installNameResolver(self)  # type: ignore[attr-defined]
        self.restore = lambda: reactor.installNameResolver(before)  # type: ignore[attr-defined]

    def connect(self, host: str, port: int, *arguments: Any, **named: Any) -> Any:
        if host != LOCAL or port == self._trap.port:
            self.tried.append((host, port))
            host, port = LOCAL, self._trap.port
        return self._connect(host, port, *arguments, **named)

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: object = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        try:
            ipaddress.ip_address(hostName)
        except ValueError:
            self.names.append(hostName)
            answers = self.addresses.get(hostName, [[]])
            found = answers.pop(0) if len(answers) > 1 else answers[0]
        else:
            found = [hostName]
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        for each in found:
            kind = IPv6Address if ":" in each else IPv4Address
            resolutionReceiver.addressResolved(kind("TCP", each, portNumber))
        resolutionReceiver.resolutionComplete()
        return resolution
