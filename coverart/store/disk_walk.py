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
from coverart.store.packed_names import Names, PackedLink
from coverart.store.symlinks import leads_nowhere

_UP = len("../../../..")
"""What a symlink holds begins with the way up to the cache directory."""
_ABOVE = re.compile(
    rf"(?:{'|'.join(Entity)})(?:/([0-9a-f])(?:/(\1[0-9a-f])(?:/\2[0-9a-f])?)?)?"
).fullmatch
"""The folders in which folders of images lie, and these themselves."""
_LEVELS, _DIGITS = 4, 3


@attrs.define
class Folder:
    """What lies in one folder of images. Names stand in the order of what they are the names of."""

    path: str
    entity: Entity
    files: list[Packed] = attrs.field(factory=list)
    file_names: list[str] = attrs.field(factory=list)
    size_bytes: int = 0
    """Of the files."""
    links: list[PackedLink] = attrs.field(factory=list)
    link_names: list[str] = attrs.field(factory=list)
    targets: list[str] = attrs.field(factory=list)
    """What the links hold."""
    damaged: list[str] = attrs.field(factory=list)
    """Names of files that have a place in the cache and no bytes, or the wrong ones."""
    strangers: list[str] = attrs.field(factory=list)
    """Names of what is not the cache's."""

    def take_for_damaged(self, i: int) -> None:
        """The bytes of the i-th file are not what its name says."""
        self.damaged.append(self.file_names.pop(i))
        self.size_bytes -= size_of(self.files.pop(i)[1])

    def overdue(self, before: float, now: float) -> list[str]:
        """The paths of symlinks that nginx serves, of aliases last confirmed before that time."""
        return [
            f"{self.path}/{name}"
            for name, (key, value, _, _) in zip(self.link_names, self.links, strict=True)
            if ages(key)
            and counted(checked_at_of(value), now) < before
            and not name.endswith(layout.RETIRED)
        ]


@attrs.define
class DiskSlice:
    """All that lies on the disk of the MBIDs whose first three digits are `number`."""

    number: int
    folders: list[Folder]
    dangling: list[str] = attrs.field(factory=list)
    """Paths of symlinks whose file is gone."""

    def things(self, now: float) -> dict[bytes, bytes]:
        """
        Keys and values as an index has them.

        The links of all sizes make one alias; where they differ, the latest is right.

        :param now: a stamp ahead of that counts as older than any other (freshness.py).
        """
        found: dict[bytes, bytes] = {}
        for folder in self.folders:
            found.update(folder.files)
            for key, value, _, _ in folder.links:
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
    part = DiskSlice(number, folders)
    if any(folder.links for folder in folders):
        held = {key: value[0] for folder in folders for key, value in folder.files}
        for folder in folders:
            for i, (_, _, key, media) in enumerate(folder.links):
                # Asked of the disk only where the file lies in another slice.
                if held.get(key) != media:
                    target = root + folder.targets[i][_UP:]
                    if leads_nowhere(target):
                        part.dangling.append(f"{folder.path}/{folder.link_names[i]}")
    return part


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
    names = Names(entity, digits)
    packed = names.files(files)
    if None not in packed and 0 not in [size_bytes for _, size_bytes, _ in files]:
        # As good as always, and quicker than one by one.
        folder.files = [each for each in packed if each is not None]
        folder.file_names = [name for name, _, _ in files]
        folder.size_bytes = sum([size_bytes for _, size_bytes, _ in files])
    else:
        for (name, size_bytes, _), each in zip(files, packed, strict=True):
            if each is None:
                folder.strangers.append(name)
            elif size_bytes:
                folder.files.append(each)
                folder.file_names.append(name)
                folder.size_bytes += size_bytes
            else:
                folder.damaged.append(name)
    if links:
        fresh = [(layout.unretired(name), text, at) for name, text, at in links]
        for (name, text, _), link in zip(links, names.links(fresh), strict=True):
            if link is None:
                folder.strangers.append(name)
            else:
                folder.links.append(link)
                folder.link_names.append(name)
                folder.targets.append(text)
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
    Look at the folders above those of images.

    :returns: the slices that have folders, or may have, and the paths of what is not the cache's.
    """
    numbers: set[int] = set()
    strangers: list[str] = []
    level = [""]
    for _ in range(_LEVELS):
        below = []
        for folder in level:
            try:
                names = _names(f"{root}/{folder}")
            except OSError as error:
                if not is_gone(error):
                    # Who reads the slices below it is told why they can't be read, if they can't.
                    digits = "".join(folder.split("/")[1:-1][-1:])
                    numbers.update(n for n in range(SLICES) if f"{n:03x}".startswith(digits))
                continue
            for name, is_folder in names:
                path = folder + name
                if not is_folder or not _ABOVE(path):
                    if path not in (layout.INCOMING, untold_mark.NAME):
                        strangers.append(path)
                elif len(name) == _DIGITS:
                    numbers.add(int(name, 16))
                else:
                    below.append(f"{path}/")
        level = below
    return sorted(numbers), strangers


def _names(folder: str) -> list[tuple[str, bool]]:
    """The names in a folder, and whether they are folders: symlinks may spread a cache over disks."""
    with os.scandir(folder) as rows:
        return [(row.name, row.is_dir()) for row in rows]
