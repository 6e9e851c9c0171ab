"""The index that several processes share, in Redis; budgets and keys: see redis_scripts.py."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.eviction import Eviction
from coverart.freshness import CLOCK_SLACK_S
from coverart.gathered import Gathered
from coverart.index import SLICES, IndexAway, LostLease, Packed, Seen, Slice, Totals
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
)
from coverart.packing import (
    ages,
    checked_at_of,
    is_alias,
    pack_alias,
    pack_alias_key,
    pack_entry,
    pack_file_key,
    pack_seen,
    pack_size,
    pack_subject,
    slice_of,
    stored_at_of,
    unpack_alias,
    unpack_alias_key,
    unpack_entry,
    unpack_file_key,
)
from coverart.redis_link import RedisAway, RedisLink, Script
from coverart.redis_scripts import (
    DOUBTFUL,
    DUE_ALIASES,
    FIND_IMAGES,
    FIND_LISTING,
    FORGET_ABSENCE,
    FORGET_ALIAS,
    FORGET_FILES,
    LEARN,
    ODD_SLICES,
    OLDEST,
    PUT_ABSENCE,
    PUT_ALIAS,
    PUT_FILE,
    RERANK,
    SETTLE,
    SLICE,
    TALLY,
    TOTALS,
    USE,
)

LAYOUT = 1
"""The version in every key; a new one starts with an empty index, filled from the disk."""

_ABSENCE = struct.Struct(">dd")
_UNKNOWN_REPLY = 5
_NOT_OURS = (struct.error, LookupError, ValueError)
"""What unpacking something raises that another program, or another version, wrote."""
_BATCH = 500
_FINDS = 100
"""Looked up by one script: a millisecond of Redis' time at most."""

T = TypeVar("T")


class RedisIndex:
    """
    The shared index.

    While Redis is away, lookups find nothing (so the disk decides) and changes are dropped; they
    are made good when it is back: `whole()` then says no, and the leader compares everything
    with the disk.
    """

    kind = "redis"
    log = Logger()

    def __init__(
        self,
        link: RedisLink,
        name: str,
        *,
        eviction: Eviction = "oldest",
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        :param name: COVER_ART_CACHE_NAME.
        :param now: the time of day, in seconds since the epoch.
        """
        self.link = link
        self._now = now
        self.eviction = eviction
        self.prefix = f"coverart:{LAYOUT}:{name}:".encode()
        self.size_bytes = 0
        self._dropped = False
        # Asked for with each request: a round trip of its own costs more than all the rest of a hit.
        self._finds: Gathered[tuple[bytes, bytes, bytes], Any] = Gathered(self._find_all, _FINDS)
        link.came_back = self._came_back

    @property
    def available(self) -> bool:
        return self.link.available

    def find_now(self, request: ImageRequest) -> None:
        """Redis is never asked without waiting."""

    async def find_image(self, request: ImageRequest) -> Found:
        key = request.alias
        own = key.own_ref
        reply = await self._finds.ask(
            (pack_alias_key(key), pack_size(request.size), b"0" if own is None else b"1")
        )
        return self._understood(_image, request, reply)

    async def _find_all(self, asked: Sequence[tuple[bytes, bytes, bytes]]) -> Sequence[Any]:
        words = [word for words in asked for word in words]
        replies: Sequence[Any] = await self._ask(FIND_IMAGES, [None] * len(asked), *words)
        return replies

    async def find_listing(self, key: ListingKey) -> Found:
        reply = await self._ask(FIND_LISTING, None, pack_file_key(key))
        return self._understood(_listing, key, reply)

    def _understood(
        self, read: Callable[[T, list[Any]], Found], thing: T, reply: list[Any] | None
    ) -> Found:
        """What a reply says; nothing if there is none, or if it is not of this index."""
        if reply is None:
            return Found()
        try:
            return read(thing, reply)
        except _NOT_OURS as error:
            self.log.warn("not understood in Redis: {error}", error=error)
            return Found()

    async def put_file(self, key: FileKey, entry: FileEntry) -> bool:
        self.size_bytes += entry.size_bytes
        horizon = b"" if isinstance(key, ImageKey) else repr(self._horizon)
        told = (pack_file_key(key), pack_entry(entry), self._rank(entry), horizon)
        return bool(await self._tell(PUT_FILE, *told) != 0)

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        reply = await self._tell(FORGET_FILES, b"", b"", pack_file_key(key), pack_entry(entry))
        return reply is None or reply == [1]

    async def settle(self, keys: Sequence[FileKey]) -> None:
        if keys:
            await self._tell(SETTLE, *(pack_file_key(key) for key in keys))

    async def use(self, uses: Sequence[tuple[FileKey, int]]) -> None:
        if self.eviction == "oldest":
            return
        for start in range(0, len(uses), _BATCH):
            batch = uses[start : start + _BATCH]
            words = [word for key, times in batch for word in (pack_file_key(key), str(times))]
            await self._ask(USE, None, *words)

    async def prepare(self, check: Callable[[], object]) -> None:
        ranked = await self._command("HGET", self.prefix + b"sum", b"policy")
        if (ranked or b"oldest").decode() == self.eviction:
            return
        self.log.info("ranking everything anew for {eviction}", eviction=self.eviction)
        for number in range(SLICES):
            check()
            by_age = b"1" if self.eviction == "oldest" else b"0"
            await self._lead(RERANK, f"{number:03x}", by_age)
        await self._command("HSET", self.prefix + b"sum", b"policy", self.eviction)

    async def suspect(self, key: FileKey) -> None:
        try:
            await self.link.command("SADD", self.prefix + b"odd", str(slice_of(pack_file_key(key))))
        except RedisAway:
            self._dropped = True

    async def doubtful(self, count: int) -> list[FileKey]:
        return [unpack_file_key(key) for key in await self._lead(DOUBTFUL, count)]

    async def odd_slices(self) -> list[int]:
        return sorted(int(number) for number in await self._lead(ODD_SLICES))

    async def forget_files(
        self, files: Sequence[tuple[FileKey, FileEntry]], fence: str
    ) -> list[tuple[FileKey, FileEntry]]:
        gone: list[tuple[FileKey, FileEntry]] = []
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            words = [
                word for key, entry in batch for word in (pack_file_key(key), pack_entry(entry))
            ]
            reply = await self._lead(FORGET_FILES, fence, self.eviction, *words)
            if reply is None:
                raise LostLease
            gone += [file for file, was in zip(batch, reply, strict=True) if was]
        return gone

    async def put_alias(self, key: AliasKey, alias: Alias) -> bool:
        told = (pack_alias_key(key), pack_alias(alias), _minute(key, alias), repr(self._horizon))
        return bool(await self._tell(PUT_ALIAS, *told) != 0)

    async def forget_alias(self, key: AliasKey) -> bool:
        return bool(await self._tell(FORGET_ALIAS, pack_alias_key(key)))

    async def put_absence(self, subject: Subject, absence: Absence) -> bool:
        life_ms = max(1, int((absence.forgotten - absence.since) * 1000))
        reply = await self._tell(
            PUT_ABSENCE,
            pack_subject(subject),
            _ABSENCE.pack(absence.since, absence.until),
            life_ms,
            b"1" if isinstance(subject, AliasKey) else b"0",
            b"" if isinstance(subject, ImageKey) else repr(self._horizon),
        )
        return bool(reply != 0)

    async def forget_absence(self, subject: Subject) -> bool:
        return bool(await self._tell(FORGET_ABSENCE, pack_subject(subject)))

    async def learn(self, seen: Sequence[Seen]) -> None:
        await self.learn_packed([pack_seen(thing) for thing in seen])

    async def learn_packed(self, seen: Sequence[Packed]) -> None:
        by_age = self.eviction == "oldest"
        for start in range(0, len(seen), _BATCH):
            words: list[bytes | str] = [repr(self._horizon)]
            for key, value in seen[start : start + _BATCH]:
                extra = ""
                if not is_alias(key):
                    extra = repr(stored_at_of(value)) if by_age else ""
                elif ages(key):
                    extra = str(int(checked_at_of(value) // 60))
                words += (key, value, extra)
            await self._tell(LEARN, *words)

    async def tally(self, counts: Mapping[str, int]) -> None:
        words = [str(word) for count in counts.items() for word in count]
        await self._lead(TALLY, *words)

    async def totals(self) -> Totals:
        reply = await self._ask(TOTALS, None)
        if reply is None:
            return Totals()
        counts, first, leader, tallies = reply
        self.size_bytes, files, *rest = (int(count or 0) for count in counts)
        return Totals(
            size_bytes=self.size_bytes,
            files=files,
            by_entity=dict(zip(Entity, rest[:3], strict=True)),
            aliases=dict(zip(Entity, rest[3:], strict=True)),
            oldest=float(first[1]) if first and self.eviction == "oldest" else None,
            leader=None if leader is None else leader.decode(),
            tallies={name.decode(): int(times) for name, times in _pairs(tallies)},
        )

    async def oldest(self, count: int) -> list[tuple[FileKey, FileEntry]]:
        found: list[tuple[FileKey, FileEntry]] = []
        reply = await self._lead(OLDEST, count) if count > 0 else []
        for key, entry in _pairs(reply):
            found.append((unpack_file_key(key), unpack_entry(entry)))
        return found

    async def due_aliases(
        self, before: float, count: int, fence: str
    ) -> list[tuple[AliasKey, Alias]]:
        last_minute = int(before // 60) - 1
        horizon = int(self._horizon // 60)
        reply = await self._lead(DUE_ALIASES, last_minute, count, fence, horizon)
        return [(unpack_alias_key(key), unpack_alias(alias)) for key, alias in _pairs(reply)]

    async def slice_packed(self, number: int) -> dict[bytes, bytes]:
        return dict(_pairs(await self._lead(SLICE, f"{number:03x}")))

    async def slice(self, number: int) -> Slice:
        files: dict[FileKey, FileEntry] = {}
        aliases: dict[AliasKey, Alias] = {}
        for key, value in (await self.slice_packed(number)).items():
            if is_alias(key):
                aliases[unpack_alias_key(key)] = unpack_alias(value)
            else:
                files[unpack_file_key(key)] = unpack_entry(value)
        return Slice(files=files, aliases=aliases)

    async def whole(self) -> bool:
        if self._dropped:
            return False
        return bool(await self._command("EXISTS", self.prefix + b"whole"))

    async def set_whole(self) -> None:
        self._dropped = False
        await self._command("SET", self.prefix + b"whole", b"1")

    # Redis and its absence

    async def _ask(self, script: Script, otherwise: T, *args: bytes | str | float) -> Any | T:
        try:
            return await self.link.run(script, self.prefix, *args)
        except RedisAway:
            return otherwise

    async def _tell(self, script: Script, *args: bytes | str | float) -> Any:
        try:
            return await self.link.run(script, self.prefix, *args)
        except RedisAway:
            self._dropped = True
            return None

    async def _lead(self, script: Script, *args: bytes | str | float) -> Any:
        try:
            return await self.link.run(script, self.prefix, *args)
        except RedisAway as error:
            raise IndexAway(str(error)) from error

    async def _command(self, *words: bytes | str) -> Any:
        try:
            return await self.link.command(*words)
        except RedisAway as error:
            raise IndexAway(str(error)) from error

    @property
    def _horizon(self) -> float:
        """Up to when times count."""
        return self._now() + CLOCK_SLACK_S

    def _rank(self, entry: FileEntry) -> str:
        """The place in the order of eviction; empty where Redis works it out."""
        return repr(entry.stored_at) if self.eviction == "oldest" else ""

    def _came_back(self) -> None:
        """What was not told to Redis is found again by comparing it with the disk."""
        if self._dropped:
            Deferred.fromCoroutine(self._doubt()).addErrback(_still_away)

    async def _doubt(self) -> None:
        await self.link.command("DEL", self.prefix + b"whole")
        self._dropped = False


def _still_away(failure: Failure) -> None:
    failure.trap(RedisAway)


def _image(request: ImageRequest, reply: list[Any]) -> Found:
    """What FIND_IMAGES says of one. Raises one of _NOT_OURS if it holds what is not of this index."""
    own = request.alias.own_ref
    packed_alias, packed_entry, packed_original, absent = reply[:4]
    absence = _absence(absent)
    if len(reply) == _UNKNOWN_REPLY:
        return Found(absence=absence)
    alias = None if packed_alias is None else unpack_alias(packed_alias)
    if alias is not None:
        target = alias.target
    elif own is not None:
        target = Target(ref=own, extension=_extension(packed_original))
    else:
        return Found(absence=absence)
    if packed_entry is None:
        return Found(alias=alias, target=target, absence=absence)
    return Found(
        key=target.ref.at(request.size),
        entry=unpack_entry(packed_entry),
        alias=alias,
        target=target,
    )


def _listing(key: ListingKey, reply: list[Any]) -> Found:
    """The same for FIND_LISTING."""
    packed, absent = reply
    if packed is None:
        return Found(absence=_absence(absent))
    return Found(key=key, entry=unpack_entry(packed))


def _absence(packed: bytes | None) -> Absence | None:
    if packed is None:
        return None
    since, until = _ABSENCE.unpack(packed)
    return Absence(since=since, until=until)


def _extension(packed: bytes | None) -> str | None:
    media = None if packed is None else unpack_entry(packed).media
    return None if media is None else media.extension


def _minute(key: AliasKey, alias: Alias) -> str:
    return str(int(alias.checked_at // 60)) if key.ages else ""


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
