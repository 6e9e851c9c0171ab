"""
What the cache holds, without looking at the disk: the promises that every index keeps.

The disk is the truth and the index its memory: whatever an index says is checked against the
file when it is served, and an index that lost everything is filled again from the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import attrs

from coverart.errors import CoverError
from coverart.index.eviction_order import Eviction
from coverart.model import (
    Absence,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    Found,
    ImageKey,
    ImageRequest,
    ListingKey,
    Subject,
    Target,
    Thing,
)

Seen: TypeAlias = tuple[FileKey, FileEntry] | tuple[AliasKey, Alias]
"""A file or an alias, with what is known of it."""

Packed: TypeAlias = tuple[bytes, bytes]
"""The same as codec.py packs it, since a million values of the model would not fit into memory."""


LEARN_AT_ONCE = 2000
"""Limit of things that learn_packed() takes at once: a few milliseconds of work."""

SLICES = 4096
"""Parts of an index that can be compared with the disk one by one."""


@attrs.frozen(kw_only=True)
class Claim:
    """
    The right to fetch a thing that no other process fetches meanwhile.

    It lasts until it is given to store(), put_absence() or release(), or until its process ends.
    """

    name: bytes
    """The thing, as it is called among processes."""
    token: str = ""
    """Tells this claim from all others; empty where there is nobody else, or nobody to ask."""
    waited: bool = False
    """Another process had it first: what was known before may be outdated."""


@attrs.frozen(kw_only=True)
class Stored:
    """What of a store() was taken; the rest was asked for before what is known."""

    file: bool
    alias: bool
    """True also where none was given."""


class IndexAway(Exception):
    """The index lives elsewhere and can't be asked now."""


class LostLease(Exception):
    """The caller is not the leader any more."""


@attrs.frozen(kw_only=True)
class Totals:
    """
    What is held, exact at any moment.

    `size_bytes` and `files` count regular files (images and listings); `by_entity` counts files
    by the entity in whose folder they lie; `aliases` names by entity; `oldest` is the
    download time of the oldest file, seconds since the epoch, None when nothing is held or files
    are evicted in another order;
    `absences` is None where an index can't tell; `leader` is the process that cleans, if one is elected;
    `tallies` what tally() was told in all.
    """

    size_bytes: int = 0
    files: int = 0
    by_entity: dict[Entity, int] = attrs.field(factory=dict)
    aliases: dict[Entity, int] = attrs.field(factory=dict)
    absences: int | None = None
    oldest: float | None = None
    leader: str | None = None
    tallies: dict[str, int] = attrs.field(factory=dict)


def found_file(key: FileKey, entry: FileEntry | None, absence: Absence | None) -> Found:
    """What is known of one file; its name is that of the image itself, or the listing's."""
    if entry is None:
        return Found(absence=absence)
    target = Target(ref=key.ref) if isinstance(key, ImageKey) else None
    return Found(key=key, entry=entry, target=target)


class Index(Protocol):
    """
    What is held, where names point, what is known to be absent.

    Every method may be called at any time, by any number of callers; each is atomic. Errors of
    an index that lives elsewhere are its own to handle: a lookup that can't be made finds
    nothing, and the disk decides.

    Names, listings and absences are stamped with the time when the archive was asked, and never
    replace what was asked for later: a slow answer puts nothing old back. A stamp further ahead
    of the clock than CLOCK_SLACK_S counts as older than any other (freshness.py).
    """

    size_bytes: int
    """
    Bytes held, as far as is known without asking.

    Of an index that lives elsewhere: as it was told last, or seen on the disk, and what was stored
    here since.
    """

    @property
    def kind(self) -> str:
        """The name of this kind of index, as /cache-status tells it."""

    @property
    def eviction(self) -> Eviction:
        """What is evicted first."""

    @property
    def available(self) -> bool:
        """Whether the index can be asked now."""

    @property
    def complete(self) -> bool:
        """
        Whether, by the last look-up, what the index does not know is not on the disk either.

        False while the index is filled, after it missed something, and while it can't be asked.
        """

    async def find_image(self, request: ImageRequest) -> Found:
        """All that is known about a request for an image, in one round trip."""

    def find_now(self, thing: Thing) -> Found | None:
        """What find_image() or find_listing() finds, without waiting; None from an index that can't."""

    async def find_listing(self, key: ListingKey) -> Found:
        """All that is known about a request for a listing, in one round trip."""

    async def claim_name(self, request: ImageRequest) -> Claim:
        """
        Take the right to ask where a name points, for an image of this size.

        Waits while another process has it.

        :raises CoverError: the other process failed while this one waited, with its error.
        :raises Overloaded: other processes had it for too long.
        """

    async def claim(self, key: FileKey, *, again: bool = False) -> tuple[Found, Claim | None]:
        """
        Look once more for a file and take the right to fetch it, in one round trip.

        Waits while another process has it. The file is in doubt from then on: should this process
        be killed, the leader looks whether it was stored.

        :param again: also where the file is held, to fetch it anew.
        :returns: what is known now of the file or its absence; no claim where the file is held.
        :raises CoverError: the other process failed while this one waited, with its error.
        :raises Overloaded: other processes had it for too long.
        """

    async def store(
        self,
        key: FileKey,
        entry: FileEntry,
        *,
        alias: tuple[AliasKey, Alias] | None = None,
        claims: Sequence[Claim] = (),
    ) -> Stored:
        """
        put_file(), put_alias() of the name that led to it, and the end of claims, in one round trip.

        What is taken is not in doubt any more. An alias is taken also where its file is not.
        """

    async def release(self, claims: Sequence[Claim], error: CoverError | None = None) -> None:
        """
        End claims without a file.

        :param error: those who wait in other processes get it, and nothing is in doubt. Without it
            they look again, and files stay in doubt.
        """

    async def put_file(self, key: FileKey, entry: FileEntry) -> bool:
        """
        Remember a file, in place of what was known of it; its absence is forgotten.

        :returns: False if it is a listing of which a later one or a later 404 is known.
        """

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        """
        Forget a file that is gone from the disk, if `entry` is still what is known of it.

        :returns: whether it was; False where somebody else was first, so that totals change once.
        """

    async def settle(self, keys: Sequence[FileKey]) -> None:
        """Files that forget_files() forgot are off the disk too: they are in doubt no more."""

    async def use(self, uses: Sequence[tuple[FileKey, int]]) -> None:
        """Files were asked for so many times since the last call."""

    async def suspect(self, key: FileKey) -> None:
        """A file was not as the index said: its slice is compared with the disk soon."""

    async def put_alias(self, key: AliasKey, alias: Alias) -> bool:
        """
        Remember where a name points; its absence is forgotten.

        :returns: False if a later alias or a later 404 is known.
        """

    async def forget_alias(self, key: AliasKey) -> bool:
        """Forget where a name points. :returns: whether it was known."""

    async def put_absence(
        self, subject: Subject, absence: Absence, claims: Sequence[Claim] = ()
    ) -> bool:
        """
        Remember a 404. An alias of that name is forgotten.

        :param claims: end with it; nothing of theirs is in doubt.
        :returns: False if a later 404, alias or listing is known.
        """

    async def forget_absence(self, subject: Subject) -> bool:
        """Forget a 404. :returns: whether it was known."""

    async def learn_packed(self, seen: Sequence[Packed]) -> None:
        """
        Take in what the disk shows, where nothing is known of it yet; at most LEARN_AT_ONCE things.

        :raises IndexAway: Redis has not learnt all of it; compare the disk again.
        """

    async def tally(self, counts: Mapping[str, int]) -> None:
        """
        Add to tallies that all who share the index have in common, for Totals.

        :param counts: what to add, by names that are few and fixed.
        :raises IndexAway: Redis may not have added them; add them again.
        """

    async def totals(self) -> Totals:
        """What is held, in constant time."""

    # For the leader; these raise IndexAway where the others would find nothing.

    async def first_to_evict(self, count: int) -> list[tuple[FileKey, FileEntry]]:
        """Up to `count` files, the first to be evicted in front."""

    async def forget_files(
        self, files: Sequence[tuple[FileKey, FileEntry]], fence: str
    ) -> list[tuple[FileKey, FileEntry]]:
        """
        Forget many files, those that are still known as given; settle() them when they are gone.

        :param fence: the caller's token as leader; "" where there is no election.
        :returns: the ones that were forgotten.
        :raises LostLease: somebody else leads now; nothing more was forgotten.
        """

    async def due_aliases(
        self, before: float, count: int, fence: str
    ) -> list[tuple[AliasKey, Alias]]:
        """
        Up to `count` aliases last checked before that time, or ahead of the clock; each once.

        They stay known. An index may take a minute to hand one out. Names that are ids do not
        age and are never handed out.
        """

    async def doubtful(self, count: int) -> list[FileKey]:
        """Up to `count` keys whose file was being stored or removed by a process that is gone."""

    async def odd_slices(self) -> list[int]:
        """The slices that were suspected since the last call."""

    async def slice_packed(self, number: int) -> dict[bytes, bytes]:
        """
        What is known of the MBIDs whose first three digits are `number`, of 4,096.

        Not to be changed.
        """

    async def whole(self) -> bool:
        """
        Say whether the index covers all that lay on the disk once, and missed nothing since:
        neither by its own fault nor because a process could not tell it. COVER_ART_CACHE_EVICTION
        was not changed either.
        """

    async def fill(self) -> None:
        """Forget everything, since all that lies on the disk is learnt next; then call set_whole()."""

    async def set_whole(self) -> None:
        """Everything on the disk has been learnt; what was missed since fill() still counts."""
