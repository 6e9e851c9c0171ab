"""
The names in one folder of the cache as packed keys, a million of them in seconds (pure).

`layout.identify`, `layout.read_link` and `codec` say the same of a single path in the words of
the model and are the reference; this goes from text to bytes, all names of a folder at once,
without values in between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from coverart.index.base import Packed
from coverart.index.codec import (
    LARGEST_FILE_BYTES,
    MEDIA_CODES,
    ROLE_BYTES,
    SIZE_CODES,
    pack_kinds,
    pack_raw_alias,
    pack_raw_entry,
    pack_raw_image_key,
)
from coverart.model import ORIGINAL, SIZES, Entity, MediaType

_HEX = "[0-9a-f]"
_MBID_END = f"{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_ID = "[1-9][0-9]{0,17}"
_NAMES = re.compile(f"(?<=/)({_HEX}{{8}}-{_MBID_END})(?:_(front|back|{_ID}))?([._][^/]*)/").findall
"""In names with a slash around each, which none can hold: MBID, what is named, what follows."""
_TEXTS = re.compile(
    rf"(?<=\0)\.\./\.\./\.\./\.\./(release|event)/({_HEX})/(\2{_HEX})/(\3{_HEX})/"
    rf"(\4{_HEX}{{5}}-{_MBID_END})_({_ID})([._][^/\0]*)\0"
).findall
"""In what symlinks hold, with a null around each: the places of images, in pieces."""

_JPEG = MEDIA_CODES[MediaType.JPEG]
_ORIGINAL = SIZE_CODES[ORIGINAL]
_ENDS = {f".{media.extension}": (_ORIGINAL, MEDIA_CODES[media]) for media in MediaType} | {
    f"_{size}.{MediaType.JPEG.extension}": (SIZE_CODES[size], _JPEG) for size in SIZES
}
"""What follows the id of an image: its packed size and type."""
_OWNERS = {entity.value: pack_kinds(entity)[0] for entity in (Entity.RELEASE, Entity.EVENT)}

_ROLES = {
    entity: {
        role: int.from_bytes(number, "big")
        for role, number in ROLE_BYTES.items()
        if role == "front" or entity is Entity.RELEASE
    }
    for entity in Entity
}
"""The names of images beside ids, as numbers."""
_NO_NAME = ("0" * 32, "", "")
_NO_TEXT = ("release", "", "", "", "0" * 32, "0", "")
"""In place of a match: ends as nothing of ours does."""

PackedLink: TypeAlias = tuple[bytes, bytes, bytes, int]
"""Packed key and value of an alias; the packed key of the image, and its type's code."""


def pack_files(
    entity: Entity, digits: str, rows: Sequence[tuple[str, int, float]]
) -> list[Packed | None]:
    """
    For each regular file of a folder its packed key and entry; None for what is not ours.

    :param digits: the first three of every MBID in this folder.
    :param rows: name, size in bytes, when it was stored.
    """
    images, listings, _ = pack_kinds(entity)
    kind, owns_images = images[0], entity is not Entity.RELEASE_GROUP
    names = _matches(_NAMES, "/", [row[0] for row in rows], _NO_NAME)
    mbids = _raw_mbids([name[0] for name in names])
    said: list[Packed | None] = []
    for (mbid, name, end), raw, (_, size_bytes, stored_at) in zip(names, mbids, rows, strict=True):
        packed = None
        if mbid[:3] == digits and size_bytes <= LARGEST_FILE_BYTES:
            if end in _ENDS and owns_images and name.isdecimal():
                size, media = _ENDS[end]
                key = pack_raw_image_key(kind, raw, int(name), size)
                packed = key, pack_raw_entry(media, size_bytes, stored_at)
            elif end == ".json" and not name:
                packed = listings + raw, pack_raw_entry(0, size_bytes, stored_at)
        said.append(packed)
    return said


def pack_links(
    entity: Entity, digits: str, rows: Sequence[tuple[str, str, float]]
) -> list[PackedLink | None]:
    """
    For each symlink of a folder what it says; None for what is not ours.

    :param digits: as pack_files() takes them.
    :param rows: name, text, and when it was confirmed.
    """
    alias, roles = pack_kinds(entity)[2][0], _ROLES[entity]
    owns_images = entity is not Entity.RELEASE_GROUP
    names = _matches(_NAMES, "/", [row[0] for row in rows], _NO_NAME)
    targets = _matches(_TEXTS, chr(0), [row[1] for row in rows], _NO_TEXT)
    mbids = _raw_mbids([name[0] for name in names])
    images = _raw_mbids([target[4] for target in targets])
    said: list[PackedLink | None] = []
    for (mbid, name, end), raw, target, image, row in zip(
        names, mbids, targets, images, rows, strict=True
    ):
        number = roles.get(name, int(name) if owns_images and name.isdecimal() else None)
        owner, _, _, _, _, image_id, target_end = target
        if end not in _ENDS or number is None or end != target_end or mbid[:3] != digits:
            said.append(None)
            continue
        size, media = _ENDS[end]
        kind, extension = _OWNERS[owner][0], media if size == _ORIGINAL else 0
        key = pack_raw_image_key(alias, raw, number, 0)[:25]
        value = pack_raw_alias(kind, extension, image, int(image_id), row[2])
        said.append((key, value, pack_raw_image_key(kind, image, int(image_id), size), media))
    return said


def _matches(
    find: Callable[[str], list[Any]], mark: str, texts: Sequence[str], nothing: tuple[str, ...]
) -> list[Any]:
    """What is found in each text, which has at most one match; all at once where each has one."""
    found = find(mark + mark.join(texts) + mark)
    if len(found) == len(texts):
        return found
    return [(find(mark + text + mark) or [nothing])[0] for text in texts]


def _raw_mbids(mbids: list[str]) -> list[bytes]:
    """Sixteen bytes of each."""
    raw = bytes.fromhex("".join(mbids).replace("-", ""))
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]
