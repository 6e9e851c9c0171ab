"""
What the cache promises, as tests/support/machine.py holds it to: of every answer, of the disk at any time, of
the index after a sweep.
"""

import contextlib
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import attrs
from hypothesis.stateful import RuleBasedStateMachine, invariant
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from coverart.cache.answers import Absent, Answer, Flowing, Held, Passing, Status
from coverart.cache.lookup import CoverCache
from coverart.cache.refresh import REFRESH_PAUSE_S
from coverart.content import sniff
from coverart.errors import BadUpstream, CoverError
from coverart.freshness import Lifetimes
from coverart.index.base import Index
from coverart.index.eviction_order import Eviction
from coverart.model import (
    ORIGINAL,
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
    MediaType,
)
from coverart.model import SIZES as MADE
from coverart.store import layout
from coverart.store.orphans import unfinished
from tests.support.disk import links, packed, unpacked
from tests.support.played import TICK_S, MortalStore, PlayedArchive, Thing, body_of, media_of

SLICES = (0, 1)
LIVES = Lifetimes(alias_s=1000, listing_s=1000, absent_s=200, absent_thumb_s=50)
SLACK_S = 5.0
"""The archive is believed to have said a thing when the last byte of its answer came."""


class Promises(RuleBasedStateMachine):
    """See the module; what is looked at is the machine's."""

    root: Path
    archive: PlayedArchive
    store: MortalStore
    cache: CoverCache
    index: Index
    eviction: Eviction
    clock: Clock
    substitute_bytes: int

    def __init__(self) -> None:
        super().__init__()
        self.spoilt: set[str] = set()
        self._seen: dict[AliasKey | ListingKey, float] = {}
        """When the archive said what was told of a name last."""
        self._had: dict[tuple[int, int], float] = {}
        """When the archive last gave out an image of a size."""
        self._asked_behind: float | None = None
        self._last_trouble = -REFRESH_PAUSE_S

    def now(self) -> float:
        return self.clock.seconds()

    @property
    def well(self) -> bool:
        """Nothing is in the way of a fetch, nor was a moment ago."""
        calm = self.now() - self._last_trouble > REFRESH_PAUSE_S
        return calm and self.archive.mood == "up" and not self.store.full

    # What is promised of every answer

    async def serve(
        self, thing: Thing, get: Callable[..., Coroutine[Any, Any, Answer]] | None = None
    ) -> tuple[Answer, bytes] | None:
        troubles = self.archive.troubles
        failed: CoverError | None = None
        try:
            answer = await (get or self._get)(thing)
            try:
                body = await self._received(answer)
            except (FileNotFoundError, BadUpstream) as error:
                # As web/covers.py does: evicted, or found to be a page, between the look and the opening.
                if isinstance(error, BadUpstream):
                    if not isinstance(answer, Held):
                        raise
                    await self.cache.spoilt(answer)
                answer = await self.cache.get(thing)
                body = await self._received(answer)
        except CoverError as error:
            failed = error
        if failed is not None:
            # Or two files were pages: a look too many for web/covers.py.
            # A full disk of our own is no reason: what can't be stored is sent all the same.
            ill = self.archive.mood != "up" or len(self.spoilt) > 1
            assert ill or self.archive.troubles > troubles, f"{thing}: {failed!r}"
            return None
        self._right(thing, answer, body)
        return answer, body

    async def _get(self, thing: Thing) -> Answer:
        """As web/covers.py asks."""
        found = self.cache.hit(thing)
        if isinstance(found, Deferred):
            found = await found
        return await self.cache.get(thing, found) if isinstance(found, Found) else found

    async def _serve_alone(self, thing: Thing) -> None:
        """With nothing else going on, more can be said of an answer."""
        self.archive.note()
        before, asked, well = self.now(), self.archive.asked, self.well
        lay = self._lies(thing, retired=True)
        in_sight = self._lies(thing)
        self.archive.downloaded.clear()
        served = await self.serve(thing)
        if served is None:
            assert lay is None, f"{thing} lay there, and was not served"
            return
        answer, _ = served
        if answer.status is Status.HIT:
            assert self.archive.asked == asked, f"{thing}: a hit asked the archive"
        if in_sight is not None:
            # Or the archive has it no more, which is told before the disk is looked at.
            assert not isinstance(answer, Flowing), f"{thing} lay there, and {answer}"
            if isinstance(answer, Held) and answer.path == in_sight:
                assert answer.key not in self.archive.downloaded, f"{thing} lay there"
        self._no_step_back(thing, answer)
        for key in self.archive.downloaded:
            self._had[key.ref.image_id, key.size] = self.now()
        if well and (answer.status is Status.STALE or self._of_an_old_lead(thing, answer)):
            self._asked_behind = before

    async def _serve_again(self, thing: Thing, since: float) -> None:
        """It was asked for behind the back of the one before: now it is what is so now."""
        again = await self.serve(thing)
        if again is not None and self.well:
            self._right(thing, *again, since)
            self._no_step_back(thing, again[0], since)

    def _links(self, thing: Thing) -> Iterator[tuple[str, ImageRef]]:
        """The links of a name in all sizes, and where they lead."""
        for path in self.names():
            place = layout.identify(layout.unretired(path))
            if place is None or not isinstance(place.thing, ImageRequest):
                continue
            if isinstance(thing, ImageRequest) and place.thing.alias == thing.alias:
                with contextlib.suppress(OSError):
                    link = layout.read_link(layout.unretired(path), os.readlink(self.root / path))
                    assert link is not None, path
                    yield path, link[0].ref

    def _nowhere(self, thing: Thing) -> None:
        """No link of a name that leads nowhere is left, whatever became of the image."""
        assert not list(self._links(thing))

    def _no_step_back(self, thing: Thing, answer: Answer, asked: float | None = None) -> None:
        """
        Who was told what the archive said at some time is not told what it said before.

        :param asked: the answer tells what was so then.
        """
        key = thing if isinstance(thing, ListingKey) else thing.alias
        seen = self._seen.get(key, 0.0)
        told: float | None = None
        so_since = False
        if isinstance(answer, Held):
            if isinstance(thing, ListingKey):
                told = answer.entry.stored_at
            elif answer.alias is not None and thing.alias.ages:
                told = answer.alias.checked_at
                # Its links of several sizes may have been confirmed at several times.
                if answer.status is Status.MISS or asked:
                    # The archive told it just now.
                    for path, ref in self._links(thing):
                        assert ref == answer.alias.target.ref, f"{path}: {answer}"
                so_since = answer.alias.target.ref.image_id in self.archive.led_to(
                    thing.alias, seen
                )
        elif isinstance(answer, Absent) and self.archive.was((key, None), seen):
            told = self.now() if answer.status is Status.MISS else asked or seen
            if told > seen and self.archive.was((key, None), self.now()):
                self._nowhere(thing)
        elif isinstance(answer, Absent) and isinstance(thing, ListingKey):
            told = 0.0
        if told is not None:
            assert told >= seen - TICK_S / 2 or so_since, f"{thing}: {answer} after {seen}"
            self._seen[key] = max(told, seen)

    async def _received(self, answer: Answer) -> bytes:
        if isinstance(answer, Absent):
            return b""
        if isinstance(answer, Held):
            return self._bytes(answer)
        if isinstance(answer, Passing):
            return answer.listing.body
        arriving = answer.download
        arriving.attach(self)
        body = b""
        try:
            while len(body) < arriving.size_bytes:
                await arriving.more(len(body))
                body += arriving.read(self, len(body), 1 << 20)
        finally:
            arriving.detach(self)
        return body

    def _bytes(self, held: Held) -> bytes:
        with os.fdopen(self.store.open(held.path), "rb") as file:
            body = file.read()
        if held.entry.media is not None and sniff(body) is not held.entry.media:
            raise BadUpstream("a page")
        return body

    def _is_gone(self, thing: ImageRequest, since: float | None, led_since: float) -> bool:
        """Whether a 404 is right, of a name or of that size of an image that it led to since then."""
        gone = self.now() - 2 * LIVES.absent_s if since is None else since
        lost = self.now() - 2 * LIVES.absent_thumb_s if since is None else since
        sizes = ((n, thing.size) for n in self.archive.led_to(thing.alias, led_since - SLACK_S))
        return self.archive.was((thing.alias, None), gone) or any(
            self.archive.was(size, max(lost, self._had.get(size, 0.0))) for size in sizes
        )

    def _of_an_old_lead(self, thing: Thing, answer: Answer) -> bool:
        """Whether a 404 is of an image that the name does not lead to any more."""
        if not isinstance(answer, Absent) or isinstance(thing, ListingKey):
            return False
        return not self._is_gone(thing, None, self.now() - LIVES.alias_s)

    def _right(self, thing: Thing, answer: Answer, body: bytes, since: float | None = None) -> None:
        """:param since: the answer tells what was so at that time or later."""
        self.archive.note()
        now = self.now()
        stale = answer.status is Status.STALE
        if isinstance(thing, ListingKey):
            told = None if isinstance(answer, Absent) else body
            if since is None:
                life = 2 * LIVES.absent_s if told is None else LIVES.listing_s
                since = 0 if stale else now - life
            assert self.archive.was((thing, told), since), (thing, answer)
            return
        key = thing.alias
        if isinstance(answer, Absent):
            # Where it led may be as old as with a stale image; then it was asked for behind.
            led_since = 0 if since is None else since
            assert self._is_gone(thing, since, led_since), (thing, answer)
            if thing.size and self.substitute_bytes:
                # Then nothing could stand in for it either.
                for size in (*(each for each in MADE if each > thing.size), ORIGINAL):
                    larger = attrs.evolve(thing, size=size)
                    assert self._is_gone(larger, since, led_since) or (
                        size == ORIGINAL and not self._could_stand_in(key, led_since)
                    ), (thing, answer, size)
            return
        missing_since = since
        if since is None:
            since = 0 if stale else now - LIVES.alias_s
        served = answer.download.key if isinstance(answer, Flowing) else cast("Any", answer).key
        size = thing.size
        if not isinstance(answer, Passing) and answer.substitute is not None:
            # That size was missing then, and this one does.
            assert self._is_gone(thing, missing_since, since), (thing, answer)
            size = answer.substitute
            suits = size > thing.size or (not size and len(body) <= self.substitute_bytes)
            assert suits, (thing, answer)
            assert sniff(body) is not MediaType.PDF, (thing, answer)
        assert served.size == size
        assert body == body_of(served.ref.image_id, size), (thing, answer)
        led_to = self.archive.led_to(key, since - SLACK_S)
        # Where that size of the new image is missing, the old one stays.
        assert served.ref.image_id in led_to or any(
            (each, thing.size) in self.archive.lost for each in led_to
        ), (thing, answer)

    def _could_stand_in(self, key: AliasKey, since: float) -> bool:
        """Whether the original of each image that a name led to since then may stand in for a size."""
        return all(
            len(body_of(each, ORIGINAL)) <= self.substitute_bytes
            and media_of(each, ORIGINAL) is not MediaType.PDF
            for each in self.archive.led_to(key, since - SLACK_S)
        )

    # What is promised of the disk, at any time

    @invariant()
    def nothing_wrong_in_sight(self) -> None:
        """What nginx would send without asking is whole, and what its name led to."""
        self.archive.note()
        for path in self.names():
            place = layout.identify(path)
            where = self.root / path
            if place is None:
                assert path.endswith(layout.RETIRED), path
            elif where.is_symlink():
                link = layout.read_link(path, os.readlink(where))
                assert link is not None, path
                assert isinstance(place.thing, ImageRequest)
                at = where.lstat().st_mtime
                led_to = self.archive.led_to(place.thing.alias, at - SLACK_S)
                assert link[0].ref.image_id in led_to, f"{path} leads to {link[0]}"
            elif path not in self.spoilt or self._whole(place, where):
                self.spoilt.discard(path)
                assert self._whole(place, where), f"{path} is not whole"

    def _whole(self, place: layout.Place, where: Path) -> bool:
        body = where.read_bytes()
        if isinstance(place.thing, ListingKey):
            return self.archive.was((place.thing, body), where.stat().st_mtime - SLACK_S)
        key = place.file_key
        return isinstance(key, ImageKey) and body == body_of(key.ref.image_id, key.size)

    def _lies(self, thing: Thing, *, retired: bool = False) -> str | None:
        """What of the disk answers a request, if it is whole."""
        if isinstance(thing, ListingKey):
            paths: tuple[str, ...] = (layout.listing_path(thing),)
        else:
            paths = layout.candidates(thing)
            if retired:
                paths += tuple(path + layout.RETIRED for path in paths)
        for path in paths:
            if (self.root / path).exists():
                found = os.path.relpath(os.path.realpath(self.root / path), self.root.resolve())
                return None if found in self.spoilt else found
        return None

    # What is promised after a sweep

    def entries(self) -> dict[FileKey, FileEntry]:
        held: dict[FileKey, FileEntry] = {}
        for number in SLICES:
            held |= unpacked(packed(str(self.root), number))[0]
        return held

    def _held_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries().values())

    def _evicted(
        self, before: dict[FileKey, FileEntry], after: dict[FileKey, FileEntry], room: int
    ) -> None:
        """Nothing goes but for want of room, and then no more than has to, the oldest first."""
        gone = [entry for key, entry in before.items() if key not in after]
        total = sum(entry.size_bytes for entry in before.values())
        if total <= room:
            assert not gone, "evicted without need"
        elif self.eviction == "oldest" and not self.spoilt:
            left = sum(entry.size_bytes for entry in after.values())
            last = max(entry.stored_at for entry in gone)
            youngest = max(entry.size_bytes for entry in gone if entry.stored_at == last)
            assert left + youngest > room * 9 // 10, "more evicted than has to be"
            assert all(entry.stored_at >= last for entry in after.values()), "not the oldest"

    async def _look(self, room: int) -> None:
        known: dict[FileKey, FileEntry] = {}
        aliases: dict[AliasKey, Alias] = {}
        for number in SLICES:
            files, names = unpacked(await self.index.slice_packed(number))
            known |= files
            aliases |= names
        held = self.entries()
        sizes = {key: each.size_bytes for key, each in held.items()}
        assert {key: entry.size_bytes for key, entry in known.items()} == sizes
        for key, entry in held.items():
            if self.store.path_of(key, entry.media) not in self.spoilt:
                assert abs(known[key].stored_at - entry.stored_at) < TICK_S, key
        totals = await self.index.totals()
        assert (totals.files, totals.size_bytes) == (len(held), sum(sizes.values()))
        for entity in Entity:
            of_it = [
                k for k in held if (k.ref.owner if isinstance(k, ImageKey) else k.entity) is entity
            ]
            assert totals.by_entity.get(entity, 0) == len(of_it), entity
            named = [key for key in aliases if key.entity is entity]
            assert totals.aliases.get(entity, 0) == len(named), entity
        if self.eviction == "oldest":
            oldest = min((entry.stored_at for entry in known.values()), default=None)
            assert totals.oldest == oldest
        assert totals.size_bytes <= room
        assert unfinished(str(self.root)) == []
        for link in (link for number in SLICES for link in links(str(self.root), number)):
            assert (self.root / link.target_path).exists(), link
            alias = aliases.get(link.key)
            assert alias is not None, link
            assert link.alias.target.ref == alias.target.ref, f"{link.path}, and {alias}"
            assert link.alias.checked_at < alias.checked_at + TICK_S, f"{link.path}, and {alias}"
            if not link.retired and link.key.ages:
                assert link.alias.checked_at >= self.now() - LIVES.alias_s - TICK_S, link
        for key_, alias in aliases.items():
            led_to = self.archive.led_to(key_, alias.checked_at - SLACK_S)
            assert alias.target.ref.image_id in led_to, key_

    # The disk

    def names(self) -> list[str]:
        """Files and links, relative to the root, in an order that does not change."""
        found = []
        beginning = len(os.fspath(self.root)) + 1
        for folder, folders, names in os.walk(self.root):
            if layout.INCOMING in folders:
                folders.remove(layout.INCOMING)
            found += [f"{folder}/{each}"[beginning:] for each in names]
        return sorted(found)
