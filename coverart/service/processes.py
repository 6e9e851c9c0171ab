"""
Several processes behind one port: the parent binds the sockets, starts the others and watches.

The parent serves nobody. Each of its children (worker.py) inherits the listening sockets and
accepts from them. They share one queue of new connections: one that waits in it is taken by whoever
is free, and is lost with no process. With sockets of their own (SO_REUSEPORT) the kernel would deal
connections out to each, and reset those that wait for a process that ends.

twisted.runner.procmon.ProcessMonitor restarts processes too, but can't hand sockets to them (it
calls spawnProcess without childFDs), does not wait for their end, and does not say why one ended.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client.multiprocess import mark_process_dead
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.metrics import FOLDER_VARIABLE
from coverart.service.listening import one_line
from coverart.service.settings import PREFIX, ConfigError, Settings

FIRST_SOCKET = 3
"""The descriptor of a child's first listening socket; the others follow."""
SHARED_KINDS = frozenset({"tcp", "tcp6", "unix", "systemd"})
GRACE_S = 30.0
"""Seconds until a child that was told to end is killed; it needs 20 at most."""
LONG_LIFE_S = 60.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0


def pause_s(last_s: float, lived_s: float) -> float:
    """
    How long to wait before a process that ended is started again.

    :param last_s: the pause before; 0 where there was none.
    :param lived_s: how long the process ran.
    :returns: none after a long life, else twice the one before.
    """
    if lived_s >= LONG_LIFE_S:
        return 0.0
    return min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * last_s))


def check_listen(settings: Settings) -> None:
    """:raises ConfigError: COVER_ART_LISTEN has an endpoint that processes can't share."""
    for text in settings.listen:
        if text.partition(":")[0] not in SHARED_KINDS:
            raise ConfigError(
                f"{PREFIX}LISTEN={text!r}: with several processes it must be one of "
                f"{', '.join(sorted(SHARED_KINDS))}"
            )


class SharedSocket(Factory):
    """A socket of which the children accept, and the parent does not."""

    noisy = False


class Processes(Service):
    """The parent: binds, starts, restarts, stops."""

    log = Logger()

    def __init__(
        self,
        *,
        count: int,
        endpoints: Sequence[IStreamServerEndpoint],
        settings: Mapping[str, str],
        reactor: Any,
    ) -> None:
        """:param settings: variables of the children, complete: they read no .env file."""
        self.reactor = reactor
        self._endpoints = endpoints
        self._settings = settings
        self._ports: list[IListeningPort] = []
        self.folder = ""
        """Where the children count."""
        self._children = [_Child(self, number, count) for number in range(1, count + 1)]

    def privilegedStartService(self) -> None:
        """Bind, while root's ports may still be bound."""
        super().privilegedStartService()
        for endpoint in self._endpoints:
            bound: list[Any] = []
            endpoint.listen(SharedSocket()).addBoth(bound.append)
            # All kinds that can be shared are bound at once.
            (port,) = bound
            if isinstance(port, Failure):
                with one_line():
                    port.raiseException()
            # As long as this descriptor is open, nobody is refused, whatever becomes of children.
            port.stopReading()
            self._ports.append(port)

    def startService(self) -> None:
        super().startService()
        # New, so that it holds nothing of an earlier run.
        self.folder = tempfile.mkdtemp(prefix="coverart-metrics-")
        self.log.info("starting {count} processes", count=len(self._children))
        for child in self._children:
            child.start()

    def stopService(self) -> Deferred[None]:
        """Fires when all children ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        for ended in [child.stop() for child in self._children]:
            await ended
        shutil.rmtree(self.folder, ignore_errors=True)

    def spawn(self, child: _Child) -> None:
        """Start the process of a child. :raises OSError: the system has no place for it."""
        sockets: list[Any] = self._ports
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith((PREFIX, "LISTEN_"))
        }
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self.reactor.spawnProcess(
            child,
            sys.executable,
            args=[
                sys.executable,
                # Without the working directory in front of what the parent would import.
                *("-P", "-m", "coverart.service.worker"),
                *(str(child.number), str(len(sockets)), str(os.getpid())),
                type(self.reactor).__module__,
            ],
            env={**kept, "PYTHONPATH": path, FOLDER_VARIABLE: self.folder, **self._settings},
            path=None,
            childFDs={
                0: "w",
                1: "r",
                2: "r",
                **{FIRST_SOCKET + i: port.fileno() for i, port in enumerate(sockets)},
            },
        )


class _Child(ProcessProtocol):
    """One place among the processes, and the process that fills it."""

    log = Logger()

    def __init__(self, parent: Processes, number: int, count: int) -> None:
        self.number = number
        self._parent = parent
        self._which = f"process {number} of {count}"
        self._pause_s = 0.0
        self._restart: IDelayedCall | None = None
        self._stopping = False
        self._ended: Deferred[None] = Deferred()

    def start(self) -> None:
        self._restart = None
        self._pid = 0
        self._began = self._parent.reactor.seconds()
        self._unfinished = {1: b"", 2: b""}
        try:
            self._parent.spawn(self)
        except OSError as error:
            self._again(f"could not be started ({error.strerror})")

    def connectionMade(self) -> None:
        process: Any = self.transport
        self._pid = process.pid
        self.log.info("{which} runs as pid {pid}", which=self._which, pid=self._pid)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Write what it logs, cut anywhere, to this process's log, an event at a time."""
        text = self._unfinished[childFD] + data
        *events, self._unfinished[childFD] = re.split(rb"\n(?!\t)", text)
        for event in events:
            # This process's log sets off further lines too.
            said = event.decode(errors="replace").replace("\n\t", "\n")
            self.log.info("{said}", said=said, log_system=f"process {self.number}")

    def processExited(self, reason: Failure) -> None:
        """It is gone; something it started might still hold its output, which is no matter."""
        pid, self._pid = self._pid, 0
        # What holds only for living processes counts no more for this one.
        mark_process_dead(self.number, self._parent.folder)
        if self._stopping:
            self._ended.callback(None)
        else:
            self._again(f"(pid {pid}) {_how(reason)}")

    def _again(self, what: str) -> None:
        lived_s = self._parent.reactor.seconds() - self._began
        self._pause_s = pause_s(self._pause_s, lived_s)
        self.log.warn(
            "{which} {what} after {lived_s:.1f} s; it is started again {when}",
            which=self._which,
            what=what,
            lived_s=lived_s,
            when=f"in {self._pause_s:g} s" if self._pause_s else "now",
        )
        self._restart = self._parent.reactor.callLater(self._pause_s, self.start)

    def stop(self) -> Deferred[None]:
        """Let it finish what it is at. Fires when it is gone."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        if self._pid:
            self._signal("TERM")
            kill = self._parent.reactor.callLater(GRACE_S, self._kill)
            self._ended.addCallback(lambda _: kill.cancel() if kill.active() else None)
        else:
            self._ended.callback(None)
        return self._ended

    def _kill(self) -> None:
        self.log.warn(
            "{which} did not end in {grace_s:g} s and is killed",
            which=self._which,
            grace_s=GRACE_S,
        )
        self._signal("KILL")

    def _signal(self, name: str) -> None:
        process: Any = self.transport
        process.signalProcess(name)


def _how(reason: Failure) -> str:
    """How a process ended, for people."""
    value = reason.value
    if isinstance(value, ProcessTerminated) and value.signal is not None:
        return f"was ended by {signal.Signals(value.signal).name}"
    code = getattr(value, "exitCode", 0)
    return f"ended with code {code}, its own lines in the log say why" if code else "ended"
