"""What can't be answered: an error as JSON, which quotes nothing of the request."""

from __future__ import annotations

import json
import math

from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.errors import CoverError, Refused
from coverart.web.access_log import LoggedRequest
from coverart.web.headers import JSON, RUNS_NOTHING, sized

log = Logger()

NOT_FOUND_LIFE = b"public, max-age=60"
"""As MetaBrainz's own front cache keeps a 404."""
RETRY_AFTER_S = 5.0

_OF_A_COVER = (b"etag", b"last-modified", b"accept-ranges", b"x-cache-status", b"cache-status")
"""Headers that may have been set before it went wrong."""


def refuse(request: LoggedRequest, error: CoverError) -> bytes:
    """Set status and headers of an error; returns the body."""
    request.setResponseCode(error.status)
    request.setHeader(b"content-type", JSON)
    request.setHeader(b"content-security-policy", RUNS_NOTHING)
    request.setHeader(b"cache-control", NOT_FOUND_LIFE if error.status == 404 else b"no-store")
    if isinstance(error, Refused):
        for name, value in error.headers.items():
            request.setHeader(name, value)
    if error.status == 503:
        retry_after_s = max(1, math.ceil(error.retry_after_s or RETRY_AFTER_S))
        request.setHeader(b"retry-after", b"%d" % retry_after_s)
    if error.status not in (404, 416):
        for name in _OF_A_COVER:
            request.responseHeaders.removeHeader(name)
    if request.outcome == "-" or error.status >= 500:
        request.outcome, request.joined = type(error).__name__, False
        request.hops = error.hops
    return sized(request, json.dumps({"error": error.said}).encode())


def explain(request: LoggedRequest, failure: Failure) -> bytes:
    """
    The answer to whatever went wrong in a route.

    What is not a CoverError is a mistake of ours: told to the operator, not to the client.
    """
    error = failure.value
    if not isinstance(error, CoverError):
        log.failure("answering {key} failed, the client is told 500", failure, key=request.key)
        error = CoverError()
    return refuse(request, error)
