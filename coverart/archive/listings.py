"""The archive's index.json: what is accepted as one, and its URLs turned to this proxy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from threading import Lock
from typing import Any

from coverart.archive.paths import parse, spell
from coverart.errors import BadUpstream, CoverError
from coverart.model import ImageRequest, MediaType

_ABSOLUTE = re.compile(r"https?://[^/?#]+(?P<path>/[^?#]*)", re.IGNORECASE)

_EXTENSIONS = {f".{media.extension}" for media in MediaType}

LARGEST_BYTES = 1 << 20
"""Some 1,500 images at 700 bytes each; the largest sets have hundreds."""
MOST_DEEP = 50
"""Levels of objects in lists in objects; the archive's own has five."""

_ONE_AT_A_TIME = Lock()
"""Each more would keep the event loop waiting for the interpreter by a turn of 5 ms."""


def check(body: bytes) -> None:
    """
    Accept a listing as it came. Call it in a thread.

    :raises BadUpstream: it is not a JSON object with a list of image objects, as
        https://musicbrainz.org/doc/Cover_Art_Archive/API describes; or rewrite() could not
        write it out again, however deep in the stack it is called.
    """
    with _ONE_AT_A_TIME:
        for _ in _rewritten(body, None):
            pass


def rewrite(body: bytes, public_url: str) -> bytes:
    """
    The listing with every image and thumbnail URL leading to this proxy. Call it in a thread.

    :param public_url: where clients reach the proxy, without a trailing slash.
    :raises BadUpstream: the body is not a listing.

    Old form and new alike. Only what this proxy can answer is rewritten; a URL that names
    nothing of the archive is left out of the listing, so that it can't lead clients elsewhere.
    Everything else (ids as numbers or strings, comments, unknown fields) stays as it is.
    """
    with _ONE_AT_A_TIME:
        # ASCII, as the archive writes it: half a surrogate pair has no UTF-8 form.
        return "".join(_rewritten(body, public_url)).encode("ascii")


def _rewritten(body: bytes, public_url: str | None) -> Iterator[str]:
    """
    The listing in pieces, an image each: no more of it than one image is ever parsed at once.

    So memory is bounded by the text, and the interpreter's lock is never held for long: a parser
    written in C keeps it from the beginning of a document to the end.
    """
    if len(body) > LARGEST_BYTES:
        raise BadUpstream(f"the archive sent a listing larger than {LARGEST_BYTES} bytes")
    try:
        # JSON between systems is UTF-8 (RFC 8259 section 8.1); Python would take UTF-16 too.
        text = _Text(body.decode("utf-8", "surrogatepass"))
        yield from _document(text, public_url)
        text.end()
    except RecursionError as error:
        raise BadUpstream("the archive sent a listing that nests without end") from error
    except ValueError as error:
        raise BadUpstream(
            "the archive sent a listing that is no JSON object with a list of images"
        ) from error


class _Text:
    """JSON text, from which values are taken in turn; ValueError where there is none."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def value(self, kind: type = object) -> Any:
        """The next value, whole, which is to be of this kind."""
        self._skip()
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        if not isinstance(value, kind):
            raise ValueError(self._at)  # noqa: TRY004 - of the text, not of the caller
        _check_depth(value)
        return value

    def sign(self, signs: str) -> str:
        """The next character, which is to be one of these."""
        self._skip()
        found = self._text[self._at : self._at + 1]
        if found == "" or found not in signs:
            raise ValueError(self._at)
        self._at += 1
        return found

    def follows(self, sign: str) -> bool:
        """Say whether this character is next, and take it if so."""
        self._skip()
        if not self._text.startswith(sign, self._at):
            return False
        self._at += len(sign)
        return True

    def end(self) -> None:
        """Nothing is left."""
        self._skip()
        if self._at != len(self._text):
            raise ValueError(self._at)

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = self._at if space is None else space.end()


def _document(text: _Text, public_url: str | None) -> Iterator[str]:
    listed = False
    before = text.sign("{")
    while before != "}":
        key = text.value(str)
        text.sign(":")
        yield f"{before}{_written(key)}:"
        if key != "images":
            yield _written(text.value())
        elif listed:
            # Readers differ in which of two they take.
            raise ValueError(key)
        else:
            listed = True
            yield from _images(text, public_url)
        before = text.sign(",}")
    yield before
    if not listed:
        raise ValueError("images")


def _images(text: _Text, public_url: str | None) -> Iterator[str]:
    before = text.sign("[")
    if text.follows("]"):
        yield "[]"
        return
    while before != "]":
        image = text.value(dict)
        if public_url is not None:
            _turn_image(image, public_url)
        yield before + _written(image)
        before = text.sign(",]")
    yield before


def _turn_image(image: dict[str, Any], public_url: str) -> None:
    if "image" in image:
        image["image"] = _turn(image["image"], public_url)
    thumbnails = image.get("thumbnails")
    if isinstance(thumbnails, dict):
        turned = {size: _turn(url, public_url) for size, url in thumbnails.items()}
        image["thumbnails"] = {size: url for size, url in turned.items() if url is not None}
    elif "thumbnails" in image:
        del image["thumbnails"]
    if image.get("image", "") is None:
        del image["image"]


def _check_depth(value: object) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    # The document is a level by itself.
    for _ in range(MOST_DEEP - 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise RecursionError


def _number(text: str) -> float:
    """A number with a fraction or an exponent, if a float holds it: infinity is no JSON."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def _no_number(name: str) -> None:
    """NaN and Infinity, which Python's parser takes and no client's does."""
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_number)
_written = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_SPACE = re.compile(r"[ \t\n\r]*")


def _turn(url: object, public_url: str) -> str | None:
    """
    This proxy's URL for one of the archive's, with the same extension; None if it has none.

    Spelled anew: what the archive answers may mean something else to who resolves its dots.
    """
    match = _ABSOLUTE.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        return None
    path = match["path"]
    try:
        thing = parse(path.encode("utf-8", "surrogatepass"))
    except CoverError:
        return None
    if not isinstance(thing, ImageRequest):
        return None
    extension = path[-4:] if path[-4:].lower() in _EXTENSIONS else ""
    return f"{public_url}{spell(thing)}{extension}"
