"""Headers and statuses of the contract (design section 5), for every route alike."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString

from coverart.cache.answers import Answer, Flowing, Passing, Pointed, Status
from coverart.errors import CoverError
from coverart.freshness import Lifetimes
from coverart.model import ImageRequest, ListingKey, MediaType
from coverart.web.access_log import LoggedRequest
from coverart.web.conditional import Span, Validators, asked_span, condition
from coverart.web.operator_hosts import OwnNames

log = Logger()

METHODS = b"GET, HEAD, OPTIONS"
IMMUTABLE = b"public, max-age=31536000, immutable"
RUNS_NOTHING = b"default-src 'none'; frame-ancestors 'none'; sandbox"
"""For what a browser might otherwise run: PDFs and errors."""
NOT_FOUND_LIFE = b"public, max-age=60"
"""As MetaBrainz's own front cache keeps a 404."""
RETRY_AFTER_S = 5.0

_JSON = b"application/json"
_OF_A_COVER = (b"x-cache-status", b"cache-status")
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


class MethodNotAllowed(CoverError):
    """This path does not understand that method."""

    status: ClassVar[int] = 405
    said = "method not allowed"

    def __init__(self, allow: bytes = METHODS) -> None:
        """:param allow: the methods that this path understands."""
        super().__init__()
        self.allow = allow


class NotByThisName(CoverError):
    """What is for operators was asked for by a name that a web page may have (host_names.py)."""

    status: ClassVar[int] = 403
    said = (
        "not by this name: ask by an address, as localhost, or by the host of COVER_ART_PUBLIC_URL"
    )


class RangeNotSatisfiable(CoverError):
    """Nothing of what the Range header asks for is there (RFC 9110 section 15.5.17)."""

    status: ClassVar[int] = 416
    said = "range not satisfiable"


class PreconditionFailed(CoverError):
    """If-Match or If-Unmodified-Since does not hold (RFC 9110 section 15.5.13)."""

    status: ClassVar[int] = 412
    said = "precondition failed"


def open_to_all(request: Request) -> None:
    """What every answer of an archive route carries, errors too."""
    set_header = request.setHeader
    set_header(b"access-control-allow-origin", b"*")
    set_header(b"x-content-type-options", b"nosniff")
    set_header(b"x-served-by", b"coverart")


def hidden_from_pages(request: Request, names: OwnNames) -> bool:
    """
    Take back that any web page may read the answer: one in an operator's browser asks from inside.

    :returns: whether it was asked for by a name that no page can have.
    """
    request.responseHeaders.removeHeader(b"access-control-allow-origin")
    hosts = request.requestHeaders.getRawHeaders(b"host", [])
    return names.include_all(host.decode("latin-1") for host in hosts)


def operators_only(request: Request, names: OwnNames) -> None:
    """The same. :raises NotByThisName: it was not."""
    if not hidden_from_pages(request, names):
        raise NotByThisName


def options(request: Request) -> bytes:
    """The answer to OPTIONS: a CORS preflight, or curiosity."""
    request.setHeader(b"allow", METHODS)
    request.setHeader(b"access-control-allow-methods", METHODS)
    request.setHeader(b"access-control-allow-headers", b"Range, If-None-Match, If-Modified-Since")
    request.setHeader(b"access-control-max-age", b"86400")
    request.responseHeaders.removeHeader(b"content-type")
    return b""


def refuse(request: LoggedRequest, error: CoverError) -> bytes:
    """An error as JSON that quotes nothing from the request; returns the body."""
    request.setResponseCode(error.status)
    if error.status >= 500:
        # A hit whose file could not be opened was announced before.
        for name in _OF_A_COVER:
            request.responseHeaders.removeHeader(name)
        request.tell(type(error).__name__, hops=error.hops)
    request.setHeader(b"content-type", _JSON)
    request.setHeader(b"content-security-policy", RUNS_NOTHING)
    if error.status == 404:
        request.setHeader(b"cache-control", NOT_FOUND_LIFE)
    else:
        request.setHeader(b"cache-control", b"no-store")
    if isinstance(error, MethodNotAllowed):
        request.setHeader(b"allow", error.allow)
    if error.status == 503:
        retry_after_s = max(1, math.ceil(error.retry_after_s or RETRY_AFTER_S))
        request.setHeader(b"retry-after", b"%d" % retry_after_s)
    if request.outcome == "-":
        request.tell(type(error).__name__, hops=error.hops)
    body = json.dumps({"error": error.said}).encode()
    return sized(request, body)


def explain(request: LoggedRequest, failure: Failure) -> bytes:
    """
    The answer to whatever went wrong in a route.

    What is not a CoverError is a mistake of ours: told to the operator, not to the client.
    """
    error = failure.value
    if isinstance(error, CoverError):
        return refuse(request, error)
    log.failure("answering {key}", failure, key=request.key)
    return refuse(request, CoverError())


def json_body(request: Request, document: dict[str, Any]) -> bytes:
    """An answer of the moment as JSON."""
    request.setHeader(b"content-type", _JSON)
    request.setHeader(b"cache-control", b"no-store")
    return sized(request, json.dumps(document).encode())


def sized(request: Request, body: bytes) -> bytes:
    """Declare the length of a body; returns what is to be sent of it: nothing for HEAD."""
    request.setHeader(b"content-length", b"%d" % len(body))
    return b"" if request.method == b"HEAD" else body


def say_status(request: LoggedRequest, answer: Answer | Pointed) -> None:
    """How an answer came about, for the client and for the log."""
    status, joined = answer.status, answer.joined
    told = _CACHE_STATUS[status, joined]
    unstored = answer.unstored if isinstance(answer, Flowing | Passing) else None
    if unstored is not None:
        told = f"{told.decode().removesuffix('; stored')}; stored=?0; detail={unstored}".encode()
    request.setHeader(b"x-cache-status", status.value.encode())
    request.setHeader(b"cache-status", told)
    # What a fetch took is told of who began it.
    request.tell(status.value, joined=joined, hops=0 if joined else answer.hops)


def cacheable(request: Request, thing: ImageRequest | ListingKey, lifetimes: Lifetimes) -> None:
    """How long clients may keep an answer: by an id for good, by a role for its lifetime."""
    if isinstance(thing, ListingKey):
        value = b"public, max-age=%d" % lifetimes.listing_s
    elif isinstance(thing.alias.name, int):
        value = IMMUTABLE
    else:
        value = b"public, max-age=%d" % lifetimes.alias_s
    request.setHeader(b"cache-control", value)


def typed(request: Request, media: MediaType | None) -> None:
    """The exact type of the bytes; None is a listing."""
    request.setHeader(b"content-type", _JSON if media is None else media.value.encode())
    if media is MediaType.PDF:
        request.setHeader(b"content-security-policy", RUNS_NOTHING)


def unchanged(request: LoggedRequest, validators: Validators) -> bool:
    """
    Say what identifies the answer, and whether the client has it already (304): no body then.

    :param validators: their size is not looked at if they have a tag.
    :raises PreconditionFailed: the client holds to a condition that is not met.
    """
    request.setHeader(b"etag", f'"{validators.etag}"'.encode())
    request.setHeader(b"last-modified", datetimeToString(validators.modified))
    request.setHeader(b"accept-ranges", b"bytes")
    decided = condition(request.getHeader, validators)
    if decided == 412:
        _without(request, _OF_THE_FILE)
        raise PreconditionFailed
    if decided is not None:
        request.setResponseCode(decided)
        _without(request, (b"content-type", b"content-security-policy", b"accept-ranges"))
        # Twisted would declare one for an answer that has none.
        request.defaultContentType = None
        return True
    return False


def span_to_send(request: LoggedRequest, validators: Validators) -> Span | None:
    """
    What of a body is to be sent, after the headers that say so were set; None if they are all.

    :raises PreconditionFailed: the client holds to a condition that is not met.
    :raises RangeNotSatisfiable: a range was asked for that is not there.

    Which headers go with which status is as nginx has it, which sends the same files.
    """
    if unchanged(request, validators):
        return None
    size = validators.size_bytes
    asked = asked_span(request.getHeader, validators) if request.method == b"GET" else None
    if asked is None:
        request.setHeader(b"content-length", b"%d" % size)
        return Span(0, size) if size and request.method == b"GET" else None
    _without(request, (b"accept-ranges",))
    if not asked:
        request.setHeader(b"content-range", b"bytes */%d" % size)
        _without(request, (b"last-modified",))
        raise RangeNotSatisfiable
    request.setResponseCode(206)
    request.setHeader(b"content-range", b"bytes %d-%d/%d" % (asked.start, asked.stop - 1, size))
    request.setHeader(b"content-length", b"%d" % (asked.stop - asked.start))
    return asked


_OF_THE_FILE = (b"etag", b"last-modified", b"accept-ranges", b"x-cache-status", b"cache-status")


def _without(request: Request, names: tuple[bytes, ...]) -> None:
    for name in names:
        request.responseHeaders.removeHeader(name)
