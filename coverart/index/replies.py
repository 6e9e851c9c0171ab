"""
Replies of the scripts in `lua/`, as values of the model (pure).

Each function raises one of UNREADABLE where another program, or another version, wrote the data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from coverart.index.base import Packed, Totals, found_file
from coverart.index.codec import unpack_alias, unpack_alias_key, unpack_entry, unpack_file_key
from coverart.model import (
    Absence,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    Found,
    ImageRequest,
    Target,
)

UNREADABLE = (struct.error, LookupError, ValueError)
_ABSENCE = struct.Struct(">dd")


def found_image(request: ImageRequest, reply: Sequence[Any]) -> Found:
    """What "find" replies of an image."""
    entry, absent, packed_alias, original, is_own = (*reply, None, None, None)[:5]
    alias = None if packed_alias is None else unpack_alias(packed_alias)
    target = None if alias is None else alias.target
    if is_own and (own := request.alias.own_ref) is not None:
        target = Target(ref=own, extension=_extension(original))
    if target is None or entry is None:
        return Found(alias=alias, target=target, absence=_absence(absent))
    key = target.ref.at(request.size)
    return Found(key=key, entry=unpack_entry(entry), alias=alias, target=target)


def found_packed(key: FileKey, reply: Sequence[Any]) -> Found:
    """What "find" replies of a listing, and "claim" of a file."""
    entry, absent = reply[:2]
    return found_file(key, None if entry is None else unpack_entry(entry), _absence(absent))


def pack_absence(absence: Absence) -> bytes:
    """16 bytes."""
    return _ABSENCE.pack(absence.since, absence.until)


def _absence(packed: bytes | None) -> Absence | None:
    if packed is None:
        return None
    since, until = _ABSENCE.unpack(packed)
    return Absence(since=since, until=until)


def _extension(packed: bytes | None) -> str | None:
    media = None if packed is None else unpack_entry(packed).media
    return None if media is None else media.extension


def read_totals(reply: Sequence[Any], *, by_age: bool) -> Totals:
    """What "totals" replies. :param by_age: whether what was stored first is evicted first."""
    _, (_, *counts), first, leader, tallies = reply
    size_bytes, files, *rest = (int(count or 0) for count in counts)
    return Totals(
        size_bytes=size_bytes,
        files=files,
        by_entity=dict(zip(Entity, rest[:3], strict=True)),
        aliases=dict(zip(Entity, rest[3:], strict=True)),
        oldest=float(first[1]) if first and by_age else None,
        leader=None if leader is None else leader.decode(),
        tallies={name.decode(): int(times) for name, times in pairs(tallies)},
    )


def read_file(packed: Packed) -> tuple[FileKey, FileEntry]:
    """A file that a script lists."""
    return unpack_file_key(packed[0]), unpack_entry(packed[1])


def read_alias(packed: Packed) -> tuple[AliasKey, Alias]:
    """An alias that a script lists."""
    return unpack_alias_key(packed[0]), unpack_alias(packed[1])


def pairs(flat: Sequence[bytes]) -> Iterator[Packed]:
    """Keys and values, which scripts list in turn."""
    return zip(flat[::2], flat[1::2], strict=True)
