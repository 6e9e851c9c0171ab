"""
The names in one folder of the cache as packed keys, a million of them in seconds (pure).

`layout.identify`, `layout.read_link` and `packing` say the same of a single path in the words of
the model and are the reference; this goes from text to bytes without the values in between.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import attrs

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
_UP = "../../../../"
"""From a folder to the cache directory."""

_OWNERS = {
    Entity.RELEASE.value: pack_kinds(Entity.RELEASE)[0],
    Entity.EVENT.value: pack_kinds(Entity.EVENT)[0],
}

Said: TypeAlias = tuple[bytes, str, bytes, int]
"""The MBID, the id or role ("" for a listing), the packed size, the code of the type."""


@attrs.frozen
class LinkSaid:
    """What a symlink of ours says: key and value of the alias, and the file that it needs."""

    key: bytes
    raw_value: tuple[int, int, bytes, int]
    target_key: bytes
    media: int

    def alias(self, checked_at: float) -> bytes:
        """The packed alias, confirmed at that time."""
        return pack_raw_alias(*self.raw_value, checked_at)


class Names:
    """Reads the names of one folder; the files of one MBID share some of the work."""

    def __init__(self, entity: Entity, digits: str) -> None:
        """:param digits: the first three of every MBID in this folder."""
        self._digits = digits
        self._image, self._listing, self._alias = pack_kinds(entity)
        self._ids_allowed = entity is not Entity.RELEASE_GROUP
        self._roles = {
            role: number
            for role, number in ROLE_BYTES.items()
            if role == "front" or entity is Entity.RELEASE
        }
        self._mbids: dict[str, bytes] = {}
        self._ids: dict[str, bytes] = {}

    def file(self, name: str) -> tuple[bytes, int] | None:
        """The packed key of a regular file, and its type's code; None for what is not ours."""
        said = self._read(name)
        if said is None:
            return None
        mbid, text, size, media = said
        if not text:
            return self._listing + mbid, media
        number = self._ids.get(text) or self._id(text)
        if number is None or not self._ids_allowed:
            return None
        return self._image + mbid + number + size, media

    def link(self, name: str, text: str) -> LinkSaid | None:
        """What a symlink says that holds `text`; None for what is not ours."""
        said = self._read(name)
        if said is None or not said[1] or not text.startswith(_UP):
            return None
        mbid, asked, size, media = said
        number = self._roles.get(asked)
        if number is None:
            number = self._id(asked)
            if number is None or not self._ids_allowed:
                return None
        target = self._target(text)
        if target is None or target[0][-1:] != size or target[1] != media:
            return None
        key = target[0]
        extension = media if size == _ORIGINAL else 0
        value = (key[0], extension, key[1:17], int.from_bytes(key[17:25], "big"))
        return LinkSaid(self._alias + mbid + number, value, key, media)

    def _target(self, text: str) -> tuple[bytes, int] | None:
        """The key of the image at the place that a link names."""
        pieces = text[len(_UP) :].split("/")
        if len(pieces) != 5:
            return None
        entity, a, b, digits, name = pieces
        owner = _OWNERS.get(entity)
        if owner is None or len(digits) != 3 or b != digits[:2] or a != digits[:1]:
            return None
        there = self if digits == self._digits else Names(Entity(entity), digits)
        said = there._read(name)  # noqa: SLF001 - of the same class
        if said is None or not said[1]:
            return None
        number = self._id(said[1])
        return None if number is None else (owner + said[0] + number + said[2], said[3])

    def _read(self, name: str) -> Said | None:
        text = name[:_MBID_CHARS]
        mbid = self._mbids.get(text)
        if mbid is None:
            if _MBID(text) is None or not text.startswith(self._digits):
                return None
            mbid = self._mbids[text] = bytes.fromhex(text.replace("-", ""))
        rest = name[_MBID_CHARS:]
        if rest == ".json":
            return mbid, "", b"", 0
        pieces = rest.split("_")
        if pieces[0]:
            return None
        if len(pieces) == 3 and pieces[1]:
            size = _THUMBNAILS.get(pieces[2])
            return None if size is None else (mbid, pieces[1], size, _JPEG)
        if len(pieces) == 2:
            asked, _, extension = pieces[1].partition(".")
            media = _ORIGINALS.get(extension)
            return None if media is None or not asked else (mbid, asked, _ORIGINAL, media)
        return None

    def _id(self, text: str) -> bytes | None:
        """An id as it is packed; None for what is no id."""
        number = self._ids.get(text)
        if number is None:
            # isdecimal() takes the digits of all scripts.
            if not (text.isascii() and text.isdecimal()) or text[0] == "0":
                return None
            if len(text) > _MOST_DIGITS:
                return None
            number = self._ids[text] = int(text).to_bytes(8, "big")
        return number
