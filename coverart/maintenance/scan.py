"""
`coverart scan`: a look at the whole cache directory by hand, while the service runs or not: what
lies there, and whether the index knows it.

A difference counts when it is still there at a second look: what a running service stores or
removes is for a moment on the disk and not in the index.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from coverart.cache.writer import InThread
from coverart.index.base import SLICES, Index
from coverart.index.memory import MemoryIndex
from coverart.maintenance.reconcile import SLICES_AT_ONCE, Difference, Reconciler, Stuck
from coverart.model import Entity
from coverart.store.disk_walk import DiskSlice
from coverart.store.image_store import ImageStore
from coverart.store.orphans import unfinished

SECOND_LOOK_S = 1.0
MOST_NAMES = 20
"""Limit of damaged and of foreign files whose names are told; all are counted."""


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
    """Empty files; if verified, also images that do not begin as their name says, and listings that do
    not parse."""
    damaged_names: list[str] = attrs.field(factory=list)
    learnt: int = 0
    """Files and aliases that the index did not know."""
    forgotten: int = 0
    """Entries without their file, or with a damaged one."""
    elapsed_s: float = 0.0

    @property
    def differences(self) -> int:
        return self.learnt + self.forgotten + (self.damaged if self.verified else 0)

    def count(self, disk: DiskSlice) -> None:
        """Add what lies in one slice."""
        for folder in disk.folders:
            self.files += len(folder.files)
            self.by_entity[folder.entity] += len(folder.files)
            self.size_bytes += folder.size_bytes
            self.links += len(folder.links)
            self.aliases += len({link[0] for link in folder.links.values()})
            self.count_foreign([f"{folder.path}/{name}" for name in folder.strangers])
            damaged = [f"{folder.path}/{name}" for name in folder.damaged]
            self.damaged += len(damaged)
            self.damaged_names += damaged[: max(0, MOST_NAMES - len(self.damaged_names))]
        self.dangling += len(disk.dangling)

    def count_foreign(self, paths: Sequence[str]) -> None:
        self.foreign += len(paths)
        self.foreign_names += paths[: max(0, MOST_NAMES - len(self.foreign_names))]


def _go_on() -> None:
    """Nothing ends a scan but an interrupt."""


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
        told: Callable[[int, int, Scan], object] = lambda _done, _of, _scan: None,
    ) -> None:
        """
        :param index: None where there is none to compare with.
        :param told: called now and then: slices done, slices in all, and what was seen so far.
        """
        self._compares = index is not None
        self._index = index or MemoryIndex()
        self._store = store
        self._in_thread = in_thread
        self._clock = clock
        self._dry_run = dry_run
        self._told = told
        self._stuck = Stuck()
        self._reconciler = Reconciler(
            index=self._index,
            store=store,
            in_thread=in_thread,
            stuck=self._stuck,
            inspect=self._verify if verify else lambda _: None,
        )
        self._scan = Scan(
            cache_dir=str(store.root),
            index=self._index.kind if self._compares else "none",
            dry_run=dry_run,
            verified=verify,
        )

    async def run(self) -> Scan:
        """
        Look at everything, once.

        :raises IndexAway: the index can't be asked; what was done until then stays done.
        """
        began = time.monotonic()
        scan = self._scan
        on_disk, foreign = await self._reconciler.survey()
        scan.count_foreign(foreign)
        scan.unfinished = len(await self._in_thread(unfinished, os.fspath(self._store.root)))
        fills = self._compares and not await self._index.whole()
        # An index that is whole may hold what is gone from the disk.
        slices = range(SLICES) if self._compares and not fills else on_disk
        if fills and not self._dry_run:
            await self._index.fill()
        waiting: deque[tuple[float, int, Difference]] = deque()
        for start in range(0, len(slices), SLICES_AT_ONCE):
            numbers = slices[start : start + SLICES_AT_ONCE]
            for disk, found in await self._reconciler.look(numbers, -math.inf, _go_on):
                scan.count(disk)
                await self._remove_damaged(disk)
                if fills:
                    # It lost what it knew: no use in a second look.
                    await self._settle(found)
                elif self._compares and (found.news or found.lost):
                    waiting.append((self._clock.seconds() + SECOND_LOOK_S, disk.number, found))
            while waiting and waiting[0][0] <= self._clock.seconds():
                await self._look_again(*waiting.popleft()[1:])
            self._told(start + len(numbers), len(slices), scan)
        for due, number, found in waiting:
            await deferLater(self._clock, max(0.0, due - self._clock.seconds()))
            await self._look_again(number, found)
        if fills and not self._dry_run:
            await self._index.set_whole()
        scan.elapsed_s = time.monotonic() - began
        return scan

    async def _look_again(self, number: int, before: Difference) -> None:
        """Mend what still differs."""
        for _, found in await self._reconciler.look([number], -math.inf, _go_on):
            still = Difference(
                {key: value for key, value in found.news.items() if key in before.news},
                {key: value for key, value in found.lost.items() if before.lost.get(key) == value},
            )
            await self._settle(still)

    async def _settle(self, found: Difference) -> None:
        if self._dry_run:
            self._scan.learnt += len(found.news)
            self._scan.forgotten += len(found.lost)
        else:
            learnt, forgotten = await self._reconciler.mend(found, _go_on)
            self._scan.learnt += learnt
            self._scan.forgotten += forgotten

    def _verify(self, disk: DiskSlice) -> None:
        """In a thread: take files that are not what their name says for damaged."""
        for folder in disk.folders:
            for name in list(folder.files):
                path = f"{folder.path}/{name}"
                with self._stuck.told(path):
                    # Unless it went meanwhile.
                    if self._store.examine(path) is None and self._store.stat(path) is not None:
                        folder.take_for_damaged(name)

    async def _remove_damaged(self, disk: DiskSlice) -> None:
        if self._dry_run or not self._scan.verified:
            return
        for folder in disk.folders:
            for name in folder.damaged:
                path = f"{folder.path}/{name}"
                with self._stuck.told(path):
                    await self._in_thread(self._store.remove_damaged, path)
