"""Fetching the archive's listings: checked before clients get them."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs

from coverart.archive import listings
from coverart.archive.source import Source
from coverart.cache.fetch import Fetch, Fetched, Missing, Unstored
from coverart.cache.held_files import HeldFiles
from coverart.cache.size_limits import Room
from coverart.cache.writer import InThread, NewFile, Writer
from coverart.errors import NotInArchive, StoreFailed
from coverart.index.base import Index
from coverart.model import FileEntry, ListingKey
from coverart.store import layout
from coverart.store.image_store import ImageStore


@attrs.define(eq=False, kw_only=True)
class Listings:
    """Fetches listings whole, and keeps the latest."""

    _index: Index
    _store: ImageStore
    _held: HeldFiles
    _room: Room
    _writer: Writer
    _upstream: Source
    _in_thread: InThread
    _now: Callable[[], float]

    async def fetch(self, key: ListingKey, fetch: Fetch) -> Fetched | Unstored | Missing:
        """
        Fetch a listing.

        :raises CoverError: it could not be had.
        """
        asked_at = self._now()
        try:
            body = await fetch.within_time(self._upstream.listing(key, fetch))
        except NotInArchive:
            return Missing(subject=key, asked_at=asked_at)
        why, placed = self._room.reserve(len(body)), False
        if why is not None:
            await self._in_thread(listings.check, body)
        else:
            file = NewFile(
                key=key,
                media=None,
                body=body,
                stored_at=asked_at,
                latest=True,
                # In the thread: a listing of a large set takes a while to parse.
                check=lambda: listings.check(body),
            )
            try:
                written = await self._writer.commit(file)
                os.close(written.temporary.fd)
                placed = written.named
                self._room.stored()
            except OSError as error:
                why = self._room.failed(layout.listing_path(key), error)
            finally:
                self._room.release(len(body))
        if why is not None:
            await self._index.forget_absence(key)
            return Unstored(body=body, stored_at=asked_at, why=why)
        if not placed:
            # One that was asked for later landed before.
            later = await self._held.find(key)
            if later is None or later.entry is None:
                raise StoreFailed("a listing was removed while an older one came")
            return Fetched(key=key, entry=later.entry)
        entry = FileEntry(size_bytes=len(body), stored_at=asked_at)
        stored = await self._index.store(key, entry, claims=fetch.end_claims())
        if not stored.file and (await self._index.find_listing(key)).entry is None:
            # The archive was asked later and said 404, which is remembered.
            await self._in_thread(self._store.remove_entry, key, entry)
            return Missing(subject=key, asked_at=None)
        return Fetched(key=key, entry=entry)
