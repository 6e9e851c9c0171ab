"""
How many connections there may be, how long one may stay, and what happens past that.

At the bound, no more are accepted until there is room, and connections that have been idle for 10 s
are closed to make it: new connections wait in the listen backlog, or another process of the
same socket takes them. So the descriptors that the work itself needs are never used up by clients.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from coverart.metrics import Metrics

KEEP_ALIVE_S = 60.0
"""Seconds from an answer, or the beginning, until a next request has to be there, to its last byte."""
STALLED_S = 120
"""Seconds until a client that takes nothing of what it was sent counts as gone."""
IDLE_S = 10.0
"""The same at the bound of connections, to make room: a next request may be on its way."""
MOST_ACCEPTS = 2
"""Connections accepted in one turn of the reactor, or 20 more where those came: others get in between."""
MOST_DESCRIPTORS = 65_536
OWN_DESCRIPTORS = 1024
"""Kept for connections to the archive, files being written, logs and the like."""


class Connections:
    """The connections of a process. Each is an http_channel.ClientChannel."""

    log = Logger()

    def __init__(self, most: int, metrics: Metrics, clock: IReactorTime) -> None:
        """:param most: connections at once."""
        self.most = most
        self.open: set[Any] = set()
        self.draining = False
        """Each is closed once it is idle."""
        self._idle: dict[Any, float] = {}
        """Connections without a whole request and since when, the longest first."""
        self._metrics = metrics
        self._clock = clock
        self._ports: list[Any] = []
        self._accepting = True

    def watch(self, port: Any) -> Any:
        """Stop and start accepting on this port, too."""
        self._ports.append(port)
        port.numberAccepts = MOST_ACCEPTS
        # Only the kernel sees all that waits for a client: connections have this from their port
        # (tcp(7)). A Unix socket has no such option.
        with contextlib.suppress(OSError, AttributeError):
            port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_S * 1000)
        return port

    def opened(self, channel: Any) -> None:
        """A connection was accepted."""
        self.open.add(channel)
        self.answered(channel)
        self._metrics.connections.inc()
        for port in self._ports:
            # Twisted's port would accept more each time that as many came.
            port.numberAccepts = MOST_ACCEPTS
        if len(self.open) >= self.most:
            self._accept(yes=False)

    def closed(self, channel: Any) -> None:
        """It ended, from whatever side."""
        self.open.discard(channel)
        self.asked(channel)
        self._metrics.connections.dec()
        if len(self.open) < self.most:
            self._accept(yes=True)

    def asked(self, channel: Any) -> None:
        """A whole request is there, or the last answer was given."""
        self._idle.pop(channel, None)

    def answered(self, channel: Any) -> None:
        """It was answered, though what was written may still be on its way."""
        self._idle[channel] = self._clock.seconds()

    def drain(self) -> None:
        """Close idle connections, and from now on each that becomes idle."""
        self.draining = True
        for channel in list(self._idle):
            channel.loseConnection()

    def look(self) -> None:
        """Close what stays too long, sooner where there is no room; every second or so."""
        full = not self._accepting
        latest = self._clock.seconds() - (IDLE_S if full else KEEP_ALIVE_S)
        for channel, since in list(self._idle.items()):
            if since > latest:
                break
            self.asked(channel)
            if full:
                self._metrics.overload["connection"].inc()
            channel.timeoutConnection()

    def _accept(self, *, yes: bool) -> None:
        if yes is self._accepting:
            return
        self._accepting = yes
        if not yes:
            self._metrics.overload["accept"].inc()
            self.log.warn(
                "{most} connections are open; no more are accepted until one closes", most=self.most
            )
        for port in self._ports:
            # A port that was stopped in the meantime has no socket to look at.
            if getattr(port, "connected", True) and not getattr(port, "disconnecting", False):
                port.startReading() if yes else port.stopReading()


@implementer(IStreamServerEndpoint)
@attrs.frozen(eq=False)
class GatedEndpoint:
    """An endpoint that shows its port to who decides when it accepts."""

    endpoint: IStreamServerEndpoint
    watch: Callable[[IListeningPort], IListeningPort]

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self.endpoint.listen(protocolFactory).addCallback(self.watch)


def raise_file_limit(wanted: int) -> int:
    """
    Raise the process's limit of descriptors as far as it may be: many start with 1,024.

    :returns: how many connections there can be, at most `wanted`. Each may have a file open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < raised:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return max(1, min(wanted, (soft - min(OWN_DESCRIPTORS, soft // 2)) // 2))
