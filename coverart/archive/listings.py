"""The archive's index.json: what is accepted as one, and where its URLs have the archive's host."""

from __future__ import annotations

import json
import math
import re
import secrets
from threading import Lock
from typing import Any, cast

from coverart.archive.paths import parse, spell
from coverart.errors import BadUpstream, CoverError
from coverart.model import ImageRequest, MediaType

_ABSOLUTE = re.compile(r"https?://[^/?#]+(?P<path>/[^?#]*)", re.IGNORECASE)

_EXTENSIONS = {f".{media.extension}" for media in MediaType}

LARGEST_BYTES = 1 << 20
"""Some 1,500 images at 700 bytes each; the largest sets have hundreds."""
_BASE = secrets.token_hex()
"""Stands for the proxy's base URL while a listing is written: no listing can hold it."""
MOST_DEEP = 50
"""Levels of objects in lists in objects; the archive's own has five."""

_ONE_AT_A_TIME = Lock()
"""
The parser keeps the interpreter's lock, 3 ms for the largest listing there may be, and what it makes of
one takes up to twenty times its size.
"""


def check(body: bytes) -> None:
    """
    Accept a listing as it came. Call it in a thread.

    :raises BadUpstream: it is not a JSON object with a list of image objects, as
        https://musicbrainz.org/doc/Cover_Art_Archive/API describes; or cut() could not
        write it out again, however deep in the stack it is called.
    """
    with _ONE_AT_A_TIME:
        _parsed(body)


def cut(body: bytes) -> tuple[bytes, ...]:
    """
    Cut a listing where the URL has to be put by which clients reach the proxy. Call it in a thread.

    :returns: pieces that make a listing with such a URL between any two; every image and
        thumbnail then leads to this proxy. The URL is without a slash at its end, and what of it
        a JSON string escapes is escaped.
    :raises BadUpstream: the body is not a listing.

    Old form and new alike. Only what this proxy can answer is cut; a URL that names
    nothing of the archive is left out of the listing, so that it can't lead clients elsewhere.
    Everything else (ids as numbers or strings, comments, unknown fields) stays as it is.
    """
    with _ONE_AT_A_TIME:
        listing = _parsed(body)
        for image in listing["images"]:
            _turn_image(image)
        # ASCII, as the archive writes it: half a surrogate pair has no UTF-8 form.
        text = json.dumps(listing, separators=(",", ":")).encode("ascii")
    return tuple(text.split(_BASE.encode()))


def _parsed(body: bytes) -> dict[str, Any]:
    if len(body) > LARGEST_BYTES:
        raise BadUpstream(f"the archive sent a listing larger than {LARGEST_BYTES} bytes")
    try:
        # JSON between systems is UTF-8 (RFC 8259 section 8.1); Python would take UTF-16 too.
        text = body.decode("utf-8", "surrogatepass")
        listing = json.loads(text, parse_constant=_no_number, parse_float=_number)
        _check_depth(listing)
    except RecursionError as error:
        raise BadUpstream("the archive sent a listing that nests without end") from error
    except ValueError:
        listing = None
    images = listing.get("images") if isinstance(listing, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise BadUpstream("the archive sent a listing that is no JSON object with a list of images")
    return cast("dict[str, Any]", listing)


def _turn_image(image: dict[str, Any]) -> None:
    if "image" in image:
        image["image"] = _turn(image["image"])
    thumbnails = image.get("thumbnails")
    if isinstance(thumbnails, dict):
        turned = {size: _turn(url) for size, url in thumbnails.items()}
        image["thumbnails"] = {size: url for size, url in turned.items() if url is not None}
    elif "thumbnails" in image:
        del image["thumbnails"]
    if image.get("image", "") is None:
        del image["image"]


def _check_depth(value: object) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MOST_DEEP):
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


def _turn(url: object) -> str | None:
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
    return f"{_BASE}{spell(thing)}{extension}"
