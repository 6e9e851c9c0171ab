"""
Conditional and range requests, decided from the headers alone (pure).

RFC 9110 sections 13 (conditions) and 14 (ranges). The validators have the form that nginx gives
static files, so that a client may hold one from either.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import attrs
from werkzeug.http import parse_etags, unquote_etag

from coverart.http_date import http_date

LONGEST_NUMBER = 18
"""Digits of a position; no file here has a size of more."""

Header = Callable[[str], str | None]


@attrs.frozen(kw_only=True)
class Validators:
    """What identifies the bytes of an answer: their size and the file's mtime, in whole seconds."""

    size_bytes: int
    modified: int
    tag: str | None = None
    """Set where the bytes are not those of the file."""

    @property
    def etag(self) -> str:
        """Without quotes. nginx's form: hexadecimal mtime and size."""
        return self.tag or f"{self.modified:x}-{self.size_bytes:x}"


@attrs.frozen
class Span:
    """Bytes `start` up to, not including, `stop`."""

    start: int
    stop: int

    def __bool__(self) -> bool:
        return self.start < self.stop


def condition(header: Header, validators: Validators) -> int | None:
    """
    Say whether a condition of the request decides the answer: 304, 412, or None to go on.

    Source: RFC 9110 section 13.2.2, in its order.
    """
    if_match, if_none_match = header("if-match"), header("if-none-match")
    if if_match is not None:
        if not parse_etags(if_match).contains(validators.etag):
            return 412
    elif (
        (said := header("if-unmodified-since"))
        and (since := http_date(said))
        and _date(validators) > since
    ):
        return 412
    if if_none_match is not None:
        return 304 if parse_etags(if_none_match).contains_weak(validators.etag) else None
    said = header("if-modified-since")
    return 304 if said and (since := http_date(said)) and _date(validators) <= since else None


def asked_span(header: Header, validators: Validators) -> Span | None:
    """
    The part of the body that is asked for.

    :returns: None for the whole; empty for 416, nothing of what is asked is there.

    A Range in another unit or of several parts asks for the whole, which a server may answer to
    any (RFC 9110 section 14.2), as does one whose If-Range names other bytes than these (section
    13.1.5). One that is malformed asks for nothing that is there: the RFC leaves that to the
    server, and nginx has it so.
    """
    text = header("range")
    if text is None or text[:6].lower() != "bytes=" or "," in text:
        return None
    if_range = header("if-range")
    # A weak tag is of no use here.
    these = _date(validators), (validators.etag, False)
    if if_range is not None and (http_date(if_range) or unquote_etag(if_range)) not in these:
        return None
    # By hand: a pattern of optional spaces beside each other takes the square of their number.
    first, dash, last = (part.strip(" ") for part in text[6:].partition("-"))
    numbers = [part for part in (first, last) if part]
    if not dash or not numbers or not all(map(_is_number, numbers)):
        return Span(0, 0)
    size = validators.size_bytes
    if not first:
        return Span(max(0, size - int(last)), size)
    start, stop = int(first), min(int(last) + 1, size) if last else size
    return Span(start, max(start, stop))


def _is_number(text: str) -> bool:
    return len(text) <= LONGEST_NUMBER and text.isascii() and text.isdigit()


def _date(validators: Validators) -> datetime:
    return datetime.fromtimestamp(validators.modified, UTC)
