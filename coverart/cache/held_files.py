"""What is held: what lies on the disk and the index does not know, and what is held no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from coverart.cache.fetch import Fetch, Missing
from coverart.cache.writer import InThread
from coverart.errors import StoreFailed
from coverart.index.base import Index, IndexAway
from coverart.index.codec import pack_seen
from coverart.model import FileEntry, FileKey, Found, ImageRequest, ListingKey, Thing
from coverart.store.image_store import ImageStore, OnDisk


@attrs.define(eq=False, kw_only=True)
class HeldFiles:
    """Keeps the index and the disk of one mind about single files."""

    log = Logger()

    _index: Index
    _store: ImageStore
    _in_thread: InThread

    async def known(self, thing: Thing) -> Found:
        """What the index knows."""
        if isinstance(thing, ListingKey):
            return await self._index.find_listing(thing)
        return await self._index.find_image(thing)

    async def all_known(self, things: Sequence[Thing]) -> list[Found]:
        """
        What is known of each, in one round trip.

        Where the index may have missed something, what the disk holds too.
        """
        look = self.known if self._index.complete else self.known_or_on_disk
        return await gatherResults(
            [Deferred.fromCoroutine(look(each)) for each in things], consumeErrors=True
        )

    async def known_or_on_disk(self, thing: Thing) -> Found:
        """What the index knows, or what the disk holds where the index was flushed or is away."""
        found = await self.known(thing)
        return found if found.entry is not None else await self.find(thing) or found

    def has_name(self, thing: Thing) -> bool:
        """Say whether find() could find anything."""
        return not self._index.complete and self._store.has_name(thing)

    async def find(self, thing: Thing) -> Found | None:
        """What lies on the disk and the index does not know; it learns it."""
        # A look at names only spares most misses the way to a thread and back.
        if not self._store.has_name(thing):
            return None
        found: OnDisk | None = await self._in_thread(self._store.find, thing)
        if found is None:
            return None
        alias = found.alias
        if alias is not None and isinstance(thing, ImageRequest):
            taken = await self._index.put_alias(thing.alias, alias)
            known = None if taken else (await self._index.find_image(thing)).alias
            if known is not None and known.target.ref != alias.target.ref:
                # An index that was flushed learnt since, by another size, that the name moved.
                await self._in_thread(self._store.links.remove_outdated, thing.alias, known)
                return None
            if known is None and not taken:
                # The archive said since that there is no such name.
                return None
            alias = known or alias
        # Nothing was stored: without Redis every hit comes by here.
        with suppress(IndexAway):
            await self._index.learn_packed([pack_seen((found.key, found.entry))])
        target = None if alias is None else alias.target
        return Found(key=found.key, entry=found.entry, alias=alias, target=target)

    async def claim(
        self, key: FileKey, fetch: Fetch, *, again: bool = False
    ) -> FileEntry | Missing | None:
        """
        Claim a file among all processes, for the time of a fetch.

        :param again: also where it is held, unless another process fetches it just now.
        :returns: None; or what is known of it, and nothing has to be fetched.
        :raises CoverError: another process failed to fetch it while this one waited.
        """
        found, claim = await self._index.claim(key, again=again)
        if claim is not None:
            fetch.add_claim(claim)
            if again and not claim.waited:
                return None
        if found.entry is not None:
            status = self._store.stat(self._store.path_of(key, found.entry.media))
            if status is not None and status.st_size == found.entry.size_bytes:
                return found.entry
            await self.lost(key, found.entry)
            if claim is None:
                return await self.claim(key, fetch, again=True)
        if claim is not None and claim.waited and found.absence is not None:
            return Missing(subject=key, asked_at=None)
        if fetch.complete and (claim is None or not claim.waited):
            return None
        on_disk = await self.find(key if isinstance(key, ListingKey) else key.own_request)
        return on_disk.entry if on_disk is not None and on_disk.key == key else None

    async def lost(self, key: FileKey, entry: FileEntry) -> None:
        """
        The file of an entry is gone or not the one that was stored: it is not held any more.

        It goes from the disk first. The other way round, somebody who finds the index empty
        could take in what is left of the file, or store it anew and lose that.

        :raises StoreFailed: it can't be removed, so nothing could take its place either.
        """
        path = self._store.path_of(key, entry.media)
        self.log.warn("{path} is gone or was changed; fetching it again", path=path)
        try:
            await self._in_thread(self._store.remove_spoilt, key, entry)
        except OSError as error:
            raise StoreFailed(f"can't remove {path}: {error.strerror}") from error
        await self._index.suspect(key)
        await self._index.forget_file(key, entry)

    async def drop(self, key: FileKey, entry: FileEntry, until: float = math.inf) -> bool:
        """
        Remove a file and forget it. :returns: whether it was known.

        In this order: removed after it was forgotten, it could be another that came since.

        :param until: what is stamped later, and so was asked for later, stays on the disk.
        """
        path = self._store.path_of(key, entry.media)
        try:
            if self._store.stamp(path) <= until:
                self._store.remove(path)
        except OSError as error:
            # Forgotten is enough: what is stored next takes its place, if anything can.
            self.log.warn(
                "can't remove {path}, the index forgets it all the same: {reason}",
                path=path,
                reason=error.strerror,
            )
        return await self._index.forget_file(key, entry)
