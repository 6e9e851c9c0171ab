"""The cache with the index in memory, at hand or far away, whatever happens in whatever order."""

import os

from hypothesis.stateful import run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.answers import Held, Status
from coverart.index.memory import MemoryIndex
from coverart.model import (
    ORIGINAL,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    Found,
    ImageRequest,
    ListingKey,
)
from tests.support.machine import FRONT, CacheMachine
from tests.support.played import LISTINGS, RELEASE_REFS, A, name
from tests.support.strategies import stories


class _Away(MemoryIndex):
    """What a RedisIndex finds while Redis is away."""

    def find_now(self, thing: ImageRequest | ListingKey) -> Found:
        return Found()

    async def find_listing(self, key: ListingKey) -> Found:
        return Found()

    async def forget_alias(self, key: AliasKey) -> bool:
        return False

    async def forget_file(self, key: FileKey, entry: FileEntry) -> bool:
        return True


class MachineTests(SynchronousTestCase):
    """tests/support/machine.py over MemoryIndex."""

    def test_every_promise_holds(self) -> None:
        """Right bytes, exact totals, nothing left over: see the machine's own checks."""
        run_state_machine_as_test(CacheMachine, settings=stories(350))


class FoundByTheMachineTests(SynchronousTestCase):
    """What went wrong once, step by step; the machine checks each answer."""

    def machine(self, *, far: bool = False) -> CacheMachine:
        """One that has begun."""
        machine = CacheMachine()
        self.addCleanup(machine.teardown)
        machine.begin(far=far)
        return machine

    def test_a_shrunken_image_is_not_served_by_a_new_name(self) -> None:
        """An image known by its id was cut short on the disk; its front, never asked for, is whole."""
        machine = self.machine()
        machine.ask(image(1))
        machine.spoil_file(machine.names()[0], 100)
        machine.ask(image("front"))

    def test_a_file_found_short_is_not_lost_again_once_it_is_whole(self) -> None:
        """Two who find a listing cut short at once: the slower one leaves the other's new file."""
        machine = self.machine(far=True)
        listing = LISTINGS[0]
        machine.ask(listing)
        machine.spoil_file(machine.names()[0], 0)
        machine.refresh(listing)
        machine.ask(listing)

    def test_a_page_found_by_two_is_removed_once(self) -> None:
        """The slower of two who find a page in an image's place leaves the image stored since."""
        machine = self.machine(far=True)
        machine.ask(image(1))
        (path,) = machine.names()
        ((key, entry),) = machine.entries().items()
        machine.spoil_file(path, None)
        page = Held(status=Status.HIT, key=key, entry=entry, path=path)
        machine.run(machine.cache.spoilt(page))
        slower = machine.threads.waiting.pop()
        machine.run(machine.serve(image(1)))
        machine.threads.let_all_go()
        machine.threads.waiting.append(slower)
        machine.drain()
        self.assertEqual(machine.names(), [path])
        machine.nothing_wrong_in_sight()
        self.assertEqual(machine.spoilt, set())

    def test_a_size_not_made_yet_is_missing_of_the_new_image(self) -> None:
        """Not of the old one, which whoever asks for it by its id still gets after an eviction."""
        machine = self.machine()
        machine.ask(image("front"))
        machine.archive.lost.add((2, 250))
        machine.sends(FRONT, RELEASE_REFS[1], 1100)
        machine.ask(image("front"))
        machine.sweep(0.0, alone=True)
        machine.ask(image(1))

    def test_a_size_not_made_yet_is_not_asked_for_with_each_request(self) -> None:
        """The old image is served, and the archive left alone for a minute."""
        machine = self.machine()
        machine.ask(image("front"))
        machine.archive.lost.add((2, 250))
        machine.sends(FRONT, RELEASE_REFS[1], 1100)
        machine.ask(image("front"))
        asked = machine.archive.asked
        for _ in range(5):
            machine.ask(image("front"))
        self.assertEqual(machine.archive.asked, asked)
        machine.archive.lost.clear()
        machine.wait(150)
        machine.ask(image("front"))
        self.assertEqual(machine.archive.asked, asked + 2)

    def test_a_file_stored_anew_by_a_killed_process_is_evicted_at_once(self) -> None:
        """Of the same length as before: only its time tells, and the sweep tells the index."""
        machine = self.machine()
        machine.ask(LISTINGS[0])
        (path,) = machine.names()
        machine.wait(150)
        os.utime(machine.root / path, (machine.now(), machine.now()))
        machine.sweep(0.0, alone=True)
        self.assertEqual(machine.names(), [])

    def test_whoever_comes_while_an_image_lands_gets_it(self) -> None:
        """The last byte was there, the file is closed, and the index is still being told."""
        for name_ in (1, "front"):
            for steps in range(40):
                machine = self.machine(far=True)
                machine.run(machine.serve(image(1, ORIGINAL)))
                for _ in range(steps):
                    if machine.threads.waiting:
                        machine.threads.let_one_go()
                machine.ask(image(name_, ORIGINAL), alone=False)
                machine.drain()

    def test_an_evicted_file_that_was_cut_short_is_not_found_again(self) -> None:
        """Eviction leaves what was stored since, not what is left of a file that shrank."""
        machine = self.machine()
        machine.ask(image(1))
        machine.spoil_file(machine.names()[0], 100)
        machine.sweep(0.0)
        machine.drain()
        machine.ask(image(1))

    def test_a_flushed_index_purges_what_the_disk_holds(self) -> None:
        """What the next client would be served from the disk goes too; the machine looks."""
        machine = self.machine()
        for thing in (image("front"), image(1), LISTINGS[0]):
            machine.ask(thing)
            machine.wipe(drained=True)
            machine.purge(thing)

    def test_an_index_that_is_away_purges_what_the_disk_holds(self) -> None:
        """As a Redis that is down: it finds nothing, and the disk decides what is served."""
        machine = self.machine()
        for thing in (image("front"), image(1), LISTINGS[0]):
            machine.ask(thing)
            machine.memory = machine.reach.inner = _Away()
            machine.purge(thing)

    def test_a_link_older_than_the_index_is_not_believed(self) -> None:
        """A flushed index learns by one size that a name moved: the others' links are over."""
        for later in (0, 1100):
            machine = self.machine()
            machine.ask(image("front", 250))
            machine.sends(FRONT, RELEASE_REFS[1], later)
            machine.sweep(1.0, alone=True)
            machine.wipe(drained=True)
            machine.ask(image("front", 0))
            machine.ask(image("front", 250))

    def test_a_retired_link_is_not_revived_to_another_image(self) -> None:
        """What was out of the index's sight when the name moved is not confirmed with the rest."""
        machine = self.machine()
        machine.ask(image("front", 250))
        machine.sends(FRONT, RELEASE_REFS[1], 1100)
        machine.sweep(1.0, alone=True)
        machine.wipe(drained=True)
        machine.ask(image("front", 0))
        machine.wait(1100)
        machine.ask(image("front", 0))
        machine.nothing_wrong_in_sight()

    def test_nothing_of_a_name_that_leads_nowhere_stays_in_sight(self) -> None:
        """A flushed index learns by one size that a name is no more: so it is in all sizes."""
        machine = self.machine()
        machine.ask(image("front", 250))
        machine.sends(FRONT, None, 0)
        machine.wipe(drained=True)
        machine.ask(image("front", 0))
        machine.ask(image("front", 250))


def image(of: int | str, size: int = 250) -> ImageRequest:
    """An image of the first release."""
    return ImageRequest(alias=name(Entity.RELEASE, A, of), size=size)
