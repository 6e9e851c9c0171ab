"""
Where a thing lies under the cache directory, and which thing a file name is of (pure).

    release/3/35/353/{mbid}_{id}_{size}.jpg     a thumbnail: a regular file
    release/3/35/353/{mbid}_{id}.{ext}          an original: a regular file
    release/3/35/353/{mbid}_front_250.jpg       an alias: a relative symlink to one of those
    release-group/6/67/67a/{mbid}_front.png     the same for the original of a group's front
    release/3/35/353/{mbid}.json                a listing

The first three characters of the MBID give the directories, so that none grows beyond some
thousands of names in a cache of the whole archive. All paths here are relative, with "/".
"""

from __future__ import annotations

import re

import attrs

from coverart.model import (
    ORIGINAL,
    SIZES,
    AliasKey,
    Entity,
    FileKey,
    ImageKey,
    ImageRequest,
    ListingKey,
    MediaType,
    Name,
    Thing,
)

INCOMING = ".incoming"
"""Folder of the files that are still being written; on the same file system, for rename."""

RETIRED = ".stale"
"""Suffix of the symlink of an alias past its time: nginx does not see it, a rebuild does."""

_BY_EXTENSION = {media.extension: media for media in MediaType}
_PATH = re.compile(
    r"(?P<entity>release|release-group|event)/(?P<a>[0-9a-f])/(?P<b>(?P=a)[0-9a-f])/"
    r"(?P<c>(?P=b)[0-9a-f])/(?P<mbid>(?P=c)[0-9a-f]{5}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"(?:(?P<listing>\.json)"
    r"|_(?P<name>front|back|[1-9][0-9]{0,17})"
    rf"(?:_(?P<size>{'|'.join(map(str, SIZES))})(?=\.jpg))?\.(?P<ext>{'|'.join(_BY_EXTENSION)}))",
)


@attrs.frozen(kw_only=True)
class Place:
    """What a path under the cache directory says of its file: a listing, or an image's name."""

    thing: Thing
    media: MediaType | None

    @property
    def file_key(self) -> FileKey | None:
        """The key of the regular file at this place; None where only a symlink may lie."""
        if isinstance(self.thing, ListingKey):
            return self.thing
        ref = self.thing.alias.own_ref
        return None if ref is None else ref.at(self.thing.size)


def folder(entity: Entity, mbid: str) -> str:
    """The folder of everything that belongs to one entity."""
    return f"{entity.value}/{mbid[0]}/{mbid[:2]}/{mbid[:3]}"


def listing_path(key: ListingKey) -> str:
    return f"{folder(key.entity, key.mbid)}/{key.mbid}.json"


def image_path(key: ImageKey, media: MediaType) -> str:
    """The regular file of an image. Thumbnails are JPEG whatever the original is."""
    return name_path(key.ref.owner, key.ref.mbid, key.ref.image_id, key.size, media)


def alias_path(request: ImageRequest, media: MediaType) -> str:
    """The symlink that makes an alias servable without the index."""
    alias = request.alias
    return name_path(alias.entity, alias.mbid, alias.name, request.size, media)


def name_path(entity: Entity, mbid: str, name: Name, size: int, media: MediaType) -> str:
    suffix = "" if size == ORIGINAL else f"_{size}"
    return f"{entity.value}/{mbid[0]}/{mbid[:2]}/{mbid[:3]}/{mbid}_{name}{suffix}.{media.extension}"


def candidates(request: ImageRequest) -> tuple[str, ...]:
    """Every path at which the answer to this request can lie, file or symlink."""
    types = tuple(MediaType) if request.size == ORIGINAL else (MediaType.JPEG,)
    return tuple(alias_path(request, media) for media in types)


def alias_paths(key: AliasKey) -> tuple[str, ...]:
    """Every symlink that one alias can have: one a size, one a type for the original."""
    return tuple(
        path
        for size in (ORIGINAL, *SIZES)
        for path in candidates(ImageRequest(alias=key, size=size))
    )


def unretired(path: str) -> str:
    """The path of an alias's symlink while it was fresh."""
    return path.removesuffix(RETIRED)


def link_text(link: str, target: str) -> str:
    """What a symlink at `link` holds to point at `target`: relative, so the cache can move."""
    up = "../" * link.count("/")
    return up + target


def read_link(link: str, text: str) -> tuple[ImageKey, MediaType, str] | None:
    """
    What a symlink at `link` with this text points at: the image, its type, its path.

    None where it is not one of ours: it must point at an image's own place, of the same size
    and type as its own name says.
    """
    place = identify(link)
    up = "../" * link.count("/")
    path = text.removeprefix(up)
    target = identify(path) if text.startswith(up) else None
    if place is None or target is None or not isinstance(place.thing, ImageRequest):
        return None
    key = target.file_key
    if not isinstance(key, ImageKey) or target.media is None or target.media is not place.media:
        return None
    return (key, target.media, path) if key.size == place.thing.size else None


def identify(path: str) -> Place | None:
    """Say what a path under the cache directory is of; None for what is not ours."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    mbid = match["mbid"]
    entity = Entity(match["entity"])
    if match["listing"]:
        return Place(thing=ListingKey(entity=entity, mbid=mbid), media=None)
    size = ORIGINAL if match["size"] is None else int(match["size"])
    media = _BY_EXTENSION[match["ext"]]
    text = match["name"]
    name: Name = "front" if text == "front" else "back" if text == "back" else int(text)
    if entity is not Entity.RELEASE and (
        name == "back" or (entity is Entity.RELEASE_GROUP and name != "front")
    ):
        return None
    return Place(
        thing=ImageRequest(alias=AliasKey(entity=entity, mbid=mbid, name=name), size=size),
        media=media,
    )
