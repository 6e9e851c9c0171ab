"""The archive's index.json: what is accepted as one, and its URLs turned to this proxy (pure)."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from coverart.errors import BadUpstream, CoverError
from coverart.model import ImageRequest, MediaType
from coverart.request_path import parse, spell

_ABSOLUTE = re.compile(r"https?://[^/?#]+(?P<path>/[^?#]*)", re.IGNORECASE)

_EXTENSIONS = {f".{media.extension}" for media in MediaType}

MOST_DEEP = 50
"""Levels of objects in lists in objects; the archive's own has five."""


def check(body: bytes) -> None:
    """
    Accept a listing as it came.

    :raises BadUpstream: it is not a JSON object with a list of image objects, as
        https://musicbrainz.org/doc/Cover_Art_Archive/API describes; or rewrite() could not
        write it out again, however deep in the stack it is called.
    """
    _check_depth(_load(body))


def rewrite(body: bytes, public_url: str) -> bytes:
    """
    The listing with every image and thumbnail URL leading to this proxy.

    :param public_url: where clients reach the proxy, without a trailing slash.
    :raises BadUpstream: the body is not a listing.

    Old form and new alike. Only what this proxy can answer is rewritten; a URL that names
    nothing of the archive is left out of the listing, so that it can't lead clients elsewhere.
    Everything else (ids as numbers or strings, comments, unknown fields) stays as it is.
    """
    document = _load(body)
    for image in document["images"]:
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
    try:
        # ASCII, as the archive writes it: half a surrogate pair has no UTF-8 form.
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        raise BadUpstream("the archive sent a listing that can't be written out again") from error


def _load(body: bytes) -> dict[str, Any]:
    try:
        # JSON between systems is UTF-8 (RFC 8259 section 8.1); Python would take UTF-16 too.
        document = json.loads(
            body.decode("utf-8", "surrogatepass"),
            parse_constant=_no_number,
            parse_float=_number,
        )
    except (ValueError, RecursionError) as error:
        raise BadUpstream("the archive sent a listing that is not JSON") from error
    if not isinstance(document, dict):
        raise BadUpstream("the archive sent a listing that is not an object")
    images = document.get("images")
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise BadUpstream("the archive sent a listing without a list of images")
    return document


def _check_depth(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(MOST_DEEP):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise BadUpstream("the archive sent a listing that nests without end")


def _number(text: str) -> float:
    """A number with a fraction or an exponent, if a float holds it: infinity is no JSON."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def _no_number(name: str) -> None:
    """NaN and Infinity, which Python's parser takes and no client's does."""
    raise ValueError(name)


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
