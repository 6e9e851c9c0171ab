"""
From the path of a request to the canonical thing it asks for (pure).

The archive's redirect service is loose, and its clients rely on that. What it answers is answered
here, however it is spelled, and what it refuses is refused: its code is the contract
(metabrainz/artwork-redirect, artwork_redirect/request.py). Each thing has one key, and only a key
ever becomes a file name, so that a path can't name a file that the archive has no name for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from coverart.errors import Malformed, NotInArchive
from coverart.model import ORIGINAL, SIZES, AliasKey, Entity, ImageRequest, ListingKey, Name, Thing

_MBID = rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_WHOLE = re.compile(rb"/(?:[!-$&-~]|%(?!00)[0-9a-fA-F]{2})*")
"""What HTTP servers take: printable ASCII, the rest encoded (RFC 3986 section 2.1), and no NUL."""
_IS_MBID = re.compile(_MBID).fullmatch
_SIZES = {str(size).encode(): size for size in SIZES}
_FILE = re.compile(
    rb"mbid-(?P<mbid>" + _MBID + rb")/mbid-(?P<again>" + _MBID + rb")-(?P<id>[0-9]+)"
    rb"(?:_thumb(?P<size>" + b"|".join(_SIZES) + rb"))?\.(?i:jpe?g|png|gif|pdf)"
)
_ENTITIES = {entity.value.encode(): entity for entity in Entity}
_MOST_DIGITS = 18
"""Limit of digits of an id, a PostgreSQL bigint: 18 always fit 63 bits."""
_LONGEST = 8192
"""As much as nginx takes for a whole request line."""


def parse(path: bytes) -> Thing:
    """
    Say what a path asks for.

    :param path: the path as it came over the wire, still percent-encoded, without the query.
    :raises Malformed: the archive refuses it too; the error says why and quotes nothing of it.
    :raises NotInArchive: it asks for an id that no image can have.

    The path is decoded once. Doubled slashes, segments of a single dot, and all that follows the
    name of an image do not count. A name that begins with "front" or "back" is that, else its
    leading digits are the id; a size is what follows the last dash, if it begins with one.
    Only this is not the archive's: an MBID in upper case is taken as lower case, and the file names
    of archive.org are understood below /download.
    """
    if len(path) > _LONGEST:
        raise Malformed("it is too long")
    if not _WHOLE.fullmatch(path):
        raise Malformed("it has bytes that no URL has, or encodes one wrongly")
    first, _, rest = unquote_to_bytes(path).lstrip(b"/").partition(b"/")
    # The last segment counts though it be a dot, as in the archive.
    *middle, last = rest.split(b"/")
    segments = [each for each in middle if each not in (b"", b".")] + [last]
    if first == b"download":
        return _file(segments)
    if (entity := _ENTITIES.get(first)) is None:
        raise Malformed("it begins with release, release-group, event or download")
    if not _IS_MBID(segments[0]):
        raise Malformed("an MBID has 8-4-4-4-12 hexadecimal digits")
    mbid = segments[0].decode().lower()
    if not (name := b"".join(segments[1:2])):
        return ListingKey(entity=entity, mbid=mbid)
    _, dash, size = name.rpartition(b"-")
    return ImageRequest(
        alias=AliasKey(entity=entity, mbid=mbid, name=_name(entity, name, segments[2:])),
        size=next(
            (n for digits, n in _SIZES.items() if dash and size.startswith(digits)), ORIGINAL
        ),
    )


def _name(entity: Entity, name: bytes, further: Sequence[bytes]) -> Name:
    depth = 3
    for each in further:
        depth += -1 if each == b".." else bool(each)
        if depth < 0:
            # nginx refuses that by itself, before the archive's code as before this.
            raise Malformed("it climbs above its root")
    if name.startswith(b"front"):
        return "front"
    if entity is Entity.RELEASE_GROUP:
        raise Malformed("of a release group there is only the front")
    if name.startswith(b"back") and entity is Entity.RELEASE:
        return "back"
    return _id(name)


def _id(name: bytes) -> int:
    digits = name[: len(name) - len(name.lstrip(b"0123456789"))]
    if not digits:
        raise Malformed("an id begins with digits")
    significant = digits.lstrip(b"0")
    if not 0 < len(significant) <= _MOST_DIGITS:
        raise NotInArchive("no image has such an id")
    return int(significant)


def _file(segments: Sequence[bytes]) -> ImageRequest:
    file = _FILE.fullmatch(b"/".join(segments))
    # Items of events look the same; clients build this spelling for releases only.
    if file is None or file["mbid"].lower() != file["again"].lower():
        raise Malformed("a download is mbid-MBID/mbid-MBID-ID.jpg, with the same MBID twice")
    return ImageRequest(
        alias=AliasKey(
            entity=Entity.RELEASE, mbid=file["mbid"].decode().lower(), name=_id(file["id"])
        ),
        size=_SIZES.get(file["size"], ORIGINAL),
    )


def spell(thing: Thing) -> str:
    """The canonical path of a thing: parse() of it gives the thing back."""
    if isinstance(thing, ListingKey):
        return f"/{thing.entity.value}/{thing.mbid}/"
    size = "" if thing.size == ORIGINAL else f"-{thing.size}"
    return f"/{thing.alias.entity.value}/{thing.alias.mbid}/{thing.alias.name}{size}"
