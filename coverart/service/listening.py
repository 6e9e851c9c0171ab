"""Where clients come in: what COVER_ART_LISTEN means, and what is said of a place that is taken."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from typing import Any

from twisted.application.internet import StreamServerEndpointService
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint

from coverart.service.settings import PREFIX, ConfigError, Settings

BACKLOG = 4096
"""Connections that the kernel holds until they are accepted; Linux allows no more by default."""
_QUEUED = frozenset({"tcp", "tcp6", "unix", "ssl"})


def listening_at(settings: Settings, reactor: Any) -> list[IStreamServerEndpoint]:
    """
    The endpoints of COVER_ART_LISTEN.

    `tcp:PORT` without an interface means every address: where the system has IPv6, that is an
    endpoint more. Apart, so that no client's IPv4 address is written in IPv6; and bound here, since
    Twisted's own takes the addresses of IPv4 too where the system says so.

    :raises ConfigError: a string is wrong.
    :raises SystemExit: the port of IPv6 is taken.
    """
    endpoints: list[IStreamServerEndpoint] = []
    for text in settings.listen:
        told = text.partition(":")[0] not in _QUEUED or ":backlog=" in text
        queued = text if told else f"{text}:backlog={BACKLOG}"
        try:
            endpoints.append(serverFromString(reactor, queued))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{PREFIX}LISTEN={text!r}: {error}") from error
        everywhere = re.fullmatch(r"tcp:(?:port=)?([1-9][0-9]*)", text)
        if everywhere is not None and socket.has_dualstack_ipv6():
            place = ("::", int(everywhere[1]))
            with one_line():
                bound = socket.create_server(place, family=socket.AF_INET6, backlog=BACKLOG)
            fd = bound.detach()
            endpoints.append(AdoptedStreamServerEndpoint(reactor, fd, socket.AF_INET6))
    return endpoints


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
    except (CannotListenError, OSError, OverflowError) as error:
        raise SystemExit(
            f"coverart: {error} ({PREFIX}LISTEN or --listen names another place)"
        ) from error
