"""
Keeping the cache within its limit and true to the disk: the sweep of the elected leader.

While the index can't be asked there is no leader: then one of the processes of a cache directory,
the one that has the lock on it, keeps to the same bounds by what lies on the disk.

It evicts first and mends afterwards, so that the disk stays within its limit whatever is wrong with
the index. Each step catches its own errors, is done in batches that leave the reactor free, and
asks before whatever it destroys whether this process still leads.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from coverart.cache.download import InThread
from coverart.coordination.leases import Leadership
from coverart.freshness import counted
from coverart.index.base import LEARN_AT_ONCE, SLICES, Index, IndexAway, LostLease
from coverart.index.codec import (
    ages,
    checked_at_of,
    pack_file_key,
    size_of,
    stored_at_of,
    unpack_entry,
    unpack_file_key,
)
from coverart.maintenance.reconcile import Reconciler, Stuck
from coverart.metrics import Metrics
from coverart.model import AliasKey, FileEntry, FileKey
from coverart.store import layout
from coverart.store.disk_walk import leaves
from coverart.store.image_store import ImageStore

BATCH = 200
"""Files handled at once: a few milliseconds of the reactor's time."""
RETIRED_AT_ONCE = 20
"""Aliases are handed out once, so a stop waits for a batch of them: a second on a slow disk."""
OLDEST_AT_ONCE = 10_000
"""So many files are remembered of one look at the whole disk: a few megabytes."""
SLICES_A_SWEEP = 64
MANY_ODD = 16
"""So many slices with a surprise mean that something happened to the whole directory."""


@attrs.frozen(kw_only=True)
class Bounds:
    """What a sweep keeps to: bytes, and seconds."""

    max_bytes: int
    clean_to_bytes: int
    alias_ttl_s: float


@attrs.define(kw_only=True)
class Sweep:
    """What one sweep did."""

    evicted: int = 0
    evicted_bytes: int = 0
    retired: int = 0
    """Aliases whose time was over: nginx does not serve them directly any more."""
    orphans: int = 0
    learnt: int = 0
    """Files and aliases that lay on the disk and the index did not know."""
    forgotten: int = 0
    """Entries whose file was gone."""
    dangling: int = 0
    slices: int = 0
    elapsed_s: float = 0.0


@attrs.define
class _Look:
    """What a look at the whole disk showed."""

    size_bytes: int = 0
    retired: int = 0
    oldest: deque[tuple[float, bytes, bytes]] = attrs.field(factory=deque)
    """When it was stored, packed key and entry."""


async def nothing() -> None:
    """There are no usage counts to flush."""


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
        before_evicting: Callable[[], Awaitable[None]] = nothing,
        metrics: Metrics | None = None,
    ) -> None:
        """:param before_evicting: flushes usage counts."""
        self._before_evicting = before_evicting
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
        self._cursor = 0
        self._stopping = False
        self._directory = store.identity()

    def stop(self) -> None:
        """Do no more: a sweep under way ends behind the file or alias that it is at."""
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
            self._store.disclaim()
        if not (await self._in_thread(self._store.claim) if without_index else leads):
            if without_index:
                await self._measure()
            return None
        done = Sweep()
        before, self._directory = self._directory, await self._in_thread(self._store.identity)
        if self._directory is None:
            # An unmounted disk is no reason to forget what is on it.
            self.log.warn(
                "{dir} is gone or read-only: nothing is cleaned up", dir=str(self._store.root)
            )
            return done
        if self._directory != before:
            self.log.info("{dir} is another directory now", dir=str(self._store.root))
            slices = SLICES
        began = time.monotonic()
        steps: dict[str, Callable[[Sweep], Awaitable[None]]] = {
            "removing unfinished files": self._remove_orphans,
            "ordering files for eviction": self._order,
            "counting uses": lambda _: self._before_evicting(),
            "evicting": self._evict,
            "retiring aliases": self._retire,
            "filling the index": self._make_whole,
            "settling doubts": self._settle_doubts,
            # What was found on the disk counts from now on; links that this leaves dangling go below.
            "evicting again": self._evict,
            "comparing with the disk": lambda sweep: self._reconcile(sweep, slices),
        }
        if without_index:
            steps = {
                "removing unfinished files": self._remove_orphans,
                "evicting without the index": self._sweep_disk,
            }
        for name, step in steps.items():
            # One step that fails must not keep the others, or the next sweep, from being done.
            try:
                await step(done)
            except LostLease:
                self.log.warn(
                    "cleanup ends at {step}: {reason}",
                    step=name,
                    reason="the service stops" if self._stopping else "another process leads now",
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

    def _check(self) -> str:
        """
        Called before each step, in a thread too.

        :returns: the token of this term.
        :raises LostLease: another process leads, or this one stops.
        """
        self._go_on()
        token = self._leadership.token
        if token is None:
            raise LostLease
        return token

    def _go_on(self) -> None:
        """The same where no leader is needed."""
        if self._stopping:
            raise LostLease

    async def _remove_orphans(self, done: Sweep) -> None:
        """Temporary files of processes that are gone."""
        done.orphans = await self._in_thread(self._store.remove_orphans, self._now(), self._go_on)

    async def _make_whole(self, done: Sweep) -> None:
        """Fill an index that lost something; what it knows all the same may be of an older time."""
        if not await self._index.whole():
            self._check()
            await self._index.fill()
            known = await self._index.held_slices()
            done.learnt += await self._reconciler.learn_all(self._check)
            await self._compare(known, done)
            await self._index.set_whole()

    async def _order(self, _: Sweep) -> None:
        """Make the order of eviction that of the setting."""
        await self._index.prepare(self._check)

    async def _settle_doubts(self, done: Sweep) -> None:
        """Look after files that a killed process was storing or removing."""
        while keys := await self._index.doubtful(BATCH):
            done.learnt += await self._reconciler.settle(keys, self._check)
            if len(keys) < BATCH:
                return

    async def _retire(self, done: Sweep) -> None:
        """Take the symlinks of aliases past their time out of nginx's sight."""
        before = self._now() - self._bounds.alias_ttl_s
        while due := await self._index.due_aliases(before, RETIRED_AT_ONCE, self._check()):
            keys = [key for key, _ in due]
            await self._in_thread(self._retire_links, keys, before)
            done.retired += len(keys)

    def _retire_links(self, keys: list[AliasKey], before: float) -> None:
        """In a thread."""
        for path in (path for key in keys for path in layout.alias_paths(key)):
            with self._stuck.told(path):
                self._store.links.retire(path, before)

    async def _evict(self, done: Sweep) -> None:
        """Over the limit: remove what is first in the order of eviction until it is well below."""
        size_bytes = (await self._index.totals()).size_bytes
        if size_bytes <= self._bounds.max_bytes:
            return
        self.log.info(
            "cache holds {size_bytes} bytes, over its limit of {max_bytes}",
            size_bytes=size_bytes,
            max_bytes=self._bounds.max_bytes,
        )
        # Out of the index until the end, so that the next batch holds others.
        stuck: list[tuple[FileKey, FileEntry]] = []
        try:
            while size_bytes > self._bounds.clean_to_bytes:
                victims: list[tuple[FileKey, FileEntry]] = []
                for key, entry in await self._index.oldest(BATCH):
                    if size_bytes <= self._bounds.clean_to_bytes:
                        break
                    victims.append((key, entry))
                    size_bytes -= entry.size_bytes
                token = self._check()
                gone = await self._index.forget_files(victims, token)
                if not gone:
                    return
                stuck += await self._remove(gone, done, token)
                size_bytes = (await self._index.totals()).size_bytes
                size_bytes += sum(entry.size_bytes for _, entry in stuck)
        finally:
            for start in range(0, len(stuck), LEARN_AT_ONCE):
                await self._index.learn(stuck[start : start + LEARN_AT_ONCE])

    async def _remove(
        self, files: list[tuple[FileKey, FileEntry]], done: Sweep, token: str | None
    ) -> list[tuple[FileKey, FileEntry]]:
        """
        Remove files from the disk, and count them.

        :param token: of the term in which they were taken out of it; None where nobody leads.
        :returns: those that can't be removed.
        """
        left: list[tuple[FileKey, FileEntry]] = await self._in_thread(self._unlink, files, token)
        removed = [file for file in files if file not in left]
        await self._index.settle([key for key, _ in removed])
        done.evicted += len(removed)
        done.evicted_bytes += sum(entry.size_bytes for _, entry in removed)
        await self._breathe()
        return left

    def _unlink(
        self, files: list[tuple[FileKey, FileEntry]], token: str | None
    ) -> list[tuple[FileKey, FileEntry]]:
        """In a thread. Asked for each file: the process may have been stopped in between."""
        left = []
        for key, entry in files:
            self._go_on()
            if token not in (None, self._leadership.token):
                raise LostLease
            try:
                self._store.remove_entry(key, entry)
            except OSError as error:
                self._stuck.tell(self._store.path_of(key, entry.media), error)
                left.append((key, entry))
        return left

    async def _sweep_disk(self, done: Sweep) -> None:
        """
        Retire and evict by what lies on the disk, the oldest first.

        The index, which can't be asked, is told all the same: it keeps in mind what it missed. It
        forgets those that can't be removed, too, and learns them when it is compared with the disk.
        """
        most_bytes = self._bounds.max_bytes
        stuck: set[bytes] = set()
        while True:
            before = self._index.size_bytes
            look = await self._in_thread(self._look, stuck)
            done.retired += look.retired
            # What was stored meanwhile may have been seen or not.
            self._index.size_bytes += look.size_bytes - before
            if look.size_bytes <= most_bytes or not look.oldest:
                return
            most_bytes = self._bounds.clean_to_bytes
            over_bytes = look.size_bytes - most_bytes
            self.log.info(
                "{dir} holds {over_bytes} bytes too many and the index can't be asked: the oldest go",
                dir=str(self._store.root),
                over_bytes=over_bytes,
            )
            while over_bytes > 0 and look.oldest:
                files: list[tuple[FileKey, FileEntry]] = []
                while over_bytes > 0 and look.oldest and len(files) < BATCH:
                    _, packed, value = look.oldest.popleft()
                    files.append((unpack_file_key(packed), unpack_entry(value)))
                    over_bytes -= size_of(value)
                # Before they go: it can't be told any more by a process that ends in between.
                for key, entry in files:
                    await self._index.forget_file(key, entry)
                left = await self._remove(files, done, None)
                stuck.update(pack_file_key(key) for key, _ in left)

    async def _measure(self) -> None:
        """Learn from the disk what another process evicted, which the index can't tell now."""
        before = self._index.size_bytes
        # Of no interest below that, and a look at everything takes a while.
        if before > self._bounds.max_bytes:
            held = await self._in_thread(self._held_bytes)
            # What was stored meanwhile may have been seen or not.
            self._index.size_bytes = held + max(0, self._index.size_bytes - before)

    def _held_bytes(self) -> int:
        """In a thread."""
        return sum(leaf.size_bytes for leaf in leaves(str(self._store.root), self._go_on))

    def _look(self, but: set[bytes]) -> _Look:
        """In a thread: one look at everything on the disk; aliases past their time are retired."""
        look = _Look()
        now = self._now()
        before = now - self._bounds.alias_ttl_s

        def files() -> Iterator[tuple[float, bytes, bytes]]:
            for leaf in leaves(str(self._store.root), self._go_on):
                look.size_bytes += leaf.size_bytes
                for (key, value, _, _), name in zip(leaf.links, leaf.link_names, strict=True):
                    serves = ages(key) and not name.endswith(layout.RETIRED)
                    if serves and counted(checked_at_of(value), now) < before:
                        path = f"{leaf.folder}/{name}"
                        with self._stuck.told(path):
                            self._store.links.retire(path, before)
                            look.retired += 1
                for key, value in leaf.files:
                    if key not in but:
                        yield stored_at_of(value), key, value

        look.oldest.extend(heapq.nsmallest(OLDEST_AT_ONCE, files()))
        return look

    async def _reconcile(self, done: Sweep, slices: int) -> None:
        """Compare some slices with the disk, first those in which something was odd."""
        odd = await self._index.odd_slices()
        if len(odd) > MANY_ODD:
            slices = SLICES
        await self._compare(list(dict.fromkeys([*odd, *self._next(slices)])), done)

    async def _compare(self, numbers: list[int], done: Sweep) -> None:
        for number in numbers:
            before = self._now() - self._bounds.alias_ttl_s
            mended = await self._reconciler.compare(number, before, self._check)
            done.learnt += mended.learnt
            done.forgotten += mended.forgotten
            done.dangling += mended.dangling
            done.slices += 1
            await self._breathe()

    def _next(self, count: int) -> list[int]:
        numbers = [(self._cursor + i) % SLICES for i in range(min(count, SLICES))]
        self._cursor = (self._cursor + count) % SLICES
        return numbers

    async def _breathe(self) -> None:
        """Let requests have their turn."""
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
