"""Filling the index from the bare disk, off the reactor thread and a slice at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice

from coverart import layout
from coverart.index import Seen
from coverart.model import Alias, Entity, FileEntry, ImageRequest
from coverart.store import link_target

SLICE = 200
"""Things handed to the index at once: about a millisecond of its time."""


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
                    yield from _things(root, third)


def _folders(root: str, folder: str) -> list[str]:
    try:
        with os.scandir(f"{root}/{folder}") as rows:
            return sorted(
                f"{folder}/{row.name}" for row in rows if row.is_dir(follow_symlinks=False)
            )
    except OSError:
        return []


def _things(root: str, folder: str) -> Iterator[Seen]:
    try:
        with os.scandir(f"{root}/{folder}") as rows:
            for row in rows:
                seen = _thing(row, f"{folder}/{row.name}")
                if seen is not None:
                    yield seen
    except OSError:
        return


def _thing(row: os.DirEntry[str], path: str) -> Seen | None:
    place = layout.identify(path)
    if place is None:
        return None
    try:
        status = row.stat(follow_symlinks=False)
        if row.is_symlink():
            link = layout.read_link(path, os.readlink(row.path))
            if link is None or not isinstance(place.thing, ImageRequest):
                return None
            key, media, _ = link
            target = link_target(key, media)
            return place.thing.alias, Alias(target=target, checked_at=status.st_mtime)
        own = place.file_key
        if own is None or not row.is_file(follow_symlinks=False) or status.st_size == 0:
            return None
        entry = FileEntry(size_bytes=status.st_size, stored_at=status.st_mtime, media=place.media)
        return own, entry
    except OSError:
        return None


def rebuild(root: str, take: Callable[[list[Seen]], object]) -> int:
    """
    Hand everything under a cache directory to `take`, a slice at a time; call it in a thread.

    :param take: returns when the slice is taken in, so that the disk is not read faster.
    :returns: how many things were seen.
    """
    count = 0
    things = walk(root)
    while slice_ := list(islice(things, SLICE)):
        take(slice_)
        count += len(slice_)
    return count
