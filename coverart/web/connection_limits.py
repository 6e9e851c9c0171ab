"""
How many connections there may be, and what happens past that.

At the bound, no more are accepted until there is room, and connections that have been idle for a
while are closed to make it: new connections wait in the listen backlog, or another process of the
same socket takes them. So the descriptors that the work itself needs are never used up by clients.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import resource
import socket
import struct
import termios
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from coverart.metrics import Metrics

STALLED_S = 120
"""A client that takes nothing of what it was sent for so long is gone; a slow one takes a little."""
IDLE_S = 10.0
"""A connection used more recently is not closed to make room: its next request may be on its way."""
LOOK_S = 0.5
MOST_LOOKED_AT = 100
MOST_ACCEPTS = 2
"""Connections accepted in one turn of the reactor, so that those that are there get in between."""
MOST_DESCRIPTORS = 65_536
OWN_DESCRIPTORS = 1024
"""Kept for connections to the archive, files being written, logs and the like."""


class Reception:
    """The connections of a process."""

    log = Logger()

    def __init__(self, most: int, metrics: Metrics, clock: IReactorTime) -> None:
        """:param most: connections at once."""
        self.most = most
        self.open: set[Any] = set()
        self._idle: dict[Any, float] = {}
        """Since when, in the order in which they became idle."""
        self._metrics = metrics
        self._clock = clock
        self._reminded = False
        self._ports: list[Any] = []
        self._accepting = True
        self._look: IDelayedCall | None = None

    def listens(self, port: IListeningPort) -> IListeningPort:
        """Connections come from here too."""
        self._ports.append(port)
        self._accept_few()
        return port

    def came(self, channel: Any) -> None:
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

    def gone(self, channel: Any) -> None:
        """It ended, from whatever side."""
        if channel not in self.open:
            return
        self.open.remove(channel)
        self._idle.pop(channel, None)
        self._metrics.connections.dec()
        if len(self.open) < self.most:
            self._accept(yes=True)

    def begun(self, channel: Any) -> None:
        """A request came on a connection."""
        self._idle.pop(channel, None)

    def ended(self, channel: Any) -> None:
        """It was answered, though what was written may still be on its way."""
        if channel in self.open:
            self._idle[channel] = self._clock.seconds()

    def idle(self) -> list[Any]:
        """The connections that are at no request."""
        return list(self._idle)

    def _make_room(self) -> None:
        """Close the one idle longest; look again while there is none and somebody may knock."""
        if self._look is not None and self._look.active():
            self._look.cancel()
        self._look = None
        if self._accepting:
            return
        now = self._clock.seconds()
        for channel, since in list(itertools.islice(self._idle.items(), MOST_LOOKED_AT)):
            if now - since < IDLE_S:
                break
            del self._idle[channel]
            if not _taken(channel.transport):
                # A slow client: its answer was written, and is still on its way.
                self._idle[channel] = now
                continue
            self._metrics.overload["connection"].inc()
            channel.loseConnection()
            break
        self._look = self._clock.callLater(LOOK_S, self._make_room)

    def _accept(self, *, yes: bool) -> None:
        if yes is self._accepting:
            return
        self._accepting = yes
        if yes and self._look is not None and self._look.active():
            self._look.cancel()
        if not yes:
            self._metrics.overload["accept"].inc()
            self.log.warn("{most} connections are open; no more are accepted", most=self.most)
        for port in self._ports:
            # A port that was stopped in the meantime has no socket to look at.
            if getattr(port, "connected", True) and not getattr(port, "disconnecting", False):
                port.startReading() if yes else port.stopReading()


@implementer(IStreamServerEndpoint)
@attrs.frozen(eq=False)
class Door:
    """An endpoint whose port the reception can shut for a while."""

    endpoint: IStreamServerEndpoint
    reception: Reception

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self.endpoint.listen(protocolFactory).addCallback(self.reception.listens)


def bound(wanted: int) -> int:
    """
    How many connections there can be, at most `wanted`.

    Each may have a file open beside it. Raises the process's limit of descriptors as far as the
    system allows, since many start with 1,024.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < raised:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - min(OWN_DESCRIPTORS, soft // 2)) // 2))


def _taken(transport: Any) -> bool:
    """Say whether the other side has all that was written (TIOCOUTQ, tcp(7))."""
    try:
        told = fcntl.ioctl(transport.getHandle().fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, AttributeError):
        return True  # A system or a kind of socket that does not tell.
    return bool(struct.unpack("i", told)[0] == 0)


def _give_up_on_stalled(transport: Any) -> None:
    """
    Let the kernel end a connection that takes nothing (TCP_USER_TIMEOUT, tcp(7)).

    No timer of ours sees that: what was written to it waits in the kernel.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    handle = getattr(transport, "getHandle", None)
    if option is None or handle is None:
        return
    # A unix socket has no such option.
    with contextlib.suppress(OSError, AttributeError):
        handle().setsockopt(socket.IPPROTO_TCP, option, STALLED_S * 1000)
