"""One line a request in the log: what was asked, how it came about, what it cost."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request


class AccessLog:
    """
    Gathers lines and passes them on to the log, those that came meanwhile in one event.

    An event costs as much as a fifth of a hit. All lines of one but the first have their own time.
    """

    log = Logger(namespace="coverart.web.access_log")

    def __init__(self) -> None:
        self._lines: list[str] = []

    def tell(self, line: str) -> None:
        """Write a line with the next flush()."""
        if self._lines:
            line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}"
        self._lines.append(line)

    def flush(self) -> None:
        """Write what was told."""
        lines, self._lines = self._lines, []
        if lines:
            self.log.info("{lines}", lines="\n".join(lines))


class LoggedRequest(Request):
    """A request that tells the log about itself when it ends."""

    defaultContentType = None
    """Each answer says its own type; one without a body has none."""
    key = ""
    """What was asked for, in canonical spelling; never what the client wrote."""
    outcome = "-"
    """How the answer came about: its status, or the class of an error."""
    prefix = ""
    """What stood before the archive's path (public_url.py)."""
    base: str | None = None
    """Where the URLs of a listing or a redirect lead; None: the answer has none that lead here."""
    thing: Any = None
    """What the path asks for, once it was parsed."""
    found: Any = None
    """What the index knows of it, where that was looked up and is no hit."""
    hops = 0
    """What a fetch took, of who began it alone."""
    joined = False
    substitute = ""
    """The size that was sent in place of one that the archive has not made."""
    request_id = ""
    """Empty for hits: nothing went wrong, and they are many."""
    _began = 0.0

    def gotLength(self, length: int | None) -> None:  # noqa: ARG002
        # No route reads a body; Twisted would write a large one to the disk.
        super().gotLength(0)
        self._began = time.monotonic()

    def handleContentChunk(self, data: bytes) -> None:
        """Part of a body came (http_channel.py bounds it); it is dropped."""

    def getRequestHostname(self) -> bytes:
        # No route depends on it, but Klein takes it apart, and breaks over one that is no name.
        return b"localhost"

    def identify(self) -> str:
        """
        What tells this request from all others, in the answer and in the log.

        It is the one that nginx or another trusted proxy gave it, if it is as nginx makes them; else
        32 random hexadecimal digits.
        """
        if not self.request_id:
            given = self.requestHeaders.getRawHeaders(b"x-request-id", [b""])[-1]
            site: Any = self.site
            if site is not None and _ID.fullmatch(given) and site.trusts(self):
                self.request_id = given.decode()
            else:
                self.request_id = secrets.token_hex(16)
            self.setHeader(b"x-request-id", self.request_id.encode())
        return self.request_id

    def finish(self) -> None:
        super().finish()
        self._ended("")

    def connectionLost(self, reason: Failure) -> None:
        self._ended(" client left")
        super().connectionLost(reason)

    def _ended(self, how: str) -> None:
        site: Any = self.site
        if site is None:
            return  # Its connection ended before the request was whole.
        elapsed_s = time.monotonic() - self._began
        if self.joined:
            site.metrics.joined.inc()
        if self.substitute:
            site.metrics.substitute(self.substitute)
        if self.code >= 500:
            counted = "errors"
        elif self.outcome in _COUNTED:
            counted = _COUNTED[self.outcome]
        elif how:
            counted = "left"
        else:
            counted = "refused" if self.code >= 400 else "other"
        site.metrics.request(counted, self.sentLength, elapsed_s)
        outcome = f"{self.outcome}+joined" if self.joined else self.outcome
        if self.substitute:
            outcome += f"+{self.substitute}"
        method = self.method.decode() if self.method in (b"GET", b"HEAD") else "other"
        site.access_log.tell(
            f"{method} {self.key or 'unknown'} {self.code} {outcome} "
            f"{self.sentLength} B {elapsed_s:.4f} s {self.hops} hops{how}"
            + (f" id {self.request_id}" if self.request_id else "")
        )


_ID = re.compile(rb"[0-9a-f]{32}")
_COUNTED = {"HIT": "hits", "MISS": "misses", "STALE": "stale", "ABSENT": "absent"}
