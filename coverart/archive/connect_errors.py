"""What a connection that failed is called (pure): the kinds of RFC 9209 section 2.3."""

from __future__ import annotations

from collections.abc import Iterator

from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.internet.error import (
    ConnectBindError,
    ConnectError,
    ConnectionClosed,
    ConnectionRefusedError,  # noqa: A004
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.python.failure import Failure

_KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (VerificationError, "tls_certificate_error"),
    (TLSError, "tls_protocol_error"),
    (DNSLookupError, "dns_error"),
    (ConnectionRefusedError, "connection_refused"),
    (NoRouteError, "destination_ip_unroutable"),
    ((ConnectTimeout, TCPTimedOutError), "connection_timeout"),
    ((ConnectBindError, ConnectError), "destination_unavailable"),
    (ConnectionClosed, "connection_terminated"),
)
"""The first that fits counts."""


def kind_of(error: BaseException) -> str | None:
    """
    The kind of an error with which an Agent's request ended; None if it is none of a connection.

    Of several reasons the most telling counts, as TLS that ends the connection.
    """
    reasons = list(_reasons(error))
    for kind, name in _KINDS:
        for reason in reasons:
            if isinstance(reason, kind):
                if kind is TLSError and "certificate verify failed" in str(reason):
                    return "tls_certificate_error"
                return name
    return None


def _reasons(error: BaseException) -> Iterator[BaseException]:
    yield error
    for reason in getattr(error, "reasons", ()):
        if isinstance(reason, Failure) and reason.value is not None:
            yield from _reasons(reason.value)
