"""
The few ways in which asking for a cover can fail; everything the core raises is one of these.

Each error knows how it is told to a client (docs/api.md has the table): `status` is the HTTP status and
the message quotes nothing from the request. `detail`, for the operator's log, may say more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


class CoverError(Exception):
    """A request can't be answered with a cover. `detail` is for the log, never for the client."""

    status: int = 500
    said: str = "internal error"
    proxy_error: str = "proxy_internal_error"
    """The kind of trouble, as RFC 9209 section 2.3 registers it."""

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after_s: float | None = None,
        proxy_error: str | None = None,
    ) -> None:
        """:param proxy_error: where it is more than the class can tell."""
        super().__init__(detail or self.said)
        self.detail = detail or self.said
        self.retry_after_s = retry_after_s
        if proxy_error is not None:
            self.proxy_error = proxy_error
        self.host = ""
        """Which host of the archive failed, if one did."""
        self.received: int | None = None
        """The status with which that host answered."""
        self.hops = 0
        """Requests to the archive that were spent before it failed, for the log."""


class Malformed(CoverError):
    """The path names nothing the archive could have."""

    status = 400

    def __init__(self, why: str) -> None:
        """:param why: what is wrong with it, in words that quote nothing of it."""
        self.said = f"no such path: {why}"
        super().__init__()


class Refused(CoverError):
    """What a client asks for is refused, whatever the cache holds."""

    def __init__(
        self,
        status: int,
        said: str,
        headers: Mapping[bytes, bytes] | None = None,
        *,
        proxy_error: str | None = None,
    ) -> None:
        """:param headers: that go with the status."""
        self.status = status
        self.said = said
        self.headers = headers or {}
        super().__init__(proxy_error=proxy_error)


class NotInArchive(CoverError):
    """The archive said 404."""

    status = 404
    said = "no such art"


class FileNotInArchive(NotInArchive):
    """
    The art is there, but this file of it is not.

    As a rule a thumbnail that has not been derived yet: it comes soon.
    """


class BadUpstream(CoverError):
    """The archive answered with something that can't be trusted, or broke off."""

    status = 502
    said = "the archive gave no usable answer"
    proxy_error = "http_protocol_error"


class PassingTrouble(BadUpstream):
    """Trouble that the same request may not meet a moment later: a 500, a connection cut."""

    proxy_error = "connection_terminated"


class UpstreamTimeout(CoverError):
    """The archive took longer than COVER_ART_UPSTREAM_TIMEOUT, or fell silent."""

    status = 504
    said = "the archive is too slow"
    proxy_error = "http_response_timeout"


class Unavailable(CoverError):
    """Not now: a breaker is open or too much is waiting. `retry_after_s` says when to come back."""

    status = 503
    said = "try again later"
    proxy_error = "destination_unavailable"


class NotReached(Unavailable):
    """No connection to the archive: refused, no route, no such name. It is then not asked for a while."""

    said = "the archive can't be reached"


class Overloaded(Unavailable):
    """The fetch limit is reached: as much is being fetched, or waits to be, as may."""

    said = "too much is being fetched"
    proxy_error = "connection_limit_reached"


class StoreFailed(CoverError):
    """The cache directory does not take files: full, read-only, gone."""

    status = 503
    said = "the cache can't store files now"
    proxy_error = "proxy_internal_error"


class NotWanted(StoreFailed):
    """What arrives does not do for the one who asked: its head says that it is too large, or a PDF."""


class NobodyReads(StoreFailed):
    """What can't be stored is fetched no further: its clients have left, or wanted its head alone."""


class TooManyFetches(CoverError):
    """This client started as many fetches as one may; what is held it gets all the same."""

    status = 429

    def __init__(self, per_minute: int, wait_s: float) -> None:
        """:param wait_s: until it may start one more."""
        self.said = (
            f"too many covers fetched for this address, {per_minute} a minute may be: "
            f"try again in {max(1, math.ceil(wait_s))} s"
        )
        super().__init__(retry_after_s=wait_s)
