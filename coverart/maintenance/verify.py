"""
A look at the whole cache directory by hand, while the service runs or not: what lies there, and
whether the index knows it.

A difference counts when it is still there at a second look: what a running service stores or
removes is for a moment on the disk and not in the index.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from coverart.cache.download import InThread
from coverart.content import ENOUGH, sniff
from coverart.index.base import LEARN_AT_ONCE, SLICES, Index, IndexAway
from coverart.index.codec import (
    checked_at_of,
    is_alias,
    media_of,
    size_of,
    unpack_entry,
    unpack_file_key,
)
from coverart.maintenance.reconcile import Reconciler, Stuck
from coverart.model import Entity
from coverart.store.disk_walk import Leaf, read_leaf, survey
from coverart.store.image_store import ImageStore

SLICES_AT_ONCE = 16
UP = len("../../../..")
"""What a symlink holds begins with the way up to the cache directory."""
SECOND_LOOK_S = 1.0
MOST_NAMES = 20
"""So many names of damaged and foreign files are told; all are counted."""


@attrs.define(kw_only=True)
class Scan:
    """What a scan saw and did; in a dry run, what it would have done."""

    cache_dir: str
    index: str
    dry_run: bool
    verified: bool
    files: int = 0
    size_bytes: int = 0
    by_entity: dict[str, int] = attrs.field(factory=lambda: {str(entity): 0 for entity in Entity})
    aliases: int = 0
    """Names; one can have a symlink for each size."""
    links: int = 0
    dangling: int = 0
    """Symlinks whose file is gone."""
    unfinished: int = 0
    """Temporary files, those of running downloads among them."""
    foreign: int = 0
    """What is not the cache's."""
    foreign_names: list[str] = attrs.field(factory=list)
    damaged: int = 0
    """Empty files; if verified, also images that do not begin as their name says."""
    damaged_names: list[str] = attrs.field(factory=list)
    learnt: int = 0
    """Files and aliases that the index did not know."""
    forgotten: int = 0
    """Entries without their file."""
    elapsed_s: float = 0.0

    @property
    def differences(self) -> int:
        return self.learnt + self.forgotten + (self.damaged if self.verified else 0)

    def foreigners(self, names: Sequence[str]) -> None:
        self.foreign += len(names)
        self.foreign_names += names[: max(0, MOST_NAMES - len(self.foreign_names))]


@attrs.define
class _Look:
    """One slice on the disk."""

    number: int
    leaves: list[Leaf]
    dangling: int = 0
    damaged: list[tuple[str, bytes | None]] = attrs.field(factory=list)
    """Path, and the key where the file has one."""

    def things(self) -> dict[bytes, bytes]:
        """Keys and values as an index has them: the links of all sizes make one alias."""
        found: dict[bytes, bytes] = {}
        bad = {key for _, key in self.damaged}
        for leaf in self.leaves:
            for key, value in leaf.files:
                if key not in bad:
                    found.setdefault(key, value)
            for key, value, _, _ in leaf.links:
                known = found.get(key)
                if known is None or checked_at_of(known) < checked_at_of(value):
                    found[key] = value
        return found


@attrs.define
class _Odd:
    """Keys of one slice in which disk and index differ."""

    news: dict[bytes, bytes]
    lost: dict[bytes, bytes]


class Scanner:
    """Scans one cache directory."""

    def __init__(
        self,
        *,
        index: Index | None,
        store: ImageStore,
        in_thread: InThread,
        clock: IReactorTime,
        dry_run: bool = False,
        verify: bool = False,
    ) -> None:
        """:param index: None where there is none to compare with."""
        self.told: Callable[[int, int, Scan], object] = lambda _done, _of, _scan: None
        """Called now and then: folders done, folders in all, and what was seen so far."""
        self._index = index
        self._store = store
        self._root = os.fspath(store.root)
        self._in_thread = in_thread
        self._clock = clock
        self._dry_run = dry_run
        self._verify = verify
        self._stuck = Stuck()
        self._ground: dict[int, list[Entity]] = {}

    async def run(self) -> Scan:
        """
        Look at everything.

        :raises IndexAway: the index can't be asked; what was done until then stays done.
        """
        began = time.monotonic()
        scan = Scan(
            cache_dir=self._root,
            index="none" if self._index is None else self._index.kind,
            dry_run=self._dry_run,
            verified=self._verify,
        )
        ground = await self._in_thread(survey, self._root)
        scan.foreigners(ground.strangers)
        scan.unfinished = await self._in_thread(self._store.unfinished)
        for entity, digits in ground.leaves:
            self._ground.setdefault(int(digits, 16), []).append(entity)
        whole = True if self._index is None else await self._index.whole()
        if self._index is not None and not whole and not self._dry_run:
            await self._index.fill()
        numbers = sorted(self._ground) if self._index is None else list(range(SLICES))
        waiting: deque[tuple[float, int, _Odd]] = deque()
        done = 0
        for start in range(0, len(numbers), SLICES_AT_ONCE):
            group = numbers[start : start + SLICES_AT_ONCE]
            for look, known in await self._both(group):
                self._count(look, scan)
                await self._remove_damaged(look)
                done += len(look.leaves)
                if known is not None:
                    odd = _compare(look, known)
                    if not whole and not self._dry_run:
                        # It lost what it knew: no use in waiting with what will be learnt.
                        scan.learnt += await self._learn(odd.news)
                        odd.news = {}
                    if odd.news or odd.lost:
                        waiting.append((self._clock.seconds(), look.number, odd))
            while waiting and self._clock.seconds() - waiting[0][0] >= SECOND_LOOK_S:
                await self._settle(*waiting.popleft()[1:], scan)
            self.told(done, len(ground.leaves), scan)
        while waiting:
            seen_at, number, odd = waiting.popleft()
            left_s = seen_at + SECOND_LOOK_S - self._clock.seconds()
            if left_s > 0:
                await deferLater(self._clock, left_s)
            await self._settle(number, odd, scan)
        if self._index is not None and not whole and not self._dry_run:
            await self._index.set_whole()
        scan.elapsed_s = time.monotonic() - began
        return scan

    async def _both(self, numbers: list[int]) -> list[tuple[_Look, dict[bytes, bytes] | None]]:
        """These slices on the disk and in the index, looked up at the same time."""
        looks: Deferred[list[_Look]] = self._in_thread(self._look_at, numbers)
        index = self._index
        if index is None:
            return [(look, None) for look in await looks]
        asked = [Deferred.fromCoroutine(index.slice_packed(number)) for number in numbers]
        asked_all: Deferred[Any] = gatherResults(asked, consumeErrors=True)
        found: list[Any] = [None, None]
        # Both are awaited whatever happens: none may go on behind our back.
        try:
            found[0] = await looks
        finally:
            try:
                found[1] = await asked_all
            except Exception as error:
                raise _cause(error) from error
        return list(zip(found[0], found[1], strict=True))

    def _look_at(self, numbers: list[int]) -> list[_Look]:
        """In a thread."""
        return [self._look(number) for number in numbers]

    def _look(self, number: int) -> _Look:
        digits = f"{number:03x}"
        leaves = [read_leaf(self._root, entity, digits) for entity in self._ground.get(number, ())]
        look = _Look(number, leaves)
        held = {key: value[0] for leaf in leaves for key, value in leaf.files}
        for leaf in leaves:
            look.damaged += [(f"{leaf.folder}/{name}", None) for name in leaf.empty]
            for (_, _, key, media), text in zip(leaf.links, leaf.targets, strict=True):
                # Asked of the disk only where the file lies in another slice.
                if held.get(key) != media and not os.access(self._root + text[UP:], os.F_OK):
                    look.dangling += 1
            if self._verify:
                for (key, value), name in zip(leaf.files, leaf.file_names, strict=True):
                    path = f"{leaf.folder}/{name}"
                    if not self._begins_right(path, value):
                        look.damaged.append((path, key))
        return look

    def _begins_right(self, path: str, value: bytes) -> bool:
        media = media_of(value)
        if media is None:
            return True
        try:
            fd = self._store.open(path)
        except FileNotFoundError:
            return True  # It went meanwhile.
        except OSError:
            return False
        try:
            return sniff(os.pread(fd, ENOUGH, 0)) is media
        except OSError:
            return False
        finally:
            os.close(fd)

    def _count(self, look: _Look, scan: Scan) -> None:
        for leaf in look.leaves:
            scan.files += len(leaf.files)
            scan.by_entity[leaf.entity.value] += len(leaf.files)
            scan.size_bytes += leaf.size_bytes
            scan.links += len(leaf.links)
            scan.aliases += len({link[0] for link in leaf.links})
            if leaf.strangers:
                scan.foreigners([f"{leaf.folder}/{name}" for name in leaf.strangers])
        scan.dangling += look.dangling
        scan.damaged += len(look.damaged)
        room = max(0, MOST_NAMES - len(scan.damaged_names))
        scan.damaged_names += [path for path, _ in look.damaged[:room]]

    async def _remove_damaged(self, look: _Look) -> None:
        if self._dry_run or not self._verify:
            return
        for path, packed in look.damaged:
            known = None
            if packed is not None and self._index is not None:
                # Before the file is looked at again: what is stored since is another entry.
                known = (await self._index.slice_packed(look.number)).get(packed)
            gone = False
            with self._stuck.told(path):
                gone = await self._in_thread(self._store.remove_damaged, path)
            if gone and packed is not None and known is not None and self._index is not None:
                key = unpack_file_key(packed)
                if await self._index.forget_file(key, unpack_entry(known)):
                    await self._index.settle([key])

    async def _settle(self, number: int, odd: _Odd, scan: Scan) -> None:
        """Look a second time at what differed, and mend what still does."""
        ((look, known),) = await self._both([number])
        if known is None or self._index is None:
            return
        again = _compare(look, known)
        news = {key: value for key, value in again.news.items() if key in odd.news}
        lost = [
            (unpack_file_key(key), unpack_entry(value))
            for key, value in again.lost.items()
            if odd.lost.get(key) == value
        ]
        reconciler = Reconciler(
            index=self._index, store=self._store, in_thread=self._in_thread, stuck=self._stuck
        )
        if self._dry_run:
            scan.learnt += len(news)
            scan.forgotten += len(await self._in_thread(reconciler.still_lost, lost))
            return
        scan.learnt += await self._learn(news)
        mended = await reconciler.mend_lost(lost, self._still_there)
        scan.learnt += mended.learnt
        scan.forgotten += mended.forgotten

    async def _learn(self, news: dict[bytes, bytes]) -> int:
        if self._index is not None:
            things = list(news.items())
            for start in range(0, len(things), LEARN_AT_ONCE):
                await self._index.learn_packed(things[start : start + LEARN_AT_ONCE])
                self._still_there()
        return len(news)

    def _still_there(self) -> None:
        """:raises IndexAway: what is told to the index now would be lost."""
        if self._index is not None and not self._index.available:
            raise IndexAway("the index went away during the scan")


def _compare(look: _Look, known: dict[bytes, bytes]) -> _Odd:
    """
    What the index lacks, and the files that it has and the disk has not, or not in that size.

    An alias that only the index knows is no difference: its symlink comes with the first size of
    its image that is held.
    """
    things = look.things()
    bad = {key for _, key in look.damaged}
    news = {key: things[key] for key in things.keys() - known.keys()}
    lost = {
        key: value
        for key, value in known.items()
        if not is_alias(key)
        and things.get(key) != value
        and (key not in things or size_of(things[key]) != size_of(value))
        and key not in bad
    }
    return _Odd(news, lost)


def _cause(error: Exception) -> BaseException:
    """What went wrong inside of gatherResults."""
    failure = getattr(error, "subFailure", None)
    return error if failure is None else failure.value
