"""
The names in one folder of the cache as packed keys, a million of them in seconds (pure).

`layout.identify`, `layout.read_link` and `packing` say the same of a single path in the words of
the model and are the reference; this goes from text to bytes without the values in between.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from coverart.layout import folder
from coverart.model import ORIGINAL, SIZES, Entity, MediaType
from coverart.packing import (
    MEDIA_CODES,
    ROLE_BYTES,
    SIZE_BYTES,
    pack_kinds,
    pack_raw_alias,
)

_MBID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_MBID_CHARS = 36
_MOST_DIGITS = 18
_JPEG = MEDIA_CODES[MediaType.JPEG]
_THUMBNAILS = {f"{size}.{MediaType.JPEG.extension}": SIZE_BYTES[size] for size in SIZES}
_ORIGINALS = {media.extension: MEDIA_CODES[media] for media in MediaType}
_ORIGINAL = SIZE_BYTES[ORIGINAL]
_ENDS = {(_ORIGINAL[0], MEDIA_CODES[media]): f".{media.extension}" for media in MediaType} | {
    (SIZE_BYTES[size][0], _JPEG): f"_{size}.{MediaType.JPEG.extension}" for size in SIZES
}
"""What follows the id in the place of an image, by packed size and type."""

_OWNERS = {entity.value: pack_kinds(entity)[0] for entity in (Entity.RELEASE, Entity.EVENT)}
_UP = "../../../../"
"""From a folder to the cache directory."""


class LinkName(NamedTuple):
    """What a symlink of ours says: of which alias it is, and which file it needs."""

    key: bytes
    target_key: bytes
    media: int

    def alias(self, checked_at: float) -> bytes:
        """The packed alias, confirmed at that time."""
        target = self.target_key
        extension = self.media if target[25] == _ORIGINAL[0] else 0
        number = int.from_bytes(target[17:25], "big")
        return pack_raw_alias(target[0], extension, target[1:17], number, checked_at)


class Names:
    """Reads the names of one folder; the files of one MBID share some of the work."""

    def __init__(self, entity: Entity, digits: str) -> None:
        """:param digits: the first three of every MBID in this folder."""
        self._digits = digits
        self._image, self._listing, self._alias = pack_kinds(entity)
        self._owns_images = entity is not Entity.RELEASE_GROUP
        self._own_folder = f"{_UP}{folder(entity, digits)}/"
        self._roles = {
            f"_{role}": number
            for role, number in ROLE_BYTES.items()
            if role == "front" or entity is Entity.RELEASE
        }
        self._mbids: dict[str, bytes] = {}
        self._ids: dict[str, bytes] = {}

    def file(self, name: str) -> tuple[bytes, int] | None:
        """The packed key of a regular file, and its type's code; None for what is not ours."""
        if name[_MBID_CHARS:] == ".json":
            mbid = name[:_MBID_CHARS]
            raw = self._mbids.get(mbid) or self._mbid(mbid)
            if raw is None or not name.startswith(self._digits):
                return None
            return self._listing + raw, 0
        return self._image_at(self._image, self._digits, name) if self._owns_images else None

    def link(self, name: str, text: str) -> LinkName | None:
        """What a symlink says that holds `text`; None for what is not ours."""
        target = self._target(text)
        mbid = name[:_MBID_CHARS]
        raw = self._mbids.get(mbid) or self._mbid(mbid)
        if target is None or raw is None or not name.startswith(self._digits):
            return None
        key, media = target
        # Size and type must be those of the file, so only one end is right.
        end = _ENDS[key[25], media]
        if not name.endswith(end):
            return None
        asked = name[_MBID_CHARS : -len(end)]
        number = self._roles.get(asked)
        if number is None:
            text = asked[1:]
            number = self._ids.get(text) or self._id(text)
            if number is None or asked[0] != "_" or not self._owns_images:
                return None
        return LinkName(self._alias + raw + number, key, media)

    def _target(self, text: str) -> tuple[bytes, int] | None:
        """The image at the place that a symlink names."""
        if self._owns_images and text.startswith(self._own_folder):
            return self._image_at(self._image, self._digits, text[len(self._own_folder) :])
        pieces = text.split("/")
        if len(pieces) != 9 or not text.startswith(_UP):
            return None
        _, _, _, _, entity, first, second, digits, name = pieces
        kind = _OWNERS.get(entity)
        if kind is None or len(digits) != 3 or second != digits[:2] or first != digits[:1]:
            return None
        return self._image_at(kind, digits, name)

    def _image_at(self, kind: bytes, digits: str, name: str) -> tuple[bytes, int] | None:
        mbid = name[:_MBID_CHARS]
        raw = self._mbids.get(mbid) or self._mbid(mbid)
        rest = name[_MBID_CHARS:]
        text, _, thumbnail = rest[1:].partition("_")
        size: bytes | None = _ORIGINAL
        media = _JPEG
        if thumbnail:
            size = _THUMBNAILS.get(thumbnail)
        else:
            text, _, extension = text.partition(".")
            media = _ORIGINALS.get(extension, 0)
        number = self._ids.get(text) or self._id(text)
        if raw is None or number is None or size is None or not media:
            return None
        if rest[0] != "_" or not name.startswith(digits):
            return None
        return kind + raw + number + size, media

    def _mbid(self, text: str) -> bytes | None:
        if _MBID(text) is None:
            return None
        raw = self._mbids[text] = bytes.fromhex(text.replace("-", ""))
        return raw

    def _id(self, text: str) -> bytes | None:
        """An id as it is packed; None for what is no id."""
        # isdecimal() alone takes the digits of all scripts.
        if not text.isascii() or not text.isdecimal() or text[0] == "0":
            return None
        if len(text) > _MOST_DIGITS:
            return None
        number = self._ids[text] = int(text).to_bytes(8, "big")
        return number
