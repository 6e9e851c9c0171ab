"""
From the path of a request to the canonical thing it asks for; everything else is malformed.

The archive's redirect service is loose (any name that starts with "front" is the front, sizes
match by prefix). Here each thing has one key however it is spelled, and only a key ever becomes
a file name, so a path can't name a file that the archive has no name for.
"""

from __future__ import annotations

import re

from coverart.errors import Malformed
from coverart.model import ORIGINAL, AliasKey, Entity, ImageRequest, ListingKey, Name

_MBID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_ID = "[1-9][0-9]{0,17}"
"""Ids are PostgreSQL bigints without leading zeros; 18 digits always fit 63 bits."""
_EXTENSION = r"\.(?i:jpg|jpeg|png|gif|pdf)"

_ART = re.compile(
    f"/(?P<entity>release|release-group|event)/(?P<mbid>{_MBID})"
    f"(?:/?|/(?P<name>front|back|{_ID})(?:-(?P<size>250|500|1200))?(?:{_EXTENSION})?)"
)
_DOWNLOAD = re.compile(
    f"/download/mbid-(?P<mbid>{_MBID})/mbid-(?P<again>{_MBID})-(?P<id>{_ID})"
    f"(?:_thumb(?P<size>250|500|1200))?{_EXTENSION}"
)
_NAMES = {
    Entity.RELEASE: re.compile("front|back|[0-9]+"),
    Entity.RELEASE_GROUP: re.compile("front"),
    Entity.EVENT: re.compile("front|[0-9]+"),
}
_LONGEST = 160
"""Longer than any path above; nothing longer is looked at."""


def parse(path: bytes) -> ImageRequest | ListingKey:
    """
    Say what a path asks for.

    :param path: the path as it came over the wire, still percent-encoded, without the query.
        No canonical path needs an encoded byte, so one that has any is malformed.
    :raises Malformed: it is none of the archive's paths (design section 5 lists them).

    An MBID in upper case is taken as lower case. The extension asked for is dropped, as the
    archive drops it: the type of an answer is that of its bytes.
    """
    if len(path) > _LONGEST or not path.isascii():
        raise Malformed("path too long or not ASCII")
    text = path.decode("ascii")
    if (art := _ART.fullmatch(text)) is not None:
        entity = Entity(art["entity"])
        mbid = art["mbid"].lower()
        if (name := art["name"]) is None:
            return ListingKey(entity=entity, mbid=mbid)
        if _NAMES[entity].fullmatch(name) is None:
            raise Malformed("this entity has no image of that name")
        return _image(entity, mbid, name, art["size"])
    if (file := _DOWNLOAD.fullmatch(text)) is not None:
        mbid = file["mbid"].lower()
        if mbid == file["again"].lower():
            # Items of events look the same; clients build this spelling for releases only.
            return _image(Entity.RELEASE, mbid, file["id"], file["size"])
    raise Malformed("not a path of the archive")


def _image(entity: Entity, mbid: str, name: str, size: str | None) -> ImageRequest:
    canonical: Name
    if name == "front":
        canonical = "front"
    elif name == "back":
        canonical = "back"
    else:
        canonical = int(name)
    return ImageRequest(
        alias=AliasKey(entity=entity, mbid=mbid, name=canonical),
        size=ORIGINAL if size is None else int(size),
    )


def spell(thing: ImageRequest | ListingKey) -> str:
    """The canonical path of a thing: parse() of it gives the thing back."""
    if isinstance(thing, ListingKey):
        return f"/{thing.entity.value}/{thing.mbid}/"
    size = "" if thing.size == ORIGINAL else f"-{thing.size}"
    return f"/{thing.alias.entity.value}/{thing.alias.mbid}/{thing.alias.name}{size}"
