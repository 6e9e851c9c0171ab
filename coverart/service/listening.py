"""Where clients come in: what COVER_ART_LISTEN means, and what is said of a place that is taken."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import attrs
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from coverart.service.settings import PREFIX, ConfigError, Settings

BACKLOG = 4096
"""Connections that the kernel holds until they are accepted; Linux allows no more by default."""
_QUEUED = frozenset({"tcp", "tcp6", "unix", "ssl"})


def listening_at(settings: Settings, reactor: Any) -> list[IStreamServerEndpoint]:
    """
    The endpoints of COVER_ART_LISTEN.

    `tcp:PORT` without an interface means every address: where the system has IPv6, that is an
    endpoint more. Apart, so that no client's IPv4 address is written in IPv6.

    :raises ConfigError: a string is wrong.
    """
    endpoints: list[IStreamServerEndpoint] = []
    for text in settings.listen:
        try:
            told = text.partition(":")[0] not in _QUEUED or ":backlog=" in text
            queued = text if told else f"{text}:backlog={BACKLOG}"
            endpoints.append(serverFromString(reactor, queued))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{PREFIX}LISTEN={text!r}: {error}") from error
        everywhere = re.fullmatch(r"tcp:(?:port=)?([1-9][0-9]*)", text)
        if everywhere is not None and _has_ipv6():
            endpoints.append(_EveryIPv6Address(reactor, int(everywhere[1])))
    return endpoints


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@implementer(IStreamServerEndpoint)
@attrs.frozen
class _EveryIPv6Address:
    """
    A port on all addresses of IPv6, and none of IPv4.

    Twisted's own takes those of IPv4 too where the system says so, and then the port is taken.
    """

    reactor: Any
    port: int

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        place = ("::", self.port)
        try:
            bound = socket.create_server(place, family=socket.AF_INET6, backlog=BACKLOG)
        except OSError as error:
            raise CannotListenError(*place, error) from error
        with bound:
            bound.setblocking(False)
            port: IListeningPort = self.reactor.adoptStreamPort(
                bound.fileno(), socket.AF_INET6, factory
            )
        return port


class Listening(StreamServerEndpointService):
    """Listens from start to stop; if it can't, the start fails with one line."""

    # As strports.service() does: a port that is taken ends the start.
    _raiseSynchronously = True

    def privilegedStartService(self) -> None:
        with one_line():
            super().privilegedStartService()


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """:raises SystemExit: nobody can listen there; twistd prints the line and ends."""
    try:
        yield
    except CannotListenError as error:
        # Of a Unix socket, the path stands where the port does.
        of_tcp = isinstance(error.port, int)
        place = error.interface or "any address"
        where = f"port {error.port} of {place}" if of_tcp else os.fsdecode(error.port)
        code = getattr(error.socketError, "errno", None)
        why = error.socketError if code is None else os.strerror(code)
    except OSError as error:
        # Of the lock that Twisted makes beside a Unix socket, a symlink.
        where = os.fsdecode(error.filename2 or error.filename or "").removesuffix(".lock")
        why = error.strerror
    else:
        return
    raise SystemExit(
        f"coverart: can't listen on {where}: {why}; {PREFIX}LISTEN or --listen names another"
    )
