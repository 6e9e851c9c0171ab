"""The account of one fetch: its deadline, its requests, its claims; and what can come of it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from coverart.archive.source import FetchDeadline
from coverart.errors import BadUpstream, CoverError, NobodyReads, Unavailable, UpstreamTimeout
from coverart.index.base import Claim, Index
from coverart.model import Alias, AliasKey, FileEntry, ImageKey, ListingKey, Subject

T = TypeVar("T")


@attrs.define(eq=False, kw_only=True)
class Fetch(FetchDeadline):
    """
    The account of one fetch. What it claims among processes ends with its `async with` block.

    A CoverError that leaves the block is also the answer to those who wait in other processes.
    """

    index: Index
    clock: IReactorTime
    total_s: float
    complete: bool
    """True if an index miss at the start means a disk miss."""
    resolved: dict[AliasKey, Alias | Missing] = attrs.field(factory=dict, init=False)
    """What hop 1 said of names: one fetch asks it about a name once."""
    _claims: list[Claim] = attrs.field(factory=list, init=False)

    async def __aenter__(self) -> Fetch:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, CoverError):
            error.hops = self.hops
            if not error.host and isinstance(error, BadUpstream | UpstreamTimeout | Unavailable):
                error.host, error.received = self.host, self.received
        claims = self.end_claims()
        if not claims:
            return
        # That nobody reads here is no answer to those who wait in another process.
        if isinstance(error, CoverError) and not isinstance(error, NobodyReads):
            await self.index.release(claims, error)
        else:
            await self.index.release(claims)

    def add_claim(self, claim: Claim) -> None:
        """A claim was taken for this fetch."""
        self._claims.append(claim)
        if claim.waited:
            # Its time begins now: until then it waited for another process.
            self.at = self.clock.seconds() + self.total_s

    def end_claims(self) -> list[Claim]:
        """The claims, for the one who ends them with what was fetched."""
        ended, self._claims = self._claims, []
        return ended

    async def within_time(self, work: Coroutine[Any, Any, T]) -> T:
        """
        What the archive answers.

        :raises UpstreamTimeout: nothing by the deadline.
        """

        def late(_: object, __: float) -> T:
            raise UpstreamTimeout(f"not done after {self.total_s:g} s")

        left_s = max(0.0, self.at - self.clock.seconds())
        d: Deferred[T] = Deferred.fromCoroutine(work)
        return await d.addTimeout(left_s, self.clock, onTimeoutCancel=late)


@attrs.frozen(kw_only=True)
class Fetched:
    """A file that is now held, and the alias that led to it."""

    key: ImageKey | ListingKey
    entry: FileEntry
    alias: Alias | None = None


@attrs.frozen(kw_only=True)
class Unstored:
    """A listing that could not be stored."""

    body: bytes
    stored_at: float
    why: str
    """A token (RFC 9110 section 5.6.2)."""


@attrs.frozen(kw_only=True)
class Missing:
    """
    The archive said 404: of a name, of one size of an image, or of a listing.

    `asked_at` is when it was asked, in seconds since the epoch; None if that is remembered already.
    """

    subject: Subject
    asked_at: float | None
