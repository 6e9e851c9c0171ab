"""
The index that several processes share, in Redis: its scripts lie in `lua/`, each atomic.

`docs/operations.md` lists the keys. All begin with `coverart:1:{name}:`, where 1 is LAYOUT and name is
COVER_ART_CACHE_NAME; keys and values of things are packed, see codec.py. A bucket `b:{hhhh}` is a 65,536th
of the cache, so Redis keeps it compact.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from coverart.coordination.leader import locks_prefix
from coverart.coordination.lua_scripts import load_scripts
from coverart.coordination.redis_client import RedisAway, RedisGarbled, RedisLink
from coverart.coordination.untold_mark import Mark
from coverart.errors import CoverError
from coverart.freshness import CLOCK_SLACK_S
from coverart.index.base import (
    SLICES,
    Claim,
    IndexAway,
    LostLease,
    Packed,
    Seen,
    Stored,
    Totals,
)
from coverart.index.batched_lookups import BatchedLookups
from coverart.index.claims import LONGEST_WAIT_S, Claims, pack_error
from coverart.index.codec import (
    SIZE_CODES,
    is_packed,
    pack_alias_key,
    pack_entry,
    pack_file_key,
    pack_seen,
    pack_subject,
    slice_of,
    unpack_file_key,
)
from coverart.index.eviction_order import Eviction
from coverart.index.replies import (
    UNREADABLE,
    found_image,
    found_packed,
    pack_absence,
    pairs,
    read_alias,
    read_file,
    read_totals,
)
from coverart.model import (
    Absence,
    Alias,
    AliasKey,
    FileEntry,
    FileKey,
    Found,
    ImageRequest,
    ListingKey,
    Subject,
    Thing,
)

LAYOUT = 1
"""The version in every key; a new one starts with an empty index, filled from the disk."""
_SCRIPTS = load_scripts(Path(__file__).with_name("lua"))
_ERROR_MS = 2000
"""Milliseconds for which an error is left for those who wait; they ask more often."""
_BATCH = 500
_FINDS = 100
"""Limit of look-ups by one script: Redis is busy with it for a millisecond at most."""
_NO, _YES = b"0", b"1"

P = TypeVar("P")
T = TypeVar("T")


class RedisIndex:
    """
    The shared index.

    While Redis is away, look-ups find nothing, so the disk decides. A change that Redis is not told
    leaves the mark in the cache directory, and as long as that lies there nothing in Redis is
    believed. `whole()` is False then, and where Redis was started anew since the index was filled
    (another run_id: its data may be older), where it holds data that can't be read, or files in
    another order of eviction: the leader then empties the index and fills it from the disk.
    """

    kind = "redis"
    log = Logger()

    def __init__(
        self,
        link: RedisLink,
        name: str,
        mark: Mark,
        *,
        eviction: Eviction = "oldest",
        longest_wait_s: float = LONGEST_WAIT_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        :param name: COVER_ART_CACHE_NAME.
        :param longest_wait_s: for the claims of other processes.
        :param mark: of the cache directory.
        :param now: the time of day, in seconds since the epoch.
        """
        self.link = link
        self._now = now
        self.eviction = eviction
        self.prefix = f"coverart:{LAYOUT}:{name}:".encode()
        self._keys = (self.prefix, locks_prefix(name))
        self.size_bytes = 0
        self._mark = mark
        self._run_id = self._filling = b""
        self._whole: bytes | None = None
        """What Redis said last of whether the index is whole; None where it could not be asked."""
        self._claims = Claims(self._run, link.clock, longest_wait_s)
        # Asked for with each request: a round trip of its own costs more than all the rest of a hit.
        self._finds: BatchedLookups[bytes, Any] = BatchedLookups(self._find_all, _FINDS)

    @property
    def available(self) -> bool:
        return self.link.available

    # Looking up

    def find_now(self, thing: Thing) -> None:
        """Redis is never asked without waiting."""

    @property
    def complete(self) -> bool:
        whole = self._whole is not None and self._whole == self.link.run_id
        return whole and not self._mark.left()

    async def find_image(self, request: ImageRequest) -> Found:
        return self._understood(found_image, request, await self._finds.ask(_name_of(request)))

    async def find_listing(self, key: ListingKey) -> Found:
        return self._understood(found_packed, key, await self._finds.ask(pack_file_key(key)))

    async def _find_all(self, asked: Sequence[bytes]) -> Sequence[Any]:
        replies: list[Any] = [None] * len(asked)
        self._whole = None
        if not self._mark.left():
            with suppress(RedisAway):
                *replies, self._whole = await self._run("find", len(SIZE_CODES), *asked)
        return replies

    def _understood(
        self, read: Callable[[T, list[Any]], Found], thing: T, reply: list[Any] | None
    ) -> Found:
        """What a reply says; nothing if there is none, or if it can't be read."""
        if reply is None:
            return Found()
        try:
            return read(thing, reply)
        except UNREADABLE as error:
            self._garbled(error)
            return Found()

    # Claims

    async def claim_name(self, request: ImageRequest) -> Claim:
        name = _name_of(request)
        _, claim = await self._claims.take(name)
        return claim or Claim(name=name)

    async def claim(self, key: FileKey, *, again: bool = False) -> tuple[Found, Claim | None]:
        reply, claim = await self._claims.take(pack_file_key(key), again=again)
        if reply is None:
            # Redis does not have in doubt what this process is going to store.
            self._mark.leave()
        found = self._understood(found_packed, key, reply)
        if claim is None and found.entry is None:
            # The stored value is not a valid entry.
            return await self.claim(key, again=True)
        return found, claim

    async def release(self, claims: Sequence[Claim], error: CoverError | None = None) -> None:
        words = self._claims.end(claims)
        if words:
            left = ("",) if error is None else (pack_error(error),)
            await self._ask("release", None, *self._rules, *left, str(_ERROR_MS), *words)

    # Changes

    async def store(
        self,
        key: FileKey,
        entry: FileEntry,
        *,
        alias: tuple[AliasKey, Alias] | None = None,
        claims: Sequence[Claim] = (),
    ) -> Stored:
        self.size_bytes += entry.size_bytes
        things: list[Seen] = [(key, entry)]
        if alias is not None:
            things.append(alias)
        file, *named = await self._put(things, claims)
        return Stored(file=file, alias=all(named))

    async def put_file(self, key: FileKey, entry: FileEntry) -> bool:
        return (await self.store(key, entry)).file

    async def put_alias(self, key: AliasKey, alias: Alias) -> bool:
        return (await self._put([(key, alias)]))[0]

    async def _put(self, things: Sequence[Seen], claims: Sequence[Claim] = ()) -> list[bool]:
        packed = [pack_seen(thing) for thing in things]
        words = [word for pair in packed for word in pair]
        told = (str(4 + len(words)), *words, *self._claims.end(claims))
        reply = await self._tell("store", *told)
        return [True] * len(things) if reply is None else [taken == 1 for taken in reply]

    async def put_absence(
        self, subject: Subject, absence: Absence, claims: Sequence[Claim] = ()
    ) -> bool:
        life_ms = max(1, int((absence.forgotten - absence.since) * 1000))
        packed = pack_subject(subject)
        told = (packed, pack_absence(absence), str(life_ms), *self._claims.end(claims))
        return bool(await self._tell("put_absence", *told) != 0)

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        packed = pack_file_key(key)
        reply = await self._tell("forget_files", b"", _NO, packed, pack_entry(entry))
        return reply is None or reply == [1]

    async def forget_alias(self, key: AliasKey) -> bool:
        return bool(await self._tell("forget_name", b"alias", pack_alias_key(key)))

    async def forget_absence(self, subject: Subject) -> bool:
        return bool(await self._tell("forget_name", b"absence", pack_subject(subject)))

    async def settle(self, keys: Sequence[FileKey]) -> None:
        if keys:
            # Where Redis is away they stay in doubt, and the leader looks at the disk.
            packed = [pack_file_key(key) for key in keys]
            await self._ask("call", None, "SREM", self.prefix + b"doubt", *packed)

    async def suspect(self, key: FileKey) -> None:
        number = str(slice_of(pack_file_key(key)))
        await self._ask("call", None, "SADD", self.prefix + b"odd", number)

    async def use(self, uses: Sequence[tuple[FileKey, int]]) -> None:
        if self.eviction == "oldest":
            return
        for start in range(0, len(uses), _BATCH):
            batch = uses[start : start + _BATCH]
            words = [word for key, times in batch for word in (pack_file_key(key), str(times))]
            await self._ask("use", None, *self._rules, *words)

    async def tally(self, counts: Mapping[str, int]) -> None:
        await self._lead("tally", None, *(word for count in counts.items() for word in count))

    async def totals(self) -> Totals:
        return self._totals(await self._ask("totals", None)) or Totals()

    def _totals(self, reply: list[Any] | None) -> Totals | None:
        """None where there is no reply, or one that can't be read."""
        if reply is None:
            return None
        try:
            totals = read_totals(reply, by_age=self.eviction == "oldest")
        except UNREADABLE as error:
            self._garbled(error)
            return None
        self.size_bytes = totals.size_bytes
        return totals

    # For the leader

    async def learn_packed(self, seen: Sequence[Packed]) -> None:
        for start in range(0, len(seen), _BATCH):
            words = [word for pair in seen[start : start + _BATCH] for word in pair]
            await self._lead("learn", None, *self._rules, *words)

    async def first_to_evict(self, count: int) -> list[tuple[FileKey, FileEntry]]:
        reply = await self._lead("first_to_evict", [], count) if count > 0 else []
        return self._readable(read_file, pairs(reply))

    async def forget_files(
        self, files: Sequence[tuple[FileKey, FileEntry]], fence: str
    ) -> list[tuple[FileKey, FileEntry]]:
        gone: list[tuple[FileKey, FileEntry]] = []
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            words = [word for file in batch for word in pack_seen(file)]
            none = [0] * len(batch)
            reply = await self._lead("forget_files", none, *self._rules, fence, _YES, *words)
            if reply is None:
                raise LostLease
            gone += [file for file, was in zip(batch, reply, strict=True) if was]
        return gone

    async def due_aliases(
        self, before: float, count: int, fence: str
    ) -> list[tuple[AliasKey, Alias]]:
        minute = int(before // 60) - 1
        reply = await self._lead("due_aliases", [], *self._rules, minute, count, fence)
        return self._readable(read_alias, pairs(reply))

    async def doubtful(self, count: int) -> list[FileKey]:
        return self._readable(unpack_file_key, await self._lead("doubtful", [], count))

    async def odd_slices(self) -> list[int]:
        odd = await self._lead("call", [], "SPOP", self.prefix + b"odd", SLICES)
        return sorted(number for number in self._readable(int, odd) if 0 <= number < SLICES)

    async def slice_packed(self, number: int) -> dict[bytes, bytes]:
        held = dict(pairs(await self._lead("read_slice", [], f"{number:03x}")))
        ours = {key: value for key, value in held.items() if is_packed(key, value)}
        if len(ours) < len(held):
            self._garbled(f"{len(held) - len(ours)} files or aliases")
        return ours

    async def whole(self) -> bool:
        reply = await self._lead("totals", None)
        if reply is None or self._totals(reply) is None:
            return False
        ordered = (reply[1][0] or b"oldest") == self.eviction.encode()
        return ordered and reply[0] == self.link.run_id and not self._mark.left()

    async def fill(self) -> None:
        reply = await self._lead("totals", None)
        self._run_id, self._filling = self.link.run_id, secrets.token_bytes(8)
        gone = [b"due", b"age", b"sum", b"odd", b"fill"]
        if reply is None or reply[0] == b"garbled":
            gone += [b"tally", b"doubt"]
        self.log.info("emptying the index in Redis, to fill it again from the disk")
        # First, since a change that is not told from now on leaves it again.
        self._mark.clear()
        try:
            await self._lead("empty", None, self._filling, self.eviction, *gone)
        except IndexAway:
            self._mark.leave()
            raise

    async def set_whole(self) -> None:
        await self._lead("set_whole", None, self._filling, self._run_id)

    # Redis and its absence

    @property
    def _rules(self) -> tuple[str, str]:
        """Arguments of every change: the latest time that counts, and the order of eviction."""
        return repr(self._now() + CLOCK_SLACK_S), self.eviction

    async def _run(self, name: str, *args: bytes | str | float) -> Any:
        """Run a script; data that it can't read is reported. :raises RedisAway: it can't be run."""
        try:
            return await self.link.run(_SCRIPTS[name], self._keys, *args)
        except RedisGarbled as error:
            self._garbled(error)
            raise

    async def _ask(self, name: str, otherwise: object, *args: bytes | str | float) -> Any:
        try:
            return await self._run(name, *args)
        except RedisAway:
            return otherwise

    async def _lead(self, name: str, otherwise: object, *args: bytes | str | float) -> Any:
        """:raises IndexAway: Redis is away."""
        try:
            return await self._run(name, *args)
        except RedisGarbled:
            return otherwise
        except RedisAway as error:
            raise IndexAway(str(error)) from error

    async def _tell(self, name: str, *args: bytes | str) -> Any:
        """Run a script that changes things. :returns: None if Redis could not be told."""
        try:
            return await self._run(name, *self._rules, *args)
        except RedisAway:
            self._mark.leave()
            return None

    def _readable(self, read: Callable[[P], T], packed: Iterable[P]) -> list[T]:
        """The values that can be read; the others are reported to the leader."""
        good, bad = [], None
        for each in packed:
            try:
                good.append(read(each))
            except UNREADABLE as error:
                bad = error
        if bad is not None:
            self._garbled(bad)
        return good

    def _garbled(self, what: object) -> None:
        """Tell the leader that Redis holds data that this version can't read."""
        self._whole = None
        Deferred.fromCoroutine(self._tell_garbled(what)).addErrback(
            lambda failure: failure.trap(RedisAway)
        )

    async def _tell_garbled(self, what: object) -> None:
        words = ("SET", self.prefix + b"whole", "garbled", "GET")
        if await self.link.run(_SCRIPTS["call"], self._keys, *words) != b"garbled":
            self.log.warn(
                "Redis holds data that this version can't read ({what}): the next cleanup empties the "
                "index there and fills it again from the disk",
                what=str(what),
            )


def _name_of(request: ImageRequest) -> bytes:
    return pack_alias_key(request.alias) + bytes([SIZE_CODES[request.size]])
