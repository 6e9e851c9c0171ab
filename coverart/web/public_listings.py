"""
Listings whose URLs lead to this proxy.

Each is cut once where the archive's host stands, and kept. By which URL a client reaches the
proxy is put in as it is sent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from hashlib import blake2b
from typing import BinaryIO, TypeAlias

import attrs

from coverart.archive import listings
from coverart.cache.fetch import Unstored
from coverart.cache.single_flight import Flight
from coverart.cache.writer import InThread
from coverart.store.image_store import ImageStore
from coverart.web.conditional import Validators
from coverart.web.delivery import PIECE_BYTES, Source

MOST_KEPT_BYTES = 32 << 20
"""Some two thousand listings of twenty images."""

Version: TypeAlias = tuple[str, int, int, int]
"""Which file is meant, by path, inode, time and size: one that is stored anew is another."""


class _Run:
    """Pieces of a listing that are joined, and read, together."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size_bytes = 0

    def add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.size_bytes += len(piece)

    def size_with(self, base: bytes) -> int:
        return self.size_bytes + (len(self.pieces) - 1) * len(base)


class _Joined(Source):
    """
    A listing whose URLs lead to one base.

    Joined as far as it is read: a client that reads slowly holds no copy of a large one.
    """

    def __init__(self, runs: Sequence[_Run], base: bytes) -> None:
        super().__init__()
        self._runs = runs
        self._base = base

    def read(self, at: int, count: int) -> bytes:
        for run in self._runs:
            size = run.size_with(self._base)
            if at < size:
                return self._base.join(run.pieces)[at : at + count]
            at -= size
        return b""


@attrs.frozen
class PublicListing:
    """A listing, cut."""

    runs: tuple[_Run, ...]
    digest: bytes
    """Of its pieces."""
    modified: int
    """Seconds since the epoch."""

    @classmethod
    def of(cls, body: bytes, modified: int) -> PublicListing:
        """
        Cut a listing as it came. Call it in a thread.

        :raises BadUpstream: it is no listing.
        """
        pieces = listings.cut(body)
        runs = [_Run()]
        for piece in pieces:
            if runs[-1].size_bytes >= PIECE_BYTES // 2:
                runs.append(_Run())
                # So that the base is put between the two.
                runs[-1].add(b"")
            runs[-1].add(piece)
        # No piece has a NUL in it.
        return cls(tuple(runs), blake2b(b"\0".join(pieces)).digest(), modified)

    @property
    def memory_bytes(self) -> int:
        """What it takes of the memory, about."""
        return sum(
            sys.getsizeof(run.pieces) + sum(map(sys.getsizeof, run.pieces)) for run in self.runs
        )

    def by(self, base: str) -> tuple[Source, Validators]:
        """
        The listing for who reaches the proxy by this URL.

        Its ETag tells apart what is sent: another listing, or the same by another URL.
        """
        url = base.encode()
        return _Joined(self.runs, url), Validators(
            size_bytes=sum(run.size_with(url) for run in self.runs),
            modified=self.modified,
            tag=blake2b(self.digest + url, digest_size=16).hexdigest(),
        )


class PublicListings:
    """The listings of a process that were sent of late."""

    def __init__(self, store: ImageStore, in_thread: InThread) -> None:
        self._store = store
        self._in_thread = in_thread
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
        The listing at a path, from memory or made now.

        :raises FileNotFoundError: it is there no more.
        :raises OSError: it can't be read.
        :raises BadUpstream: it is no listing.
        """
        version = self._version(path)
        kept = self._kept.get(version)
        return kept or await self._making.run(version, lambda _: self._made(version))

    async def unstored(self, listing: Unstored) -> PublicListing:
        """
        One that lies nowhere.

        :raises BadUpstream: it is no listing.
        """
        made: PublicListing = await self._in_thread(
            PublicListing.of, listing.body, int(listing.stored_at)
        )
        return made

    def _version(self, path: str) -> Version:
        status = self._store.stat(path)
        if status is None:
            raise FileNotFoundError(path)
        return _version_of(path, status)

    async def _made(self, version: Version) -> PublicListing:
        path, _, modified_ns, _ = version
        # Opened before it waits for a thread: what is purged meanwhile is not asked for again.
        file = os.fdopen(self._store.open(path), "rb")
        if _version_of(path, os.fstat(file.fileno())) != version:
            file.close()
            raise FileNotFoundError(path)
        made: PublicListing = await self._in_thread(_cut, file, modified_ns // 10**9)
        self._kept[version] = made
        self._kept_bytes += made.memory_bytes
        while self._kept_bytes > MOST_KEPT_BYTES:
            self._kept_bytes -= self._kept.pop(next(iter(self._kept))).memory_bytes
        return made


def _cut(file: BinaryIO, modified: int) -> PublicListing:
    with file:
        return PublicListing.of(file.read(listings.LARGEST_BYTES + 1), modified)


def _version_of(path: str, status: os.stat_result) -> Version:
    return path, status.st_ino, status.st_mtime_ns, status.st_size
