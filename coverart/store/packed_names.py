"""
The names in one folder of the cache as packed keys, a million of them in seconds (pure).

`layout.identify`, `layout.read_link` and `codec` say the same of a single path in the words of
the model and are the reference; this goes from text to bytes, all names of a folder at once,
without values in between.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

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

PackedLink: TypeAlias = tuple[bytes, bytes, bytes, int]
"""Packed key and value of an alias; the packed key of the image, and its type's code."""


class Names:
    """What the names in one folder say."""

    def __init__(self, entity: Entity, digits: str) -> None:
        """:param digits: the first three of every MBID in this folder."""
        self._digits = digits
        images, self._listings, aliases = pack_kinds(entity)
        self._image, self._alias = images[0], aliases[0]
        self._owns_images = entity is not Entity.RELEASE_GROUP
        self._roles = {
            role: int.from_bytes(number, "big")
            for role, number in ROLE_BYTES.items()
            if role == "front" or entity is Entity.RELEASE
        }

    def files(self, rows: Sequence[tuple[str, int, float]]) -> list[Packed | None]:
        """
        For each regular file its packed key and entry; None for what is not ours.

        :param rows: name, size in bytes, when it was stored.
        """
        found = _NAMES(f"/{'/'.join([row[0] for row in rows])}/")
        if len(found) != len(rows):
            # Some name is far from ours, so it is not known which match is whose.
            return [self.files([row])[0] for row in rows] if len(rows) > 1 else [None]
        mbids = self._mbids(found)
        kind = self._image if self._owns_images else None
        digits, listings, ends = self._digits, self._listings, _ENDS
        said: list[Packed | None] = []
        at = 0
        for (mbid, name, end), (_, size_bytes, stored_at) in zip(found, rows, strict=True):
            raw = mbids[at : at + 16]
            at += 16
            if mbid[:3] != digits or size_bytes > LARGEST_FILE_BYTES:
                said.append(None)
            elif end in ends and kind is not None and name.isdecimal():
                size, media = ends[end]
                key = pack_raw_image_key(kind, raw, int(name), size)
                said.append((key, pack_raw_entry(media, size_bytes, stored_at)))
            elif end == ".json" and not name:
                said.append((listings + raw, pack_raw_entry(0, size_bytes, stored_at)))
            else:
                said.append(None)
        return said

    def links(self, rows: Sequence[tuple[str, str, float]]) -> list[PackedLink | None]:
        """
        For each symlink what it says; None for what is not ours.

        :param rows: name, text, and when it was confirmed.
        """
        found = _NAMES(f"/{'/'.join([name for name, _, _ in rows])}/")
        targets = _TEXTS(chr(0) + chr(0).join([text for _, text, _ in rows]) + chr(0))
        if not len(found) == len(targets) == len(rows):
            return [self.links([row])[0] for row in rows] if len(rows) > 1 else [None]
        mbids = self._mbids(found)
        images = bytes.fromhex("".join([target[4] for target in targets]).replace("-", ""))
        said: list[PackedLink | None] = []
        at = 0
        for (mbid, name, end), (owner, _, _, _, _, image_id, target_end), (_, _, checked_at) in zip(
            found, targets, rows, strict=True
        ):
            raw, image = mbids[at : at + 16], images[at : at + 16]
            at += 16
            known = _ENDS.get(end)
            number = self._roles.get(name)
            if number is None and self._owns_images and name.isdecimal():
                number = int(name)
            if known is None or number is None or end != target_end or mbid[:3] != self._digits:
                said.append(None)
                continue
            size, media = known
            kind = _OWNERS[owner][0]
            key = pack_raw_image_key(self._alias, raw, number, 0)[:25]
            extension = media if size == _ORIGINAL else 0
            value = pack_raw_alias(kind, extension, image, int(image_id), checked_at)
            said.append((key, value, pack_raw_image_key(kind, image, int(image_id), size), media))
        return said

    @staticmethod
    def _mbids(found: list[tuple[str, str, str]]) -> bytes:
        """All MBIDs, sixteen bytes each."""
        return bytes.fromhex("".join([mbid for mbid, _, _ in found]).replace("-", ""))
