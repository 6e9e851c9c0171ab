"""Listings whose URLs lead to this proxy: made once, kept, the same bytes for all who take them."""

from __future__ import annotations

import os
import zlib
from typing import TypeAlias

from coverart import __version__
from coverart.archive import listings
from coverart.cache.single_flight import Flight
from coverart.cache.writer import InThread
from coverart.store.image_store import ImageStore
from coverart.web.conditional import Validators

MOST_KEPT_BYTES = 32 << 20
"""Some two thousand listings of twenty images."""

Version: TypeAlias = tuple[str, int, int, int]
"""Which file is meant, by path, inode, time and size: one that is stored anew is another."""
PublicListing: TypeAlias = tuple[bytes, Validators]


class PublicListings:
    """The rewritten listings of a process."""

    def __init__(self, store: ImageStore, public_url: str, in_thread: InThread) -> None:
        self._store = store
        self._public_url = public_url
        self._in_thread = in_thread
        # The same file is sent in other words after an upgrade, or by another URL.
        self._words = f"{zlib.crc32(f'{__version__} {public_url}'.encode()):x}"
        self._kept: dict[Version, PublicListing] = {}
        """The one made first goes first."""
        self._kept_bytes = 0
        self._making: Flight[Version, PublicListing] = Flight()

    def kept(self, path: str) -> PublicListing | None:
        """
        What get() has in memory.

        :raises FileNotFoundError: there is none.
        """
        return self._kept.get(self._version(path))

    async def get(self, path: str) -> PublicListing:
        """
        The listing at a path with its URLs turned to this proxy, from memory or made now.

        :raises FileNotFoundError: it is there no more.
        :raises OSError: it can't be read.
        :raises BadUpstream: it is no listing.
        """
        version = self._version(path)
        kept = self._kept.get(version)
        return kept or await self._making.run(version, lambda _: self._made(version))

    def _version(self, path: str) -> Version:
        status = self._store.stat(path)
        if status is None:
            raise FileNotFoundError(path)
        return _version_of(path, status)

    async def _made(self, version: Version) -> PublicListing:
        body: bytes = await self._in_thread(self._make, version)
        modified = version[2] // 10**9
        tag = f"{modified:x}-{version[3]:x}-{self._words}"
        made = body, Validators(size_bytes=len(body), modified=modified, tag=tag)
        self._kept[version] = made
        self._kept_bytes += len(body)
        while self._kept_bytes > MOST_KEPT_BYTES:
            body, _ = self._kept.pop(next(iter(self._kept)))
            self._kept_bytes -= len(body)
        return made

    def _make(self, version: Version) -> bytes:
        path = version[0]
        with os.fdopen(self._store.open(path), "rb") as file:
            if _version_of(path, os.fstat(file.fileno())) != version:
                raise FileNotFoundError(path)
            body = file.read(listings.LARGEST_BYTES + 1)
        return listings.rewrite(body, self._public_url)


def _version_of(path: str, status: os.stat_result) -> Version:
    return path, status.st_ino, status.st_mtime_ns, status.st_size
