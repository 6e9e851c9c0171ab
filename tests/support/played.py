"""
What tests/support/machine.py plays with: an archive that changes, a store whose process can die and whose
disk can fill up, an index that is far away.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from coverart.archive.source import FetchDeadline, Sink
from coverart.errors import BadUpstream, FileNotInArchive, NotInArchive, Unavailable
from coverart.model import (
    ORIGINAL,
    AliasKey,
    Entity,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
    Target,
)
from coverart.store.atomic_files import Temporary
from coverart.store.image_store import ImageStore
from coverart.store.symlinks import Links
from tests.support.doubles import at_once

A = "00000000-0000-4000-8000-00000000000a"
B = "00100000-0000-4000-8000-00000000000b"
GROUP = "00000000-0000-4000-8000-00000000000c"
EVENT = "00100000-0000-4000-8000-00000000000d"
SMALL = 2
"""The image whose original does not flow to its readers while it arrives, as all others do."""
SMALL_BYTES = 4000
"""What counts as small here: a large body need not be large to flow."""
SIZES = (ORIGINAL, 250)
TICK_S = 0.125
"""Whatever happens to the archive takes so long, so that before is another time than after."""

_MEDIA = {1: MediaType.JPEG, 2: MediaType.PNG, 3: MediaType.GIF, 4: MediaType.PDF}
_MAGIC = {
    MediaType.JPEG: b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01",
    MediaType.PNG: b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    MediaType.GIF: b"GIF89a\x01\x00\x01\x00\x80\x00\x00",
    MediaType.PDF: b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
}


def ref(owner: Entity, mbid: str, image_id: int) -> ImageRef:
    return ImageRef(owner=owner, mbid=mbid, image_id=image_id)


def name(entity: Entity, mbid: str, of: Any) -> AliasKey:
    return AliasKey(entity=entity, mbid=mbid, name=of)


RELEASE_REFS = (
    *(ref(Entity.RELEASE, A, number) for number in (1, 2)),
    ref(Entity.RELEASE, B, 3),
)
EVENT_REFS = (ref(Entity.EVENT, EVENT, 4),)
REFS = (*RELEASE_REFS, *EVENT_REFS)
ROLES = (
    name(Entity.RELEASE, A, "front"),
    name(Entity.RELEASE_GROUP, GROUP, "front"),
    name(Entity.RELEASE, A, "back"),
    name(Entity.RELEASE, B, "front"),
    name(Entity.EVENT, EVENT, "front"),
)
NAMES = (
    *ROLES,
    *(name(Entity.RELEASE, mbid, number) for mbid, number in ((A, 1), (A, 2), (B, 1), (B, 3))),
    name(Entity.EVENT, EVENT, 4),
)
LISTINGS = (
    ListingKey(entity=Entity.RELEASE, mbid=A),
    ListingKey(entity=Entity.RELEASE_GROUP, mbid=GROUP),
)

Thing = ImageRequest | ListingKey


def media_of(image_id: int, size: int) -> MediaType:
    return MediaType.JPEG if size else _MEDIA.get(image_id, MediaType.JPEG)


@functools.cache
def body_of(image_id: int, size: int) -> bytes:
    """The bytes of an image, which an id names for good. No two are of one length."""
    words = b"image %d size %d. " % (image_id, size)
    large = size == ORIGINAL and image_id != SMALL
    length = (2 * SMALL_BYTES if large else 400) + 10 * image_id + size
    return (_MAGIC[media_of(image_id, size)] + words * (length // len(words) + 1))[:length]


def text_of(version: int) -> bytes:
    """The bytes of a listing, longer with each version."""
    said = b'{"images": [], "release": "https://musicbrainz.org/release/%d"}' % version
    return said + b" " * version


class PlayedArchive:
    """
    What Upstream stands for, as the machine says; it answers when its gate is let go.

    `true_at` is when a name last led to an image, a listing last said something, or something
    last was missing: what an answer of the cache is measured against. `asked` counts requests,
    `missed` those for files that are not there, `downloaded` tells the images that were begun to be sent.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.gate: Callable[..., Deferred[Any]] = at_once
        self.mood = "up"
        self.troubles = 0
        self.missed = 0
        self.asked = 0
        self.downloaded: list[ImageKey] = []
        self.merged = False
        self.roles: dict[AliasKey, ImageRef | None] = {
            key: EVENT_REFS[0]
            if key.entity is Entity.EVENT
            else RELEASE_REFS[2 if key.mbid == B else 0]
            for key in ROLES
        }
        self.lost: set[tuple[int, int]] = set()
        self.texts: dict[ListingKey, bytes | None] = {key: text_of(0) for key in LISTINGS}
        self.true_at: dict[object, float] = {}
        self.note()

    def note(self) -> None:
        """What is so now."""
        for key in NAMES:
            self.true_at[key, self.leads_to(key)] = self.now()
        for listing in LISTINGS:
            self.true_at[listing, self.texts[listing]] = self.now()
        for lost in self.lost:
            self.true_at[lost] = self.now()

    def leads_to(self, key: AliasKey) -> ImageRef | None:
        if isinstance(key.name, int):
            owned = EVENT_REFS if key.entity is Entity.EVENT else RELEASE_REFS
            for each in owned:
                if each.image_id == key.name:
                    here = self.moved(each)
                    return here if key.mbid in (here.mbid, each.mbid) else None
            return None
        role = self.roles[key]
        if key.entity is Entity.RELEASE and key.mbid == A and self.merged:
            role = self.roles[name(Entity.RELEASE, B, "front")] if key.name == "front" else None
        return None if role is None else self.moved(role)

    def moved(self, each: ImageRef) -> ImageRef:
        """Where an image lies now that A may have been merged into B."""
        return ref(each.owner, B, each.image_id) if self.merged and each.mbid == A else each

    def was(self, what: object, since: float) -> bool:
        # A file system keeps times less precisely than a float does.
        return self.true_at.get(what, -1.0) >= since - TICK_S / 2

    def led_to(self, key: AliasKey, since: float) -> set[int]:
        """The images that a name led to at any time since then; an id, to its own for good."""
        if isinstance(key.name, int):
            return {key.name}
        places = {*REFS, *map(self.moved, REFS)}
        return {each.image_id for each in places if self.was((key, each), since)}

    # Upstream's side

    async def resolve(self, key: AliasKey, trip: FetchDeadline) -> Target:
        await self._answer(trip)
        found = self.leads_to(key)
        if found is None:
            raise NotInArchive("no such art")
        return Target(ref=found, extension=media_of(found.image_id, ORIGINAL).extension)

    def can_fetch(self, target: Target, size: int) -> bool:
        return bool(size or target.extension)

    async def image(self, target: Target, size: int, sink: Sink, trip: FetchDeadline) -> None:
        await self._answer(trip)
        there = any(self.moved(each) == target.ref for each in REFS)
        if not there or (target.ref.image_id, size) in self.lost:
            self.missed += 1
            raise FileNotInArchive("no such file")
        self.downloaded.append(target.ref.at(size))
        body = body_of(target.ref.image_id, size)
        if self.mood == "nonsense":
            self.troubles += 1
            body = b"<html>" + body
        sink.begin(len(body))
        half = len(body) * 3 // 4
        sink.write(body[:half])
        await self.gate(lambda: None)
        if self.mood == "cut":
            self.troubles += 1
            raise BadUpstream("broke off")
        if (room := sink.room()) is not None:
            await room
        if self.mood == "short":
            self.troubles += 1
            return
        sink.write(body[half:])

    async def listing(self, key: ListingKey, trip: FetchDeadline) -> bytes:
        await self._answer(trip)
        text = self.texts[key]
        if text is None:
            raise NotInArchive("no such listing")
        if self.mood == "nonsense":
            self.troubles += 1
            return b"<html>" + text
        return text

    async def _answer(self, trip: FetchDeadline) -> None:
        trip.hops += 1
        self.asked += 1
        await self.gate(lambda: None)
        if self.mood == "down":
            self.troubles += 1
            raise Unavailable("down")


class MortalStore(ImageStore):
    """
    A store whose process can die: its locks go, and nothing it still wanted to do is done.

    While `full`, its disk takes half of what is written.
    """

    def __init__(self, root: Path, now: Callable[[], float]) -> None:
        self._begun: list[tuple[int, int]] = []
        self._dead = False
        self.full = False
        self.refused = 0
        super().__init__(root, now)
        self.links = _LinksInNeedOfRoom(self)

    def begin(self) -> Temporary:
        temporary = super().begin()
        self._begun.append((temporary.fd, os.fstat(temporary.fd).st_ino))
        return temporary

    def append(self, temporary: Temporary, data: bytes) -> None:
        super().append(temporary, data[: len(data) // 2] if self.full else data)
        self.need_room()

    def need_room(self) -> None:
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, "no room")

    def abandon(self, temporary: Temporary) -> None:
        if not self._dead:
            super().abandon(temporary)

    def left_open(self) -> list[int]:
        """Temporary files that nobody closed."""
        self._begun = [(fd, inode) for fd, inode in self._begun if _is_open(fd, inode)]
        return [fd for fd, _ in self._begun]

    def die(self) -> None:
        self._dead = True
        for fd in self.left_open():
            os.close(fd)


class _LinksInNeedOfRoom(Links):
    def __init__(self, store: MortalStore) -> None:
        super().__init__(store)
        self._store = store

    def make(self, *args: Any) -> None:
        self._store.need_room()
        super().make(*args)


def _is_open(fd: int, inode: int) -> bool:
    with contextlib.suppress(OSError):
        return os.fstat(fd).st_ino == inode
    return False


class GatedIndex:
    """An index that is far away: what is asked takes its time to get there, and the answer too."""

    def __init__(self, inner: Any, gate: Callable[..., Deferred[Any]]) -> None:
        self.inner = inner
        self._gate = gate

    def find_now(self, thing: ImageRequest | ListingKey) -> Any:
        """One that is far away can't be asked without waiting."""
        return self.inner.find_now(thing) if self._gate is at_once else None

    def __getattr__(self, method: str) -> Any:
        known = getattr(self.inner, method)
        if not callable(known):
            return known

        async def call(*arguments: Any, **named: Any) -> Any:
            await self._gate(lambda: None)
            answer = await getattr(self.inner, method)(*arguments, **named)
            await self._gate(lambda: None)
            return answer

        return call
