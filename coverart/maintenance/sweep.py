"""
Keeping the cache within its limit and true to the disk: the sweep of the elected leader.

It evicts first and mends afterwards, so that the disk stays within its limit whatever is wrong with
the index. Each step catches its own errors and is done in batches that leave the reactor free.
Before each file or symlink of the cache that it removes, it checks that this process still leads.
Unfinished files whose writer is gone may be removed by any process, so that step does not ask.

While the index can't be asked there is no leader: then one of the processes of a cache directory,
the one that has the lock on it, evicts and retires by what one look at the disk shows.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from coverart.cache.writer import InThread
from coverart.coordination.leader import Alone, Leadership
from coverart.index.base import LEARN_AT_ONCE, SLICES, Index, IndexAway, LostLease, Packed
from coverart.index.codec import pack_file_key, slice_of, stored_at_of
from coverart.index.memory import MemoryIndex
from coverart.maintenance.evict import BATCH, Evicted, Evictor, Stopping
from coverart.maintenance.reconcile import SLICES_AT_ONCE, Difference, Reconciler, Stuck
from coverart.metrics import Metrics
from coverart.model import FileEntry, FileKey
from coverart.store.disk_walk import survey
from coverart.store.image_store import ImageStore
from coverart.store.orphans import remove_orphans

OLDEST_AT_ONCE = 10_000
"""Limit of files remembered of one look at the whole disk: a few megabytes."""
SLICES_A_SWEEP = 64
MANY_ODD = 16
"""Limit of slices with a surprise: more mean that something happened to the whole directory."""


@attrs.frozen(kw_only=True)
class Bounds:
    """What a sweep keeps to: bytes, and seconds."""

    max_bytes: int
    clean_to_bytes: int
    alias_ttl_s: float


@attrs.define(kw_only=True)
class Sweep(Evicted):
    """What one sweep did."""

    orphans: int = 0
    learnt: int = 0
    """Files and aliases that lay on the disk and the index did not know."""
    forgotten: int = 0
    """Entries whose file was gone."""
    dangling: int = 0
    slices: int = 0
    elapsed_s: float = 0.0


class _OldestOnDisk(MemoryIndex):
    """The order of eviction while the index is away, which is told of each file that goes."""

    def __init__(self, away: Index) -> None:
        super().__init__()
        self._away = away

    async def forget_files(
        self, files: Sequence[tuple[FileKey, FileEntry]], fence: str
    ) -> list[tuple[FileKey, FileEntry]]:
        # First: the index records the removal even if this process is killed.
        for key, entry in files:
            await self._away.forget_file(key, entry)
        return await super().forget_files(files, fence)


class Cleanup:
    """Sweeps while this process leads."""

    log = Logger()

    def __init__(
        self,
        *,
        index: Index,
        store: ImageStore,
        in_thread: InThread,
        leadership: Leadership,
        bounds: Bounds,
        clock: IReactorTime,
        now: Callable[[], float],
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._index = index
        self._store = store
        self._in_thread = in_thread
        self._leadership = leadership
        self._bounds = bounds
        self._clock = clock
        self._now = now
        self._stuck = Stuck()
        self._reconciler = Reconciler(
            index=index, store=store, in_thread=in_thread, stuck=self._stuck
        )
        self._evictor = self._evictor_by(index, leadership)
        self._cursor = 0
        self._stopping = False
        self._directory = store.identity()
        self._was_away = False

    def _evictor_by(self, index: Index, leadership: Leadership) -> Evictor:
        return Evictor(
            index=index,
            store=self._store,
            in_thread=self._in_thread,
            leadership=leadership,
            clock=self._clock,
            stuck=self._stuck,
            go_on=self._go_on,
        )

    def stop(self) -> None:
        """Do no more: a sweep under way ends after the file or alias in hand."""
        self._stopping = True

    async def sweep(self, *, slices: int = SLICES_A_SWEEP) -> Sweep | None:
        """
        Do everything that is due, if this process leads or, without an index, has the lock.

        :param slices: how many parts of the index to compare with the disk.
        :returns: what was done; None if another process leads, or the service stops.
        """
        if self._stopping:
            return None
        leads = await self._leadership.stand() is not None
        without_index = not self._index.available
        if not without_index:
            self._store.keeping.release()
        if not (await self._in_thread(self._store.keeping.take) if without_index else leads):
            if without_index and self._index.size_bytes > self._bounds.max_bytes:
                # Another process evicts, which the index can't tell now.
                await self._see_disk()
            return None
        done = Sweep()
        directory = await self._in_thread(self._store.identity)
        self._was_away |= directory is None
        if directory is None:
            # An unmounted disk is no reason to forget what is on it.
            self.log.warn(
                "{dir} is gone or read-only: nothing is cleaned up", dir=str(self._store.root)
            )
            return done
        if self._was_away or directory != self._directory:
            self.log.info(
                "{dir} {what}: comparing all of it with the index",
                dir=str(self._store.root),
                what=(
                    "can be used again"
                    if directory == self._directory
                    else "is another directory now"
                ),
            )
            self._was_away, self._directory = False, directory
            slices = SLICES
        began = time.monotonic()
        steps: dict[str, Callable[[Sweep], Awaitable[None]]] = {
            "removing unfinished files": self._remove_orphans,
            "evicting": self._evict,
            "retiring aliases": lambda sweep: self._evictor.retire(sweep, self._expired_before),
            "filling the index": self._make_whole,
            "settling doubts": self._settle_doubts,
            # What was found on the disk counts from now on; links that this leaves dangling go below.
            "evicting again": self._evict,
            "comparing with the disk": lambda sweep: self._reconcile(sweep, slices),
        }
        if without_index:
            steps = {
                "removing unfinished files": self._remove_orphans,
                "evicting without the index": self._evict_by_disk,
            }
        for name, step in steps.items():
            # One step that fails must not keep the others, or the next sweep, from being done.
            try:
                await step(done)
            except (LostLease, Stopping) as end:
                self.log.warn(
                    "cleanup ends at {step}: {reason}",
                    step=name,
                    reason=str(end) or "another process leads now",
                )
                break
            except IndexAway as error:
                self.log.warn(
                    "cleanup: {step} failed ({reason}); the next step goes on",
                    step=name,
                    reason=str(error),
                )
            except Exception:
                self.log.failure("cleanup: {step} failed; the next step goes on", step=name)
        done.elapsed_s = time.monotonic() - began
        self._tell(done)
        return done

    def _go_on(self) -> None:
        """:raises Stopping: this process stops."""
        if self._stopping:
            raise Stopping("the service stops")

    @property
    def _expired_before(self) -> float:
        """Aliases last confirmed before that are past their time."""
        return self._now() - self._bounds.alias_ttl_s

    async def _remove_orphans(self, done: Sweep) -> None:
        """Temporary files of processes that are gone."""
        done.orphans = await self._in_thread(
            remove_orphans, os.fspath(self._store.root), self._now(), self._go_on
        )

    async def _make_whole(self, done: Sweep) -> None:
        """Fill an index that lost something."""
        if not await self._index.whole():
            self._evictor.check()
            await self._index.fill()
            numbers, _ = await self._reconciler.survey()
            await self._compare(numbers, done)
            await self._index.set_whole()

    async def _settle_doubts(self, done: Sweep) -> None:
        """Look after files that a killed process was storing or removing."""
        while keys := await self._index.doubtful(BATCH):
            await self._compare(sorted({slice_of(pack_file_key(key)) for key in keys}), done)
            await self._index.settle(keys)
            if len(keys) < BATCH:
                return

    async def _evict(self, done: Sweep) -> None:
        await self._evictor.evict(
            done, max_bytes=self._bounds.max_bytes, clean_to_bytes=self._bounds.clean_to_bytes
        )

    async def _evict_by_disk(self, done: Sweep) -> None:
        """
        Retire and evict by what lies on the disk, the oldest first.

        What is over the limit after OLDEST_AT_ONCE files is the next sweep's, in a second. Files
        that can't be removed are learnt again when the index is compared with the disk.
        """
        size_bytes, overdue, files = await self._see_disk()
        found = Difference(overdue=overdue)
        await self._reconciler.tidy(found, self._expired_before, self._go_on)
        done.retired += len(overdue)
        oldest = _OldestOnDisk(self._index)
        for start in range(0, len(files), LEARN_AT_ONCE):
            await oldest.learn_packed(files[start : start + LEARN_AT_ONCE])
            await deferLater(self._clock, 0)
        evictor = self._evictor_by(oldest, Alone())
        await evictor.evict(
            done,
            max_bytes=self._bounds.max_bytes,
            clean_to_bytes=self._bounds.clean_to_bytes,
            beside_bytes=size_bytes - oldest.size_bytes,
        )
        self._index.size_bytes -= done.evicted_bytes

    async def _see_disk(self) -> tuple[int, list[str], list[Packed]]:
        """
        Look at the whole disk: the index learns how much it holds.

        :returns: the bytes, the symlinks past their time, and the OLDEST_AT_ONCE oldest files.
        """
        before = self._index.size_bytes
        seen: tuple[int, list[str], list[Packed]] = await self._in_thread(self._look)
        # What was stored meanwhile may have been seen or not.
        self._index.size_bytes += seen[0] - before
        return seen

    def _look(self) -> tuple[int, list[str], list[Packed]]:
        """In a thread."""
        root, now, before = os.fspath(self._store.root), self._now(), self._expired_before
        sizes: list[int] = []
        overdue: list[str] = []

        def files() -> Iterator[Packed]:
            for number in survey(root)[0]:
                self._go_on()
                disk = self._reconciler.read(number)
                for folder in () if disk is None else disk.folders:
                    sizes.append(folder.size_bytes)
                    overdue.extend(folder.overdue(before, now))
                    yield from folder.files.values()

        oldest = heapq.nsmallest(OLDEST_AT_ONCE, files(), key=lambda file: stored_at_of(file[1]))
        return sum(sizes), overdue, oldest

    async def _reconcile(self, done: Sweep, slices: int) -> None:
        """Compare some slices with the disk, first those in which something was odd."""
        odd = await self._index.odd_slices()
        if len(odd) > MANY_ODD:
            slices = SLICES
        await self._compare(list(dict.fromkeys([*odd, *self._next(slices)])), done)

    async def _compare(self, numbers: Sequence[int], done: Sweep) -> None:
        for start in range(0, len(numbers), SLICES_AT_ONCE):
            before = self._expired_before
            group = numbers[start : start + SLICES_AT_ONCE]
            for _, found in await self._reconciler.look(group, before, self._evictor.check):
                learnt, forgotten = await self._reconciler.mend(found, self._evictor.check)
                done.learnt += learnt
                done.forgotten += forgotten
                done.dangling += await self._reconciler.tidy(found, before, self._evictor.check)
                done.slices += 1
                await deferLater(self._clock, 0)

    def _next(self, count: int) -> list[int]:
        numbers = [(self._cursor + i) % SLICES for i in range(min(count, SLICES))]
        self._cursor = (self._cursor + count) % SLICES
        return numbers

    def _tell(self, done: Sweep) -> None:
        for what, counter in self._metrics.swept.items():
            counter.inc(getattr(done, what))
        self._metrics.evicted_bytes.inc(done.evicted_bytes)
        self._metrics.sweep_seconds.observe(done.elapsed_s)
        self.log.info(
            "cleanup: {evicted} files evicted ({evicted_bytes} bytes), {retired} aliases retired, "
            "{orphans} unfinished files removed, {learnt} found on disk, {forgotten} gone from disk, "
            "{dangling} dangling links removed, {slices} slices compared in {elapsed_s:.2f} s",
            **attrs.asdict(done),
        )
