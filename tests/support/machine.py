"""
The cache below HTTP as a hypothesis state machine: whatever happens in whatever order.

Requests, sweeps, purges, refreshes and a changing archive are interleaved at every point where
one of them waits; the process dies at such a point, its index is flushed, its disk fills up, files
vanish, shrink or grow. Each story is about few names of the same few images, so that what happens
meets what happened before. What was promised all the same is checked as each answer comes, on
the disk after each step, and in the index after a sweep.
"""

import contextlib
import os
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    rule,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from coverart.archive.archive_client import Limits
from coverart.archive.upstream import Upstream
from coverart.cache import download
from coverart.cache.answers import Status
from coverart.cache.lookup import CoverCache
from coverart.cache.miss import Fetcher
from coverart.cache.size_limits import Room
from coverart.cache.substitutes import Substitutes
from coverart.coordination.leader import Alone, Leadership
from coverart.errors import CoverError
from coverart.index.base import Index
from coverart.index.eviction_order import Eviction
from coverart.index.memory import MemoryIndex
from coverart.maintenance.scan import Scanner
from coverart.maintenance.sweep import Bounds, Cleanup
from coverart.metrics import Metrics
from coverart.model import SIZES as MADE
from coverart.model import (
    AliasKey,
    Entity,
    ImageRef,
    ImageRequest,
    ListingKey,
)
from tests.support.doubles import HeldBack, at_once
from tests.support.played import (
    EVENT,
    EVENT_REFS,
    GROUP,
    LISTINGS,
    REFS,
    RELEASE_REFS,
    ROLES,
    SIZES,
    SMALL_BYTES,
    TICK_S,
    A,
    B,
    GatedIndex,
    MortalStore,
    PlayedArchive,
    Thing,
    name,
    text_of,
)
from tests.support.promises import LIVES, SLICES, Promises

BEGINNING = 1_700_000_000.123457
"""A time as clocks tell it: a file system does not keep all of its digits."""
ROOM = 10**9
SHORT_S = 0.5
"""So long something waits that goes on by itself."""
METRICS = Metrics()
"""Making them takes longer than a step does."""

FRONT = name(Entity.RELEASE, A, "front")
BACK = name(Entity.RELEASE, A, "back")
OTHER = name(Entity.RELEASE, B, "front")
GROUPS = name(Entity.RELEASE_GROUP, GROUP, "front")
CASTS: tuple[tuple[AliasKey, ...], ...] = (
    (FRONT,),
    (FRONT, GROUPS),
    (FRONT, name(Entity.RELEASE, A, 1)),
    (FRONT, BACK, name(Entity.RELEASE, A, 2)),
    (GROUPS, name(Entity.RELEASE, A, 2), name(Entity.RELEASE, B, 3)),
    (OTHER, FRONT, name(Entity.RELEASE, B, 1), name(Entity.RELEASE, A, 1)),
    (name(Entity.EVENT, EVENT, "front"), name(Entity.EVENT, EVENT, 4)),
)
"""Whom a story is about: names that lead, or can be led, to the same images."""


@st.composite
def _things(draw: st.DrawFn) -> Thing:
    # A strategy for each machine's own things would cost more than the steps.
    among: list[Thing] = draw(st.runner()).things
    return among[draw(st.integers(0, 9)) % len(among)]


things = _things()
mostly = st.sampled_from((True, True, True, False))


class CacheMachine(Promises):
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
        self.things: list[Thing] = []
        self.wrong: list[Failure] = []
        self.running: list[Deferred[object]] = []
        self._graves: list[tuple[object, object, HeldBack, object]] = []
        self._versions = 0
        self._troubles = 0
        self._observer = cast("ILogObserver", self._logged)
        globalLogPublisher.addObserver(self._observer)
        self._small = mock.patch.object(download, "SMALL_BYTES", SMALL_BYTES)
        self._small.start()

    # What a kind of index is

    def new_process(self) -> None:
        """Everything that a start makes."""
        self.memory = MemoryIndex(eviction=self.eviction, now=self.now)
        self.leadership: Leadership = Alone()
        self.reach = GatedIndex(self.memory, self.threads if self.far else at_once)
        self.index: Index = cast("Index", self.reach)

    def flush_index(self) -> None:
        """The index forgets everything while the process lives on."""
        # The gates ask this one by its place, and the process keeps what it knows of it.
        self.memory = self.reach.inner = MemoryIndex(eviction=self.eviction, now=self.now)

    def process_gone(self) -> None:
        """Whatever has to be let go of when a process died."""

    def bury(self) -> None:
        """What is left of dead processes is going to be collected as garbage."""

    def let_index_answer(self) -> bool:
        """Give an index that is really elsewhere time. :returns: whether anything came of it."""
        return False

    # Starting and ending

    @initialize(
        cast_=st.sampled_from(CASTS),
        listing=st.sampled_from((*LISTINGS, None)),
        far=st.booleans(),
        eviction=st.sampled_from(("oldest", "oldest", "least-useful")),
        substitute_bytes=st.sampled_from((0, SMALL_BYTES, ROOM)),
        made=st.booleans(),
    )
    def begin(
        self,
        cast_: tuple[AliasKey, ...] = (),
        listing: ListingKey | None = None,
        far: bool = False,
        eviction: Eviction = "oldest",
        substitute_bytes: int = 0,
        made: bool = True,
    ) -> None:
        """
        :param substitute_bytes: of an original that may stand in for a size.
        :param made: whether the archive has sizes between that and the original.
        """
        self.far = far
        self.substitute_bytes = substitute_bytes
        if not made:
            between = (each for each in MADE if each not in SIZES)
            self.archive.lost |= {(each.image_id, size) for size in between for each in REFS}
        self.eviction = eviction
        self.roles = [key for key in cast_ if key in ROLES]
        self.things = [ImageRequest(alias=key, size=size) for key in cast_ for size in SIZES]
        self.listings = [] if listing is None else [listing]
        self.things += self.listings
        self._start()

    def _start(self) -> None:
        self.threads = HeldBack()
        self._complain()
        self.store = MortalStore(self.root, self.now)
        self.new_process()
        self.archive.gate = self.threads
        limits = Limits()
        self.cache = CoverCache(
            index=self.index,
            store=self.store,
            fetcher=Fetcher(
                index=self.index,
                store=self.store,
                room=Room(store=self.store, index=self.index, max_bytes=ROOM, clock=self.clock),
                upstream=cast("Upstream", self.archive),
                in_thread=self.threads,
                clock=self.clock,
                now=self.now,
                limits=limits,
            ),
            lifetimes=LIVES,
            substitutes=Substitutes(most_bytes=self.substitute_bytes),
            clock=self.clock,
            now=self.now,
            metrics=METRICS,
        )

    def _die(self) -> None:
        # Kept, so that no coroutine is closed and does what a killed one would not have done.
        self._graves.append((self.cache, self.index, self.threads, self.running))
        if self.running:
            self._seen.clear()
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
            self._settle()
            self._settle(1000)
        finally:
            globalLogPublisher.removeObserver(self._observer)
            self._small.stop()
            self._die()
            self.bury()
            for _, _, threads, _ in self._graves:
                threads.ended = True
            self._graves.clear()
            self._folder.cleanup()

    def _logged(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.wrong.append(event["log_failure"])

    # Running things

    def run(self, work: Coroutine[Deferred[Any], Any, object]) -> None:
        d: Deferred[object] = Deferred.fromCoroutine(work)
        running = self.running
        running.append(d)
        d.addErrback(self.wrong.append).addBoth(lambda _: running.remove(d))
        self._complain()

    def drain(self) -> None:
        """Let everything come to its end."""
        for _ in range(10_000):
            if self.threads.waiting:
                self.threads.let_one_go()
            elif not self.let_index_answer():
                if not self.clock.getDelayedCalls() or not self.running:
                    break
                due = min(call.getTime() for call in self.clock.getDelayedCalls())
                if due - self.now() > SHORT_S:
                    break
                # Who waits for a claim asks again.
                self.clock.advance(max(0.0, due - self.now()))
            self.clock.advance(0)
            self._complain()
        assert not self.running, "something never ended"
        assert not self.store.left_open(), "a temporary file was never closed"
        troubles = self.archive.troubles + self.archive.missed + self.store.refused
        if self._troubles != troubles:
            self._troubles = troubles
            self._last_trouble = self.now()
        self._complain()

    def _to_end(self, work: Coroutine[Deferred[Any], Any, object]) -> None:
        """Do a thing while nothing else runs."""
        self.drain()
        self.run(work)
        self.drain()

    def _complain(self) -> None:
        if self.wrong:
            self.wrong[0].raiseException()

    # What clients and operators do

    @rule(thing=things, alone=mostly)
    def ask(self, thing: Thing, alone: bool = True) -> None:
        """Somebody asks, if alone, then while nothing else goes on, and waits for the answer."""
        if alone:
            self._to_end(self._serve_alone(thing))
            since, self._asked_behind = self._asked_behind, None
            if since is not None:
                self._to_end(self._serve_again(thing, since))
        else:
            self.run(self.serve(thing))

    @rule(first=st.integers(0, 9))
    def ask_for_all(self, first: int) -> None:
        """One after the other, whichever first: what is wrong shows before it is mended."""
        first %= len(self.things)
        for thing in (*self.things[first:], *self.things[:first]):
            self.ask(thing)

    @rule(some=st.lists(things, min_size=2, max_size=4))
    def ask_at_once(self, some: list[Thing]) -> None:
        for thing in some:
            self.run(self.serve(thing))

    @rule(
        some=st.lists(things, min_size=1, max_size=3),
        what=st.sampled_from(("down", "cut", "short", "nonsense", "full")),
    )
    def trouble(self, some: list[Thing], what: str) -> None:
        """The archive or the disk has a bad moment, in which somebody asks."""
        self.drain()
        self.store.full = what == "full"
        self.archive.mood = "up" if self.store.full else what
        for thing in some:
            self.ask(thing)
        self.archive.mood, self.store.full = "up", False

    @rule(thing=things, alone=mostly)
    def purge(self, thing: Thing, alone: bool = True) -> None:
        async def work() -> None:
            await self.cache.operator_actions.purge(thing)

        async def work_alone() -> None:
            await self.cache.operator_actions.purge(thing)
            assert self._lies(thing, retired=True) is None, thing
            self._nowhere(thing)
            with contextlib.suppress(CoverError):
                assert (await self.cache.get(thing)).status is Status.MISS, thing

        if alone:
            self._to_end(work_alone())
        else:
            self.run(work())

    @rule(thing=things, places=st.lists(st.integers(0, 5), max_size=12))
    def purge_beside(self, thing: Thing, places: list[int]) -> None:
        """A purge comes while a thing that a client has by now is stored: nothing of it stays."""
        told: list[Status] = []

        async def client() -> None:
            served = await self.serve(thing)
            if served is not None:
                told.append(served[0].status)

        async def purge() -> None:
            await self.cache.operator_actions.purge(thing)

        self.drain()
        self.run(client())
        self.step(places)
        # What is stale is asked for once more, after that.
        stored = told in ([Status.MISS], [Status.HIT])
        self.run(purge())
        self.drain()
        if stored:
            assert self._lies(thing, retired=True) is None, thing
            self._nowhere(thing)

    @rule(thing=things, alone=mostly)
    def refresh(self, thing: Thing, alone: bool = False) -> None:
        async def work_alone() -> None:
            well, before = self.well, self.now()
            with contextlib.suppress(CoverError):
                answer = await self.cache.operator_actions.refresh(thing)
                body = await self._received(answer)
                self._right(thing, answer, body, before if well else None)

        if alone:
            self._to_end(work_alone())
        else:
            self.run(self.serve(thing, self.cache.operator_actions.refresh))

    @rule(places=st.lists(st.integers(0, 5), min_size=1, max_size=12))
    def step(self, places: list[int]) -> None:
        """Some of what waits goes on, in any order."""
        for place in places:
            if self.threads.waiting:
                self.threads.let_one_go(place % len(self.threads.waiting))
            self.let_index_answer()
            self.clock.advance(0)
            self._complain()

    @rule(share=st.sampled_from((0.0, 0.3, 0.6, 0.9, 1.0, 1.0)), alone=mostly)
    def sweep(self, share: float, alone: bool = False) -> None:
        """A cleanup for which so much of what is held is room; if alone, with a look around."""
        if alone:
            self.drain()
            self._settle(int(share * self._held_bytes()))
        else:
            self.run(self._sweep(int(share * self._held_bytes())))

    @rule(
        some=st.lists(things, min_size=1, max_size=2),
        places=st.lists(st.integers(0, 2), min_size=1, max_size=8),
        share=st.sampled_from((0.0, 1.0)),
    )
    def sweep_beside(self, some: list[Thing], places: list[int], share: float) -> None:
        """A cleanup comes while things are on their way."""
        self.ask_at_once(some)
        self.step(places)
        self.run(self._sweep(int(share * self._held_bytes())))

    def _settle(self, room: int = ROOM) -> None:
        """
        Let everything end, sweep, and look whether index and disk are as promised.

        Twice: the first can find a file cut short after it passed a link that leads there.
        """
        self._to_end(self._sweep(ROOM))
        before = self.entries()
        self._to_end(self._sweep(room))
        self._evicted(before, self.entries(), room)
        self._to_end(self._look(room))

    # What happens to the process and to its disk

    @rule(
        some=st.lists(things, max_size=2),
        places=st.lists(st.integers(0, 2), max_size=10),
        first=st.booleans(),
    )
    def crash(self, some: list[Thing], places: list[int], first: bool) -> None:
        """
        The process is killed, perhaps while it fetches, and started again on what it left.

        :param first: what waits longest still happened, and nobody heard of it.
        """
        self.ask_at_once(some)
        self.step(places)
        if first and self.threads.waiting:
            _, call, arguments = self.threads.waiting.pop(0)
            with contextlib.suppress(Exception):
                call(*arguments)
        self._die()
        self._start()
        self._fill()

    @rule()
    def restart(self) -> None:
        self.drain()
        self.crash([], [], False)

    @rule(drained=mostly)
    def wipe(self, drained: bool) -> None:
        """The index is flushed behind everybody's back."""
        if drained:
            self.drain()
        if self.running:
            self._seen.clear()
        self.flush_index()
        self._unspoil()

    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        """Somebody deletes a file or a link."""
        if found := self.names():
            os.unlink(self.root / data.draw(st.sampled_from(found)))

    @rule(data=st.data(), left=st.sampled_from((0, 100, 20_000, None)))
    def spoil(self, data: st.DataObject, left: int | None) -> None:
        """A file is cut short, grows (only an index that knew it can tell) or is written over."""
        self._settle()
        found = [each for each in self.names() if not (self.root / each).is_symlink()]
        if left is None:
            found = [each for each in found if not each.endswith(".json")]
        if found:
            self.spoil_file(data.draw(st.sampled_from(found)), left)

    def spoil_file(self, path: str, left: int | None) -> None:
        """:param left: how long it is then; None for a page of the same length."""
        where = self.root / path
        if left is None:
            where.write_bytes(b"<html>".ljust(where.stat().st_size))
        else:
            os.truncate(where, left)
        self.spoilt.add(path)

    def _unspoil(self) -> None:
        # Nobody is left who could tell: such files are `coverart scan --verify`'s business.
        for path in self.spoilt:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.root / path)
        self.spoilt.clear()

    # What happens to the archive

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        self.archive.note()
        self.clock.advance(TICK_S)
        yield
        self.archive.note()

    @rule(
        data=st.data(),
        between=st.sampled_from(("nothing", "sweep", "flush", "restart")),
        first=st.integers(0, 9),
    )
    def move(self, data: st.DataObject, between: str, first: int) -> None:
        """A name that is held leads elsewhere, and is asked for when its time is over."""
        self.ask_for_all(first)
        self.retarget(data, 1100)
        if between == "sweep":
            self._settle()
        elif between == "flush":
            self.wipe(drained=True)
        elif between == "restart":
            self.restart()
        self.ask_for_all(first)

    @rule(data=st.data(), later=st.sampled_from((0, 0, 400, 1100)))
    def retarget(self, data: st.DataObject, later: int) -> None:
        """A name leads elsewhere, which nobody notices for a while."""
        role = data.draw(st.sampled_from(self.roles))
        owned = EVENT_REFS if role.entity is Entity.EVENT else RELEASE_REFS
        if role.entity is Entity.RELEASE:
            owned = tuple(each for each in owned if each.mbid == role.mbid)
        now = self.archive.roles[role]
        others = [each for each in (*owned, None) if each != now]
        self.sends(role, data.draw(st.sampled_from(others)), later)

    def sends(self, role: AliasKey, to: ImageRef | None, later: int) -> None:
        with self._changing():
            self.archive.roles[role] = to
        if later:
            self.wait(later)

    @rule(data=st.data(), later=st.sampled_from((0, 0, 400, 1100)))
    def rewrite(self, data: st.DataObject, later: int) -> None:
        """A listing changes, a size of an image is missing or was made, a release is merged."""
        whats: list[str | ListingKey] = ["size", *self.listings, *self.listings]
        if len(self.roles) > 1 and not self.archive.merged:
            whats.append("merge")
        what = data.draw(st.sampled_from(whats))
        with self._changing():
            if isinstance(what, ListingKey):
                self._versions += 1
                text = text_of(self._versions) if data.draw(mostly) else None
                self.archive.texts[what] = text
            elif what == "size":
                image_id = data.draw(st.sampled_from((1, 2, 3)))
                self.archive.lost ^= {(image_id, data.draw(st.sampled_from(SIZES)))}
            else:
                self.archive.merged = True
        if later:
            self.wait(later)

    @rule(seconds=st.sampled_from((60, 150, 400, 1100)))
    def wait(self, seconds: int) -> None:
        self.drain()
        with self._changing():
            self.clock.advance(seconds)

    async def _sweep(self, room: int) -> None:
        cleanup = Cleanup(
            index=self.index,
            store=self.store,
            in_thread=self.threads,
            leadership=self.leadership,
            bounds=Bounds(max_bytes=room, clean_to_bytes=room * 9 // 10, alias_ttl_s=LIVES.alias_s),
            clock=self.clock,
            now=self.now,
            metrics=METRICS,
        )
        await self.cache.tell_uses()
        assert await cleanup.sweep(slices=len(SLICES)) is not None

    # The disk

    def _fill(self) -> None:
        """As a start does: the index learns what lies on the disk."""

        async def work() -> None:
            if not await self.index.whole():
                await Scanner(
                    index=self.index, store=self.store, in_thread=self.threads, clock=self.clock
                ).run()

        self.run(work())
