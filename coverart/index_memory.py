"""The index of one process, in its own memory; the reference for the other."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from coverart.index import SLICES, Seen, Slice, Totals
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
    slice_of,
    unpack_alias,
    unpack_alias_key,
    unpack_entry,
    unpack_file_key,
)

MOST_ABSENCES = 200_000
"""Half of all requests for random releases end in 404: they must not fill the memory."""


class MemoryIndex:
    """
    Rebuilt from the disk at each start.

    Keys and values are packed as for Redis, to be small, and lie in one table for each slice, so
    that a slice can be compared with the disk without a look at all others.
    """

    kind = "memory"
    available = True

    def __init__(self, *, most_absences: int = MOST_ABSENCES) -> None:
        self._files: list[dict[bytes, bytes]] = [{} for _ in range(SLICES)]
        self._aliases: list[dict[bytes, bytes]] = [{} for _ in range(SLICES)]
        self._absences: OrderedDict[bytes, Absence] = OrderedDict()
        self._most_absences = most_absences
        # Every file and every alias that ages has a place in these. Places of things since
        # removed or renewed are passed over when they come up, which costs less than removal.
        self._by_age: list[tuple[float, bytes]] = []
        self._by_check: list[tuple[float, bytes]] = []
        self._size_bytes = 0
        self._file_counts = dict.fromkeys(Entity, 0)
        self._alias_counts = dict.fromkeys(Entity, 0)
        self._whole = False
        self._odd: set[int] = set()

    async def find_image(self, request: ImageRequest) -> Found:
        key = request.alias
        own = key.own_ref
        alias = None
        # Any size of an image that lies under this MBID proves that it was not merged away.
        target = None if own is None else self._held(own)
        if target is None:
            packed_key = pack_alias_key(key)
            packed_alias = self._aliases[slice_of(packed_key)].get(packed_key)
            if packed_alias is None:
                absence = self._absences.get(packed_key)
                if absence is None and own is not None:
                    absence = self._absences.get(pack_file_key(own.at(request.size)))
                return Found(absence=absence)
            alias = unpack_alias(packed_alias)
            target = alias.target
        image = target.ref.at(request.size)
        packed_image = pack_file_key(image)
        packed = self._files[slice_of(packed_image)].get(packed_image)
        if packed is None:
            return Found(alias=alias, target=target, absence=self._absences.get(packed_image))
        return Found(key=image, entry=unpack_entry(packed), alias=alias, target=target)

    async def find_listing(self, key: ListingKey) -> Found:
        packed_key = pack_file_key(key)
        packed = self._files[slice_of(packed_key)].get(packed_key)
        if packed is None:
            return Found(absence=self._absences.get(packed_key))
        return Found(key=key, entry=unpack_entry(packed))

    async def put_file(self, key: FileKey, entry: FileEntry) -> None:
        packed_key = pack_file_key(key)
        files = self._files[slice_of(packed_key)]
        old = files.get(packed_key)
        files[packed_key] = pack_entry(entry)
        self._size_bytes += entry.size_bytes
        if old is None:
            self._file_counts[entity_of(packed_key)] += 1
            renewed = True
        else:
            known = unpack_entry(old)
            self._size_bytes -= known.size_bytes
            renewed = known.stored_at != entry.stored_at
        if renewed:
            heapq.heappush(self._by_age, (entry.stored_at, packed_key))
        self._absences.pop(packed_key, None)

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        packed_key = pack_file_key(key)
        files = self._files[slice_of(packed_key)]
        if files.get(packed_key) != pack_entry(entry):
            return False
        del files[packed_key]
        self._size_bytes -= entry.size_bytes
        self._file_counts[entity_of(packed_key)] -= 1
        return True

    async def settle(self, keys: Sequence[FileKey]) -> None:
        """A process that is killed takes this index with it, so nothing can be in doubt."""

    async def suspect(self, key: FileKey) -> None:
        self._odd.add(slice_of(pack_file_key(key)))

    async def doubtful(self, count: int) -> list[FileKey]:  # noqa: ARG002
        return []

    async def odd_slices(self) -> list[int]:
        odd, self._odd = sorted(self._odd), set()
        return odd

    async def put_alias(self, key: AliasKey, alias: Alias) -> None:
        packed_key = pack_alias_key(key)
        aliases = self._aliases[slice_of(packed_key)]
        if packed_key not in aliases:
            self._alias_counts[key.entity] += 1
        aliases[packed_key] = pack_alias(alias)
        if key.ages:
            heapq.heappush(self._by_check, (alias.checked_at, packed_key))
        self._absences.pop(packed_key, None)

    async def forget_alias(self, key: AliasKey) -> bool:
        packed_key = pack_alias_key(key)
        if self._aliases[slice_of(packed_key)].pop(packed_key, None) is None:
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
                packed_key = pack_alias_key(key)
                packed = self._aliases[slice_of(packed_key)].get(packed_key)
                # The symlinks of several sizes may tell of one alias; the latest is right.
                if packed is None or unpack_alias(packed).checked_at < value.checked_at:
                    await self.put_alias(key, value)
            elif isinstance(value, FileEntry) and not isinstance(key, AliasKey):
                packed_key = pack_file_key(key)
                if packed_key not in self._files[slice_of(packed_key)]:
                    await self.put_file(key, value)

    async def totals(self) -> Totals:
        oldest = next(self._ages(), None)
        return Totals(
            size_bytes=self._size_bytes,
            files=sum(self._file_counts.values()),
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
        return [(unpack_file_key(key), self._entry(key)) for key in taken]

    async def forget_files(
        self,
        files: Sequence[tuple[FileKey, FileEntry]],
        fence: str,  # noqa: ARG002 - one process needs no election
    ) -> list[tuple[FileKey, FileEntry]]:
        return [file for file in files if await self.forget_file(*file)]

    async def due_aliases(
        self,
        before: float,
        count: int,
        fence: str,  # noqa: ARG002 - one process needs no election
    ) -> list[tuple[AliasKey, Alias]]:
        due: list[tuple[AliasKey, Alias]] = []
        while self._by_check and self._by_check[0][0] < before and len(due) < count:
            checked_at, packed_key = place = heapq.heappop(self._by_check)
            while self._by_check and self._by_check[0] == place:
                # Put several times, by the sizes of one front.
                heapq.heappop(self._by_check)
            packed = self._aliases[slice_of(packed_key)].get(packed_key)
            if packed is not None and (alias := unpack_alias(packed)).checked_at == checked_at:
                due.append((unpack_alias_key(packed_key), alias))
        return due

    async def slice(self, number: int) -> Slice:
        return Slice(
            files={
                unpack_file_key(key): unpack_entry(entry)
                for key, entry in self._files[number].items()
            },
            aliases={
                unpack_alias_key(key): unpack_alias(alias)
                for key, alias in self._aliases[number].items()
            },
        )

    async def whole(self) -> bool:
        return self._whole

    async def set_whole(self) -> None:
        self._whole = True

    def _entry(self, packed_key: bytes) -> FileEntry:
        return unpack_entry(self._files[slice_of(packed_key)][packed_key])

    def _ages(self) -> Iterator[tuple[float, bytes]]:
        """The front of the queue again and again, places that no longer count dropped."""
        while self._by_age:
            stored_at, packed_key = self._by_age[0]
            packed = self._files[slice_of(packed_key)].get(packed_key)
            if packed is None or unpack_entry(packed).stored_at != stored_at:
                heapq.heappop(self._by_age)
                continue
            yield self._by_age[0]

    def _held(self, ref: ImageRef) -> Target | None:
        """The image as a target, if any size of it is held."""
        base = pack_file_key(ref.at(ORIGINAL))
        files = self._files[slice_of(base)]
        if not files:
            return None
        original = files.get(base)
        if original is not None:
            media = unpack_entry(original).media
            return Target(ref=ref, extension=None if media is None else media.extension)
        if any(pack_file_key(ref.at(size)) in files for size in SIZES):
            return Target(ref=ref)
        return None
