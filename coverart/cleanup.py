"""
Keeping the cache within its limit and true to the disk: the sweep of the elected leader.

Each step catches its own errors, is done in batches that leave the reactor free, and asks before
whatever it destroys whether this process still leads.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from coverart.incoming import InThread
from coverart.index import SLICES, Index, IndexAway, LostLease
from coverart.leases import Leadership
from coverart.metrics import Metrics
from coverart.model import FileEntry, FileKey
from coverart.reconcile import Reconciler
from coverart.store import ImageStore

BATCH = 200
"""Files or aliases handled at once: a few milliseconds of the reactor's time."""
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
        self.before_evicting: Callable[[], Awaitable[None]] = _nothing
        """What was used a moment ago must not go for being unused: hears of it."""
        self._metrics = metrics or Metrics()
        self._index = index
        self._store = store
        self._in_thread = in_thread
        self._leadership = leadership
        self._bounds = bounds
        self._clock = clock
        self._now = now
        self._reconciler = Reconciler(index=index, store=store, in_thread=in_thread)
        self._cursor = 0
        self._directory = store.identity()

    async def sweep(self, *, slices: int = SLICES_A_SWEEP) -> Sweep | None:
        """
        Do everything that is due, if this process leads.

        :param slices: how many parts of the index to compare with the disk.
        :returns: what was done; None if another process leads or the index is away.
        """
        if await self._leadership.stand() is None:
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
        steps: Sequence[Callable[[Sweep], Awaitable[None]]] = (
            self._remove_orphans,
            self._make_whole,
            self._order,
            self._settle_doubts,
            self._retire,
            lambda _: self.before_evicting(),
            self._evict,
            lambda sweep: self._reconcile(sweep, slices),
        )
        for step in steps:
            try:
                await step(done)
            except (IndexAway, LostLease) as error:
                self.log.warn(
                    "cleanup stops: {reason}", reason=str(error) or "another process leads now"
                )
                break
            except Exception:
                # One step that fails must not keep the others, or the next sweep, from being done.
                self.log.failure("a step of the cleanup failed")
        done.elapsed_s = time.monotonic() - began
        self._tell(done)
        return done

    def _token(self) -> str:
        token = self._leadership.token
        if token is None:
            raise LostLease
        return token

    async def _remove_orphans(self, done: Sweep) -> None:
        """Temporary files of processes that are gone."""
        self._token()
        done.orphans = await self._in_thread(self._store.remove_orphans, self._now())

    async def _make_whole(self, done: Sweep) -> None:
        """Fill an index that lost what it knew."""
        if not await self._index.whole():
            self._token()
            done.learnt += await self._reconciler.learn_all(self._token)
            await self._index.set_whole()

    async def _order(self, _: Sweep) -> None:
        """Make the order of eviction that of the setting."""
        self._token()
        await self._index.prepare()

    async def _settle_doubts(self, done: Sweep) -> None:
        """Look after files that a killed process was storing or removing."""
        while keys := await self._index.doubtful(BATCH):
            self._token()
            done.learnt += await self._reconciler.settle(keys)
            if len(keys) < BATCH:
                return

    async def _retire(self, done: Sweep) -> None:
        """Take the symlinks of aliases past their time out of nginx's sight."""
        before = self._now() - self._bounds.alias_ttl_s
        while due := await self._index.due_aliases(before, BATCH, self._token()):
            keys = [key for key, _ in due]
            await self._in_thread(self._store.links.retire_all, keys, before)
            done.retired += len(keys)

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
        while size_bytes > self._bounds.clean_to_bytes:
            victims: list[tuple[FileKey, FileEntry]] = []
            for key, entry in await self._index.oldest(BATCH):
                if size_bytes <= self._bounds.clean_to_bytes:
                    break
                victims.append((key, entry))
                size_bytes -= entry.size_bytes
            token = self._token()
            gone = await self._index.forget_files(victims, token)
            await self._in_thread(self._remove, gone, token)
            await self._index.settle([key for key, _ in gone])
            done.evicted += len(gone)
            done.evicted_bytes += sum(entry.size_bytes for _, entry in gone)
            if not gone:
                return
            size_bytes = (await self._index.totals()).size_bytes
            await self._breathe()

    def _remove(self, gone: list[tuple[FileKey, FileEntry]], token: str) -> None:
        """In a thread. Asked for each file: the process may have been stopped in between."""
        for key, entry in gone:
            if self._leadership.token != token:
                raise LostLease
            self._store.remove_entry(key, entry)

    async def _reconcile(self, done: Sweep, slices: int) -> None:
        """Compare some slices with the disk, first those in which something was odd."""
        odd = await self._index.odd_slices()
        if len(odd) > MANY_ODD:
            slices = SLICES
        numbers = list(dict.fromkeys([*odd, *self._next(slices)]))
        for number in numbers:
            before = self._now() - self._bounds.alias_ttl_s
            mended = await self._reconciler.compare(number, before, self._token)
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


async def _nothing() -> None:
    return
