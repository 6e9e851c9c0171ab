"""
The cache below HTTP as a hypothesis state machine: whatever happens in whatever order.

Requests, sweeps, purges, refreshes and a changing archive are interleaved at every point where
one of them waits; the process dies at such a point, its index is flushed, files vanish or shrink.
What was promised all the same is checked as each answer comes, and after a sweep.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from coverart import layout
from coverart.answers import Absent, Answer, Flowing, Held, Status
from coverart.cache import CoverCache
from coverart.cleanup import Bounds, Cleanup
from coverart.client import Limits, Trip
from coverart.errors import BadUpstream, CoverError, NotInArchive, Unavailable
from coverart.fetch import Fetcher
from coverart.freshness import Lifetimes
from coverart.index import Index
from coverart.index_memory import MemoryIndex
from coverart.leases import Alone, Fetches, Leadership
from coverart.model import (
    ORIGINAL,
    Alias,
    AliasKey,
    Entity,
    FileKey,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
    Target,
)
from coverart.rebuild import DiskSlice, read_slice
from coverart.reconcile import Reconciler
from coverart.store import ImageStore, Temporary
from coverart.transfer import Sink
from coverart.upstream import Upstream
from tests.doubles import HeldBack, at_once

SLICES = (0, 1)
A = "00000000-0000-4000-8000-00000000000a"
B = "00100000-0000-4000-8000-00000000000b"
GROUP = "00000000-0000-4000-8000-00000000000c"
EVENT = "00100000-0000-4000-8000-00000000000d"
SMALL = 1
"""The image whose original does not flow to its readers while it arrives, as all others do."""
SIZES = (ORIGINAL, 250)

LIVES = Lifetimes(alias_s=1000, listing_s=1000, absent_s=200, absent_thumb_s=50)
BEGINNING = 1_700_000_000.0
ROOM = 10**9

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
    *(ref(Entity.RELEASE, B, number) for number in (3, 4)),
)
EVENT_REFS = tuple(ref(Entity.EVENT, EVENT, number) for number in (5, 6))
ROLES = (
    name(Entity.RELEASE, A, "front"),
    name(Entity.RELEASE, A, "back"),
    name(Entity.RELEASE, B, "front"),
    name(Entity.RELEASE_GROUP, GROUP, "front"),
    name(Entity.EVENT, EVENT, "front"),
)
NAMES = (
    *ROLES,
    *(name(Entity.RELEASE, mbid, number) for mbid, number in ((A, 1), (A, 2), (B, 1), (B, 3))),
    name(Entity.EVENT, EVENT, 5),
)
LISTINGS = (
    ListingKey(entity=Entity.RELEASE, mbid=A),
    ListingKey(entity=Entity.RELEASE_GROUP, mbid=GROUP),
)

images = st.builds(ImageRequest, alias=st.sampled_from(NAMES), size=st.sampled_from(SIZES))
things = st.one_of(images, images, images, st.sampled_from(LISTINGS))


def media_of(image_id: int, size: int) -> MediaType:
    return MediaType.JPEG if size else _MEDIA.get(image_id, MediaType.JPEG)


def body_of(image_id: int, size: int) -> bytes:
    """The bytes of an image, which an id names for good."""
    words = b"image %d size %d. " % (image_id, size)
    large = size == ORIGINAL and image_id != SMALL
    length = 300_000 if large else 400 + 10 * image_id + size
    return (_MAGIC[media_of(image_id, size)] + words * (length // len(words) + 1))[:length]


class PlayedArchive:
    """
    What Upstream stands for, as the machine says; it answers when its gate is let go.

    `true_at` is when a name last led to an image, a listing last said something, or something
    last was missing: what an answer of the cache is measured against.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.gate: Callable[..., Deferred[Any]] = at_once
        self.mood = "up"
        self.troubles = 0
        self.merged = False
        self.roles: dict[AliasKey, ImageRef | None] = {
            key: EVENT_REFS[0]
            if key.entity is Entity.EVENT
            else RELEASE_REFS[2 if key.mbid == B else 0]
            for key in ROLES
        }
        self.lost: set[tuple[int, int]] = set()
        self.texts: dict[ListingKey, bytes | None] = {key: _text(0) for key in LISTINGS}
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
        return self.true_at.get(what, -1.0) >= since

    # Upstream's side

    async def resolve(self, key: AliasKey, trip: Trip) -> Target:
        await self._answer(trip)
        found = self.leads_to(key)
        if found is None:
            raise NotInArchive("no such art")
        return Target(ref=found, extension=media_of(found.image_id, ORIGINAL).extension)

    def can_fetch(self, target: Target, size: int) -> bool:
        return bool(size or target.extension)

    async def image(self, target: Target, size: int, sink: Sink, trip: Trip) -> None:
        await self._answer(trip)
        there = any(self.moved(each) == target.ref for each in (*RELEASE_REFS, *EVENT_REFS))
        if not there or (target.ref.image_id, size) in self.lost:
            raise NotInArchive("no such file", derived=True)
        body = body_of(target.ref.image_id, size)
        if self.mood == "nonsense":
            self.troubles += 1
            body = b"<html>" + body
        sink.begin(len(body))
        half = len(body) // 2
        sink.write(body[:half])
        await self.gate(lambda: None)
        if self.mood == "cut":
            self.troubles += 1
            raise BadUpstream("broke off")
        if (room := sink.room()) is not None:
            await room
        sink.write(body[half:])

    async def listing(self, key: ListingKey, trip: Trip) -> bytes:
        await self._answer(trip)
        text = self.texts[key]
        if text is None:
            raise NotInArchive("no such listing")
        if self.mood == "nonsense":
            self.troubles += 1
            return b"<html>" + text
        return text

    async def _answer(self, trip: Trip) -> None:
        trip.hops += 1
        await self.gate(lambda: None)
        if self.mood == "down":
            self.troubles += 1
            raise Unavailable("down")


def _text(version: int) -> bytes:
    return b'{"images": [], "release": "https://musicbrainz.org/release/%d"}' % version


class MortalStore(ImageStore):
    """A store whose process can die: its locks go, and nothing it still wanted to do is done."""

    def __init__(self, root: Path) -> None:
        self._begun: list[tuple[int, int]] = []
        self._dead = False
        super().__init__(root)

    def begin(self) -> Temporary:
        temporary = super().begin()
        self._begun.append((temporary.fd, os.fstat(temporary.fd).st_ino))
        return temporary

    def abandon(self, temporary: Temporary) -> None:
        if not self._dead:
            super().abandon(temporary)

    def die(self) -> None:
        self._dead = True
        for fd, inode in self._begun:
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_ino == inode:
                    os.close(fd)


class GatedIndex:
    """An index that is far away: what is asked takes its time to get there, and the answer too."""

    def __init__(self, inner: Any, gate: Callable[..., Deferred[Any]]) -> None:
        self.inner = inner
        self._gate = gate

    def find_now(self, request: ImageRequest) -> Any:
        """One that is far away can't be asked without waiting."""
        return self.inner.find_now(request) if self._gate is at_once else None

    def __getattr__(self, method: str) -> Any:
        known = getattr(self.inner, method)
        if not callable(known):
            return known

        async def call(*arguments: Any) -> Any:
            await self._gate(lambda: None)
            answer = await getattr(self.inner, method)(*arguments)
            await self._gate(lambda: None)
            return answer

        return call


class CacheMachine(RuleBasedStateMachine):
    """See the module; indexes other than that in memory override the methods in front."""

    def __init__(self) -> None:
        super().__init__()
        # In memory where there is such a place: what fsync is for, a kill is no trial of.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="coverart-machine-", dir=memory)
        self.root = Path(self._folder.name, "cache")
        self.clock = Clock()
        self.clock.advance(BEGINNING)
        self.archive = PlayedArchive(self.now)
        self.wrong: list[Failure] = []
        self.running: list[Deferred[None]] = []
        self._graves: list[object] = []
        self._versions = 0
        self._spoilt: set[str] = set()
        self._observer = cast("ILogObserver", self._logged)
        globalLogPublisher.addObserver(self._observer)

    def now(self) -> float:
        return self.clock.seconds()

    # What a kind of index is

    def new_process(self) -> None:
        """Everything that a start makes."""
        self.memory = MemoryIndex()
        self.fetches: Fetches = Alone()
        self.leadership: Leadership = Alone()
        self.reach = GatedIndex(self.memory, self.threads if self.far else at_once)
        self.index: Index = cast("Index", self.reach)

    def flush_index(self) -> None:
        """The index forgets everything while the process lives on."""
        # The gates ask this one by its place, and the process keeps what it knows of it.
        self.memory = self.reach.inner = MemoryIndex()

    def process_gone(self) -> None:
        """Whatever has to be let go of when a process died."""

    def let_index_answer(self) -> bool:
        """Give an index that is really elsewhere time. :returns: whether anything came of it."""
        return False

    # Starting and ending

    @initialize(far=st.booleans())
    def begin(self, far: bool) -> None:
        self.far = far
        self._start()

    def _start(self) -> None:
        self.threads = HeldBack()
        self._complain()
        self.store = MortalStore(self.root)
        self.new_process()
        self.archive.gate = self.threads
        limits = Limits()
        self.cache = CoverCache(
            index=self.index,
            store=self.store,
            fetcher=Fetcher(
                index=self.index,
                store=self.store,
                upstream=cast("Upstream", self.archive),
                in_thread=self.threads,
                fetches=self.fetches,
                clock=self.clock,
                now=self.now,
                limits=limits,
            ),
            fetches=self.fetches,
            lifetimes=LIVES,
            now=self.now,
        )

    def _die(self) -> None:
        # Kept, so that no coroutine is closed and does what a killed one would not have done.
        self._graves.append((self.cache, self.index, self.threads, self.running))
        self.running, self.wrong = [], []
        # What a dead process was going to do at some time is not done.
        clock, self.clock = self.clock, Clock()
        self.clock.advance(clock.seconds())
        self.store.die()
        self.process_gone()
        self._unspoil()

    def teardown(self) -> None:
        try:
            # Every story ends with a look, the last sweep one that has to make room.
            self._settle(ROOM)
            self._settle(1000)
        finally:
            globalLogPublisher.removeObserver(self._observer)
            self._die()
            self._graves.clear()
            self._folder.cleanup()

    def _logged(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.wrong.append(event["log_failure"])

    # Running things

    def _run(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        d = Deferred.fromCoroutine(work)
        running = self.running
        running.append(d)
        d.addErrback(self.wrong.append).addBoth(lambda _: running.remove(d))
        self._complain()

    def _drain(self) -> None:
        """Let everything come to its end."""
        for _ in range(10_000):
            if self.threads.waiting:
                self.threads.let_one_go()
            elif not self.let_index_answer():
                if not self.clock.getDelayedCalls() or not self.running:
                    break
                due = min(call.getTime() for call in self.clock.getDelayedCalls())
                if due > self.now():
                    break
            self.clock.advance(0)
            self._complain()
        assert not self.running, "something never ended"
        self._complain()

    def _complain(self) -> None:
        if self.wrong:
            self.wrong[0].raiseException()

    # What clients and operators do

    @rule(thing=things, at_end=st.booleans())
    def ask(self, thing: ImageRequest | ListingKey, at_end: bool) -> None:
        if (
            not self.far
            and isinstance(thing, ImageRequest)
            and isinstance(held := self.cache.hit(thing), Held)
        ):
            self._right(thing, held, self._bytes(held))
        self._run(self._serve(thing))
        if at_end:
            self._drain()

    @rule(some=st.lists(things, min_size=2, max_size=5))
    def ask_at_once(self, some: list[ImageRequest | ListingKey]) -> None:
        for thing in some:
            self._run(self._serve(thing))

    @rule(thing=things)
    def purge(self, thing: ImageRequest | ListingKey) -> None:
        async def work() -> None:
            await self.cache.purge(thing)

        self._run(work())

    @rule(thing=things)
    def refresh(self, thing: ImageRequest | ListingKey) -> None:
        self._run(self._serve(thing, self.cache.refresh))

    @rule(places=st.lists(st.integers(0, 5), min_size=1, max_size=12))
    def step(self, places: list[int]) -> None:
        """Some of what waits goes on, in any order."""
        for place in places:
            if self.threads.waiting:
                self.threads.let_one_go(place % len(self.threads.waiting))
            self.let_index_answer()
            self.clock.advance(0)
            self._complain()

    @rule(room=st.sampled_from((ROOM, 2000, 0)))
    def sweep(self, room: int) -> None:
        """A cleanup beside everything else."""
        self._run(self._sweep(room))

    @rule(room=st.sampled_from((ROOM, ROOM, 2000)))
    def settle(self, room: int) -> None:
        self._settle(room)

    def _settle(self, room: int) -> None:
        """
        Let everything end, sweep, and look whether index and disk are as promised.

        Twice: the first can find a file cut short after it passed a link that leads there.
        """
        for _ in range(2):
            self._drain()
            self._run(self._sweep(room))
        self._drain()
        self._run(self._look(room))
        self._drain()

    # What happens to the process and to its disk

    @rule(first=st.booleans())
    def crash(self, first: bool) -> None:
        """
        The process is killed, and started again on what it left.

        :param first: what waits longest still happened, and nobody heard of it.
        """
        if first and self.threads.waiting:
            _, call, arguments = self.threads.waiting.pop(0)
            with contextlib.suppress(Exception):
                call(*arguments)
        self._die()
        self._start()
        self._fill()

    @rule()
    def restart(self) -> None:
        self._drain()
        self.crash(first=False)

    @rule(drained=st.booleans())
    def wipe(self, drained: bool) -> None:
        """The index is flushed behind everybody's back."""
        if drained:
            self._drain()
        self.flush_index()
        self._unspoil()

    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        """Somebody deletes a file or a link."""
        if found := self._names():
            os.unlink(self.root / data.draw(st.sampled_from(found)))

    @rule(data=st.data(), left=st.sampled_from((0, 1, 100)))
    def shrink(self, data: st.DataObject, left: int) -> None:
        """A file is cut short, which only an index that knew it can tell."""
        self._settle(ROOM)
        found = [each for each in self._names() if not (self.root / each).is_symlink()]
        if found:
            path = data.draw(st.sampled_from(found))
            os.truncate(self.root / path, left)
            self._spoilt.add(path)

    def _unspoil(self) -> None:
        # Nobody is left who could tell: such files are `coverart scan --verify`'s business.
        for path in self._spoilt:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.root / path)
        self._spoilt.clear()

    # What happens to the archive

    @rule(role=st.sampled_from(ROLES), data=st.data())
    def retarget(self, role: AliasKey, data: st.DataObject) -> None:
        owned = EVENT_REFS if role.entity is Entity.EVENT else RELEASE_REFS
        if role.entity is Entity.RELEASE:
            owned = tuple(each for each in owned if each.mbid == role.mbid)
        self.archive.note()
        self.archive.roles[role] = data.draw(st.sampled_from((*owned, None)))
        self.archive.note()

    @rule(listing=st.sampled_from(LISTINGS), gone=st.booleans())
    def rewrite(self, listing: ListingKey, gone: bool) -> None:
        self._versions += 1
        self.archive.note()
        self.archive.texts[listing] = None if gone else _text(self._versions)
        self.archive.note()

    @rule(lost=st.tuples(st.integers(1, 5), st.sampled_from(SIZES)))
    def lose_or_make(self, lost: tuple[int, int]) -> None:
        """One size of an image is missing, or was made at last."""
        self.archive.note()
        self.archive.lost ^= {lost}
        self.archive.note()

    @precondition(lambda self: not self.archive.merged)
    @rule()
    def merge(self) -> None:
        self.archive.note()
        self.archive.merged = True
        self.archive.note()

    @rule(mood=st.sampled_from(("up", "up", "down", "cut", "nonsense")))
    def mood(self, mood: str) -> None:
        self.archive.mood = mood

    @rule(seconds=st.sampled_from((1, 60, 150, 400, 1100, 5000)))
    def wait(self, seconds: int) -> None:
        self._drain()
        self.archive.note()
        self.clock.advance(seconds)
        self.archive.note()

    # What is promised of every answer

    async def _serve(
        self,
        thing: ImageRequest | ListingKey,
        get: Callable[..., Coroutine[Any, Any, Answer]] | None = None,
    ) -> None:
        troubles = self.archive.troubles
        try:
            answer = await (get or self.cache.get)(thing)
            try:
                body = await self._received(answer)
            except FileNotFoundError:
                # As web.py does: evicted between the look and the opening.
                answer = await self.cache.get(thing)
                body = await self._received(answer)
        except CoverError:
            assert self.archive.troubles > troubles or self.archive.mood != "up"
            return
        self._right(thing, answer, body)

    async def _received(self, answer: Answer) -> bytes:
        if isinstance(answer, Absent):
            return b""
        if isinstance(answer, Held):
            return self._bytes(answer)
        incoming = answer.arriving.incoming
        incoming.attach()
        body = b""
        try:
            while len(body) < (incoming.length or 0):
                await incoming.more(len(body))
                body += incoming.read(len(body), 1 << 20)
        finally:
            incoming.detach()
        return body

    def _bytes(self, held: Held) -> bytes:
        with os.fdopen(self.store.open(held.path), "rb") as file:
            return file.read()

    def _right(self, thing: ImageRequest | ListingKey, answer: Answer, body: bytes) -> None:
        self.archive.note()
        now = self.now()
        if isinstance(thing, ListingKey):
            told = None if isinstance(answer, Absent) else body
            life = 2 * LIVES.absent_s if told is None else LIVES.listing_s
            since = 0 if answer.status is Status.STALE else now - life
            assert self.archive.was((thing, told), since), (thing, answer)
            return
        key = thing.alias
        since = 0 if answer.status is Status.STALE else now - LIVES.alias_s
        if isinstance(answer, Absent):
            nowhere = self.archive.was((key, None), now - 2 * LIVES.absent_s)
            assert nowhere or any(
                self.archive.was((number, thing.size), now - 2 * LIVES.absent_thumb_s)
                for number in self._led_to(key, now - LIVES.alias_s)
            ), (thing, answer)
            return
        served = (
            answer.arriving.incoming.key if isinstance(answer, Flowing) else cast("Any", answer.key)
        )
        assert served.size == thing.size
        assert body == body_of(served.ref.image_id, thing.size), (thing, answer)
        assert served.ref.image_id in self._led_to(key, since), (thing, answer)

    def _led_to(self, key: AliasKey, since: float) -> set[int]:
        """The images that a name led to at any time since then; an id, to its own for good."""
        if isinstance(key.name, int):
            return {key.name}
        return {
            each.image_id
            for each in map(self.archive.moved, (*RELEASE_REFS, *EVENT_REFS))
            if self.archive.was((key, each), since)
        } | {
            each.image_id
            for each in (*RELEASE_REFS, *EVENT_REFS)
            if self.archive.was((key, each), since)
        }

    # What is promised after a sweep

    async def _sweep(self, room: int) -> None:
        cleanup = Cleanup(
            index=self.index,
            store=self.store,
            in_thread=self.threads,
            leadership=self.leadership,
            bounds=Bounds(max_bytes=room, clean_to_bytes=room * 9 // 10, alias_ttl_s=LIVES.alias_s),
            clock=self.clock,
            now=self.now,
        )
        assert await cleanup.sweep(slices=len(SLICES)) is not None

    async def _look(self, room: int) -> None:
        known: dict[FileKey, int] = {}
        aliases: dict[AliasKey, Alias] = {}
        disk: list[DiskSlice] = []
        for number in SLICES:
            part = await self.index.slice(number)
            known |= {key: entry.size_bytes for key, entry in part.files.items()}
            aliases |= part.aliases
            disk.append(read_slice(str(self.root), number))
        held = {key: each.size_bytes for part in disk for key, each in part.files.items()}
        assert known == held
        totals = await self.index.totals()
        assert (totals.files, totals.size_bytes) == (len(held), sum(held.values()))
        assert totals.size_bytes <= room
        assert self.store.unfinished() == 0
        for key, size_bytes in held.items():
            if isinstance(key, ImageKey):
                assert size_bytes == len(body_of(key.ref.image_id, key.size)), key
        for link in (link for part in disk for link in part.links):
            assert (self.root / link.target_path).exists(), link
            if not link.retired:
                # What nginx would send without asking.
                target = link.alias.target.ref.image_id
                assert target in self._led_to(link.key, link.alias.checked_at), link
                if link.key.ages:
                    assert link.alias.checked_at >= self.now() - LIVES.alias_s, link
        for name_, alias in aliases.items():
            assert alias.target.ref.image_id in self._led_to(name_, alias.checked_at), name_

    # The disk

    def _fill(self) -> None:
        """As a start does: the index learns what lies on the disk."""

        async def work() -> None:
            if not await self.index.whole():
                reconciler = Reconciler(index=self.index, store=self.store, in_thread=self.threads)
                await reconciler.learn_all(lambda: None)
                await self.index.set_whole()

        self._run(work())

    def _names(self) -> list[str]:
        """Files and links, relative to the root, in an order that does not change."""
        found = []
        for folder, _, names in os.walk(self.root):
            if os.path.basename(folder) != layout.INCOMING:
                found += [os.path.relpath(Path(folder, each), self.root) for each in names]
        return sorted(found)
