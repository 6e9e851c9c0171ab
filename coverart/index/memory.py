"""The index of one process, in its own memory; the reference for the other."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence

from coverart.errors import CoverError
from coverart.freshness import CLOCK_SLACK_S, counted
from coverart.index.base import (
    SLICES,
    Claim,
    Packed,
    Stored,
    Totals,
    found_file,
)
from coverart.index.codec import (
    FIRST_ALIAS,
    SIZE_CODES,
    ages,
    checked_at_of,
    entity_of,
    pack_alias,
    pack_alias_key,
    pack_entry,
    pack_file_key,
    pack_subject,
    size_of,
    slice_of,
    stored_at_of,
    unpack_alias,
    unpack_alias_key,
    unpack_entry,
    unpack_file_key,
)
from coverart.index.eviction_order import (
    ByAge,
    ByUse,
    Eviction,
)
from coverart.model import (
    ORIGINAL,
    Absence,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    Found,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    Subject,
    Target,
    Thing,
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

    def __init__(
        self,
        *,
        eviction: Eviction = "oldest",
        most_absences: int = MOST_ABSENCES,
        now: Callable[[], float] = time.time,
    ) -> None:
        """:param now: the time of day, in seconds since the epoch."""
        self.eviction = eviction
        self._files: list[dict[bytes, bytes]] = [{} for _ in range(SLICES)]
        self._aliases: list[dict[bytes, bytes]] = [{} for _ in range(SLICES)]
        self._absences: OrderedDict[bytes, Absence] = OrderedDict()
        self._most_absences = most_absences
        self._queue: ByAge | ByUse = ByAge(self._stored_at) if eviction == "oldest" else ByUse()
        # Keys of aliases by the minute in which they were checked; those since renewed are passed over.
        self._by_check: defaultdict[int, set[bytes]] = defaultdict(set)
        self._due: set[bytes] = set()
        self._now = now
        self.size_bytes = 0
        self._file_counts = dict.fromkeys(Entity, 0)
        self._alias_counts = dict.fromkeys(Entity, 0)
        self._tallies: Counter[str] = Counter()
        self._whole = False
        self._odd: set[int] = set()

    @property
    def complete(self) -> bool:
        return self._whole

    async def find_image(self, request: ImageRequest) -> Found:
        return self.find_now(request)

    def find_now(self, thing: Thing) -> Found:
        if isinstance(thing, ListingKey):
            return self._find_file(thing)
        key = thing.alias
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
                    absence = self._absences.get(pack_file_key(own.at(thing.size)))
                return Found(absence=absence)
            alias = unpack_alias(packed_alias)
            target = alias.target
        image = target.ref.at(thing.size)
        packed_image = pack_file_key(image)
        packed = self._files[slice_of(packed_image)].get(packed_image)
        if packed is None:
            return Found(alias=alias, target=target, absence=self._absences.get(packed_image))
        return Found(key=image, entry=unpack_entry(packed), alias=alias, target=target)

    async def find_listing(self, key: ListingKey) -> Found:
        return self._find_file(key)

    def _find_file(self, key: FileKey) -> Found:
        packed_key = pack_file_key(key)
        packed = self._files[slice_of(packed_key)].get(packed_key)
        entry = None if packed is None else unpack_entry(packed)
        return found_file(key, entry, self._absences.get(packed_key))

    async def claim_name(self, request: ImageRequest) -> Claim:  # noqa: ARG002
        return Claim(name=b"")

    async def claim(self, key: FileKey, *, again: bool = False) -> tuple[Found, Claim | None]:
        found = self._find_file(key)
        held = found.entry is not None and not again
        return found, None if held else Claim(name=pack_file_key(key))

    async def store(
        self,
        key: FileKey,
        entry: FileEntry,
        *,
        alias: tuple[AliasKey, Alias] | None = None,
        claims: Sequence[Claim] = (),  # noqa: ARG002
    ) -> Stored:
        taken = await self.put_file(key, entry)
        return Stored(file=taken, alias=alias is None or await self.put_alias(*alias))

    async def release(self, claims: Sequence[Claim], error: CoverError | None = None) -> None:
        """No other process waits."""

    def _knows_later(self, packed_key: bytes, at: float) -> bool:
        """Say whether what is known of a name or a listing was asked for after that."""
        number, now = slice_of(packed_key), self._now()
        alias = self._aliases[number].get(packed_key)
        known = [] if alias is None else [checked_at_of(alias)]
        if (entry := self._files[number].get(packed_key)) is not None:
            known.append(stored_at_of(entry))
        if (absence := self._absences.get(packed_key)) is not None:
            known.append(absence.since)
        return any(counted(each, now) > counted(at, now) for each in known)

    async def put_file(self, key: FileKey, entry: FileEntry) -> bool:
        packed_key = pack_file_key(key)
        if isinstance(key, ListingKey) and self._knows_later(packed_key, entry.stored_at):
            return False
        self._put_file(packed_key, entry)
        return True

    def _put_file(self, packed_key: bytes, entry: FileEntry) -> None:
        files = self._files[slice_of(packed_key)]
        old = files.get(packed_key)
        files[packed_key] = pack_entry(entry)
        self.size_bytes += entry.size_bytes
        if old is None:
            self._file_counts[entity_of(packed_key)] += 1
            self._queue.put(packed_key, entry)
        else:
            known = unpack_entry(old)
            self.size_bytes -= known.size_bytes
            if known.stored_at != entry.stored_at:
                self._queue.put(packed_key, entry, known.stored_at)
        self._absences.pop(packed_key, None)

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        return self._forget(key, entry, evicted=False)

    def _forget(self, key: FileKey, entry: FileEntry, *, evicted: bool) -> bool:
        packed_key = pack_file_key(key)
        files = self._files[slice_of(packed_key)]
        if files.get(packed_key) != pack_entry(entry):
            return False
        del files[packed_key]
        self.size_bytes -= entry.size_bytes
        self._file_counts[entity_of(packed_key)] -= 1
        self._queue.remove(packed_key, evicted=evicted)
        return True

    async def use(self, uses: Sequence[tuple[FileKey, int]]) -> None:
        for key, times in uses:
            packed_key = pack_file_key(key)
            packed = self._files[slice_of(packed_key)].get(packed_key)
            if packed is not None:
                self._queue.use(packed_key, unpack_entry(packed), times)

    async def settle(self, keys: Sequence[FileKey]) -> None:
        """A process that is killed takes this index with it, so nothing can be in doubt."""

    async def suspect(self, key: FileKey) -> None:
        self._odd.add(slice_of(pack_file_key(key)))

    async def doubtful(self, count: int) -> list[FileKey]:  # noqa: ARG002
        return []

    async def odd_slices(self) -> list[int]:
        odd, self._odd = sorted(self._odd), set()
        return odd

    async def put_alias(self, key: AliasKey, alias: Alias) -> bool:
        packed_key = pack_alias_key(key)
        if self._knows_later(packed_key, alias.checked_at):
            return False
        self._put_alias(packed_key, pack_alias(alias))
        return True

    def _put_alias(self, key: bytes, value: bytes) -> None:
        aliases = self._aliases[slice_of(key)]
        if key not in aliases:
            self._alias_counts[entity_of(key)] += 1
        aliases[key] = value
        if ages(key):
            self._by_check[int(checked_at_of(value) // 60)].add(key)
        self._absences.pop(key, None)

    async def forget_alias(self, key: AliasKey) -> bool:
        packed_key = pack_alias_key(key)
        if self._aliases[slice_of(packed_key)].pop(packed_key, None) is None:
            return False
        self._alias_counts[key.entity] -= 1
        return True

    async def put_absence(
        self,
        subject: Subject,
        absence: Absence,
        claims: Sequence[Claim] = (),  # noqa: ARG002
    ) -> bool:
        packed = pack_subject(subject)
        # An image that is held is served whatever a 404 says, so its time is of no account.
        if not isinstance(subject, ImageKey) and self._knows_later(packed, absence.since):
            return False
        if isinstance(subject, AliasKey):
            await self.forget_alias(subject)
        self._absences.pop(packed, None)
        self._absences[packed] = absence
        while len(self._absences) > self._most_absences:
            self._absences.popitem(last=False)
        return True

    async def forget_absence(self, subject: Subject) -> bool:
        return self._absences.pop(pack_subject(subject), None) is not None

    async def learn_packed(self, seen: Sequence[Packed]) -> None:
        # Once for each file of the cache at every start: no call that can be spared.
        fresh: list[Packed] = []
        now = self._now()
        for thing in seen:
            key, value = thing
            number = key[1] << 4 | key[2] >> 4
            if key[0] >= FIRST_ALIAS:
                known = self._aliases[number].get(key)
                # The symlinks of several sizes may tell of one alias; the latest is right.
                if known is None or counted(checked_at_of(known), now) < counted(
                    checked_at_of(value), now
                ):
                    self._put_alias(key, value)
            elif key not in self._files[number]:
                self._files[number][key] = value
                fresh.append(thing)
        self._queue.learn(fresh)
        self.size_bytes += sum([size_of(value) for _, value in fresh])
        for kind, count in Counter([key[0] for key, _ in fresh]).items():
            self._file_counts[entity_of(bytes([kind]))] += count
        if self._absences:
            for key, _ in fresh:
                self._absences.pop(key, None)

    async def tally(self, counts: Mapping[str, int]) -> None:
        self._tallies.update(counts)

    async def totals(self) -> Totals:
        return Totals(
            size_bytes=self.size_bytes,
            files=sum(self._file_counts.values()),
            by_entity=dict(self._file_counts),
            aliases=dict(self._alias_counts),
            absences=len(self._absences),
            oldest=self._oldest,
            tallies=dict(self._tallies),
        )

    @property
    def _oldest(self) -> float | None:
        first = self._queue.first(1) if self.eviction == "oldest" else []
        return self._stored_at(first[0]) if first else None

    async def first_to_evict(self, count: int) -> list[tuple[FileKey, FileEntry]]:
        return [(unpack_file_key(key), self._entry(key)) for key in self._queue.first(count)]

    async def forget_files(
        self,
        files: Sequence[tuple[FileKey, FileEntry]],
        fence: str,  # noqa: ARG002 - one process needs no election
    ) -> list[tuple[FileKey, FileEntry]]:
        return [file for file in files if self._forget(*file, evicted=True)]

    async def due_aliases(
        self,
        before: float,
        count: int,
        fence: str,  # noqa: ARG002 - one process needs no election
    ) -> list[tuple[AliasKey, Alias]]:
        due: list[tuple[AliasKey, Alias]] = []
        now = self._now()
        if not self._due:
            past, ahead = before // 60, (now + CLOCK_SLACK_S) // 60
            minutes = [minute for minute in self._by_check if minute < past or minute > ahead]
            self._due = {key for minute in minutes for key in self._by_check.pop(minute)}
        while self._due and len(due) < count:
            key = self._due.pop()
            packed = self._aliases[slice_of(key)].get(key)
            if packed is not None and counted(checked_at_of(packed), now) < before:
                due.append((unpack_alias_key(key), unpack_alias(packed)))
        return due

    async def slice_packed(self, number: int) -> dict[bytes, bytes]:
        return self._files[number] | self._aliases[number]

    async def whole(self) -> bool:
        return self._whole

    async def fill(self) -> None:
        """Misses nothing."""

    async def set_whole(self) -> None:
        self._whole = True

    def _entry(self, packed_key: bytes) -> FileEntry:
        return unpack_entry(self._files[slice_of(packed_key)][packed_key])

    def _stored_at(self, packed_key: bytes) -> float | None:
        packed = self._files[slice_of(packed_key)].get(packed_key)
        return None if packed is None else max(0.0, stored_at_of(packed))

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
        if any(pack_file_key(ref.at(size)) in files for size in SIZE_CODES):
            return Target(ref=ref)
        return None
