"""Headers and statuses of the contract (docs/api.md), for every route alike, errors too."""

from __future__ import annotations

import json
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString

from coverart.cache.answers import Answer, Flowing, Held, Passing, Pointed, Status
from coverart.errors import CoverError, Refused
from coverart.freshness import Lifetimes
from coverart.model import ORIGINAL, ListingKey, MediaType, Thing
from coverart.web.access_log import LoggedRequest
from coverart.web.conditional import Span, Validators, asked_span, condition
from coverart.web.proxy_status import proxy_status, retry_after_s, told

METHODS = b"GET, HEAD, OPTIONS"
IMMUTABLE = b"public, max-age=31536000, immutable"
RUNS_NOTHING = b"default-src 'none'; frame-ancestors 'none'; sandbox"
"""For what a browser might otherwise run: errors."""
OF_A_PDF = (
    (b"content-security-policy", b"default-src 'none'; sandbox"),
    # A page that asks this of all that it embeds asks it of documents by their own word.
    (b"cross-origin-embedder-policy", b"require-corp"),
)
"""Any page may embed a PDF, as any may show an image; it is given no rights there."""
_EXPOSED = (
    b"Accept-Ranges, Cache-Status, Content-Length, Content-Range, ETag, Proxy-Status, "
    b"Retry-After, X-Cache-Status, X-Cover-Art-Substitute, X-Request-ID, X-Served-By"
)
"""What a script may read besides what the Fetch standard lets it read of any answer."""
OPEN_TO_ALL = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", _EXPOSED),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
"""Pages of any origin may show and read the answer."""
JSON = b"application/json"

NOT_FOUND_LIFE = b"public, max-age=60"
"""As MetaBrainz's own front cache keeps a 404."""

SUBSTITUTE = b"x-cover-art-substitute"

_OF_A_COVER = (
    *(b"etag", b"last-modified", b"accept-ranges"),
    *(b"x-cache-status", b"cache-status", SUBSTITUTE),
)
"""Headers that may have been set before it went wrong."""

log = Logger()

_CACHE_STATUS = {
    # RFC 9211: how this cache handled the request.
    (Status.HIT, False): b"coverart; hit",
    (Status.STALE, False): b"coverart; hit; fwd=stale; detail=refreshing",
    (Status.ABSENT, False): b"coverart; hit; detail=absent",
    (Status.MISS, False): b"coverart; fwd=uri-miss; stored",
    (Status.MISS, True): b"coverart; fwd=uri-miss; collapsed",
    (Status.HIT, True): b"coverart; hit; collapsed",
    (Status.STALE, True): b"coverart; hit; collapsed",
    (Status.ABSENT, True): b"coverart; hit; collapsed; detail=absent",
}


def open_to_all(request: Request) -> None:
    """What every answer of an archive route carries, errors too."""
    set_header = request.setHeader
    for name, value in OPEN_TO_ALL:
        set_header(name, value)
    set_header(b"x-content-type-options", b"nosniff")
    set_header(b"x-served-by", b"coverart")


def open_to_none(request: Request) -> None:
    """Take back that pages of other origins may read the answer."""
    for name, _ in OPEN_TO_ALL:
        request.responseHeaders.removeHeader(name)


def options(request: Request) -> bytes:
    """The answer to OPTIONS: a CORS preflight, or curiosity."""
    request.setHeader(b"allow", METHODS)
    request.setHeader(b"access-control-allow-methods", METHODS)
    request.setHeader(b"access-control-allow-headers", b"Range, If-None-Match, If-Modified-Since")
    request.setHeader(b"access-control-max-age", b"86400")
    return b""


def json_body(request: Request, document: dict[str, Any]) -> bytes:
    """An answer of the moment as JSON."""
    request.setHeader(b"content-type", JSON)
    request.setHeader(b"cache-control", b"no-store")
    return sized(request, json.dumps(document).encode())


def sized(request: Request, body: bytes) -> bytes:
    """Declare the length of a body; returns what is to be sent of it: nothing for HEAD."""
    request.setHeader(b"content-length", b"%d" % len(body))
    return b"" if request.method == b"HEAD" else body


def describe(request: LoggedRequest, answer: Answer | Pointed, lifetimes: Lifetimes) -> None:
    """
    Set the headers that say how an answer came about and how long it may be kept; note it for the log.

    By an id a client may keep it for good, by a role for its lifetime; a redirect too, since
    an operator may give the proxy another URL. What stands in for a size that the archive has not
    made says so, and is kept no longer than that is remembered.
    """
    status, joined = answer.status, answer.joined
    how = _CACHE_STATUS[status, joined]
    unstored = answer.unstored if isinstance(answer, Flowing | Passing) else None
    if unstored is not None:
        how = f"{how.decode().removesuffix('; stored')}; stored=?0; detail={unstored}".encode()
    request.setHeader(b"x-cache-status", status.value.encode())
    request.setHeader(b"cache-status", how)
    if status is not Status.HIT:
        request.identify()
    request.outcome, request.joined = status.value, joined
    request.hops = 0 if joined else answer.hops
    thing: Thing = request.thing
    substitute = answer.substitute if isinstance(answer, Held | Flowing) else None
    if substitute is not None:
        request.substitute = "original" if substitute == ORIGINAL else str(substitute)
        request.setHeader(SUBSTITUTE, request.substitute.encode())
        life = b"public, max-age=%d" % lifetimes.absent_thumb_s
    elif isinstance(thing, ListingKey):
        life = b"public, max-age=%d" % lifetimes.listing_s
    elif isinstance(thing.alias.name, int) and not isinstance(answer, Pointed):
        life = IMMUTABLE
    else:
        life = b"public, max-age=%d" % lifetimes.alias_s
    request.setHeader(b"cache-control", life)


def typed(request: Request, media: MediaType | None) -> None:
    """The exact type of the bytes; None is a listing."""
    request.setHeader(b"content-type", JSON if media is None else media.value.encode())
    if media is MediaType.PDF:
        for name, value in OF_A_PDF:
            request.setHeader(name, value)


def span_to_send(
    request: LoggedRequest, media: MediaType | None, validators: Validators
) -> Span | None:
    """
    What of a body is to be sent, after the headers that say so were set; None if they are all.

    :param media: as typed() takes it.
    :raises Refused: the client holds to a condition that is not met, or wants a range that is not
        there (RFC 9110 sections 15.5.13 and 15.5.17).

    Which headers go with which status is as nginx has it, which sends the same files.
    """
    size = validators.size_bytes
    request.setHeader(b"etag", f'"{validators.etag}"'.encode())
    request.setHeader(b"last-modified", datetimeToString(validators.modified))
    decided = condition(request.getHeader, validators)
    if decided == 412:
        raise Refused(412, "precondition failed")
    if decided == 304:
        request.setResponseCode(304)
        return None
    asked = asked_span(request.getHeader, validators) if request.method == b"GET" else None
    if asked is not None and not asked:
        request.responseHeaders.removeHeader(b"last-modified")
        raise Refused(416, "range not satisfiable", {b"content-range": b"bytes */%d" % size})
    typed(request, media)
    if asked is None:
        request.setHeader(b"accept-ranges", b"bytes")
        request.setHeader(b"content-length", b"%d" % size)
        return Span(0, size) if size and request.method == b"GET" else None
    request.setResponseCode(206)
    request.setHeader(b"content-range", b"bytes %d-%d/%d" % (asked.start, asked.stop - 1, size))
    request.setHeader(b"content-length", b"%d" % (asked.stop - asked.start))
    return asked


def refuse(request: LoggedRequest, error: CoverError) -> bytes:
    """Set status and headers of an error; returns the body."""
    request.setResponseCode(error.status)
    request.setHeader(b"content-type", JSON)
    request.setHeader(b"content-security-policy", RUNS_NOTHING)
    request.setHeader(b"cache-control", NOT_FOUND_LIFE if error.status == 404 else b"no-store")
    if isinstance(error, Refused):
        for name, value in error.headers.items():
            request.setHeader(name, value)
    body = told(error)
    request_id = request.identify()
    if error.status >= 500:
        request.setHeader(b"proxy-status", proxy_status(error))
        body["request_id"] = request_id
    if error.status in (429, 503):
        request.setHeader(b"retry-after", b"%d" % (retry_after_s(error) or 1))
    if error.status not in (404, 416):
        for name in _OF_A_COVER:
            request.responseHeaders.removeHeader(name)
    if request.outcome == "-" or error.status >= 500:
        request.outcome, request.joined = type(error).__name__, False
        request.hops = error.hops
    return sized(request, json.dumps(body).encode())


def explain(request: LoggedRequest, failure: Failure) -> bytes:
    """
    The answer to whatever went wrong in a route.

    What is not a CoverError is a mistake of ours: told to the operator, not to the client.
    """
    error = failure.value
    if not isinstance(error, CoverError):
        log.failure(
            "answering {key} failed, the client is told 500 (request {id})",
            failure,
            key=request.key,
            id=request.identify(),
        )
        error = CoverError()
    return refuse(request, error)
