"""
The index's keys and values as short byte strings, for both indexes (pure).

A million entries have to fit into little memory, in this process or in Redis, so keys are
binary: a kind byte, the sixteen bytes of the MBID, then what tells things of one MBID apart.
Keys of one MBID share their first bytes after the kind, by which slices are cut.
"""

from __future__ import annotations

import struct

from coverart.model import (
    ORIGINAL,
    SIZES,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    ImageKey,
    ImageRef,
    ListingKey,
    MediaType,
    Name,
    Subject,
    Target,
)

_ENTITIES = tuple(Entity)
_ENTITY_CODES = {entity: code for code, entity in enumerate(_ENTITIES)}
SIZE_CODES = {size: code for code, size in enumerate((ORIGINAL, *SIZES))}
"""The last byte of an image's key."""
_ALL_SIZES = (ORIGINAL, *SIZES)
_MEDIA: tuple[MediaType | None, ...] = (None, *MediaType)
MEDIA_CODES = {media: code for code, media in enumerate(_MEDIA)}
"""The first byte of a packed entry; of an original's alias it is the second."""
_EXTENSIONS: tuple[str | None, ...] = (None, "jpg", "png", "gif", "pdf")
_EXTENSION_CODES = {extension: code for code, extension in enumerate(_EXTENSIONS)}

_IMAGE, _LISTING, _ALIAS = 0x00, 0x10, 0x20
_FRONT, _BACK = 0, (1 << 63) - 1
"""Names as numbers beside ids, which are positive and have at most 18 digits."""

_IMAGE_KEY = struct.Struct(">B16sQB")
_SHORT_KEY = struct.Struct(">B16s")
_ALIAS_KEY = struct.Struct(">B16sQ")
_ENTRY = struct.Struct(">BId")
_ALIAS_VALUE = struct.Struct(">BB16sQd")
_TIME = struct.Struct(">d")
"""The end of both values."""

LARGEST_FILE_BYTES = (1 << 32) - 1

# For store/packed_names.py, which packs names of files without values of the model in between.

ROLE_BYTES: dict[str, bytes] = {
    "front": _FRONT.to_bytes(8, "big"),
    "back": _BACK.to_bytes(8, "big"),
}
pack_raw_image_key = _IMAGE_KEY.pack
"""Of a kind, an MBID's bytes, an id and a size's code; an alias's key is its first 25 bytes."""
pack_raw_entry = _ENTRY.pack
"""Of a media code, a size in bytes and a time."""
FIRST_ALIAS = _ALIAS
"""The first byte of aliases' keys is this or more, that of files' is less."""
pack_raw_alias = _ALIAS_VALUE.pack
"""Of an owner's code, a media code or 0, the MBID's bytes, an id and a time."""


def pack_kinds(entity: Entity) -> tuple[bytes, bytes, bytes]:
    """The first byte of the keys of an entity's images, listings and aliases."""
    code = _ENTITY_CODES[entity]
    return bytes([_IMAGE | code]), bytes([_LISTING | code]), bytes([_ALIAS | code])


def size_of(entry: bytes) -> int:
    """The bytes of the file of a packed entry."""
    return int.from_bytes(entry[1:5], "big")


def stored_at_of(entry: bytes) -> float:
    """The time in a packed entry."""
    return _TIME.unpack(entry[5:])[0]  # type: ignore[no-any-return]


def checked_at_of(alias: bytes) -> float:
    """The time in a packed alias."""
    return _TIME.unpack(alias[26:])[0]  # type: ignore[no-any-return]


def ref_of(alias: bytes) -> bytes:
    """What tells the image that a packed alias points at from all others."""
    return alias[:1] + alias[2:26]


def ages(alias_key: bytes) -> bool:
    """AliasKey.ages of a packed key."""
    return alias_key[17:] in _ROLES


_ROLES = frozenset(ROLE_BYTES.values())


def is_packed(key: bytes, value: bytes) -> bool:
    """Say whether a key and a value can be unpacked: another program may have written them."""
    if _LENGTHS.get((key[:1], len(key))) != len(value):
        return False
    if is_alias(key):
        return value[0] < len(_ENTITIES) and value[1] < len(_EXTENSIONS)
    return value[0] < len(_MEDIA) and (key[0] & _LISTING > 0 or key[25] < len(_ALL_SIZES))


_LENGTHS = {
    (bytes([kind | code]), key.size): value.size
    for kind, key, value in (
        (_IMAGE, _IMAGE_KEY, _ENTRY),
        (_LISTING, _SHORT_KEY, _ENTRY),
        (_ALIAS, _ALIAS_KEY, _ALIAS_VALUE),
    )
    for code in range(len(_ENTITIES))
}
"""Of a value, by the first byte and the length of its key."""


def pack_file_key(key: FileKey) -> bytes:
    """26 bytes for an image, 17 for a listing."""
    if isinstance(key, ImageKey):
        ref = key.ref
        return _IMAGE_KEY.pack(
            _IMAGE | _ENTITY_CODES[ref.owner],
            bytes.fromhex(ref.mbid.replace("-", "")),
            ref.image_id,
            SIZE_CODES[key.size],
        )
    return _SHORT_KEY.pack(
        _LISTING | _ENTITY_CODES[key.entity], bytes.fromhex(key.mbid.replace("-", ""))
    )


def unpack_file_key(packed: bytes) -> FileKey:
    """The inverse of pack_file_key. :raises ValueError: no such key."""
    try:
        if len(packed) == _IMAGE_KEY.size:
            kind, mbid, image_id, size = _IMAGE_KEY.unpack(packed)
            ref = ImageRef(owner=_ENTITIES[kind], mbid=_mbid(mbid), image_id=image_id)
            return ref.at(_ALL_SIZES[size])
        if len(packed) == _SHORT_KEY.size:
            kind, mbid = _SHORT_KEY.unpack(packed)
            return ListingKey(entity=_ENTITIES[kind ^ _LISTING], mbid=_mbid(mbid))
    except IndexError:
        pass
    raise ValueError(f"not a packed file key: {packed!r}")


def slice_of(packed: bytes) -> int:
    """The first three digits of the MBID in a packed key."""
    return packed[1] << 4 | packed[2] >> 4


def is_alias(packed: bytes) -> bool:
    """Say whether a packed key is an alias's."""
    return packed[0] >= _ALIAS


def entity_of(packed: bytes) -> Entity:
    """The entity in whose folder the thing of a packed key lies."""
    return _ENTITIES[packed[0] & 0x0F]


def pack_alias_key(key: AliasKey) -> bytes:
    """25 bytes."""
    name = _FRONT if key.name == "front" else _BACK if key.name == "back" else key.name
    return _ALIAS_KEY.pack(
        _ALIAS | _ENTITY_CODES[key.entity], bytes.fromhex(key.mbid.replace("-", "")), name
    )


def unpack_alias_key(packed: bytes) -> AliasKey:
    """The inverse of pack_alias_key."""
    kind, mbid, number = _ALIAS_KEY.unpack(packed)
    name: Name = "front" if number == _FRONT else "back" if number == _BACK else number
    return AliasKey(entity=_ENTITIES[kind ^ _ALIAS], mbid=_mbid(mbid), name=name)


def pack_subject(subject: Subject) -> bytes:
    """The key of what can be absent; the three kinds never share one."""
    return pack_alias_key(subject) if isinstance(subject, AliasKey) else pack_file_key(subject)


def pack_entry(entry: FileEntry) -> bytes:
    """13 bytes. :raises struct.error: larger than LARGEST_FILE_BYTES."""
    return _ENTRY.pack(MEDIA_CODES[entry.media], entry.size_bytes, entry.stored_at)


def unpack_entry(packed: bytes) -> FileEntry:
    media, size_bytes, stored_at = _ENTRY.unpack(packed)
    return FileEntry(size_bytes=size_bytes, stored_at=stored_at, media=_MEDIA[media])


def pack_alias(alias: Alias) -> bytes:
    """34 bytes."""
    ref = alias.target.ref
    return _ALIAS_VALUE.pack(
        _ENTITY_CODES[ref.owner],
        _EXTENSION_CODES[alias.target.extension],
        bytes.fromhex(ref.mbid.replace("-", "")),
        ref.image_id,
        alias.checked_at,
    )


def unpack_alias(packed: bytes) -> Alias:
    owner, extension, mbid, image_id, checked_at = _ALIAS_VALUE.unpack(packed)
    ref = ImageRef(owner=_ENTITIES[owner], mbid=_mbid(mbid), image_id=image_id)
    return Alias(target=Target(ref=ref, extension=_EXTENSIONS[extension]), checked_at=checked_at)


def _mbid(raw: bytes) -> str:
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def pack_seen(
    seen: tuple[FileKey, FileEntry] | tuple[AliasKey, Alias],
) -> tuple[bytes, bytes]:
    """A file or an alias with what is known of it."""
    key, value = seen
    if isinstance(value, Alias):
        return pack_subject(key), pack_alias(value)
    return pack_subject(key), pack_entry(value)
