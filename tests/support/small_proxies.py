"""Proxies as a network has them, small and real: HTTP with CONNECT, and SOCKS 5; and lying ones."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol

from tests.support.talk import LOCAL

_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


class SmallProxy(Factory):
    """
    Listens on a port of this machine, and leads to `routes`: host and port → a local port.

    :ivar asked: host and port of each way it was asked for; for plain http the whole URL.
    :ivar login: user and password that it wants.
    :ivar says: what it says to the first bytes that come, in place of all that it should; "" is
        silence.
    :ivar hangs_up: whether it closes after that.
    """

    noisy = False
    scheme = ""
    speaks: Callable[[], Protocol]

    def __init__(self) -> None:
        self.routes: dict[tuple[str, int], int] = {}
        self.asked: list[tuple[str, int] | str] = []
        self.login: tuple[str, str] | None = None
        self.says: bytes | None = None
        self.hangs_up = False
        self.open: set[Protocol] = set()
        listen: Any = reactor.listenTCP
        self._listening = listen(0, self, interface=LOCAL)
        self.port: int = self._listening.getHost().port

    def url(self, login: str = "", scheme: str = "") -> str:
        return f"{scheme or self.scheme}://{login}{LOCAL}:{self.port}"

    async def stop(self) -> None:
        await maybeDeferred(self._listening.stopListening)
        for each in list(self.open):
            transport: Any = each.transport
            transport.abortConnection()


class _Way(Protocol):
    """One connection: what the proxy says of itself, then bytes both ways."""

    factory: Any
    transport: Any

    def connectionMade(self) -> None:
        self.factory.open.add(self)
        self.received = b""
        self.outside: Any = None
        self.whole_urls = False
        self.steps = self.speak()
        next(self.steps)

    def speak(self) -> Any:
        raise NotImplementedError

    def lead_whole_url(self, request: bytes) -> None:
        """Ask a host as it is used to be asked; the next request may be for another."""
        target = request.split(b" ")[1].decode()
        self.factory.asked.append(target)
        self.whole_urls = True
        if self.outside is not None:
            self.outside.way = None
            self.outside.transport.loseConnection()
            self.outside = None
        place = "/".join(target.split("/")[:3])
        lines = request.replace(place.encode(), b"", 1).split(b"\r\n")
        asked = b"\r\n".join(each for each in lines if not each.startswith(b"Proxy-"))
        host, _, port = place.removeprefix("http://").rpartition(":")
        self.lead(host, int(port), b"", _BAD_GATEWAY, asked)

    def connectionLost(self, reason: object = None) -> None:
        self.factory.open.discard(self)
        if self.outside is not None:
            self.outside.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self.outside is not None:
            if self.whole_urls:
                self.lead_whole_url(data)
            else:
                self.outside.transport.write(data)
            return
        if self.factory.says is not None:
            self.transport.write(self.factory.says)
            if self.factory.hangs_up:
                self.transport.loseConnection()
            return
        self.received += data
        self.steps.send(None)

    def lead(self, host: str, port: int, yes: bytes, no: bytes, first: bytes = b"") -> None:
        """Connect, say so, and pass on what comes."""
        inner = self.factory.routes.get((host, port))
        if inner is None:
            self.transport.write(no)
            self.transport.loseConnection()
            return
        outside = _Outside()
        outside.way = self

        def connected(_: object) -> None:
            self.outside = outside
            if yes:
                self.transport.write(yes)
            outside.transport.write(first)

        endpoint = HostnameEndpoint(reactor, LOCAL, inner)
        connectProtocol(endpoint, outside).addCallback(connected)


class _Outside(Protocol):
    way: _Way | None
    transport: Any

    def dataReceived(self, data: bytes) -> None:
        if self.way is not None:
            self.way.transport.write(data)

    def connectionLost(self, reason: object = None) -> None:
        if self.way is not None:
            self.way.transport.loseConnection()


class _HttpWay(_Way):
    def speak(self) -> Any:
        yield
        while b"\r\n\r\n" not in self.received:
            yield
        head, _, rest = self.received.partition(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        wanted = self.factory.login
        if wanted is not None:
            secret = base64.b64encode(":".join(wanted).encode())
            if b"\r\nProxy-Authorization: Basic " + secret not in head:
                self.transport.write(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
                )
                self.transport.loseConnection()
                yield
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            self.factory.asked.append((host, int(port)))
            yes = b"HTTP/1.1 200 Connection established\r\nVia: small\r\n\r\n"
            self.lead(host.strip("[]"), int(port), yes, _BAD_GATEWAY, rest)
        else:
            self.lead_whole_url(self.received)
        yield


class _SocksWay(_Way):
    def speak(self) -> Any:
        yield
        wanted = self.factory.login
        while len(self.received) < 2 or len(self.received) < 2 + self.received[1]:
            yield
        methods, self.received = self.received[2 : 2 + self.received[1]], b""
        method = 2 if wanted is not None else 0
        if method not in methods:
            self.transport.write(b"\x05\xff")
            self.transport.loseConnection()
            yield
        self.transport.write(bytes([5, method]))
        yield
        if wanted is not None:
            user, password = (each.encode() for each in wanted)
            whole = bytes([1, len(user)]) + user + bytes([len(password)]) + password
            while len(self.received) < len(whole) and whole.startswith(self.received):
                yield
            good, self.received = self.received == whole, b""
            self.transport.write(b"\x01\x00" if good else b"\x01\x01")
            if not good:
                self.transport.loseConnection()
            yield
        while len(self.received) < 5 or len(self.received) < 4 + self._length() + 2:
            yield
        kind, address = self.received[3], self.received[4 : 4 + self._length()]
        host = address[1:].decode() if kind == 3 else str(ipaddress.ip_address(address))
        port = int.from_bytes(self.received[4 + self._length() :][:2], "big")
        self.factory.asked.append((host, port))
        bound = b"\x00\x01" + bytes(6)
        self.lead(host, port, b"\x05\x00" + bound, b"\x05\x05" + bound)
        yield

    def _length(self) -> int:
        return {1: 4, 4: 16, 3: 1 + self.received[4]}[self.received[3]]


class HttpProxy(SmallProxy):
    """CONNECT, and whole URLs for plain http."""

    scheme = "http"
    protocol = _HttpWay


class SocksProxy(SmallProxy):
    """SOCKS 5, with names or addresses."""

    scheme = "socks5h"
    protocol = _SocksWay
