"""The HTTP server's front door: what is no request we know is turned away before any route."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.http import Request
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site

from coverart.archive.paths import parse, spell
from coverart.errors import CoverError, Refused
from coverart.metrics import Metrics
from coverart.model import Thing
from coverart.web.access_log import AccessLog, LoggedRequest
from coverart.web.connection_limits import Connections
from coverart.web.headers import METHODS, open_to_all, options, refuse
from coverart.web.http_channel import ClientChannel
from coverart.web.operators import OWN_PATHS
from coverart.web.public_url import split_prefix

DRAIN_LOOK_S = 0.02

_ADMIN = re.compile(rb"/admin/(?P<verb>purge|refresh)(?P<thing>/.*)", re.DOTALL)


def _read(path: bytes) -> tuple[Thing, str]:
    """What a path asks for and how it is told in the log."""
    thing = parse(path)
    return thing, spell(thing)


_read_short = lru_cache(maxsize=8192)(_read)
"""Most paths are asked for again and again; a long one is not, and would take much memory here."""
_SHORT = 160


class Front(Resource):
    """
    Parses the path and checks the method, then hands over to the Klein application that knows.

    The routes of operators match byte for byte, as nginx matches them before it lets anyone ask;
    only what asks for a cover is decoded, and only once (archive/paths.py). It alone may have a prefix.
    """

    isLeaf = True

    def __init__(self, art: IResource, operators: IResource) -> None:
        super().__init__()
        self._art = art
        self._operators = operators

    def render(self, request: LoggedRequest) -> bytes | int:
        open_to_all(request)
        inner, methods = self._operators, METHODS
        try:
            if request.path in OWN_PATHS:
                request.key = request.path.decode("ascii")
            elif (admin := _ADMIN.fullmatch(request.path)) is not None:
                request.thing = parse(admin["thing"])
                request.key = f"{admin['verb'].decode()} {spell(request.thing)}"
                request.postpath = [b"admin", admin["verb"], b"thing"]
                methods = b"POST"
            else:
                request.prefix, path = split_prefix(request.path)
                read = _read_short if len(path) <= _SHORT else _read
                request.thing, request.key = read(path)
                inner = self._art
            if request.method not in methods.split(b", "):
                raise Refused(405, "method not allowed", {b"allow": methods})
            if request.method == b"OPTIONS":
                return options(request)
            rendered: bytes | int = inner.render(request)
            return rendered
        except CoverError as error:
            return refuse(request, error)


class CoverSite(Site):
    """
    The server: what its connections have in common.

    Each request tells the log and the counters of itself when it ends (access_log.py).
    """

    # Plain HTTP/1.1: what is promised of hostile requests is promised of it alone.
    protocol = ClientChannel  # type: ignore[assignment]

    def __init__(
        self,
        front: IResource,
        metrics: Metrics,
        connections: Connections,
        clock: IReactorTime,
        trusts: Callable[[Request], bool] = lambda _: False,
    ) -> None:
        """:param trusts: whether a request is a trusted proxy's, whose X-Request-ID counts."""
        # Connections that stay too long are closed by `connections`.
        super().__init__(front, requestFactory=LoggedRequest, timeout=None, reactor=clock)
        self.metrics = metrics
        self.connections = connections
        self.trusts = trusts
        self.access_log = AccessLog()

    def acceptableProtocols(self) -> list[bytes]:
        """
        What is offered to a client in TLS.

        One request at a time on each connection: what bounds connections bounds requests.
        """
        return [b"http/1.1"]

    def look(self) -> None:
        """Write lines to the log, close overdue connections; every half a second or so."""
        self.connections.look()
        self.access_log.flush()

    async def drain(self, seconds: float) -> int:
        """
        Let running requests come to their end, to the last byte, and close every connection.

        :param seconds: after that it gives up.
        :returns: how many connections were still busy then.
        """
        self.connections.drain()
        deadline = self.reactor.seconds() + seconds
        while (left := len(self.connections.open)) and self.reactor.seconds() < deadline:
            await deferLater(self.reactor, DRAIN_LOOK_S)
        self.access_log.flush()
        return left

    def log(self, request: Request) -> None:
        """Twisted's own line about a request: none."""
