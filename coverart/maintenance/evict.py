"""
Evicts files over the limit, and retires expired aliases, whose links are renamed away.

In the order of an index, in batches that leave the reactor free. Before each file it checks that
this process still leads.
"""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from coverart.cache.writer import InThread
from coverart.coordination.leader import Leadership
from coverart.index.base import Index, LostLease
from coverart.maintenance.reconcile import Check, Stuck
from coverart.model import AliasKey, FileEntry, FileKey
from coverart.store import layout
from coverart.store.image_store import ImageStore

BATCH = 200
"""Limit of files handled at once: a few milliseconds of the reactor's time."""
RETIRED_AT_ONCE = 20
"""Aliases are handed out once, so a stop waits for a batch of them: a second on a slow disk."""


class Stopping(Exception):
    """The service stops: a sweep ends where it is."""


@attrs.define(kw_only=True)
class Evicted:
    """What went."""

    evicted: int = 0
    evicted_bytes: int = 0
    retired: int = 0
    """Expired aliases, whose links were renamed away: nginx does not serve them directly any more."""


class Evictor:
    """Evicts and retires while this process leads."""

    log = Logger()

    def __init__(
        self,
        *,
        index: Index,
        store: ImageStore,
        in_thread: InThread,
        leadership: Leadership,
        clock: IReactorTime,
        stuck: Stuck,
        go_on: Check,
    ) -> None:
        """
        :param index: what tells the order.
        :param go_on: raises Stopping once the service stops.
        """
        self._index = index
        self._store = store
        self._in_thread = in_thread
        self._leadership = leadership
        self._clock = clock
        self._stuck = stuck
        self._go_on = go_on

    def check(self) -> str:
        """
        Called before each step, in a thread too.

        :returns: the token of this term.
        :raises LostLease: another process leads.
        :raises Stopping: this one stops.
        """
        self._go_on()
        token = self._leadership.token
        if token is None:
            raise LostLease
        return token

    async def evict(self, done: Evicted, *, max_bytes: int, clean_to_bytes: int) -> None:
        """
        Over the maximum: remove what is first in the order of eviction until it is well below.

        :param done: is added to.
        """
        size_bytes = (await self._index.totals()).size_bytes
        if size_bytes <= max_bytes:
            return
        self.log.info(
            "{dir} holds {size_bytes} bytes, over its limit of {max_bytes}: evicting",
            dir=str(self._store.root),
            size_bytes=size_bytes,
            max_bytes=max_bytes,
        )
        stuck_bytes = 0
        while size_bytes > clean_to_bytes:
            victims: list[tuple[FileKey, FileEntry]] = []
            for key, entry in await self._index.first_to_evict(BATCH):
                if size_bytes <= clean_to_bytes:
                    break
                victims.append((key, entry))
                size_bytes -= entry.size_bytes
            token = self.check()
            gone = await self._index.forget_files(victims, token)
            if not gone:
                return
            removed: list[tuple[FileKey, FileEntry]]
            removed = await self._in_thread(self._unlink, gone, token)
            await self._index.settle([key for key, _ in removed])
            done.evicted += len(removed)
            done.evicted_bytes += sum(entry.size_bytes for _, entry in removed)
            for key, entry in gone:
                if (key, entry) not in removed:
                    # Out of the index until it is compared, so that the next batch holds others.
                    await self._index.suspect(key)
                    stuck_bytes += entry.size_bytes
            await deferLater(self._clock, 0)
            size_bytes = (await self._index.totals()).size_bytes + stuck_bytes

    def _unlink(
        self, files: list[tuple[FileKey, FileEntry]], token: str
    ) -> list[tuple[FileKey, FileEntry]]:
        """
        In a thread. :param token: of the term in which they were taken out of the index.

        :returns: those that are gone; of the others the operator is told.
        :raises LostLease: the process may have been stopped in between for longer than its term.
        """
        removed = []
        for key, entry in files:
            if self.check() != token:
                raise LostLease
            with self._stuck.told(self._store.path_of(key, entry.media)):
                self._store.remove_entry(key, entry)
                removed.append((key, entry))
        return removed

    async def retire(self, done: Evicted, before: float) -> None:
        """
        Rename the symlinks of expired aliases away, so that nginx does not see them.

        :param before: those last confirmed before that time.
        """
        while due := await self._index.due_aliases(before, RETIRED_AT_ONCE, self.check()):
            keys = [key for key, _ in due]
            await self._in_thread(self._retire_links, keys, before)
            done.retired += len(keys)

    def _retire_links(self, keys: list[AliasKey], before: float) -> None:
        """In a thread."""
        for path in (path for key in keys for path in layout.alias_paths(key)):
            with self._stuck.told(path):
                self._store.links.retire(path, before)
