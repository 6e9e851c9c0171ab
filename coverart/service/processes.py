"""
Several processes behind one port: the parent binds the sockets, starts the others and watches.

The parent serves nobody. Each of its children (worker.py) inherits the listening sockets and
accepts from them. They share one queue of new connections: one that waits in it is taken by whoever
is free, and is lost with no process. With sockets of their own (SO_REUSEPORT) the kernel would deal
connections out to each, and reset those that wait for a process that ends.

Twisted's ProcessMonitor starts, restarts and ends them. What it can't do is here: it hands over no
sockets, does not wait for their end, and does not say why one ended.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from prometheus_client.multiprocess import mark_process_dead
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.runner.procmon import LoggingProtocol, ProcessMonitor

from coverart.metrics import FOLDER_VARIABLE
from coverart.service.settings import PREFIX, ConfigError, Settings
from coverart.service.worker import FIRST_SOCKET

SHARED_KINDS = frozenset({"tcp", "tcp6", "unix", "systemd"})
LOOK_EVERY_S = 0.05


def check_listen(settings: Settings) -> None:
    """:raises ConfigError: COVER_ART_LISTEN has an endpoint that processes can't share."""
    for text in settings.listen:
        if text.partition(":")[0] not in SHARED_KINDS:
            raise ConfigError(
                f"{PREFIX}LISTEN={text!r}: with several processes it must be one of "
                f"{', '.join(sorted(SHARED_KINDS))}"
            )


class Processes(ProcessMonitor):
    """The parent's work beside listening: it starts, restarts and stops the children."""

    # After a short life, a pause of one second, doubled each time up to the most; in seconds.
    threshold = 60
    maxRestartDelay = 60
    # A child that was told to end needs 20 at most.
    killTime = 30

    def __init__(self, *, count: int, settings: Mapping[str, str], reactor: Any) -> None:
        """:param settings: variables of the children, complete: they read no .env file."""
        super().__init__(reactor)
        self.reactor = reactor
        self._settings = settings
        self._ports: list[Any] = []
        for number in range(1, count + 1):
            self.addProcess(f"process {number}", [])

    def hand_over(self, port: Any) -> IListeningPort:
        """Let children accept of it. As long as it is open here, nobody is refused."""
        port.stopReading()
        self._ports.append(port)
        return port  # type: ignore[no-any-return]

    def startService(self) -> None:
        # New, so that it holds nothing of an earlier run.
        self.folder = tempfile.mkdtemp(prefix="coverart-metrics-")
        """Where the children count."""
        super().startService()

    def startProcess(self, name: str) -> None:
        number = name.removeprefix("process ")
        # What holds only for living processes counts no more for the one before.
        mark_process_dead(number, self.folder)
        child = _Child()
        child.service = self
        child.name = name
        self.protocols[name] = child
        self.timeStarted[name] = self.reactor.seconds()
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith((PREFIX, "LISTEN_"))
        }
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        sockets = {FIRST_SOCKET + i: port.fileno() for i, port in enumerate(self._ports)}
        try:
            self.reactor.spawnProcess(
                child,
                sys.executable,
                args=[
                    sys.executable,
                    # Without the working directory in front of what the parent would import.
                    *("-P", "-m", "coverart.service.worker"),
                    *(number, str(len(sockets)), str(os.getpid())),
                    type(self.reactor).__module__,
                ],
                env={**kept, "PYTHONPATH": path, FOLDER_VARIABLE: self.folder, **self._settings},
                childFDs={0: "w", 1: "r", 2: "r", **sockets},
            )
        except OSError:
            self.log.failure("{name} can't be started; it is tried again later", name=name)
            del self.protocols[name]
            again = self.reactor.callLater(self.maxRestartDelay, self.startProcess, name)
            self.restart[name] = again

    def stopService(self) -> Deferred[None]:  # type: ignore[override]
        """Fires when all children ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._children_ended())

    async def _children_ended(self) -> None:
        while self.protocols:
            await deferLater(self.reactor, LOOK_EVERY_S)
        shutil.rmtree(self.folder, ignore_errors=True)


class _Child(LoggingProtocol):
    """What a child says, and how it ended, for this process's log."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self._unfinished = {1: b"", 2: b""}
        process: Any = self.transport
        self.service.log.info("{name} runs as pid {pid}", name=self.name, pid=process.pid)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Log what it logs, cut anywhere, an event at a time: a line each would cost much more."""
        text = self._unfinished[childFD] + data
        *events, self._unfinished[childFD] = re.split(rb"\n(?!\t)", text)
        for event in events:
            # This process's log sets off further lines too.
            said = event.decode(errors="replace").replace("\n\t", "\n")
            self.service.log.info("{said}", said=said, log_system=self.name)

    def processEnded(self, reason: Failure) -> None:
        self.service.log.warn("{name}: {how}", name=self.name, how=reason.getErrorMessage())
        super().processEnded(reason)
