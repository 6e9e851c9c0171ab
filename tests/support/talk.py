"""Speaking HTTP to what runs, in whole answers or to the byte: nothing is followed or decoded."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH

T = TypeVar("T")

LOCAL = "127.0.0.1"
LOOK_S = 0.01
SAFETY_S = 30.0
"""No wait of a test ends this way unless something is broken."""


@attrs.frozen
class Answer:
    """What came back, whole."""

    status: int
    headers: Headers
    body: bytes
    length: int | None
    """As declared; None where there was no length."""

    def __getitem__(self, name: str) -> str:
        """Give a header; empty if there is none."""
        values = self.headers.getRawHeaders(name)
        return "" if not values else values[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def named(self) -> dict[str, str]:
        """All headers by lower-case name; the client keeps Content-Length apart for a GET."""
        told = {} if self.length is None else {"content-length": str(self.length)}
        return told | {
            name.decode().lower(): b", ".join(values).decode()
            for name, values in self.headers.getAllRawHeaders()
        }


async def ask(
    url: str, method: str = "GET", headers: dict[str, str] | None = None, agent: Any = None
) -> Answer:
    """Send one request on a connection of its own; a body cut short is an error."""
    agent = agent or Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
    sent = Headers({name: [value] for name, value in (headers or {}).items()})
    response = await within(agent.request(method.encode(), url.encode(), sent))
    pieces: list[bytes] = []
    await within(treq.collect(response, pieces.append))
    length = None if response.length is UNKNOWN_LENGTH else response.length
    return Answer(response.code, response.headers, b"".join(pieces), length)


def within(d: Any, seconds: float = SAFETY_S) -> Any:
    """The same Deferred, bounded for the case that something is broken."""
    return d.addTimeout(seconds, reactor)


def start(coroutine: Any) -> Deferred[Any]:
    """Let something run beside the test."""
    return Deferred.fromCoroutine(coroutine)


async def until(condition: Any, what: str, seconds: float = SAFETY_S) -> None:
    """Look now and then until something is so; for what has no event to wait for."""
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline, f"never: {what}"
        await pause()


async def becomes(
    ask: Callable[[], Awaitable[T]],
    is_so: Callable[[T], bool],
    what: str,
    seconds: float = SAFETY_S,
) -> T:
    """Ask now and then until what is told is so; give it."""
    deadline = reactor.seconds() + seconds
    while not is_so(told := await ask()):
        assert reactor.seconds() < deadline, f"never: {what}; at last {told}"
        await pause()
    return told


async def pause() -> None:
    """Leave the processor to others, between two looks at something that tells nobody."""
    await deferLater(reactor, LOOK_S)


class Wire(Protocol):
    """A connection seen to the byte: what came, when, and how it ended."""

    transport: Any

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended: Deferred[type] = Deferred()
        self._watching: list[tuple[int, Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        for watched in list(self._watching):
            if len(self.received) >= watched[0]:
                self._watching.remove(watched)
                watched[1].callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(type(reason.value))

    def get(self, path: str, *headers: str, method: str = "GET") -> None:
        """Send a request on this connection."""
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]
        self.transport.write("\r\n".join(lines).encode())

    def got(self, count: int) -> Deferred[None]:
        """Fires when so many bytes have come, the head included."""
        d: Deferred[None] = Deferred()
        if len(self.received) >= count:
            d.callback(None)
        else:
            self._watching.append((count, d))
        return within(d)  # type: ignore[no-any-return]

    def end(self) -> Deferred[type]:
        """Fires when the connection is gone, with the kind of its end."""
        return within(self.ended)  # type: ignore[no-any-return]

    def leave(self) -> None:
        self.transport.abortConnection()

    @property
    def head(self) -> bytes:
        return bytes(self.received.partition(b"\r\n\r\n")[0])

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def body(self) -> bytes:
        return bytes(self.received.partition(b"\r\n\r\n")[2])

    def header(self, name: str) -> str:
        """Give a header of the answer; empty if there is none."""
        for line in self.head.decode().split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return ""


async def connect(port: int, client: str = LOCAL) -> Wire:
    """Open a connection. :param client: the address it comes from, one of this machine's."""
    wire = Wire()
    endpoint = HostnameEndpoint(reactor, LOCAL.encode(), port, bindAddress=client.encode())
    await connectProtocol(endpoint, wire)
    return wire


def answers(received: bytes) -> list[tuple[int, bytes, bytes]]:
    """Status, head and body of each answer on a connection; all have a length or no body."""
    found = []
    while received:
        head, _, rest = bytes(received).partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        size = int(length[1]) if length else 0
        found.append((status, head, rest[:size]))
        received = rest[size:]
    return found
