"""
What went wrong, at which host, and when it is tried again: for people, for programs, and as
Proxy-Status (RFC 9209). Nothing of the request is quoted (pure).
"""

from __future__ import annotations

import math
from typing import Any

from coverart.errors import CoverError, Overloaded, StoreFailed, Unavailable

RETRY_AFTER_S = 5.0

_HAPPENED = {
    "connection_read_timeout": "{host} fell silent in the middle of an answer",
    "connection_refused": "{host} refuses connections",
    "connection_terminated": "{host} broke off",
    "connection_timeout": "no connection to {host} in time",
    "destination_ip_unroutable": "no way leads to {host}",
    "destination_unavailable": "{host} failed and is not asked for a while",
    "dns_error": "the name {host} can't be resolved",
    "http_response_body_size": "the answer of {host} is too large",
    "http_response_incomplete": "the answer of {host} was cut short",
    "http_response_timeout": "{host} did not answer in time",
    "tls_certificate_error": "{host} has no valid certificate",
    "tls_protocol_error": "{host} can't be spoken to by TLS",
}
_ANY = "{host} gave no usable answer"


def retry_after_s(error: CoverError) -> int | None:
    """Whole seconds after which to ask again, one at least; None: at once."""
    seconds = error.retry_after_s
    if error.status in (429, 503):
        seconds = seconds or RETRY_AFTER_S
    return None if seconds is None else max(1, math.ceil(seconds))


def told(error: CoverError) -> dict[str, Any]:
    """The body of an error's answer; below 500 it is one sentence."""
    if error.status < 500:
        return {"error": error.said}
    wait_s = retry_after_s(error)
    body: dict[str, Any] = {"error": _sentence(error, wait_s), "cause": error.proxy_error}
    if error.host:
        body["host"] = error.host
    if _failed(error):
        body["received_status"] = error.received
    if wait_s is not None:
        body["retry_after_s"] = wait_s
    return body


def proxy_status(error: CoverError) -> bytes:
    """The header's value, of a 5xx: what `told` says, as a structured field (RFC 8941)."""
    words = f"coverart; error={error.proxy_error}"
    if error.host:
        words += f"; next-hop={_string(error.host)}"
    if _failed(error):
        words += f"; received-status={error.received}"
    return f"{words}; details={_string(_sentence(error, retry_after_s(error)))}".encode()


def _failed(error: CoverError) -> bool:
    """Whether the host answered, with a status that says that it failed."""
    return error.received is not None and error.received >= 400


def _sentence(error: CoverError, wait_s: int | None) -> str:
    if type(error).status == 500 or isinstance(error, Overloaded | StoreFailed):
        # Nobody but this proxy is to blame.
        return error.said if wait_s is None else f"{error.said}; try again in {wait_s} s"
    host = error.host or "the archive"
    if _failed(error):
        happened = f"{host} answered {error.received}"
    else:
        happened = _HAPPENED.get(error.proxy_error, _ANY).format(host=host)
    if wait_s is None:
        return f"{happened}; the next request asks it again"
    asked = "is asked again" if isinstance(error, Unavailable) else "may be asked again"
    return f"{happened}; it {asked} in {wait_s} s"


def _string(text: str) -> str:
    """A string of a structured field (RFC 8941 section 3.3.3): printable ASCII in quotes."""
    kept = "".join(each if " " <= each <= "~" else "?" for each in text)
    escaped = kept.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
