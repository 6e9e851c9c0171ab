"""Reading the bare disk: everything that is there, or one slice of it. Call these in a thread."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import attrs

from coverart.coordination import untold_mark
from coverart.index.base import LEARN_AT_ONCE, Packed
from coverart.index.codec import LARGEST_FILE_BYTES
from coverart.model import Alias, AliasKey, Entity, FileEntry, FileKey, ImageRequest
from coverart.store import layout
from coverart.store.image_store import link_target
from coverart.store.packed_names import Link as PackedLink
from coverart.store.packed_names import Names

Check: TypeAlias = Callable[[], object]
"""Called for each folder, file or step; raises LostLease once the caller must stop."""


def unchecked() -> None:
    """A Check for who is never stopped."""


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


def read_slice(root: str, number: int, check: Check = unchecked) -> DiskSlice:
    """Everything of the MBIDs whose first three digits are `number`."""
    digits = f"{number:03x}"
    files: dict[FileKey, FileEntry] = {}
    links = []
    for entity in Entity:
        for thing in _things(root, layout.folder(entity, digits)):
            check()
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
        if own is None or not regular or not 0 < status.st_size <= LARGEST_FILE_BYTES:
            return None
        entry = FileEntry(size_bytes=status.st_size, stored_at=status.st_mtime, media=place.media)
        return own, entry
    except OSError:
        return None


# The same, packed: for all of a large cache at once. What is above is the reference.


@attrs.define
class Leaf:
    """
    What lies in one folder of images.

    `empty` are files of ours without a byte, `strangers` what is not ours, by name.
    """

    entity: Entity
    digits: str
    files: list[Packed] = attrs.field(factory=list)
    file_names: list[str] = attrs.field(factory=list)
    """Of the files, in the same order."""
    size_bytes: int = 0
    links: list[PackedLink] = attrs.field(factory=list)
    link_names: list[str] = attrs.field(factory=list)
    """Of the links, in the same order."""
    targets: list[str] = attrs.field(factory=list)
    """What the links hold, in the same order."""
    empty: list[str] = attrs.field(factory=list)
    strangers: list[str] = attrs.field(factory=list)

    @property
    def folder(self) -> str:
        return layout.folder(self.entity, self.digits)

    @property
    def seen(self) -> list[Packed]:
        """Files and aliases, as an index learns them."""
        return [*self.files, *[(key, value) for key, value, _, _ in self.links]]


@attrs.frozen
class Ground:
    """The folders in which things of ours can lie, those of one slice together; and what else is there."""

    leaves: list[tuple[Entity, str]]
    strangers: list[str]


def survey(root: str, check: Check = unchecked) -> Ground:
    """Look at the upper folders."""
    leaves: list[tuple[Entity, str]] = []
    strangers = _others(
        root, "", {layout.INCOMING, untold_mark.NAME, *(entity.value for entity in Entity)}
    )
    for entity in Entity:
        level = [(entity.value, "")]
        for length in (1, 2, 3):
            below = []
            for folder, begin in level:
                check()
                digits = re.compile(f"{begin}[0-9a-f]{{{length - len(begin)}}}")
                for name, is_folder in _names(f"{root}/{folder}"):
                    if is_folder and digits.fullmatch(name):
                        below.append((f"{folder}/{name}", name))
                    else:
                        strangers.append(f"{folder}/{name}")
            level = below
        leaves += [(entity, digits) for _, digits in level]
    leaves.sort(key=lambda leaf: leaf[1])
    return Ground(leaves, strangers)


def _names(folder: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as rows:
            return [(row.name, row.is_dir(follow_symlinks=False)) for row in rows]
    except OSError:
        return []


def _others(root: str, folder: str, ours: Iterable[str]) -> list[str]:
    return [folder + name for name, _ in _names(root) if name not in ours]


def read_leaf(root: str, entity: Entity, digits: str) -> Leaf:
    """
    Everything in one folder.

    The folder is opened once and its names are looked up from there, which spares the kernel the
    way from the top for each file.
    """
    leaf = Leaf(entity, digits)
    try:
        fd = os.open(f"{root}/{leaf.folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return leaf
    try:
        files, links = _look(fd, leaf)
    except OSError:
        return leaf
    finally:
        os.close(fd)
    names = Names(entity, digits)
    said = names.files(files)
    if None not in said and 0 not in [size_bytes for _, size_bytes, _ in files]:
        leaf.files = [packed for packed in said if packed is not None]
        leaf.file_names = [name for name, _, _ in files]
        leaf.size_bytes = sum([size_bytes for _, size_bytes, _ in files])
    else:
        for (name, size_bytes, _), packed in zip(files, said, strict=True):
            if packed is None:
                leaf.strangers.append(name)
            elif size_bytes:
                leaf.files.append(packed)
                leaf.file_names.append(name)
                leaf.size_bytes += size_bytes
            else:
                leaf.empty.append(name)
    if links:
        fresh = [(layout.unretired(name), text, at) for name, text, at in links]
        for (name, text, _), link in zip(links, names.links(fresh), strict=True):
            if link is None:
                leaf.strangers.append(name)
            else:
                leaf.links.append(link)
                leaf.link_names.append(name)
                leaf.targets.append(text)
    return leaf


def _look(fd: int, leaf: Leaf) -> tuple[list[tuple[str, int, float]], list[tuple[str, str, float]]]:
    """The regular files (name, size, mtime) and the symlinks (name, text, mtime) of an open folder."""
    files = []
    links = []
    with os.scandir(fd) as rows:
        for row in rows:
            try:
                if row.is_file(follow_symlinks=False):
                    status = row.stat(follow_symlinks=False)
                    files.append((row.name, status.st_size, status.st_mtime))
                elif row.is_symlink():
                    name = row.name
                    status = row.stat(follow_symlinks=False)
                    links.append((name, os.readlink(name, dir_fd=fd), status.st_mtime))
                else:
                    leaf.strangers.append(row.name)
            except OSError:
                # It went while it was looked at.
                continue
    return files, links


def leaves(root: str, check: Check = unchecked) -> Iterator[Leaf]:
    """What lies in each folder of images."""
    for entity, digits in survey(root, check).leaves:
        check()
        yield read_leaf(root, entity, digits)


def walk_packed(root: str, check: Check = unchecked) -> Iterator[list[Packed]]:
    """
    Every file and alias under a cache directory, packed, so much at a time as an index learns.

    Reads names, symlinks and what stat says, no contents. What is not ours is passed over; a
    folder that vanishes while it is read counts as empty.
    """
    seen: list[Packed] = []
    for leaf in leaves(root, check):
        seen += leaf.seen
        while len(seen) >= LEARN_AT_ONCE:
            yield seen[:LEARN_AT_ONCE]
            seen = seen[LEARN_AT_ONCE:]
    if seen:
        yield seen
