"""
Several processes behind one port: the parent binds the sockets, starts the others and watches.

The parent serves nobody. Each of its children (worker.py) inherits the listening sockets and
accepts from them, so a connection finds whoever is free, and while a child is missing the others
go on. A child's standard input is a pipe from the parent: its end tells the child to finish what
it is at and end, whether the parent was stopped or killed.

twisted.runner.procmon.ProcessMonitor restarts processes too, but can't hand sockets to them (it
calls spawnProcess without childFDs), counts a short life as any other, and says little.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from prometheus_client.multiprocess import mark_process_dead
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
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
"""A child that was told to end and did not is killed after so long; it needs 20 s at most."""
LONG_LIFE_S = 60.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0

_said = Logger(namespace="coverart")


@attrs.define
class Backoff:
    """How long to wait before a process that ended is started again; each place has its own."""

    quick_deaths: int = 0

    def pause_s(self, lived_s: float) -> float:
        """
        The pause after one more end: none after a long life, else twice the one before.

        :param lived_s: how long the process ran.
        """
        if lived_s >= LONG_LIFE_S:
            self.quick_deaths = 0
            return 0.0
        self.quick_deaths += 1
        # No power grows without end: the pauses stop growing long before.
        return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.quick_deaths - 1, 16)))


def check_listen(settings: Settings) -> None:
    """:raises ConfigError: COVER_ART_LISTEN has an endpoint that processes can't share."""
    for text in settings.listen:
        if text.partition(":")[0] not in SHARED_KINDS:
            raise ConfigError(
                f"{PREFIX}LISTEN={text!r}: with several processes it must be one of "
                f"{', '.join(sorted(SHARED_KINDS))}"
            )


class Processes(Service):
    """The parent: binds, starts, restarts, stops."""

    log = Logger()

    def __init__(
        self,
        *,
        count: int,
        endpoints: Sequence[IStreamServerEndpoint],
        settings: Mapping[str, str],
        relay: bool,
        reactor: Any,
    ) -> None:
        """
        :param settings: variables of the children, complete: they read no .env file.
        :param relay: write what the children say to this process's log, where that is more than
            the standard output that they inherit.
        """
        self._endpoints = endpoints
        self._settings = settings
        self._relay = relay
        self._reactor = reactor
        self._ports: list[IListeningPort] = []
        self._sockets: list[int] = []
        self._folder = ""
        self._children = [_Child(self, number) for number in range(1, count + 1)]

    def privilegedStartService(self) -> None:
        """Bind, while root's ports may still be bound."""
        super().privilegedStartService()
        self._bind()

    def startService(self) -> None:
        super().startService()
        self._bind()
        # New, so that it holds nothing of an earlier run.
        self._folder = tempfile.mkdtemp(prefix="coverart-metrics-")
        self.log.info("starting {count} processes", count=len(self._children))
        for child in self._children:
            child.start()

    def _bind(self) -> None:
        for endpoint in self._endpoints[len(self._ports) :]:
            bound: list[Any] = []
            endpoint.listen(_Nobody()).addBoth(bound.append)
            # All kinds that can be shared are bound at once.
            (port,) = bound
            if isinstance(port, Failure):
                with one_line():
                    port.raiseException()
            # Bound and listening, but the children accept. They may be many and come and go; as
            # long as this descriptor is open, nobody is refused.
            port.stopReading()
            self._ports.append(port)
            self._sockets.append(port.fileno())

    def stopService(self) -> Deferred[None]:
        """Fires when all children ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        self._ports, self._sockets = [], []
        await DeferredList([child.stop() for child in self._children])
        shutil.rmtree(self._folder, ignore_errors=True)

    def spawn(self, child: _Child) -> None:
        """Start the process of a child. :raises OSError: the system has no place for it."""
        reactor: Any = self._reactor
        arguments = [
            sys.executable,
            # Without the working directory in front of what the parent would import.
            *("-P", "-m", "coverart.service.worker"),
            str(child.number),
            str(len(self._sockets)),
            "relayed" if self._relay else "-",
            type(reactor).__module__,
        ]
        descriptors: dict[int, int | str] = {0: "w", 1: 1, 2: 2}
        if self._relay:
            descriptors |= {1: "r", 2: "r"}
        descriptors |= {FIRST_SOCKET + i: fd for i, fd in enumerate(self._sockets)}
        reactor.spawnProcess(
            child,
            sys.executable,
            args=arguments,
            env=self._environment(),
            path=None,
            childFDs=descriptors,
        )

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith((PREFIX, "LISTEN_"))
        }
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        own = {"PYTHONPATH": path, FOLDER_VARIABLE: self._folder}
        return kept | own | dict(self._settings)

    def dead(self, child: _Child) -> None:
        """What holds only for living processes counts no more for this one."""
        mark_process_dead(child.number, self._folder)

    @property
    def count(self) -> int:
        return len(self._children)

    @property
    def clock(self) -> Any:
        return self._reactor


class _Nobody(Factory):
    """Takes no connections."""

    noisy = False

    def logPrefix(self) -> str:
        return "coverart"

    def buildProtocol(self, _: object) -> None:
        return None


class _Child(ProcessProtocol):
    """One place among the processes, and the process that fills it."""

    log = Logger()

    def __init__(self, parent: Processes, number: int) -> None:
        self.number = number
        self._parent = parent
        self._backoff = Backoff()
        self._began = 0.0
        self._pid: int | None = None
        self._stopping = False
        self._restart: IDelayedCall | None = None
        self._ended: list[Deferred[None]] = []

    def start(self) -> None:
        self._restart = None
        self._began = self._parent.clock.seconds()
        self._lines = {1: _Lines(), 2: _Lines()}
        try:
            self._parent.spawn(self)
        except OSError as error:
            self._again(f"could not be started ({error.strerror})")

    def connectionMade(self) -> None:
        self._pid = self._process.pid
        self.log.info(
            "{which} runs as pid {pid}", which=self._which, pid=self._pid, number=self.number
        )

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._lines[childFD].take(data)

    def processExited(self, reason: Failure) -> None:
        """It is gone; something it started might still hold its output, which is no matter."""
        pid, self._pid = self._pid, None
        self._parent.dead(self)
        if self._stopping:
            for d in self._ended:
                d.callback(None)
            return
        self._again(f"(pid {pid}) {_how(reason)}")

    def _again(self, what: str) -> None:
        lived_s = self._parent.clock.seconds() - self._began
        pause_s = self._backoff.pause_s(lived_s)
        when = f"in {pause_s:g} s" if pause_s else "now"
        quick = self._backoff.quick_deaths
        self.log.warn(
            "{which} {what} after {lived_s:.1f} s; it is started again {when}{times}",
            which=self._which,
            what=what,
            lived_s=lived_s,
            when=when,
            times=f" ({quick} short lives in a row)" if quick > 1 else "",
        )
        self._restart = self._parent.clock.callLater(pause_s, self.start)

    def stop(self) -> Deferred[None]:
        """Let it finish what it is at. Fires when it is gone."""
        self._stopping = True
        ended: Deferred[None] = Deferred()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._pid is None:
            ended.callback(None)
            return ended
        self._process.closeStdin()
        kill = self._parent.clock.callLater(GRACE_S, self._kill)
        ended.addCallback(lambda _: kill.cancel() if kill.active() else None)
        self._ended.append(ended)
        return ended

    def _kill(self) -> None:
        self.log.warn(
            "{which} did not end in {grace_s:g} s and is killed",
            which=self._which,
            grace_s=GRACE_S,
        )
        self._process.signalProcess("KILL")

    @property
    def _process(self) -> Any:
        return self.transport

    @property
    def _which(self) -> str:
        return f"process {self.number} of {self._parent.count}"


class _Lines:
    """What a child says, as lines of the parent's log."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> None:
        """More of it, cut anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            _said.info("{line}", line=line.decode(errors="replace"))


def _how(reason: Failure) -> str:
    """How a process ended, for people."""
    value = reason.value
    if isinstance(value, ProcessTerminated) and value.signal is not None:
        return f"was ended by {signal.Signals(value.signal).name}"
    code = getattr(value, "exitCode", 0)
    return f"ended with code {code}, the reason is in its lines above" if code else "ended"
