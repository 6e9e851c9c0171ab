"""
The one reader of the disk: what lies in the folders of one slice, and what lies above them.

It reads names, symlinks and what stat says, and no contents; packed, as an index takes it in. A
folder that is not there, or vanishes while it is read, counts as empty; one that can't be read does
not. All of it blocks: call it in a thread.
"""

from __future__ import annotations

import os
import re

import attrs

from coverart.coordination import untold_mark
from coverart.freshness import counted
from coverart.index.base import SLICES, Packed
from coverart.index.codec import ages, checked_at_of, size_of
from coverart.model import Entity
from coverart.store import layout
from coverart.store.atomic_files import is_gone
from coverart.store.packed_names import PackedLink, pack_files, pack_links
from coverart.store.symlinks import leads_nowhere

_ABOVE = re.compile(
    rf"(?:{'|'.join(Entity)})(?:/([0-9a-f])(?:/(\1[0-9a-f])(?:/\2[0-9a-f])?)?)?"
).fullmatch
"""The folders in which folders of images lie, and these themselves."""
_DIGITS = 3


@attrs.define
class Folder:
    """What lies in one folder of images, by name."""

    path: str
    entity: Entity
    files: dict[str, Packed] = attrs.field(factory=dict)
    size_bytes: int = 0
    """Of the files."""
    links: dict[str, PackedLink] = attrs.field(factory=dict)
    damaged: list[str] = attrs.field(factory=list)
    """Names of files that have a place in the cache and no bytes, or the wrong ones."""
    strangers: list[str] = attrs.field(factory=list)
    """Names of what is not the cache's."""

    def take_for_damaged(self, name: str) -> None:
        """The bytes of a file are not what its name says."""
        self.damaged.append(name)
        self.size_bytes -= size_of(self.files.pop(name)[1])

    def overdue(self, before: float, now: float) -> list[str]:
        """The paths of symlinks that nginx serves, of aliases last confirmed before that time."""
        return [
            f"{self.path}/{name}"
            for name, (key, value, _, _) in self.links.items()
            if ages(key)
            and counted(checked_at_of(value), now) < before
            and not name.endswith(layout.RETIRED)
        ]


@attrs.define
class DiskSlice:
    """All that lies on the disk of the MBIDs whose first three digits are `number`."""

    number: int
    folders: list[Folder]
    dangling: list[str]
    """Paths of symlinks whose file is gone."""

    def things(self, now: float) -> dict[bytes, bytes]:
        """
        Keys and values as an index has them.

        The links of all sizes make one alias; where they differ, the latest is right.

        :param now: a stamp ahead of that counts as older than any other (freshness.py).
        """
        found: dict[bytes, bytes] = {}
        for folder in self.folders:
            found.update(folder.files.values())
            for key, value, _, _ in folder.links.values():
                known = found.get(key)
                if known is None or counted(checked_at_of(known), now) < counted(
                    checked_at_of(value), now
                ):
                    found[key] = value
        return found


def read_slice(root: str, number: int) -> DiskSlice:
    """
    Everything in the folders of one slice.

    :raises OSError: some of it can't be read now, so nobody can say what is there.
    """
    folders = [_read_folder(root, entity, f"{number:03x}") for entity in Entity]
    links = [
        (f"{folder.path}/{name}", link) for folder in folders for name, link in folder.links.items()
    ]
    if not links:
        return DiskSlice(number, folders, [])
    held = {key: value[0] for folder in folders for key, value in folder.files.values()}
    # Asked of the disk only where the file lies in another slice.
    dangling = [
        path
        for path, (_, _, key, media) in links
        if held.get(key) != media and leads_nowhere(f"{root}/{path}")
    ]
    return DiskSlice(number, folders, dangling)


def _read_folder(root: str, entity: Entity, digits: str) -> Folder:
    """The folder is opened once: that spares the kernel the way from the top for each file."""
    folder = Folder(layout.folder(entity, digits), entity)
    try:
        fd = os.open(f"{root}/{folder.path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files, links = _list(fd, folder)
        finally:
            os.close(fd)
    except OSError as error:
        if not is_gone(error):
            error.filename = folder.path
            raise
        return folder
    packed = list(zip(files, pack_files(entity, digits, files), strict=True))
    folder.files = {row[0]: each for row, each in packed if each is not None and row[1]}
    folder.size_bytes = sum([row[1] for row, each in packed if each is not None])
    folder.damaged = [row[0] for row, each in packed if each is not None and not row[1]]
    folder.strangers += [row[0] for row, each in packed if each is None]
    if links:
        fresh = [(layout.unretired(name), text, at) for name, text, at in links]
        said = list(zip(links, pack_links(entity, digits, fresh), strict=True))
        folder.links = {row[0]: link for row, link in said if link is not None}
        folder.strangers += [row[0] for row, link in said if link is None]
    return folder


def _list(
    fd: int, folder: Folder
) -> tuple[list[tuple[str, int, float]], list[tuple[str, str, float]]]:
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
                    folder.strangers.append(row.name)
            except OSError as error:
                # Else it went while it was looked at.
                if not is_gone(error):
                    raise
    return files, links


def survey(root: str) -> tuple[list[int], list[str]]:
    """
    Look at the folders above those of images. Symlinks may spread a cache over disks.

    :returns: the slices that have folders, or may have, and the paths of what is not the cache's.
    """
    numbers: set[int] = set()
    strangers: list[str] = []

    def unreadable(error: OSError) -> None:
        if not is_gone(error):
            # Who reads the slices below it is told why they can't be read, if they can't.
            numbers.update(range(SLICES))

    for folder, below, others in os.walk(root, onerror=unreadable, followlinks=True):
        above = f"{folder}/"[len(root) + 1 :]
        ours = [name for name in below if _ABOVE(above + name)]
        found = {*below, *others}.difference(ours)
        strangers += {above + name for name in found} - {layout.INCOMING, untold_mark.NAME}
        numbers.update(int(name, 16) for name in ours if len(name) == _DIGITS)
        # What lies in these is no matter here.
        below[:] = [name for name in ours if len(name) != _DIGITS]
    return sorted(numbers), strangers
