"""
What the cache answers: a file, one that is arriving or not stored, nothing, or where to look.

`joined` is set for who waited on another's fetch; `hops` counts the requests of that fetch.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

import attrs

from coverart.cache.download import Download
from coverart.cache.fetch import Fetch, Unstored
from coverart.model import Alias, FileEntry, FileKey, ImageKey, Target


class Status(Enum):
    """How an answer came about, as X-Cache-Status tells it."""

    HIT = "HIT"
    MISS = "MISS"
    STALE = "STALE"
    ABSENT = "ABSENT"


@attrs.frozen(kw_only=True)
class Held:
    """A file to serve. `alias` is set where the name is not the image's own."""

    status: Status
    key: FileKey
    entry: FileEntry
    path: str
    alias: Alias | None = None
    joined: bool = False
    hops: int = 0
    substitute: int | None = None
    """The size that it is, where it stands in for another that the archive has not made."""


@attrs.frozen(kw_only=True)
class Flowing:
    """An image to serve from its download: while it arrives, is being stored, or can't be."""

    download: Download
    fetch: Fetch
    joined: bool = False
    status: Status = Status.MISS
    substitute: int | None = None
    """As of Held."""

    @property
    def unstored(self) -> str | None:
        """Why it is not stored, as far as that is known."""
        return self.download.unstored

    @property
    def hops(self) -> int:
        return 0 if self.status is Status.HIT else self.fetch.hops


@attrs.frozen(kw_only=True)
class Passing:
    """A listing to serve that could not be stored."""

    listing: Unstored
    joined: bool = False
    hops: int = 0
    status: Status = Status.MISS

    @property
    def unstored(self) -> str:
        """Why it is not stored."""
        return self.listing.why


@attrs.frozen(kw_only=True)
class Absent:
    """A 404, remembered (ABSENT) or just learnt (MISS)."""

    status: Status
    image: ImageKey | None = None
    """Set where it may be of one size alone, of an image that is there."""
    asked_again: bool = False
    """It is past its time, and the archive is asked in the background."""
    joined: bool = False
    hops: int = 0


@attrs.frozen(kw_only=True)
class Pointed:
    """Where a name points, for COVER_ART_IMAGE_MODE=redirect."""

    status: Status
    target: Target
    joined: bool = False
    hops: int = 0


Answer: TypeAlias = Held | Flowing | Passing | Absent
