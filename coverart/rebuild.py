"""Reading the bare disk: everything that is there, or one slice of it. Call these in a thread."""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs

from coverart import layout
from coverart.index import Seen
from coverart.model import Alias, AliasKey, Entity, FileEntry, FileKey, ImageRequest
from coverart.store import link_target


def walk(root: str) -> Iterator[Seen]:
    """
    Every file and alias under a cache directory, in the order of the folders.

    Reads names, symlinks and what stat says, no contents. What is not ours is passed over; a
    folder that vanishes while it is read counts as empty.
    """
    for entity in Entity:
        for first in _folders(root, entity.value):
            for second in _folders(root, first):
                for third in _folders(root, second):
                    for thing in _things(root, third):
                        yield (thing.key, thing.alias) if isinstance(thing, Link) else thing


def _folders(root: str, folder: str) -> list[str]:
    try:
        with os.scandir(f"{root}/{folder}") as rows:
            return sorted(
                f"{folder}/{row.name}" for row in rows if row.is_dir(follow_symlinks=False)
            )
    except OSError:
        return []


@attrs.frozen(kw_only=True)
class Link:
    """A symlink of ours: where it lies, what it says, and where the file lies it points at."""

    path: str
    key: AliasKey
    alias: Alias
    target_path: str

    @property
    def retired(self) -> bool:
        return self.path.endswith(layout.RETIRED)


@attrs.frozen(kw_only=True)
class DiskSlice:
    """What lies in the folders of one slice."""

    files: dict[FileKey, FileEntry]
    links: list[Link]

    @property
    def aliases(self) -> dict[AliasKey, Alias]:
        """What the links say; where those of several sizes differ, the latest is right."""
        found: dict[AliasKey, Alias] = {}
        for link in self.links:
            if link.key not in found or found[link.key].checked_at < link.alias.checked_at:
                found[link.key] = link.alias
        return found


def read_slice(root: str, number: int) -> DiskSlice:
    """Everything of the MBIDs whose first three digits are `number`."""
    digits = f"{number:03x}"
    files: dict[FileKey, FileEntry] = {}
    links = []
    for entity in Entity:
        for thing in _things(root, layout.folder(entity, digits)):
            if isinstance(thing, Link):
                links.append(thing)
            else:
                files[thing[0]] = thing[1]
    return DiskSlice(files=files, links=links)


def _things(root: str, folder: str) -> Iterator[Link | tuple[FileKey, FileEntry]]:
    try:
        with os.scandir(f"{root}/{folder}") as rows:
            for row in rows:
                thing = _thing(row, f"{folder}/{row.name}")
                if thing is not None:
                    yield thing
    except OSError:
        return


def _thing(row: os.DirEntry[str], path: str) -> Link | tuple[FileKey, FileEntry] | None:
    place = layout.identify(layout.unretired(path))
    if place is None:
        return None
    try:
        status = row.stat(follow_symlinks=False)
        if row.is_symlink():
            link = layout.read_link(layout.unretired(path), os.readlink(row.path))
            if link is None or not isinstance(place.thing, ImageRequest):
                return None
            key, media, target_path = link
            alias = Alias(target=link_target(key, media), checked_at=status.st_mtime)
            return Link(path=path, key=place.thing.alias, alias=alias, target_path=target_path)
        own = place.file_key
        regular = row.is_file(follow_symlinks=False) and not path.endswith(layout.RETIRED)
        if own is None or not regular or status.st_size == 0:
            return None
        entry = FileEntry(size_bytes=status.st_size, stored_at=status.st_mtime, media=place.media)
        return own, entry
    except OSError:
        return None
