"""
Listings whose URLs lead to this proxy: made once, kept packed, sent a piece at a time.

Their text repeats itself: packed it takes a thirtieth. So many can be kept, and a slow client costs
the piece that is on its way, however large its listing is.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict

import attrs

from coverart import __version__
from coverart.archive import listings
from coverart.cache.single_flight import Flight
from coverart.cache.writer import InThread
from coverart.store.image_store import ImageStore
from coverart.web.conditional import Validators

MOST_KEPT_BYTES = 8 << 20
"""Packed; some ten thousand listings of twenty images."""


Version = tuple[int, int, int]
"""Which file a path leads to, by inode, time and size: one that is stored anew is another."""


@attrs.frozen
class PackedBody:
    """A listing to be sent, compressed."""

    packed: bytes
    size_bytes: int


def pack(body: bytes, public_url: str | None) -> PackedBody:
    """
    A listing as it is sent, in a thread.

    :param public_url: where its URLs are to lead; None: as they are.
    :raises BadUpstream: it is none.
    """
    if public_url is not None:
        body = listings.rewrite(body, public_url)
    return PackedBody(zlib.compress(body, 1), len(body))


class PublicListings:
    """The rewritten listings of a process."""

    def __init__(self, store: ImageStore, public_url: str, in_thread: InThread) -> None:
        self._store = store
        self._public_url = public_url
        self._in_thread = in_thread
        # The same file is sent in other words after an upgrade, or by another URL.
        self._words = f"{zlib.crc32(f'{__version__} {public_url}'.encode()):x}"
        self._kept: OrderedDict[str, tuple[Version, PackedBody]] = OrderedDict()
        self._kept_bytes = 0
        self._making: Flight[tuple[str, Version], PackedBody] = Flight()

    def kept(self, path: str) -> tuple[PackedBody, Validators] | None:
        """What get() has in memory; None where it has to be made, or there is none."""
        status = self._store.stat(path)
        version, body = self._kept.get(path, (None, None))
        if status is None or body is None or version != _version(status):
            return None
        self._kept.move_to_end(path)
        return body, self._validators(status, body)

    async def get(self, path: str) -> tuple[PackedBody, Validators]:
        """
        The listing at a path with its URLs turned to this proxy, from memory or made now.

        :raises FileNotFoundError: it is there no more.
        :raises OSError: it can't be read.
        :raises BadUpstream: it is no listing.
        """
        if (kept := self.kept(path)) is not None:
            return kept
        status = self._store.stat(path)
        if status is None:
            raise FileNotFoundError(path)
        version = _version(status)
        body = await self._making.run((path, version), lambda _: self._made(path, version))
        return body, self._validators(status, body)

    def _validators(self, status: os.stat_result, body: PackedBody) -> Validators:
        modified = int(status.st_mtime)
        tag = f"{modified:x}-{status.st_size:x}-{self._words}"
        return Validators(size_bytes=body.size_bytes, modified=modified, tag=tag)

    async def _made(self, path: str, version: Version) -> PackedBody:
        body: PackedBody = await self._in_thread(self._make, path, version)
        self._drop(path)
        self._kept[path] = (version, body)
        self._kept_bytes += len(body.packed)
        while self._kept_bytes > MOST_KEPT_BYTES:
            self._drop(next(iter(self._kept)))
        return body

    def _make(self, path: str, version: Version) -> PackedBody:
        with os.fdopen(self._store.open(path), "rb") as file:
            if _version(os.fstat(file.fileno())) != version:
                raise FileNotFoundError(path)
            body = file.read(listings.LARGEST_BYTES + 1)
        return pack(body, self._public_url)

    def _drop(self, path: str) -> None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            self._kept_bytes -= len(kept[1].packed)


def _version(status: os.stat_result) -> Version:
    return status.st_ino, status.st_mtime_ns, status.st_size
