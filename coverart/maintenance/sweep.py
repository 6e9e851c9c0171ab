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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import chain, cycle, islice

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from coverart.cache.writer import InThread
from coverart.coordination.leader import Leadership
from coverart.index.base import SLICES, Index, IndexAway, LostLease, Packed
from coverart.index.codec import (
    pack_file_key,
    slice_of,
    stored_at_of,
    unpack_entry,
    unpack_file_key,
)
from coverart.maintenance.evict import BATCH, Evicted, Evictor, Stopping
from coverart.maintenance.reconcile import SLICES_AT_ONCE, Difference, Reconciler, Stuck
from coverart.metrics import Metrics
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
        self._evictor = Evictor(
            index=index,
            store=store,
            in_thread=in_thread,
            leadership=leadership,
            clock=clock,
            stuck=self._stuck,
            go_on=self._go_on,
        )
        self._turn = cycle(range(SLICES))
        self._stopping = False
        self._directory = store.identity()

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
        known, self._directory = self._directory, await self._in_thread(self._store.identity)
        if self._directory is None:
            # An unmounted disk is no reason to forget what is on it.
            self.log.warn(
                "{dir} is gone or read-only: nothing is cleaned up", dir=str(self._store.root)
            )
            return done
        if self._directory != known:
            self.log.info(
                "{dir} is back, or replaced: comparing all of it with the index",
                dir=str(self._store.root),
            )
            slices = SLICES
        began = time.monotonic()
        steps: dict[str, Callable[[Sweep], Awaitable[None]]] = {
            "removing unfinished files": self._remove_orphans,
            "evicting": self._evict,
            "retiring aliases": lambda sweep: self._evictor.retire(sweep, self._expired_before),
            "comparing with the disk": lambda sweep: self._mend(sweep, slices),
            # What was found on the disk counts from now on.
            "evicting again": self._evict,
            # It takes what can't be removed out of the index.
            "comparing what stayed": lambda sweep: self._mend(sweep, 0),
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

    async def _mend(self, done: Sweep, slices: int) -> None:
        """
        Compare disk and index: all where the index lost something.

        Else the parts with files that were not as they should be, or that a killed process was storing
        or removing, and some more, in turn.
        """
        fills = not await self._index.whole()
        doubtful = await self._index.doubtful(BATCH)
        odd = await self._index.odd_slices()
        doubted = {slice_of(pack_file_key(key)) for key in doubtful}
        numbers: Iterable[int] = [*odd, *doubted, *islice(self._turn, slices)]
        if fills:
            self._evictor.check()
            await self._index.fill()
            numbers, _ = await self._reconciler.survey()
        elif len(odd) > MANY_ODD:
            numbers = range(SLICES)
        await self._compare(list(dict.fromkeys(numbers)), done)
        await self._index.settle(doubtful)
        if fills:
            await self._index.set_whole()

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
        size_bytes, overdue, oldest = await self._see_disk()
        found = Difference(overdue=overdue)
        await self._reconciler.tidy(found, self._expired_before, self._go_on)
        done.retired += len(overdue)
        if size_bytes <= self._bounds.max_bytes:
            return
        for packed, value in oldest:
            if size_bytes - done.evicted_bytes <= self._bounds.clean_to_bytes:
                break
            self._go_on()
            key, entry = unpack_file_key(packed), unpack_entry(value)
            # First: the index records the removal even if this process is killed.
            await self._index.forget_file(key, entry)
            with self._stuck.told(self._store.path_of(key, entry.media)):
                await self._in_thread(self._store.remove_entry, key, entry)
                done.evicted += 1
                done.evicted_bytes += entry.size_bytes
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
                for folder in chain.from_iterable(d.folders for d in self._reconciler.read(number)):
                    sizes.append(folder.size_bytes)
                    overdue.extend(folder.overdue(before, now))
                    yield from folder.files.values()

        oldest = heapq.nsmallest(OLDEST_AT_ONCE, files(), key=lambda file: stored_at_of(file[1]))
        return sum(sizes), overdue, oldest

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
