"""
The one comparison of disk and index, a slice at a time, and mending both ways: the disk is right.

It fills an index at the start, settles doubts, goes through the cache a few slices a sweep, and is
what `coverart scan` tells.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs
from twisted.logger import Logger

from coverart.cache.writer import InThread
from coverart.freshness import counted
from coverart.index.base import LEARN_AT_ONCE, Index
from coverart.index.codec import (
    checked_at_of,
    is_alias,
    ref_of,
    size_of,
    stored_at_of,
    unpack_alias,
    unpack_alias_key,
    unpack_entry,
    unpack_file_key,
)
from coverart.model import ORIGINAL
from coverart.store.disk_walk import DiskSlice, read_slice, survey
from coverart.store.image_store import MTIME_SLACK_S, ImageStore

SLICES_AT_ONCE = 16
"""Limit of slices that a thread reads before the reactor has its turn: a few milliseconds."""

Check: TypeAlias = Callable[[], object]
"""Called before each step, also in threads; what it raises ends the work."""


@attrs.frozen
class Difference:
    """In what disk and index differ in one slice, packed, and which symlinks ask for a look."""

    news: dict[bytes, bytes] = attrs.field(factory=dict)
    """Files and aliases of which the index does not know, or knows something older."""
    lost: dict[bytes, bytes] = attrs.field(factory=dict)
    """Files as the index knows them and the disk does not hold them."""
    dangling: list[str] = attrs.field(factory=list)
    """Symlinks whose file is gone or lost."""
    outdated: dict[str, bytes] = attrs.field(factory=dict)
    """Symlinks that lead to another image than the alias that the index knows, and that alias."""
    overdue: list[str] = attrs.field(factory=list)
    """Symlinks that nginx serves though their alias is past its time."""
    nameless: dict[bytes, bytes] = attrs.field(factory=dict)
    """Aliases past their time that have no symlink."""


def compare(disk: DiskSlice, known: Mapping[bytes, bytes], now: float, before: float) -> Difference:
    """
    Say what the index has to learn and to forget of one slice.

    An alias that only the index knows is none of these: its symlink comes with the first size of
    its image that is held.

    :param before: aliases last confirmed before that time are past theirs.
    """
    things = disk.things(now)
    found = Difference(dangling=list(disk.dangling))
    if not known:
        # As at each start: nothing to look up.
        found.news.update(things)
        things = {}
    for key, value in things.items():
        old = known.get(key)
        if old == value:
            continue
        if old is None:
            found.news[key] = value
        elif not is_alias(key):
            if (
                size_of(value) != size_of(old)
                or stored_at_of(value) > stored_at_of(old) + MTIME_SLACK_S
            ):
                found.lost[key] = old
        elif counted(checked_at_of(value), now) > counted(checked_at_of(old), now) + MTIME_SLACK_S:
            found.news[key] = value
    for key in known.keys() - things.keys():
        if not is_alias(key):
            found.lost[key] = known[key]
        elif checked_at_of(known[key]) < before:
            found.nameless[key] = known[key]
    for folder in disk.folders:
        found.overdue.extend(folder.overdue(before, now))
        for name, (key, value, image, _) in folder.links.items():
            alias = known.get(key)
            if alias is not None and ref_of(alias) != ref_of(value):
                found.outdated[f"{folder.path}/{name}"] = alias
            if image in found.lost:
                found.dangling.append(f"{folder.path}/{name}")
    return found


class Stuck:
    """Tells of files that can't be read, removed or renamed: once for each folder and reason."""

    log = Logger()

    def __init__(self) -> None:
        self._known: set[tuple[str, str | None]] = set()

    @contextlib.contextmanager
    def told(self, path: str = "") -> Iterator[None]:
        """
        Tell of an error of the disk in the block, and what follows, and go on behind it.

        :param path: if the error does not name it.
        """
        try:
            yield
        except OSError as error:
            path = path or error.filename
            trouble = (os.path.dirname(path), error.strerror)
            if trouble not in self._known:
                self._known.add(trouble)
                self.log.warn(
                    "{path} can't be read, removed or renamed ({reason}): it stays, and so may others "
                    "of its folder; the cleanup goes on with the next file and tries again next time",
                    path=path,
                    reason=error.strerror,
                )


class Reconciler:
    """Makes the index agree with the disk."""

    def __init__(
        self,
        *,
        index: Index,
        store: ImageStore,
        in_thread: InThread,
        stuck: Stuck,
        inspect: Callable[[DiskSlice], object] = lambda _: None,
    ) -> None:
        """:param inspect: called in a thread with each slice before it is compared."""
        self._stuck = stuck
        self._inspect = inspect
        self._index = index
        self._store = store
        self._root = os.fspath(store.root)
        self._in_thread = in_thread

    async def survey(self) -> tuple[list[int], list[str]]:
        """The slices of which the disk holds anything; paths of what is not the cache's."""
        seen: tuple[list[int], list[str]] = await self._in_thread(survey, self._root)
        return seen

    async def look(
        self, numbers: Sequence[int], before: float, check: Check
    ) -> list[tuple[DiskSlice, Difference]]:
        """
        Read some slices and compare them; of one that can't be read now, the operator is told.

        The index is asked first: a file is on the disk before it is told to the index, so one that
        is stored in between shows as news at most, and learning what is known changes nothing.

        :param before: as compare() takes it.
        """
        known = [await self._index.slice_packed(number) for number in numbers]

        def read() -> list[tuple[DiskSlice, Difference]]:
            seen = []
            for number, part in zip(numbers, known, strict=True):
                check()
                for disk in self.read(number):
                    self._inspect(disk)
                    seen.append((disk, compare(disk, part, self._store.now(), before)))
            return seen

        seen: list[tuple[DiskSlice, Difference]] = await self._in_thread(read)
        return seen

    def read(self, number: int) -> list[DiskSlice]:
        """One slice, in a thread; none if it can't be read now, of which the operator is told."""
        found = []
        with self._stuck.told():
            found.append(read_slice(self._root, number))
        return found

    async def mend(self, found: Difference, check: Check) -> tuple[int, int]:
        """
        Learn what is new, forget what is lost.

        What was stored anew while the index could not be told is learnt.

        :returns: how many things were learnt, how many files forgotten.
        """
        news = list(found.news.items())
        for start in range(0, len(news), LEARN_AT_ONCE):
            check()
            await self._index.learn_packed(news[start : start + LEARN_AT_ONCE])
        learnt, forgotten = len(news), 0
        for packed, value in found.lost.items():
            check()
            key, entry = unpack_file_key(packed), unpack_entry(value)
            with self._stuck.told(self._store.path_of(key, entry.media)):
                # From the disk first, as when a request finds it so (cache/held_files.py).
                anew = await self._in_thread(self._store.remove_spoilt, key, entry)
                if anew is not None:
                    await self._index.put_file(key, anew)
                    learnt += 1
                elif await self._index.forget_file(key, entry):
                    forgotten += 1
        return learnt, forgotten

    async def tidy(self, found: Difference, before: float, check: Check) -> int:
        """
        Remove and retire symlinks, forget aliases that lead to nothing that is held.

        :param before: as compare() was given it.
        :returns: how many symlinks led to no file.
        """
        dangling = 0
        if found.dangling or found.outdated or found.overdue:
            dangling = await self._in_thread(self._tidy_links, found, before, check)
        for key, value in found.nameless.items():
            check()
            own = unpack_alias(value).target.ref.at(ORIGINAL).own_request
            if (await self._index.find_image(own)).target is None:
                await self._index.forget_alias(unpack_alias_key(key))
        return dangling

    def _tidy_links(self, found: Difference, before: float, check: Check) -> int:
        """In a thread. Each is looked at once more: it may have been made anew since."""
        links = self._store.links
        outdated = found.outdated

        def each(paths: Iterable[str], act: Callable[[str], object]) -> int:
            count = 0
            for path in paths:
                check()
                with self._stuck.told(path):
                    count += act(path) is True
            return count

        each(outdated, lambda path: links.remove_if_outdated(path, unpack_alias(outdated[path])))
        each(found.overdue, lambda path: links.retire(path, before))
        return each(found.dangling, links.remove_dangling)
