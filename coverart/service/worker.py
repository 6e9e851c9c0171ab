"""
One of several processes behind a port: `python -m coverart.service.worker`, started by processes.py.

Nobody else starts it: it takes its listening sockets as open descriptors and its settings, whole,
from the environment. It ends in order by SIGTERM, or within a second when its parent is gone.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from prometheus_client import values
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import FileLogObserver, LogEvent, eventAsText, globalLogBeginner

from coverart.metrics import FOLDER_VARIABLE
from coverart.service.settings import ConfigError, load
from coverart.service.timers import go_by_monotonic_time, repeat
from coverart.web.connection_limits import GatedEndpoint

PARENT_EVERY_S = 1.0
FIRST_SOCKET = 3
"""The descriptor of the first listening socket; the others follow."""


def inherited(reactor: Any, fd: int) -> IStreamServerEndpoint:
    """A listening socket that this process was given."""
    with socket.socket(fileno=os.dup(fd)) as looked_at:
        family = looked_at.family
    return GatedEndpoint(AdoptedStreamServerEndpoint(reactor, fd, family), _keep_path)


def _keep_path(port: Any) -> Any:
    """Twisted's own stop removes the path of a Unix socket, which other processes still need."""

    def stop() -> None:
        port.disconnecting = True
        port.stopReading()

    if port.addressFamily is socket.AF_UNIX:
        port.stopListening = stop
    return port


def _text(event: LogEvent) -> str:
    """One event for the parent, which adds the time: further lines of it begin with a tab."""
    return eventAsText(event, includeTimestamp=False).replace("\n", "\n\t") + "\n"


def main(number: int, sockets: int, parent: int, reactor_module: str) -> None:
    """Serve until told to end."""
    # Ctrl-C reaches every process of the terminal; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    importlib.import_module(reactor_module).install()
    # Not before: something in there takes the reactor, and would have chosen one.
    from twisted.internet import reactor as reactor_

    from coverart.service.wiring import assemble

    reactor: Any = reactor_

    def end() -> None:
        # Told so by the parent, by who started the parent, or both.
        with suppress(ReactorNotRunning):
            reactor.stop()

    signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(end))
    go_by_monotonic_time(reactor)
    globalLogBeginner.beginLoggingTo([FileLogObserver(sys.stdout, _text)])
    # By the number of its place, not by pid: a process started again goes on counting where the
    # one before left off, and there are never more files than places.
    values.ValueClass = values.MultiProcessValue(lambda: number)
    endpoints = [inherited(reactor, FIRST_SOCKET + i) for i in range(sockets)]
    try:
        service = assemble(load(os.environ), reactor, endpoints=endpoints)
    except ConfigError as error:
        raise SystemExit(f"coverart: {error}") from error
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    service.startService()

    async def look_for_the_parent() -> None:
        if os.getppid() != parent:
            end()

    repeat(reactor, PARENT_EVERY_S, "looking for the parent", look_for_the_parent)
    reactor.run(installSignalHandlers=False)
    if os.getppid() != parent:
        shutil.rmtree(os.environ[FOLDER_VARIABLE], ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
