"""
What the cache holds, without looking at the disk: the promises of an index, and one in memory.

The disk is the truth and the index its memory: whatever an index says is checked against the
file when it is served, and an index that lost everything is filled again from the disk.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

import attrs

from coverart.model import (
    ORIGINAL,
    SIZES,
    Absence,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    Found,
    ImageRef,
    ImageRequest,
    ListingKey,
    Subject,
    Target,
)
from coverart.packing import (
    entity_of,
    pack_alias,
    pack_alias_key,
    pack_entry,
    pack_file_key,
    pack_subject,
    unpack_alias,
    unpack_entry,
    unpack_file_key,
)

Seen: TypeAlias = tuple[FileKey, FileEntry] | tuple[AliasKey, Alias]
"""Something that a look at the disk showed."""


@attrs.frozen(kw_only=True)
class Totals:
    """
    What is held, exact at any moment.

    `size_bytes` and `files` count regular files (images and listings); `by_entity` counts files
    by the entity in whose folder they lie; `aliases` names by entity; `oldest` is the download
    time of the oldest file, seconds since the epoch, None when nothing is held.
    """

    size_bytes: int = 0
    files: int = 0
    by_entity: dict[Entity, int] = attrs.field(factory=dict)
    aliases: dict[Entity, int] = attrs.field(factory=dict)
    absences: int = 0
    oldest: float | None = None


class Index(Protocol):
    """
    What is held, where names point, what is known to be absent.

    Every method may be called at any time, by any number of callers; each is atomic. Errors of
    an index that lives elsewhere are its own to handle: a lookup that can't be made finds
    nothing, and the disk decides.
    """

    @property
    def kind(self) -> str:
        """The name of this kind of index, as /cache-status tells it."""

    async def find_image(self, request: ImageRequest) -> Found:
        """All that is known about a request for an image, in one round trip."""

    async def find_listing(self, key: ListingKey) -> Found:
        """All that is known about a request for a listing, in one round trip."""

    async def put_file(self, key: FileKey, entry: FileEntry) -> None:
        """Remember a file, in place of what was known of it; its absence is forgotten."""

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        """
        Forget a file that is gone, if `entry` is still what is known of it.

        :returns: whether it was; False where somebody else was first, so that totals change once.
        """

    async def put_alias(self, key: AliasKey, alias: Alias) -> None:
        """Remember where a name points; its absence is forgotten."""

    async def forget_alias(self, key: AliasKey) -> bool:
        """Forget where a name points. :returns: whether it was known."""

    async def put_absence(self, subject: Subject, absence: Absence) -> None:
        """Remember a 404. An alias of that name is forgotten."""

    async def forget_absence(self, subject: Subject) -> bool:
        """Forget a 404. :returns: whether it was known."""

    async def learn(self, seen: Sequence[Seen]) -> None:
        """Take in what the disk shows, where nothing is known of it yet."""

    async def totals(self) -> Totals:
        """What is held, in constant time."""

    async def oldest(self, count: int) -> list[tuple[FileKey, FileEntry]]:
        """Up to `count` files, the one downloaded first in front."""


MOST_ABSENCES = 200_000
"""Half of all requests for random releases end in 404: they must not fill the memory."""


class MemoryIndex:
    """The index of one process, rebuilt from the disk at each start; the reference for others."""

    kind = "memory"

    def __init__(self, *, most_absences: int = MOST_ABSENCES) -> None:
        self._files: dict[bytes, bytes] = {}
        self._aliases: dict[bytes, bytes] = {}
        self._absences: OrderedDict[bytes, Absence] = OrderedDict()
        self._most_absences = most_absences
        # Every file has a place in here; places of files since removed or renewed are skipped
        # when they come up, which costs less than taking them out.
        self._by_age: list[tuple[float, bytes]] = []
        self._size_bytes = 0
        self._file_counts = dict.fromkeys(Entity, 0)
        self._alias_counts = dict.fromkeys(Entity, 0)

    async def find_image(self, request: ImageRequest) -> Found:
        key = request.alias
        own = key.own_ref
        alias = None
        # Any size of an image that lies under this MBID proves that it was not merged away.
        target = None if own is None else self._held(own)
        if target is None:
            packed_key = pack_alias_key(key)
            packed_alias = self._aliases.get(packed_key)
            if packed_alias is None:
                absence = self._absences.get(packed_key)
                if absence is None and own is not None:
                    absence = self._absences.get(pack_file_key(own.at(request.size)))
                return Found(absence=absence)
            alias = unpack_alias(packed_alias)
            target = alias.target
        image = target.ref.at(request.size)
        packed_image = pack_file_key(image)
        packed = self._files.get(packed_image)
        if packed is None:
            return Found(alias=alias, target=target, absence=self._absences.get(packed_image))
        return Found(key=image, entry=unpack_entry(packed), alias=alias, target=target)

    async def find_listing(self, key: ListingKey) -> Found:
        packed_key = pack_file_key(key)
        packed = self._files.get(packed_key)
        if packed is None:
            return Found(absence=self._absences.get(packed_key))
        return Found(key=key, entry=unpack_entry(packed))

    async def put_file(self, key: FileKey, entry: FileEntry) -> None:
        self.put_packed(pack_file_key(key), pack_entry(entry))

    def put_packed(self, packed_key: bytes, packed: bytes) -> None:
        """put_file() of what is packed already, for a rebuild of a million files."""
        old = self._files.get(packed_key)
        entry = unpack_entry(packed)
        self._files[packed_key] = packed
        self._size_bytes += entry.size_bytes
        if old is None:
            self._file_counts[entity_of(packed_key)] += 1
        else:
            self._size_bytes -= unpack_entry(old).size_bytes
        if old is None or unpack_entry(old).stored_at != entry.stored_at:
            heapq.heappush(self._by_age, (entry.stored_at, packed_key))
        if self._absences:
            self._absences.pop(packed_key, None)

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        packed_key = pack_file_key(key)
        if self._files.get(packed_key) != pack_entry(entry):
            return False
        del self._files[packed_key]
        self._size_bytes -= entry.size_bytes
        self._file_counts[entity_of(packed_key)] -= 1
        return True

    async def put_alias(self, key: AliasKey, alias: Alias) -> None:
        packed_key = pack_alias_key(key)
        if packed_key not in self._aliases:
            self._alias_counts[key.entity] += 1
        self._aliases[packed_key] = pack_alias(alias)
        self._absences.pop(packed_key, None)

    async def forget_alias(self, key: AliasKey) -> bool:
        if self._aliases.pop(pack_alias_key(key), None) is None:
            return False
        self._alias_counts[key.entity] -= 1
        return True

    async def put_absence(self, subject: Subject, absence: Absence) -> None:
        packed = pack_subject(subject)
        if isinstance(subject, AliasKey):
            await self.forget_alias(subject)
        self._absences.pop(packed, None)
        self._absences[packed] = absence
        while len(self._absences) > self._most_absences:
            self._absences.popitem(last=False)

    async def forget_absence(self, subject: Subject) -> bool:
        return self._absences.pop(pack_subject(subject), None) is not None

    async def learn(self, seen: Sequence[Seen]) -> None:
        for key, value in seen:
            if isinstance(key, AliasKey) and isinstance(value, Alias):
                packed = self._aliases.get(pack_alias_key(key))
                # The symlinks of several sizes may tell of one alias; the latest is right.
                if packed is None or unpack_alias(packed).checked_at < value.checked_at:
                    await self.put_alias(key, value)
            elif isinstance(value, FileEntry) and not isinstance(key, AliasKey):
                if pack_file_key(key) in self._files:
                    continue
                await self.put_file(key, value)

    async def totals(self) -> Totals:
        oldest = next(self._ages(), None)
        return Totals(
            size_bytes=self._size_bytes,
            files=len(self._files),
            by_entity=dict(self._file_counts),
            aliases=dict(self._alias_counts),
            absences=len(self._absences),
            oldest=None if oldest is None else oldest[0],
        )

    async def oldest(self, count: int) -> list[tuple[FileKey, FileEntry]]:
        taken: dict[bytes, tuple[float, bytes]] = {}
        for place in self._ages():
            if len(taken) == count:
                break
            heapq.heappop(self._by_age)
            taken[place[1]] = place
        # They stay held until the caller has removed the files.
        for place in taken.values():
            heapq.heappush(self._by_age, place)
        return [(unpack_file_key(k), unpack_entry(self._files[k])) for k in taken]

    def _ages(self) -> Iterator[tuple[float, bytes]]:
        """The front of the queue again and again, places that no longer count dropped."""
        while self._by_age:
            stored_at, packed_key = self._by_age[0]
            packed = self._files.get(packed_key)
            if packed is None or unpack_entry(packed).stored_at != stored_at:
                heapq.heappop(self._by_age)
                continue
            yield self._by_age[0]

    def _held(self, ref: ImageRef) -> Target | None:
        """The image as a target, if any size of it is held."""
        original = self._files.get(pack_file_key(ref.at(ORIGINAL)))
        if original is not None:
            media = unpack_entry(original).media
            return Target(ref=ref, extension=None if media is None else media.extension)
        if any(pack_file_key(ref.at(size)) in self._files for size in SIZES):
            return Target(ref=ref)
        return None
