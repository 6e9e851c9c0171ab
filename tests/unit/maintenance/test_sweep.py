"""The sweep over real files, with the index in memory: what it does when something fails."""

from __future__ import annotations

import errno
import os
import unittest.mock
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from coverart.coordination.leader import Alone
from coverart.index.base import IndexAway, Seen
from coverart.index.memory import MemoryIndex
from coverart.maintenance.sweep import SLICES_A_SWEEP, Bounds, Cleanup, Sweep
from coverart.model import Entity, FileEntry, ImageKey, ImageRef, ListingKey, MediaType
from coverart.store import layout
from coverart.store.image_store import ImageStore
from tests.support.disk import put_file
from tests.support.doubles import at_once, folder
from tests.support.strategies import MBID

NOW = 1_700_000_000.0
JPEG = b"\xff\xd8\xff\xe0" + bytes(96)


class Refusing(MemoryIndex):
    """An index that refuses to be written to, as a full Redis does."""

    async def whole(self) -> bool:
        return False

    async def prepare(self, check: Any) -> None:
        raise IndexAway("OOM")

    async def learn_packed(self, seen: Sequence[Any]) -> None:
        raise IndexAway("OOM")

    async def learn(self, seen: Sequence[Seen]) -> None:
        raise IndexAway("OOM")


class Away(MemoryIndex):
    """An index that can't be asked, and keeps in mind what it is told."""

    available = False


class Stubborn(ImageStore):
    """A disk that does not give some of its files back."""

    def __init__(self, root: Any) -> None:
        super().__init__(root)
        self.keeps: set[str] = set()
        self.removing: Callable[[], object] = lambda: None

    def remove(self, path: str) -> bool:
        if path in self.keeps:
            raise PermissionError(13, "Permission denied", path)
        self.removing()
        return super().remove(path)


class SweepTests(SynchronousTestCase):
    """One sweep over a directory of its own."""

    def setUp(self) -> None:
        self.store = Stubborn(folder(self))
        self.clock = Clock()
        self.index: MemoryIndex = MemoryIndex()
        self.done(self.index.set_whole())

    def fill(self, count: int) -> list[ImageKey]:
        """Store so many images of a hundred bytes, the first a minute before the second."""
        ref = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=1)
        keys = []
        for number in range(count):
            key = ImageRef(owner=ref.owner, mbid=ref.mbid, image_id=number + 1).at(250)
            at = NOW + 60 * number
            put_file(self.store, self.path(key), JPEG, at)
            entry = FileEntry(size_bytes=len(JPEG), stored_at=at, media=MediaType.JPEG)
            self.done(MemoryIndex.put_file(self.index, key, entry))
            keys.append(key)
        return keys

    def path(self, key: ImageKey) -> str:
        return layout.image_path(key, MediaType.JPEG)

    def held(self, keys: list[ImageKey]) -> list[bool]:
        """Which of them are on the disk."""
        return [os.path.exists(self.store.absolute(self.path(key))) for key in keys]

    def done(self, work: Any) -> Any:
        """What a coroutine gives, turn after turn of the reactor."""
        d: Deferred[Any] = Deferred.fromCoroutine(work)
        while not d.called:
            self.clock.advance(0.01)
        return self.successResultOf(d)

    def cleanup(self, max_bytes: int, clean_to_bytes: int) -> Cleanup:
        return Cleanup(
            index=self.index,
            store=self.store,
            in_thread=at_once,
            leadership=Alone(),
            bounds=Bounds(max_bytes=max_bytes, clean_to_bytes=clean_to_bytes, alias_ttl_s=100.0),
            clock=self.clock,
            now=lambda: NOW + 10**6,
        )

    def test_evicts_whatever_is_wrong_with_the_index(self) -> None:
        """An index that takes no writes keeps the disk from nothing: the oldest go all the same."""
        self.index = Refusing()
        keys = self.fill(10)
        done: Sweep = self.done(self.cleanup(500, 400).sweep())
        self.assertEqual(done.evicted, 6)
        self.assertEqual(self.held(keys), [False] * 6 + [True] * 4)

    def test_what_is_found_counts_at_once(self) -> None:
        """An index that was emptied learns what is on the disk, and the same sweep evicts of it."""
        keys = self.fill(10)
        self.index = MemoryIndex()
        done: Sweep = self.done(self.cleanup(500, 400).sweep())
        self.assertEqual((done.learnt, done.evicted), (10, 6))
        self.assertEqual(self.held(keys), [False] * 6 + [True] * 4)

    def test_next_ones_go(self) -> None:
        """
        More files than one batch holds can't be removed: the next go in their place.

        They stay known, so that the totals tell what is on the disk, and are tried again.
        """
        keys = self.fill(320)
        self.store.keeps = {self.path(key) for key in keys[:300]}
        cleanup = self.cleanup(31_500, 30_900)
        done: Sweep = self.done(cleanup.sweep())
        self.assertEqual((done.evicted, done.evicted_bytes), (11, 1100))
        self.assertEqual(self.held(keys), [True] * 300 + [False] * 11 + [True] * 9)
        totals = self.done(self.index.totals())
        self.assertEqual((totals.files, totals.size_bytes), (309, 30_900))
        self.store.keeps = set()
        done = self.done(self.cleanup(30_000, 29_000).sweep())
        self.assertEqual((done.evicted, self.held(keys[:19])), (19, [False] * 19))

    def test_ends_in_the_middle_without_the_index(self) -> None:
        """Whenever a process ends that evicts without the index: it was told of all that is gone."""
        self.index = Away()
        keys = self.fill(10)
        cleanup = self.cleanup(500, 400)
        self.store.removing = cleanup.stop
        self.done(cleanup.sweep())
        self.assertEqual(self.held(keys), [False] + [True] * 9)
        entry = FileEntry(size_bytes=len(JPEG), stored_at=NOW, media=MediaType.JPEG)
        self.assertFalse(self.done(self.index.forget_file(keys[0], entry)))

    def test_a_spoilt_file_that_stays(self) -> None:
        """What can't be removed keeps the comparison from nothing behind it."""
        stays, goes = self.fill(2)
        for key in (stays, goes):
            with open(self.store.absolute(self.path(key)), "wb") as file:
                file.write(JPEG[:50])
        self.store.keeps = {self.path(stays)}
        done: Sweep = self.done(self.cleanup(500, 400).sweep(slices=4096))
        # Once more than all: an index that is not whole is compared with what it knows first.
        self.assertEqual((done.slices, done.forgotten), (4096, 1))
        self.assertEqual(self.held([stays, goes]), [True, False])

    def test_the_same_directory_again(self) -> None:
        """A directory that could not be used for a moment is compared whole, once."""
        self.fill(1)
        cleanup = self.cleanup(500, 400)
        with unittest.mock.patch.object(self.store, "identity", return_value=None):
            self.done(cleanup.sweep())
        slices = [self.done(cleanup.sweep()).slices for _ in range(2)]
        self.assertEqual(slices, [4096, SLICES_A_SWEEP])

    def test_a_folder_that_cannot_be_read(self) -> None:
        """The index keeps what it knows of it, the operator is told once, the sweep goes on."""
        keys = self.fill(3)
        folder_path = self.store.absolute(os.path.dirname(self.path(keys[0])))
        opens = os.open

        def fails(path: Any, *args: Any, **kwargs: Any) -> int:
            if str(path).startswith(folder_path):
                raise OSError(errno.EIO, "Input/output error", path)
            return opens(path, *args, **kwargs)

        self.patch(os, "open", fails)
        cleanup = self.cleanup(500, 400)
        with capturedLogs() as told:
            for _ in range(2):
                done: Sweep = self.done(cleanup.sweep(slices=4096))
                self.assertEqual((done.forgotten, self.held(keys)), (0, [True] * 3))
        self.assertEqual(self.done(self.index.totals()).files, 3)
        lines = [formatEvent(event) for event in told]
        self.assertEqual(len([line for line in lines if "Input/output error" in line]), 1, lines)

    def test_a_folder_above_that_cannot_be_read(self) -> None:
        """What is below it is looked at all the same: one failure at the start hides no file."""
        self.fill(3)
        above = self.store.absolute("release")
        lists, failures = os.scandir, ["once"]

        def fails(path: Any) -> Any:
            if path == above and failures:
                raise OSError(errno.EMFILE, failures.pop(), path)
            return lists(path)

        self.patch(os, "scandir", fails)
        self.index = MemoryIndex()
        done: Sweep = self.done(self.cleanup(500, 400).sweep())
        self.assertEqual((done.learnt, failures), (3, []))

    def test_listing_stored_anew(self) -> None:
        """
        A listing that was refreshed to another size while the index could not be told is learnt.

        At once: it was forgotten by one comparison and learnt by the next.
        """
        key = ListingKey(entity=Entity.RELEASE, mbid=MBID)
        put_file(self.store, layout.listing_path(key), b'{"images": []}', NOW + 60)
        self.done(self.index.put_file(key, FileEntry(size_bytes=2, stored_at=NOW)))
        done: Sweep = self.done(self.cleanup(500, 400).sweep(slices=4096))
        self.assertEqual((done.learnt, done.forgotten), (1, 0))
        found = self.done(self.index.find_listing(key))
        self.assertEqual(found.entry, FileEntry(size_bytes=14, stored_at=NOW + 60))
