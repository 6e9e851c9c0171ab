"""
How many connections there may be, how long one may stay, and what happens past that.

At the bound, no more are accepted until there is room, and connections that have been idle for a
while are closed to make it: new connections wait in the listen backlog, or another process of the
same socket takes them. So the descriptors that the work itself needs are never used up by clients.
"""

from __future__ import annotations

import contextlib
import resource
import socket
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
"""Seconds until a connection without a request is closed."""
REQUEST_S = 30.0
"""Seconds until a request has to be there, from its first byte to its last."""
STALLED_S = 120
"""Seconds until a client that takes nothing of what it was sent counts as gone."""
IDLE_S = 10.0
"""Seconds until an idle connection may be closed to make room: a next request may be on its way."""
MOST_ACCEPTS = 2
"""Limit of connections accepted in one turn of the reactor, so that those that are there get in between."""
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
        """Idle connections and since when, the longest first."""
        self._arriving: dict[Any, float] = {}
        """Connections with part of a request, likewise."""
        self._metrics = metrics
        self._clock = clock
        self._reminded = False
        self._ports: list[Any] = []
        self._accepting = True

    def watch(self, port: IListeningPort) -> IListeningPort:
        """Stop and start accepting on this port, too."""
        self._ports.append(port)
        self._accept_few()
        return port

    def opened(self, channel: Any) -> None:
        """A connection was accepted."""
        self.open.add(channel)
        self._idle[channel] = self._clock.seconds()
        self._metrics.connections.inc()
        _give_up_on_stalled(channel.transport)
        if not self._reminded:
            self._reminded = True
            self._clock.callLater(0, self._accept_few)
        if len(self.open) >= self.most:
            self._accept(yes=False)
            self._make_room()

    def _accept_few(self) -> None:
        """After each turn with newcomers: a port accepts more each time that many came."""
        self._reminded = False
        for port in self._ports:
            port.numberAccepts = MOST_ACCEPTS

    def closed(self, channel: Any) -> None:
        """It ended, from whatever side."""
        if channel not in self.open:
            return
        self.open.remove(channel)
        self.asked(channel)
        self._metrics.connections.dec()
        if len(self.open) < self.most:
            self._accept(yes=True)

    def arriving(self, channel: Any) -> None:
        """Part of a request is there."""
        if channel not in self._arriving:
            self._idle.pop(channel, None)
            self._arriving[channel] = self._clock.seconds()

    def asked(self, channel: Any) -> None:
        """A whole request is there."""
        self._idle.pop(channel, None)
        self._arriving.pop(channel, None)

    def answered(self, channel: Any) -> None:
        """It was answered, though what was written may still be on its way."""
        if channel in self.open:
            self._idle[channel] = self._clock.seconds()

    def drain(self) -> None:
        """Close idle connections, and from now on each that becomes idle."""
        self.draining = True
        for channel in list(self._idle):
            channel.loseConnection()

    def look(self) -> None:
        """Close what stays too long, and make room where there is none; every second or so."""
        now = self._clock.seconds()
        for channel in _over(self._idle, now - KEEP_ALIVE_S):
            channel.loseConnection()
        for channel in _over(self._arriving, now - REQUEST_S):
            channel.refuse(408, "request timeout")
        if not self._accepting:
            self._make_room()

    def _make_room(self) -> None:
        """Close the one idle longest. The kernel still delivers what it holds for its client."""
        for channel in _over(self._idle, self._clock.seconds() - IDLE_S)[:1]:
            del self._idle[channel]
            self._metrics.overload["connection"].inc()
            channel.loseConnection()

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
    """An endpoint whose port stops to accept while there are too many connections."""

    endpoint: IStreamServerEndpoint
    connections: Connections

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self.endpoint.listen(protocolFactory).addCallback(self.connections.watch)


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


def _over(since: dict[Any, float], most: float) -> list[Any]:
    """Those since `most` or before; the dict is in that order."""
    found = []
    for channel, at in since.items():
        if at > most:
            break
        found.append(channel)
    return found


def _give_up_on_stalled(transport: Any) -> None:
    """
    Let the kernel end a connection that takes nothing (TCP_USER_TIMEOUT, tcp(7)).

    Only the kernel sees all of it: what was written to a client waits there.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    # Of a connection in TLS, the one below.
    handle = getattr(getattr(transport, "transport", transport), "getHandle", None)
    if option is None or handle is None:
        return
    # A unix socket has no such option.
    with contextlib.suppress(OSError, AttributeError):
        handle().setsockopt(socket.IPPROTO_TCP, option, STALLED_S * 1000)
