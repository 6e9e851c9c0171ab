"""Requests as the web modules get them, without a connection."""

from __future__ import annotations

from twisted.web.test.requesthelper import DummyChannel

from coverart.web.access_log import LoggedRequest


def request(method: bytes = b"GET", **headers: str) -> LoggedRequest:
    """A request as it came in."""
    made = LoggedRequest(DummyChannel(), False)
    made.method = method
    made.clientproto = b"HTTP/1.1"
    for name, value in headers.items():
        made.requestHeaders.setRawHeaders(name.replace("_", "-"), [value])
    return made


def header(made: LoggedRequest, name: str) -> str | None:
    """A header of the answer."""
    values = made.responseHeaders.getRawHeaders(name)
    return None if values is None else str(values[-1])
