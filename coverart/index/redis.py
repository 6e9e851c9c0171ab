"""
The index that several processes share, in Redis: its scripts lie in `lua/`, each atomic.

`docs/operations.md` lists the keys. All begin with `coverart:1:{name}:`, where 1 is LAYOUT and name is
COVER_ART_CACHE_NAME; keys and values of things are packed, see codec.py. A bucket `b:{hhhh}` is a 65,536th
of the cache, so Redis keeps it compact.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
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
    is_alias,
    is_packed,
    pack_alias_key,
    pack_entry,
    pack_file_key,
    pack_seen,
    pack_size,
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
from coverart.index.untold_changes import Change, UntoldChanges
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

    While Redis is away, look-ups find nothing, so the disk decides; changes are kept and told when
    it is back (untold_changes.py). `whole()` is False while the mark lies in the cache directory,
    and where Redis was started anew since the index was filled (another run_id: its data may be
    older): the leader then compares everything with the disk.

    Data in Redis that can't be read is ignored and reported in Redis: the leader empties the index
    and fills it again.
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
        self._untold = UntoldChanges(self._tell_now, mark)
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
        reply = await self._finds.ask(_name_of(request))
        untold = self._is_untold(request.alias)
        return self._understood(found_image, request, None if untold else reply)

    async def find_listing(self, key: ListingKey) -> Found:
        reply = await self._finds.ask(pack_file_key(key))
        return self._understood(found_packed, key, None if self._is_untold(key) else reply)

    async def _find_all(self, asked: Sequence[bytes]) -> Sequence[Any]:
        replies: list[Any] = [None] * len(asked)
        try:
            *replies, self._whole = await self._run("find", len(SIZE_CODES), *asked)
        except RedisAway:
            self._whole = None
        return replies

    def _is_untold(self, subject: Subject) -> bool:
        return len(self._untold) > 0 and pack_subject(subject) in self._untold

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
        untold = self._is_untold(key)
        reply, claim = await self._claims.take(pack_file_key(key), again=again or untold)
        if reply is None:
            # Redis does not have in doubt what this process is going to store.
            self._mark.leave()
        found = self._understood(found_packed, key, None if untold else reply)
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
        reply = await self._tell("store", [key for key, _ in packed], *told)
        return [True] * len(things) if reply is None else [taken == 1 for taken in reply]

    async def put_absence(
        self, subject: Subject, absence: Absence, claims: Sequence[Claim] = ()
    ) -> bool:
        life_ms = max(1, int((absence.forgotten - absence.since) * 1000))
        packed = pack_subject(subject)
        told = (packed, pack_absence(absence), str(life_ms), *self._claims.end(claims))
        return bool(await self._tell("put_absence", [packed], *told) != 0)

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        packed = pack_file_key(key)
        reply = await self._tell("forget_files", [packed], b"", _NO, packed, pack_entry(entry))
        return reply is None or reply == [1]

    async def forget_alias(self, key: AliasKey) -> bool:
        packed = pack_alias_key(key)
        return bool(await self._tell("forget_name", [packed], b"alias", packed))

    async def forget_absence(self, subject: Subject) -> bool:
        packed = pack_subject(subject)
        return bool(await self._tell("forget_name", [packed], b"absence", packed))

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

    async def prepare(self, check: Callable[[], object]) -> None:
        policy = (self.prefix + b"sum", "policy")
        ranked = await self._lead("call", None, "HGET", *policy)
        if (ranked or b"oldest") == self.eviction.encode():
            return
        self.log.info(
            "the order of eviction is {eviction} now: ranking all files in Redis anew",
            eviction=self.eviction,
        )
        for number in range(SLICES):
            check()
            held = (await self.slice_packed(number)).items()
            words = [word for thing in held if not is_alias(thing[0]) for word in thing]
            await self._lead("rank", None, *self._rules, *words)
        await self._lead("call", None, "HSET", *policy, self.eviction)

    async def doubtful(self, count: int) -> list[FileKey]:
        return self._readable(unpack_file_key, await self._lead("doubtful", [], count))

    async def odd_slices(self) -> list[int]:
        odd = await self._lead("call", [], "SPOP", self.prefix + b"odd", SLICES)
        return sorted(number for number in self._readable(int, odd) if 0 <= number < SLICES)

    async def held_slices(self) -> list[int]:
        bucket = self.prefix + b"b:"
        numbers: set[int] = set()
        async for keys in self._scan(bucket):
            numbers.update(self._readable(lambda key: int(key[len(bucket) :][:3], 16), keys))
        return sorted(numbers)

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
        return reply[0] == self.link.run_id and not self._mark.left()

    async def fill(self) -> None:
        # First, since a change that is told after the mark is cleared leaves it again.
        await self._untold.tell_all()
        reply = await self._lead("totals", None)
        self._run_id = self.link.run_id
        if reply is None or reply[0] == b"garbled":
            self.log.warn("emptying the index in Redis, to fill it again from the disk")
            await self._empty()
        self._filling = secrets.token_bytes(8)
        await self._lead("call", None, "SET", self.prefix + b"fill", self._filling)
        await self._lead("call", None, "DEL", self.prefix + b"whole")
        self._mark.clear()

    async def set_whole(self) -> None:
        await self._lead("set_whole", None, self._filling, self._run_id)

    async def _empty(self) -> None:
        """Remove all keys but the locks."""
        kept = tuple(self._keys[1] + name for name in (b"lead", b"get:"))
        async for keys in self._scan(self.prefix):
            gone = [key for key in keys if not key.startswith(kept)]
            if gone:
                await self._lead("call", None, "UNLINK", *gone)

    async def _scan(self, prefix: bytes) -> AsyncIterator[list[bytes]]:
        """All keys that begin so, some at a time; one can come twice."""
        cursor, search = b"0", ("MATCH", prefix + b"*", "COUNT", "1000")
        while True:
            cursor, keys = await self._lead("call", (b"0", []), "SCAN", cursor, *search)
            yield keys
            if cursor == b"0":
                return

    # Redis and its absence

    @property
    def _rules(self) -> tuple[str, str]:
        """Arguments of every change: the latest time that counts, and the order of eviction."""
        return repr(self._now() + CLOCK_SLACK_S), self.eviction

    async def _run(self, name: str, *args: bytes | str | float) -> Any:
        """Run a script; data that it can't read is reported. :raises RedisAway: it can't be run."""
        try:
            reply = await self.link.run(_SCRIPTS[name], self._keys, *args)
        except RedisGarbled as error:
            self._garbled(error)
            raise
        if self._untold and self.link.available:
            self._untold.start()
        return reply

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

    async def _tell(self, name: str, subjects: Sequence[bytes], *args: bytes | str) -> Any:
        """Run a script that changes things, now or when Redis is back. :returns: None if later."""
        change = Change(name, subjects, args)
        if not self._untold:
            with suppress(RedisAway):
                return await self._tell_now(change)
        self._untold.keep(change)
        return None

    async def _tell_now(self, change: Change) -> Any:
        return await self._run(change.script, *self._rules, *change.args)

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
    return pack_alias_key(request.alias) + pack_size(request.size)
