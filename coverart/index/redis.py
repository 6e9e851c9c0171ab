"""The index that several processes share, in Redis; budgets and keys: see redis_scripts.py."""

from __future__ import annotations

import secrets
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from coverart.coordination.fetch_lock import (
    ERROR_LIFE_S,
    LOCK_LIFE_S,
    HeldLocks,
    pack_error,
    pause_s,
    unpack_error,
)
from coverart.coordination.redis_client import RedisAway, RedisGarbled, RedisLink, Script
from coverart.coordination.redis_scripts import (
    CLAIM,
    DOUBTFUL,
    DROP,
    DUE_ALIASES,
    END_CLAIMS,
    FILL,
    FIND_IMAGES,
    FIND_LISTING,
    FORGET_ABSENCE,
    FORGET_ALIAS,
    FORGET_FILES,
    GARBLED,
    HELD_SLICES,
    LEARN,
    ODD_SLICES,
    OLDEST,
    PUT_ABSENCE,
    PUT_ALIAS,
    PUT_FILE,
    RANKED,
    RERANK,
    SET_WHOLE,
    SETTLE,
    SLICE,
    STORE,
    SUSPECT,
    TALLY,
    TOTALS,
    USE,
    WHOLE,
)
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
    Slice,
    Stored,
    Totals,
    found_file,
)
from coverart.index.batched_lookups import Gathered
from coverart.index.codec import (
    ages,
    checked_at_of,
    is_alias,
    is_packed,
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
)

LAYOUT = 1
"""The version in every key; a new one starts with an empty index, filled from the disk."""

_ABSENCE = struct.Struct(">dd")
_UNKNOWN_REPLY = 5
_NOT_OURS = (struct.error, LookupError, ValueError)
"""What unpacking something raises that another program, or another version, wrote."""
_LIFE_MS, _ERROR_MS = int(LOCK_LIFE_S * 1000), int(ERROR_LIFE_S * 1000)
_BATCH = 500
_FINDS = 100
"""Looked up by one script: a millisecond of Redis' time at most."""
MOST_UNTOLD = 1000
"""Changes kept for a Redis that is away; the mark makes good what is over that."""
_KEPT = (b"lead", b"get:", b"doubt")
"""What an index that is emptied keeps: what processes are at."""

_Change: TypeAlias = tuple[Script, Sequence[bytes], tuple[bytes | str, ...]]
"""A script, what it is about, and its arguments."""

P = TypeVar("P")
T = TypeVar("T")


class RedisIndex:
    """
    The shared index.

    While Redis is away, lookups find nothing (so the disk decides). Changes are kept, told when
    it is back, and until then the disk decides about those names. Since a process can be killed
    before that, each change that can't be told leaves a mark in the cache directory: while it is
    there, or Redis is not the one that was told all (another run_id: it was started anew, perhaps
    with older data), `whole()` says no, and the leader compares everything with the disk.

    What is found in Redis and was not written by this program is passed over and reported there:
    the leader then empties the index and fills it again.
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
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        :param name: COVER_ART_CACHE_NAME.
        :param mark: of the cache directory.
        :param now: the time of day, in seconds since the epoch.
        """
        self.link = link
        self._now = now
        self.eviction = eviction
        self.prefix = f"coverart:{LAYOUT}:{name}:".encode()
        self.size_bytes = 0
        self._mark = mark
        self._untold: OrderedDict[bytes, _Change] = OrderedDict()
        self._telling = False
        self._run_id = self._filling = b""
        self._whole: bytes | None = None
        """What Redis said last of whether the index is whole; None where it could not be asked."""
        self._locks = HeldLocks(link, self.prefix)
        # Asked for with each request: a round trip of its own costs more than all the rest of a hit.
        self._finds: Gathered[tuple[bytes, bytes, bytes], Any] = Gathered(self._find_all, _FINDS)
        link.came_back = self._tell_untold

    @property
    def available(self) -> bool:
        return self.link.available

    def find_now(self, request: ImageRequest) -> None:
        """Redis is never asked without waiting."""

    @property
    def complete(self) -> bool:
        whole = self._whole is not None and self._whole == self.link.run_id
        return whole and not self._mark.left()

    async def find_image(self, request: ImageRequest) -> Found:
        key = request.alias
        own = key.own_ref
        reply = await self._finds.ask(
            (pack_alias_key(key), pack_size(request.size), b"0" if own is None else b"1")
        )
        return self._understood(_image, request, None if self._is_untold(key) else reply)

    async def _find_all(self, asked: Sequence[tuple[bytes, bytes, bytes]]) -> Sequence[Any]:
        words = [word for words in asked for word in words]
        *replies, self._whole = await self._ask(FIND_IMAGES, [None] * (len(asked) + 1), *words)
        return replies

    async def find_listing(self, key: ListingKey) -> Found:
        *known, self._whole = await self._ask(FIND_LISTING, [None] * 3, pack_file_key(key))
        return self._understood(_found_file, key, None if self._is_untold(key) else known)

    def _is_untold(self, subject: Subject) -> bool:
        return bool(self._untold) and pack_subject(subject) in self._untold

    def _understood(
        self, read: Callable[[T, list[Any]], Found], thing: T, reply: list[Any] | None
    ) -> Found:
        """What a reply says; nothing if there is none, or if it is not of this index."""
        if reply is None:
            return Found()
        try:
            return read(thing, reply)
        except _NOT_OURS as error:
            self._garbled(error)
            return Found()

    async def claim_name(self, request: ImageRequest) -> Claim:
        name = pack_alias_key(request.alias) + pack_size(request.size)
        _, claim = await self._claim(name, b"0", b"1")
        if claim is None:
            raise AssertionError("a name is never held")
        return claim

    async def claim(self, key: FileKey, *, again: bool = False) -> tuple[Found, Claim | None]:
        untold = self._is_untold(key)
        anew = b"1" if again or untold else b"0"
        known, claim = await self._claim(pack_file_key(key), b"1", anew)
        found = self._understood(_found_file, key, None if untold else known)
        if claim is None and found.entry is None:
            # What is there is no entry.
            return await self.claim(key, again=True)
        return found, claim

    async def _claim(
        self, name: bytes, is_file: bytes, anew: bytes
    ) -> tuple[list[Any] | None, Claim | None]:
        token, waited_s = secrets.token_hex(12), 0.0
        while True:
            waited = waited_s > 0
            words = (name, token, _LIFE_MS, is_file, anew, b"1" if waited else b"0")
            try:
                became, *known = await self.link.run(CLAIM, self.prefix, *words)
            except RedisAway as error:
                self._report(error)
                if is_file == b"1":
                    self._mark.leave()
                return None, Claim(name=name, waited=waited)
            if became == 1:
                self._locks.add(name, token)
                return known, Claim(name=name, token=token, waited=waited)
            if became == 0:
                return known, None
            if became != -1:
                raise unpack_error(became)
            pause = pause_s(waited_s)
            await deferLater(self.link.clock, pause)
            waited_s += pause

    def _ended(self, claims: Sequence[Claim]) -> list[bytes | str]:
        """The words by which a script ends claims; they are renewed no more."""
        self._locks.remove(claim.token for claim in claims)
        return [word for claim in claims if claim.token for word in (claim.name, claim.token)]

    async def store(
        self,
        key: FileKey,
        entry: FileEntry,
        *,
        alias: tuple[AliasKey, Alias] | None = None,
        claims: Sequence[Claim] = (),
    ) -> Stored:
        self.size_bytes += entry.size_bytes
        packed = pack_file_key(key)
        is_listing = b"0" if isinstance(key, ImageKey) else b"1"
        file_words = (packed, pack_entry(entry), self._rank(entry), is_listing)
        subjects, name_words = [packed], (b"", b"", "")
        if alias is not None:
            name_words = (pack_alias_key(alias[0]), pack_alias(alias[1]), _minute(*alias))
            subjects.append(name_words[0])
        words = (*file_words, repr(self._horizon), *name_words, *self._ended(claims))
        reply = await self._tell(STORE, subjects, *words)
        file, named = (1, 1) if reply is None else reply
        return Stored(file=bool(file), alias=bool(named))

    async def release(self, claims: Sequence[Claim], error: CoverError | None = None) -> None:
        words = self._ended(claims)
        if words:
            await self._ask(END_CLAIMS, None, pack_error(error), _ERROR_MS, *words)

    async def put_file(self, key: FileKey, entry: FileEntry) -> bool:
        self.size_bytes += entry.size_bytes
        packed = pack_file_key(key)
        horizon = b"" if isinstance(key, ImageKey) else repr(self._horizon)
        told = (packed, pack_entry(entry), self._rank(entry), horizon)
        return bool(await self._tell(PUT_FILE, (packed,), *told) != 0)

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        packed = pack_file_key(key)
        reply = await self._tell(FORGET_FILES, (packed,), b"", b"", packed, pack_entry(entry))
        return reply is None or reply == [1]

    async def settle(self, keys: Sequence[FileKey]) -> None:
        if keys:
            # One that is not heard stays in doubt, and is looked after.
            await self._ask(SETTLE, None, *(pack_file_key(key) for key in keys))

    async def use(self, uses: Sequence[tuple[FileKey, int]]) -> None:
        if self.eviction == "oldest":
            return
        for start in range(0, len(uses), _BATCH):
            batch = uses[start : start + _BATCH]
            words = [word for key, times in batch for word in (pack_file_key(key), str(times))]
            await self._ask(USE, None, *words)

    async def prepare(self, check: Callable[[], object]) -> None:
        ranked = await self._command("HGET", self.prefix + b"sum", b"policy")
        if (ranked or b"oldest") == self.eviction.encode():
            return
        self.log.info(
            "the order of eviction is {eviction} now: ranking all files in Redis anew",
            eviction=self.eviction,
        )
        for number in range(SLICES):
            check()
            by_age = b"1" if self.eviction == "oldest" else b"0"
            await self._lead(RERANK, None, f"{number:03x}", by_age)
        await self._lead(RANKED, None, self.eviction)

    async def suspect(self, key: FileKey) -> None:
        await self._ask(SUSPECT, None, str(slice_of(pack_file_key(key))))

    async def doubtful(self, count: int) -> list[FileKey]:
        keys, bad = _readable(unpack_file_key, await self._lead(DOUBTFUL, [], count))
        if bad:
            await self._lead(SETTLE, None, *bad)
        return keys

    async def odd_slices(self) -> list[int]:
        numbers = [_count(number) for number in await self._lead(ODD_SLICES, [])]
        return sorted({number for number in numbers if 0 <= number < SLICES})

    async def forget_files(
        self, files: Sequence[tuple[FileKey, FileEntry]], fence: str
    ) -> list[tuple[FileKey, FileEntry]]:
        gone: list[tuple[FileKey, FileEntry]] = []
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            words = [
                word for key, entry in batch for word in (pack_file_key(key), pack_entry(entry))
            ]
            none = [0] * len(batch)
            reply = await self._lead(FORGET_FILES, none, fence, self.eviction, *words)
            if reply is None:
                raise LostLease
            gone += [file for file, was in zip(batch, reply, strict=True) if was]
        return gone

    async def put_alias(self, key: AliasKey, alias: Alias) -> bool:
        packed = pack_alias_key(key)
        told = (packed, pack_alias(alias), _minute(key, alias), repr(self._horizon))
        return bool(await self._tell(PUT_ALIAS, (packed,), *told) != 0)

    async def forget_alias(self, key: AliasKey) -> bool:
        packed = pack_alias_key(key)
        return bool(await self._tell(FORGET_ALIAS, (packed,), packed))

    async def put_absence(
        self, subject: Subject, absence: Absence, claims: Sequence[Claim] = ()
    ) -> bool:
        life_ms = max(1, int((absence.forgotten - absence.since) * 1000))
        packed = pack_subject(subject)
        reply = await self._tell(
            PUT_ABSENCE,
            (packed,),
            packed,
            _ABSENCE.pack(absence.since, absence.until),
            str(life_ms),
            b"1" if isinstance(subject, AliasKey) else b"0",
            b"" if isinstance(subject, ImageKey) else repr(self._horizon),
            *self._ended(claims),
        )
        return bool(reply != 0)

    async def forget_absence(self, subject: Subject) -> bool:
        packed = pack_subject(subject)
        return bool(await self._tell(FORGET_ABSENCE, (packed,), packed))

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
            await self._lead(LEARN, None, *words)

    async def tally(self, counts: Mapping[str, int]) -> None:
        words = [str(word) for count in counts.items() for word in count]
        try:
            await self.link.run(TALLY, self.prefix, *words)
        except RedisAway as error:
            self._report(error)
            raise IndexAway(str(error)) from error

    async def totals(self) -> Totals:
        reply = await self._ask(TOTALS, None)
        if reply is None:
            return Totals()
        try:
            return self._totals(reply)
        except _NOT_OURS as error:
            self._garbled(error)
            return Totals()

    def _totals(self, reply: list[Any]) -> Totals:
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
        if count <= 0:
            return []
        while True:
            pairs = list(_pairs(await self._lead(OLDEST, [], count)))
            found, bad = _readable(_file, pairs)
            if not bad:
                return found
            self._garbled(f"{len(bad)} files")
            await self._lead(DROP, None, *(key for key, _ in bad))

    async def due_aliases(
        self, before: float, count: int, fence: str
    ) -> list[tuple[AliasKey, Alias]]:
        last_minute = int(before // 60) - 1
        horizon = int(self._horizon // 60)
        reply: list[bytes] = await self._lead(DUE_ALIASES, [], last_minute, count, fence, horizon)
        return _readable(_named, list(_pairs(reply)))[0]

    async def slice_packed(self, number: int) -> dict[bytes, bytes]:
        held = dict(_pairs(await self._lead(SLICE, [], f"{number:03x}")))
        ours = {key: value for key, value in held.items() if is_packed(key, value)}
        if len(ours) < len(held):
            self._garbled(f"{len(held) - len(ours)} files or aliases")
        return ours

    async def slice(self, number: int) -> Slice:
        files: dict[FileKey, FileEntry] = {}
        aliases: dict[AliasKey, Alias] = {}
        for thing in (await self.slice_packed(number)).items():
            try:
                if is_alias(thing[0]):
                    name, alias = _named(thing)
                    aliases[name] = alias
                else:
                    key, entry = _file(thing)
                    files[key] = entry
            except _NOT_OURS as error:
                self._garbled(error)
        return Slice(files=files, aliases=aliases)

    async def held_slices(self) -> list[int]:
        held: list[int] = []
        for first in range(0, SLICES, _BATCH):
            count = min(_BATCH, SLICES - first)
            held += await self._lead(HELD_SLICES, [], first, count)
        return held

    async def whole(self) -> bool:
        held = await self._lead(WHOLE, None)
        if held is not None:
            try:
                self._totals(held[1:])
            except _NOT_OURS as error:
                self._garbled(error)
                return False
        return held is not None and held[0] == self.link.run_id and not self._mark.left()

    async def fill(self) -> None:
        # What is told behind it leaves the mark anew.
        await self._tell_all()
        held = await self._lead(WHOLE, None)
        self._run_id = self.link.run_id
        if held is None or held[0] == b"garbled":
            self.log.warn("emptying the index in Redis, to fill it again from the disk")
            await self._empty()
        self._filling = secrets.token_bytes(8)
        await self._lead(FILL, None, self._filling)
        self._mark.clear()

    async def set_whole(self) -> None:
        await self._lead(SET_WHOLE, None, self._filling, self._run_id)

    async def _empty(self) -> None:
        cursor = b"0"
        while True:
            cursor, keys = await self._command(
                "SCAN", cursor, "MATCH", self.prefix + b"*", "COUNT", "1000"
            )
            kept = tuple(self.prefix + name for name in _KEPT)
            gone = [key for key in keys if not key.startswith(kept)]
            if gone:
                await self._command("UNLINK", *gone)
            if cursor == b"0":
                return

    # Redis and its absence

    async def _ask(self, script: Script, otherwise: T, *args: bytes | str | float) -> Any | T:
        try:
            return await self.link.run(script, self.prefix, *args)
        except RedisAway as error:
            self._report(error)
            return otherwise

    async def _tell(self, script: Script, subjects: Sequence[bytes], *args: bytes | str) -> Any:
        """Change what is known of things, now or when Redis is back. :returns: None if later."""
        if not self._untold:
            try:
                return await self.link.run(script, self.prefix, *args)
            except RedisAway as error:
                self._report(error)
        self._mark.leave()
        change = (script, subjects, args)
        for subject in subjects:
            self._untold.pop(subject, None)
            self._untold[subject] = change
        while len(self._untold) > MOST_UNTOLD:
            self._untold.popitem(last=False)
        self._tell_untold()
        return None

    def _tell_untold(self) -> None:
        if not self._telling:
            self._telling = True
            Deferred.fromCoroutine(self._tell_all()).addErrback(
                lambda failure: self.log.failure("telling Redis what it missed", failure)
            )

    async def _tell_all(self) -> None:
        try:
            while self._untold:
                change = next(iter(self._untold.values()))
                script, subjects, args = change
                # It may cross what other processes tell, or come after one of them compared all.
                self._mark.leave()
                with suppress(RedisGarbled):
                    await self.link.run(script, self.prefix, *args)
                for subject in subjects:
                    # Unless there is a later change of it by now.
                    if self._untold.get(subject) is change:
                        del self._untold[subject]
        except RedisAway:
            return
        finally:
            self._telling = False

    async def _lead(self, script: Script, otherwise: T, *args: bytes | str | float) -> Any | T:
        """:raises IndexAway: Redis is away; what it holds being garbled is reported."""
        try:
            return await self.link.run(script, self.prefix, *args)
        except RedisGarbled as error:
            self._report(error)
            return otherwise
        except RedisAway as error:
            raise IndexAway(str(error)) from error

    def _report(self, error: RedisAway) -> None:
        if isinstance(error, RedisGarbled):
            self._garbled(error)

    def _garbled(self, what: object) -> None:
        """Something in Redis is not of this program: the leader has to hear of it."""
        Deferred.fromCoroutine(self._tell_garbled(what)).addErrback(
            lambda failure: failure.trap(RedisAway)
        )

    async def _tell_garbled(self, what: object) -> None:
        if await self.link.run(GARBLED, self.prefix):
            self.log.warn(
                "not understood in Redis ({what}): the next cleanup empties the index there and "
                "fills it again from the disk",
                what=str(what),
            )

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


def _found_file(key: FileKey, reply: list[Any]) -> Found:
    """The same for FIND_LISTING and CLAIM."""
    packed, absent = reply
    return found_file(key, None if packed is None else unpack_entry(packed), _absence(absent))


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


def _count(text: bytes) -> int:
    """A number as Redis holds it; -1 if it is none."""
    return int(text) if text.isdigit() else -1


def _file(packed: tuple[bytes, bytes]) -> tuple[FileKey, FileEntry]:
    return unpack_file_key(packed[0]), unpack_entry(packed[1])


def _named(packed: tuple[bytes, bytes]) -> tuple[AliasKey, Alias]:
    return unpack_alias_key(packed[0]), unpack_alias(packed[1])


def _readable(read: Callable[[P], T], packed: Sequence[P]) -> tuple[list[T], list[P]]:
    """What could be read, and what could not."""
    good, bad = [], []
    for each in packed:
        try:
            good.append(read(each))
        except _NOT_OURS:
            bad.append(each)
    return good, bad


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
