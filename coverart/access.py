"""One line a request in the log: what was asked, how it came about, what it cost."""

from __future__ import annotations

import time
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request


class LoggedRequest(Request):
    """A request that tells the log about itself when it ends."""

    log = Logger(namespace="coverart.access")

    key = ""
    """What was asked for, in canonical spelling; never what the client wrote."""
    outcome = "-"
    thing: Any = None
    """What the path asks for, once it was parsed."""
    hops = 0
    _began = 0.0
    _told = False

    def process(self) -> None:
        self._began = time.monotonic()
        super().process()

    def tell(self, outcome: str, *, joined: bool = False, hops: int = 0) -> None:
        """Note how the answer came about."""
        self.outcome = f"{outcome}+joined" if joined else outcome
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
        elapsed_s = time.monotonic() - self._began
        method = "HEAD" if self.method == b"HEAD" else "GET" if self.method == b"GET" else "other"
        line = (
            f"{method} {self.key or 'unknown'} {self.code} {self.outcome} "
            f"{self.sentLength} B {elapsed_s:.4f} s {self.hops} hops{end}"
        )
        self.log.info(
            "{line}",
            line=line,
            key=self.key,
            code=self.code,
            outcome=self.outcome,
            size_bytes=self.sentLength,
            elapsed_s=elapsed_s,
            hops=self.hops,
        )
