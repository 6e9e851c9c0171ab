"""
What a fetch asks of a source of covers, and what it gives along.

The archive is the one source there is (upstream.py).
"""

from __future__ import annotations

from typing import Protocol

import attrs
from twisted.internet.defer import Deferred

from coverart.model import AliasKey, ListingKey, Target


@attrs.define
class FetchDeadline:
    """When a fetch has to be over, and how many requests it has cost by now."""

    at: float
    """Of the reactor's clock, in seconds."""
    hops: int = 0
    host: str = ""
    """Who was asked last, with its port if that is not https's."""
    received: int | None = None
    """The status that came back, once it did."""


class Sink(Protocol):
    """Takes the pieces of a body."""

    def begin(self, length: int | None) -> None:
        """A body of this declared length starts. :raises CoverError: it is not wanted."""

    def write(self, data: bytes) -> None:
        """:raises CoverError: no more of it is wanted."""

    def room(self) -> Deferred[None] | None:
        """None while more may come at once; else fires when it may."""


class Source(Protocol):
    """Knows where names point, and has images and listings. What it can't give, it raises."""

    async def resolve(self, key: AliasKey, deadline: FetchDeadline) -> Target:
        """
        Say which image a name points at.

        :raises NotInArchive: no such art.
        :raises CoverError: the source can't be asked, or makes no sense.
        """

    def can_fetch(self, target: Target, size: int) -> bool:
        """Say whether image() can be called without resolve() before it."""

    async def image(self, target: Target, size: int, sink: Sink, deadline: FetchDeadline) -> None:
        """
        Fetch one size of an image into `sink`.

        :raises FileNotInArchive: the art is there, this file of it is not (yet, or any more).
        :raises CoverError: it could not be had whole.
        :raises ValueError: it is an original whose extension is not known.
        """

    async def listing(self, key: ListingKey, deadline: FetchDeadline) -> bytes:
        """
        Fetch the listing of an entity as the source has it.

        :raises NotInArchive: no such entity, or no art at all.
        :raises CoverError: it could not be had whole.
        """
