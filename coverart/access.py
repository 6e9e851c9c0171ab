"""One line a request in the log: what was asked, how it came about, what it cost."""

from __future__ import annotations

import time
from typing import Any

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.web.server import Request

from coverart.metrics import Metrics


class LoggedRequest(Request):
    """A request that tells the log about itself when it ends."""

    log = Logger(namespace="coverart.access")

    key = ""
    """What was asked for, in canonical spelling; never what the client wrote."""
    outcome = "-"
    thing: Any = None
    """What the path asks for, once it was parsed."""
    hops = 0
    joined = False
    _began = 0.0
    _told = False

    def process(self) -> None:
        self._began = time.monotonic()
        super().process()

    def tell(self, outcome: str, *, joined: bool = False, hops: int = 0) -> None:
        """Note how the answer came about."""
        self.outcome = outcome
        self.joined = joined
        self.hops = hops

    def finish(self) -> None:
        super().finish()
        self._tell("")

    def connectionLost(self, reason: Failure) -> None:
        self._tell(" client left")
        super().connectionLost(reason)

    def _tell(self, end: str) -> None:
        if self._told:
            return
        self._told = True
        # The text is put together here, once: formatting by field costs a third of a hit.
        elapsed_s = time.monotonic() - self._began if self._began else 0.0
        self._count(elapsed_s, left=bool(end))
        outcome = f"{self.outcome}+joined" if self.joined else self.outcome
        method = "HEAD" if self.method == b"HEAD" else "GET" if self.method == b"GET" else "other"
        line = (
            f"{method} {self.key or 'unknown'} {self.code} {outcome} "
            f"{self.sentLength} B {elapsed_s:.4f} s {self.hops} hops{end}"
        )
        # Handed to the publisher as Logger.info() would, but with the line as its own format (it
        # holds canonical names and numbers, never a brace) and its system named, which spares
        # the formatter half of its work.
        self.log.observer(
            {
                "log_format": line,
                "log_level": LogLevel.info,
                "log_namespace": self.log.namespace,
                "log_system": self.log.namespace,
                "log_logger": self.log,
                "log_time": time.time(),
                "key": self.key,
                "code": self.code,
                "outcome": outcome,
                "size_bytes": self.sentLength,
                "elapsed_s": elapsed_s,
                "hops": self.hops,
            }
        )

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
