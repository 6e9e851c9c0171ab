"""What lies on the disk, for tests."""

from __future__ import annotations

from collections.abc import Iterator

from coverart.index.base import Seen
from coverart.index.codec import (
    is_alias,
    unpack_alias,
    unpack_alias_key,
    unpack_entry,
    unpack_file_key,
)
from coverart.store.disk_walk import walk_packed


def walk(root: str) -> Iterator[Seen]:
    """Every file and alias under a cache directory, as an index learns them at a start."""
    for batch in walk_packed(root):
        for key, value in batch:
            if is_alias(key):
                yield unpack_alias_key(key), unpack_alias(value)
            else:
                yield unpack_file_key(key), unpack_entry(value)
