"""Comparing the index with the disk, a slice at a time, and mending both ways: the disk is right."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import attrs
from twisted.logger import Logger

from coverart.cache.download import InThread
from coverart.index.base import LEARN_AT_ONCE, Index, Packed, Seen, Slice
from coverart.model import (
    ORIGINAL,
    Alias,
    AliasKey,
    FileEntry,
    FileKey,
    ImageRequest,
    ListingKey,
)
from coverart.store.disk_walk import Check, DiskSlice, Link, read_slice, walk_packed
from coverart.store.image_store import MTIME_SLACK_S, ImageStore, OnDisk


@attrs.define(kw_only=True)
class Mended:
    """What a comparison changed."""

    learnt: int = 0
    forgotten: int = 0
    dangling: int = 0


class Stuck:
    """Tells of files that can't be removed or renamed: once for each folder and reason."""

    log = Logger()

    def __init__(self) -> None:
        self._known: set[tuple[str, str | None]] = set()

    def tell(self, path: str, error: OSError) -> None:
        """Say which file it is and what follows."""
        trouble = (os.path.dirname(path), error.strerror)
        if trouble not in self._known:
            self._known.add(trouble)
            self.log.warn(
                "{path} can't be removed or renamed ({reason}): it stays, and so may others of its "
                "folder; the cleanup goes on with the next file and tries again next time",
                path=path,
                reason=error.strerror,
            )

    @contextlib.contextmanager
    def told(self, path: str) -> Iterator[None]:
        """Tell of an error of the disk in the block, and go on behind it."""
        try:
            yield
        except OSError as error:
            self.tell(path, error)


class Reconciler:
    """Makes the index agree with the disk."""

    log = Logger()

    def __init__(
        self,
        *,
        index: Index,
        store: ImageStore,
        in_thread: InThread,
        stuck: Stuck | None = None,
    ) -> None:
        self._stuck = stuck or Stuck()
        self._index = index
        self._store = store
        self._in_thread = in_thread

    async def learn_all(self, check: Check) -> int:
        """Tell the index everything that is on the disk. :returns: how many things that was."""
        count = 0
        batches = walk_packed(str(self._store.root), check)
        while seen := await self._in_thread(_next, batches):
            check()
            await self._index.learn_packed(seen)
            count += len(seen)
        return count

    async def settle(self, keys: Sequence[FileKey], check: Check) -> int:
        """Look after files in doubt. :returns: how many the index had to learn or forget."""
        mended = 0
        for key in keys:
            check()
            on_disk: OnDisk | None = await self._in_thread(self._store.find, _own_name(key))
            entry = await self._known(key)
            if on_disk is not None and on_disk.key == key and _stored_anew(on_disk.entry, entry):
                await self._index.put_file(key, on_disk.entry)
                mended += 1
            elif on_disk is None and entry is not None:
                mended += await self._index.forget_file(key, entry)
        await self._index.settle(keys)
        return mended

    async def compare(self, number: int, expired_before: float, check: Check) -> Mended:
        """
        Compare one slice.

        :param expired_before: aliases last confirmed before that are past their time.
        """
        on_disk: DiskSlice = await self._in_thread(read_slice, str(self._store.root), number, check)
        known = await self._index.slice(number)
        aliases = on_disk.aliases
        news: list[Seen] = [(k, e) for k, e in on_disk.files.items() if k not in known.files]
        news += [(k, a) for k, a in aliases.items() if _tells_more(a, known.aliases.get(k))]
        for start in range(0, len(news), LEARN_AT_ONCE):
            check()
            await self._index.learn(news[start : start + LEARN_AT_ONCE])
        anew = [(k, e) for k, e in on_disk.files.items() if _stored_anew(e, known.files.get(k, e))]
        for key, entry in anew:
            # By a process that was killed before it could tell.
            check()
            await self._index.put_file(key, entry)
        lost = [
            (key, entry)
            for key, entry in known.files.items()
            if key not in on_disk.files or on_disk.files[key].size_bytes != entry.size_bytes
        ]
        mended = await self.mend_lost(lost, check)
        mended.learnt += len(news) + len(anew)
        mended.dangling = await self._in_thread(
            self._tidy_links, on_disk.links, known.aliases, expired_before, check
        )
        await self._forget_aliases(known, aliases, expired_before, check)
        return mended

    async def mend_lost(self, lost: list[tuple[FileKey, FileEntry]], check: Check) -> Mended:
        """
        Forget files that the disk does not hold as the index says.

        Those that came back meanwhile are left alone; a listing that was stored anew while the
        index could not be told is learnt.
        """
        mended = Mended()
        for key, entry in await self._in_thread(self.still_lost, lost):
            check()
            with self._stuck.told(self._store.path_of(key, entry.media)):
                # From the disk first, as when a request finds it so (fetch.py).
                anew = await self._in_thread(self._store.remove_spoilt, key, entry)
                if anew is not None:
                    await self._index.put_file(key, anew)
                    mended.learnt += 1
                elif await self._index.forget_file(key, entry):
                    await self._index.settle([key])
                    mended.forgotten += 1
        return mended

    def still_lost(self, lost: list[tuple[FileKey, FileEntry]]) -> list[tuple[FileKey, FileEntry]]:
        """In a thread: those that have not come between the two looks."""

        def held(key: FileKey, entry: FileEntry) -> bool:
            status = self._store.stat(self._store.path_of(key, entry.media))
            return status is not None and status.st_size == entry.size_bytes

        return [(key, entry) for key, entry in lost if not held(key, entry)]

    def _tidy_links(
        self,
        links: list[Link],
        known: Mapping[AliasKey, Alias],
        expired_before: float,
        check: Check,
    ) -> int:
        """
        In a thread. What leads to no file goes, and what a flushed index did not see when the name
        moved: the index was read after the disk, so it was told later than the link was made.
        """
        dangling = 0
        for link in links:
            check()
            alias = known.get(link.key)
            with self._stuck.told(link.path):
                if self._store.links.remove_dangling(link.path):
                    dangling += 1
                elif alias is not None and self._store.links.remove_if_outdated(link.path, alias):
                    continue
                elif link.key.ages and not link.retired:
                    self._store.links.retire(link.path, expired_before)
        return dangling

    async def _forget_aliases(
        self,
        known: Slice,
        on_disk: dict[AliasKey, Alias],
        expired_before: float,
        check: Check,
    ) -> None:
        """Names past their time that lead to nothing that is held are not worth their place."""
        for key, alias in known.aliases.items():
            check()
            if key not in on_disk and alias.checked_at < expired_before:
                own = alias.target.ref.at(ORIGINAL).own_request
                if (await self._index.find_image(own)).target is None:
                    await self._index.forget_alias(key)

    async def _known(self, key: FileKey) -> FileEntry | None:
        name = _own_name(key)
        if isinstance(name, ListingKey):
            return (await self._index.find_listing(name)).entry
        found = await self._index.find_image(name)
        return found.entry if found.key == key else None


def _stored_anew(entry: FileEntry, known: FileEntry | None) -> bool:
    """Say whether a file came after what the index knows of it, if that was no other file."""
    if known is None:
        return True
    return (
        entry.size_bytes == known.size_bytes and entry.stored_at > known.stored_at + MTIME_SLACK_S
    )


def _tells_more(alias: Alias, known: Alias | None) -> bool:
    """Say whether a symlink was confirmed after what the index knows of its name was."""
    return known is None or alias.checked_at > known.checked_at + MTIME_SLACK_S


def _own_name(key: FileKey) -> ImageRequest | ListingKey:
    if isinstance(key, ListingKey):
        return key
    return key.own_request


def _next(batches: Iterator[list[Packed]]) -> list[Packed]:
    """In a thread."""
    return next(batches, [])
