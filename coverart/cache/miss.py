"""What a miss works with, joined: held files, names, images, listings, and slots to fetch in."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from coverart.archive.archive_client import Limits
from coverart.archive.source import Source
from coverart.cache.fetch import Fetch
from coverart.cache.held_files import HeldFiles
from coverart.cache.image_fetch import Images
from coverart.cache.listing_fetch import Listings
from coverart.cache.names import Names
from coverart.cache.size_limits import Room
from coverart.cache.writer import InThread, Writer
from coverart.errors import Overloaded
from coverart.index.base import Index
from coverart.model import ORIGINAL, ImageRequest, Thing
from coverart.store.image_store import ImageStore


class Fetcher:
    """Fills the cache from the archive, or from what already lies on the disk."""

    def __init__(
        self,
        *,
        index: Index,
        store: ImageStore,
        room: Room,
        upstream: Source,
        in_thread: InThread,
        clock: IReactorTime,
        now: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._index = index
        self._clock = clock
        self._limits = limits
        # Twice as many as requests: the archive need not wait for our disk.
        self._slots = DeferredSemaphore(2 * limits.concurrency)
        # Fewer than requests: an original takes as long as its clients do where it can't be stored.
        self._for_originals = DeferredSemaphore(max(1, limits.concurrency * 3 // 4))
        writer = Writer(store, in_thread)
        self.held = HeldFiles(index=index, store=store, in_thread=in_thread)
        self.names = Names(
            index=index,
            store=store,
            writer=writer,
            upstream=upstream,
            in_thread=in_thread,
            now=now,
        )
        self.images = Images(
            index=index,
            store=store,
            held=self.held,
            names=self.names,
            room=room,
            writer=writer,
            upstream=upstream,
            now=now,
        )
        self.listings = Listings(
            index=index,
            store=store,
            held=self.held,
            room=room,
            writer=writer,
            upstream=upstream,
            in_thread=in_thread,
            now=now,
        )

    def begin(self) -> Fetch:
        """The account of a fetch that starts now; use it in `async with`, which ends its claims."""
        return Fetch(
            at=self._clock.seconds() + self._limits.total_s,
            index=self._index,
            clock=self._clock,
            total_s=self._limits.total_s,
            complete=self._index.complete,
        )

    async def slot(self, thing: Thing) -> DeferredSemaphore:
        """
        Wait for a slot to fetch in; give it back by its release().

        A fetch keeps its slot through all hops: were each request to wait in line by itself, a
        crowd of fetches would all get half way in the time that all of them have. Originals have
        slots of their own, so that a quarter of the requests is left to all else.

        :raises Overloaded: there was none in the time that a whole fetch may take.
        """
        original = isinstance(thing, ImageRequest) and thing.size == ORIGINAL
        slots = self._for_originals if original else self._slots
        waiting: Deferred[DeferredSemaphore] = slots.acquire()
        if not waiting.called:
            waiting.addTimeout(self._limits.total_s, self._clock, onTimeoutCancel=_no_slot)
        return await waiting


def _no_slot(_: object, waited_s: float) -> DeferredSemaphore:
    raise Overloaded(f"no slot to fetch in after {waited_s:g} s", retry_after_s=waited_s)
