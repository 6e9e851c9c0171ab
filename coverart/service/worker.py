"""
One of several processes behind a port: `python -m coverart.service.worker`, started by processes.py.

No one else starts it: it takes its listening sockets as open descriptors, its settings whole from
the environment, and ends when its standard input does.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import sys
from typing import Any

import attrs
from prometheus_client import values
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ReactorNotRunning
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReadDescriptor,
    IStreamServerEndpoint,
)
from twisted.logger import FileLogObserver, LogEvent, Logger, eventAsText, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from coverart.metrics import FOLDER_VARIABLE
from coverart.service.processes import FIRST_SOCKET
from coverart.service.settings import ConfigError, load

log = Logger()


@implementer(IStreamServerEndpoint)
@attrs.frozen
class InheritedSocket:
    """A listening socket that this process was given."""

    reactor: Any
    fd: int

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        with socket.socket(fileno=os.dup(self.fd)) as looked_at:
            family = looked_at.family
        port = self.reactor.adoptStreamPort(self.fd, family, protocolFactory)
        os.close(self.fd)
        return succeed(_UnixPort(port) if family is socket.AF_UNIX else port)


@implementer(IListeningPort)
@attrs.define(eq=False)
class _UnixPort:
    """Twisted's own removes the socket's path when it stops, which others still need."""

    port: Any
    disconnecting: bool = False

    def startListening(self) -> None:
        """It does already."""

    def stopListening(self) -> None:
        self.disconnecting = True
        self.port.stopReading()

    def stopReading(self) -> None:
        self.port.stopReading()

    def startReading(self) -> None:
        self.port.startReading()

    @property
    def numberAccepts(self) -> int:
        """How many connections are accepted in one turn; Connections sets it."""
        count: int = self.port.numberAccepts
        return count

    @numberAccepts.setter
    def numberAccepts(self, count: int) -> None:
        self.port.numberAccepts = count

    def getHost(self) -> IAddress:
        host: IAddress = self.port.getHost()
        return host


@implementer(IReadDescriptor)
@attrs.frozen(eq=False)
class Lifeline:
    """The pipe from the parent: it says nothing, it ends."""

    reactor: Any

    def fileno(self) -> int:
        return 0

    def doRead(self) -> None:
        if not os.read(0, 1024):
            self.connectionLost(Failure(ConnectionDone()))

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - named by the interface
        """The other end is closed, which some reactors tell so; or this one ends anyway."""
        self.reactor.removeReader(self)
        stop(self.reactor)

    def logPrefix(self) -> str:
        return "lifeline"


def stop(reactor: Any) -> None:
    """End in order; told so several times, by the parent and by a signal, it ends once."""
    try:
        reactor.stop()
    except ReactorNotRunning:
        return


def begin_logging(number: int, *, relayed: bool) -> None:
    """
    Log to the standard output, each line with the number of the process.

    :param relayed: the parent writes the lines to its log, with the time.
    """

    def text(event: LogEvent) -> str:
        namespace = event.get("log_namespace", "-")
        if event.get("log_system") in (None, namespace):
            level = getattr(event.get("log_level"), "name", "-")
            event = {**event, "log_system": f"{namespace}#{level} {number}"}
        return eventAsText(event, includeTimestamp=not relayed).replace("\n", "\n\t") + "\n"

    globalLogBeginner.beginLoggingTo([FileLogObserver(sys.stdout, text)])


def main(number: int, sockets: int, reactor_module: str, *, relayed: bool) -> None:
    """Serve until the parent says no more."""
    # Ctrl-C reaches every process of the terminal; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Told to end before it runs, it ends in order all the same.
    early: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: early.append(number))
    importlib.import_module(reactor_module).install()
    # Not before: something in there takes the reactor, and would have chosen one.
    from twisted.internet import reactor as reactor_

    from coverart.service.timers import go_by_monotonic_time
    from coverart.service.wiring import assemble

    reactor: Any = reactor_
    go_by_monotonic_time(reactor)
    begin_logging(number, relayed=relayed)
    # By the number of its place, not by pid: a process started again goes on counting where the
    # one before left off, and there are never more files than places.
    values.ValueClass = values.MultiProcessValue(lambda: number)
    parent = os.getppid()
    endpoints = [InheritedSocket(reactor, FIRST_SOCKET + i) for i in range(sockets)]
    try:
        service = assemble(load(os.environ), reactor, endpoints=endpoints)
    except ConfigError as error:
        raise SystemExit(f"coverart: {error}") from error
    reactor.addReader(Lifeline(reactor))
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)

    def runs() -> None:
        signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(stop, reactor))
        if early:
            stop(reactor)

    reactor.callWhenRunning(runs)
    service.startService()
    reactor.run()
    if os.getppid() != parent:
        log.warn("the parent was killed; this process ends")
        shutil.rmtree(os.environ[FOLDER_VARIABLE], ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4], relayed=sys.argv[3] == "relayed")
