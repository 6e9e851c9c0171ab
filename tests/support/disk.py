"""What lies on the disk, for tests, in the words of the model; and a disk that is full."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from coverart.index.base import Seen
from coverart.index.codec import (
    is_alias,
    unpack_alias,
    unpack_alias_key,
    unpack_entry,
    unpack_file_key,
)
from coverart.model import Alias, AliasKey, FileEntry, FileKey
from coverart.store import layout
from coverart.store.atomic_files import AtomicFiles
from coverart.store.disk_walk import read_slice, survey

LATE = float("inf")
"""No stamp is ahead of that."""


@attrs.frozen(kw_only=True)
class Link:
    """A symlink: where it lies, what it says, and where the file lies that it points at."""

    path: str
    key: AliasKey
    alias: Alias
    target_path: str

    @property
    def retired(self) -> bool:
        return self.path.endswith(layout.RETIRED)


def put_file(store: AtomicFiles, path: str, body: bytes, at: float) -> None:
    """Make a file visible at a path, as what was asked for at that time; a later one stays."""
    temporary = store.begin()
    try:
        store.append(temporary, body)
        store.make_durable(temporary, at)
        store.put_latest(temporary.path, path, at)
    except OSError:
        store.abandon(temporary)
        raise
    os.close(temporary.fd)


def unpacked(
    things: Mapping[bytes, bytes],
) -> tuple[dict[FileKey, FileEntry], dict[AliasKey, Alias]]:
    """Files and aliases of a slice, of the disk or of an index."""
    files = {unpack_file_key(k): unpack_entry(v) for k, v in things.items() if not is_alias(k)}
    aliases = {unpack_alias_key(k): unpack_alias(v) for k, v in things.items() if is_alias(k)}
    return files, aliases


def packed(root: str, number: int) -> dict[bytes, bytes]:
    """Every file and alias of one slice, as an index learns them."""
    return read_slice(root, number).things(LATE)


def walk(root: str) -> Iterator[Seen]:
    """Every file and alias under a cache directory."""
    for number in survey(root)[0]:
        files, aliases = unpacked(packed(root, number))
        yield from files.items()
        yield from aliases.items()


def links(root: str, number: int) -> Iterator[Link]:
    """Every symlink of one slice."""
    for folder in read_slice(root, number).folders:
        for name, (key, value, _, _) in folder.links.items():
            path = f"{folder.path}/{name}"
            yield Link(
                path=path,
                key=unpack_alias_key(key),
                alias=unpack_alias(value),
                target_path=os.readlink(f"{root}/{path}").removeprefix("../../../../"),
            )


def fill_up(root: Path) -> Path:
    """Fill a file system up to its last byte; what fills it can be removed."""
    filler = root / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler
