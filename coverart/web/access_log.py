"""One line a request in the log: what was asked, how it came about, what it cost."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from coverart.metrics import Metrics

GATHER_S = 0.2


class AccessLog:
    """
    Passes lines on to the log: at once while they are few, several in one event when they are not.

    An event costs as much as a fifth of a hit. Lines that follow another within GATHER_S wait for
    the end of that time, each with its own time of day.
    """

    log = Logger(namespace="coverart.web.access_log")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._lines: list[str] = []
        self._timer: IDelayedCall | None = None

    def tell(self, line: str) -> None:
        """Write a line, now or soon."""
        if self._timer is None:
            self.log.info("{lines}", lines=line)
            self._timer = self._clock.callLater(GATHER_S, self._write)
            return
        self._lines.append(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}")

    def close(self) -> None:
        """Write what waits."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self._flush()

    def _write(self) -> None:
        self._timer = None
        if self._flush():
            self._timer = self._clock.callLater(GATHER_S, self._write)

    def _flush(self) -> bool:
        lines, self._lines = self._lines, []
        if lines:
            self.log.info("{lines}", lines="\n".join(lines))
        return bool(lines)


class LoggedRequest(Request):
    """A request that tells the log about itself when it ends."""

    key = ""
    """What was asked for, in canonical spelling; never what the client wrote."""
    outcome = "-"
    thing: Any = None
    """What the path asks for, once it was parsed."""
    hops = 0
    joined = False
    _began = 0.0
    _told = False

    def gotLength(self, length: int | None) -> None:  # noqa: ARG002
        # No route reads a body; Twisted would write a large one to the disk.
        super().gotLength(0)

    def handleContentChunk(self, data: bytes) -> None:
        """Part of a body came (channel.py bounds it); it is dropped."""

    def getRequestHostname(self) -> bytes:
        # No route depends on it, but Klein takes it apart, and breaks over one that is no name.
        return b"localhost"

    def process(self) -> None:
        self._began = time.monotonic()
        channel: Any = self.channel
        channel.site.begun(channel)
        super().process()

    def tell(self, outcome: str, *, joined: bool = False, hops: int = 0) -> None:
        """Note how the answer came about."""
        self.outcome = outcome
        self.joined = joined
        self.hops = hops

    def finish(self) -> None:
        channel: Any = self.channel
        super().finish()
        self._tell("")
        channel.site.ended(channel)

    def connectionLost(self, reason: Failure) -> None:
        self._tell(" client left")
        super().connectionLost(reason)

    def _tell(self, end: str) -> None:
        if self._told:
            return
        self._told = True
        elapsed_s = time.monotonic() - self._began if self._began else 0.0
        self._count(elapsed_s, left=bool(end))
        outcome = f"{self.outcome}+joined" if self.joined else self.outcome
        method = "HEAD" if self.method == b"HEAD" else "GET" if self.method == b"GET" else "other"
        line = (
            f"{method} {self.key or 'unknown'} {self.code} {outcome} "
            f"{self.sentLength} B {elapsed_s:.4f} s {self.hops} hops{end}"
        )
        site: Any = self.site
        if site is not None:
            site.access_log.tell(line)

    def _count(self, elapsed_s: float, *, left: bool) -> None:
        site: Any = self.site
        if site is None:
            return  # Its connection ended before the request was whole.
        metrics: Metrics = site.metrics
        if self.joined:
            metrics.joined.inc()
        if self.code >= 500:
            outcome = "errors"
        elif self.outcome in _COUNTED:
            outcome = _COUNTED[self.outcome]
        elif left:
            outcome = "left"
        else:
            outcome = "refused" if self.code >= 400 else "other"
        metrics.request(outcome, self.sentLength, elapsed_s)


_COUNTED = {"HIT": "hits", "MISS": "misses", "STALE": "stale", "ABSENT": "absent"}
