"""An image on its way to the disk, and readers of what is there of it."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache import size_limits as room
from coverart.cache.download import BACKLOG_BYTES, SMALL_BYTES, Incoming, InThread
from coverart.cache.size_limits import Room
from coverart.errors import BadUpstream, CoverError, NotReached, StoreFailed
from coverart.index.memory import MemoryIndex
from coverart.model import ORIGINAL, Entity, FileEntry, ImageRef, MediaType
from coverart.store import layout
from coverart.store.image_store import ImageStore
from tests.support.doubles import HeldBack, at_once, folder
from tests.support.strategies import MBID, examples

KEY = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7).at(ORIGINAL)
HEAD = b"\xff\xd8\xff\xe0JPEG"
LARGE = SMALL_BYTES * 3
LARGEST = 4 * 1024 * 1024


def jpeg(size_bytes: int) -> bytes:
    """A body of this size that begins as a JPEG and differs from place to place."""
    return (HEAD + b"".join(b"%07d." % n for n in range(size_bytes // 8 + 1)))[:size_bytes]


class IncomingTests(SynchronousTestCase):
    """One download, its disk at once or held back."""

    def setUp(self) -> None:
        self.root = folder(self)
        self.store = ImageStore(self.root)
        self.room = Room(
            store=self.store, index=MemoryIndex(), max_bytes=10 * LARGEST, clock=Clock()
        )
        self.announced: list[Incoming] = []
        self.announce: Callable[[Incoming], object] = self.announced.append
        self.disk = HeldBack()

    def incoming(self, in_thread: InThread = at_once, size: int = ORIGINAL) -> Incoming:
        """A download that starts now."""
        return Incoming(
            KEY.ref.at(size),
            store=self.store,
            room=self.room,
            in_thread=in_thread,
            largest_bytes=LARGEST,
            stored_at=1000,
            announce=self.announce,
        )

    def finish(self, incoming: Incoming) -> Deferred[FileEntry | None]:
        """The end of the download."""
        return Deferred.fromCoroutine(incoming.finish())

    def finished(self, incoming: Incoming) -> FileEntry:
        """What it ended with: stored."""
        entry = self.successResultOf(self.finish(incoming))
        assert entry is not None
        return entry

    def temporary(self) -> list[str]:
        """Unfinished files."""
        return os.listdir(self.root / layout.INCOMING)

    def visible(self, media: MediaType = MediaType.JPEG) -> bytes | None:
        """What lies at the image's place."""
        path = layout.image_path(KEY, media)
        return (
            pathlib.Path(self.store.absolute(path)).read_bytes() if self.store.stat(path) else None
        )

    def descriptors(self) -> int:
        """How many files are open."""
        return len(os.listdir("/proc/self/fd"))


class SmallTests(IncomingTests):
    """An image that is answered when it is whole."""

    def test_whole(self) -> None:
        """A small image is visible, with its time, once it is finished, and is not announced."""
        body, before = jpeg(20_000), self.descriptors()
        incoming = self.incoming()
        incoming.begin(len(body))
        for at in range(0, len(body), 1000):
            incoming.write(body[at : at + 1000])
            self.assertIsNone(incoming.room())
        self.assertIsNone(self.visible())
        entry = self.successResultOf(self.finish(incoming))
        expected = FileEntry(size_bytes=20_000, stored_at=1000, media=MediaType.JPEG)
        self.assertEqual(entry, expected)
        self.assertEqual(self.visible(), body)
        self.assertEqual((self.announced, self.temporary()), ([], []))
        self.assertEqual(self.descriptors(), before)

    def test_undeclared(self) -> None:
        """A chunked body is as good; it is never announced, since nobody knows its end."""
        body = jpeg(LARGE)
        incoming = self.incoming()
        incoming.begin(None)
        incoming.write(body)
        self.assertEqual(self.finished(incoming).size_bytes, LARGE)
        self.assertEqual((self.visible(), self.announced), (body, []))

    def test_cut_and_too_long(self) -> None:
        """What differs from the declared length is refused, and nothing is kept."""
        for declared in (99, 101):
            incoming = self.incoming()
            incoming.begin(declared)
            incoming.write(jpeg(100))
            self.failureResultOf(self.finish(incoming), BadUpstream)
            incoming.fail(CoverError())
        self.assertEqual((self.visible(), self.temporary()), (None, []))

    def test_no_image(self) -> None:
        """A page is refused on its first bytes, in whatever pieces they come."""
        for pieces in ((b"<!DOCTYPE html>",), (b"<", b"!DOC", b"TYPE", b" html>")):
            incoming = self.incoming()
            incoming.begin(15)

            def write(incoming: Incoming = incoming, pieces: tuple[bytes, ...] = pieces) -> None:
                for piece in pieces:
                    incoming.write(piece)

            self.assertRaises(BadUpstream, write)

    def test_type_in_pieces(self) -> None:
        """A type is told byte by byte as well."""
        incoming = self.incoming()
        incoming.begin(20)
        for n in range(20):
            incoming.write(jpeg(20)[n : n + 1])
        self.assertIs(self.finished(incoming).media, MediaType.JPEG)

    def test_too_short(self) -> None:
        """Nothing, or less than tells a type, is no image even where it is as declared."""
        for body in (b"", HEAD[:4]):
            incoming = self.incoming()
            incoming.begin(len(body))
            incoming.write(body)
            self.failureResultOf(self.finish(incoming), BadUpstream)

    def test_thumbnail_of_another_type(self) -> None:
        """A thumbnail that is no JPEG is refused."""
        incoming = self.incoming(size=250)
        incoming.begin(None)
        self.assertRaises(BadUpstream, incoming.write, b"\x89PNG\r\n\x1a\n....")

    def test_over_the_limit(self) -> None:
        """An image over the limit is refused as declared, or as soon as it grows over it."""
        incoming = self.incoming()
        self.assertRaises(BadUpstream, incoming.begin, LARGEST + 1)
        incoming.begin(None)
        incoming.write(jpeg(LARGEST))
        self.assertRaises(BadUpstream, incoming.write, b"x")
        incoming.fail(CoverError())
        self.assertEqual((self.visible(), self.temporary()), (None, []))

    def test_starts_over(self) -> None:
        """As long as nothing is on the disk, a second answer takes the place of a broken one."""
        incoming = self.incoming()
        incoming.begin(50_000)
        incoming.write(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
        incoming.begin(100)
        incoming.write(jpeg(100))
        entry = self.finished(incoming)
        self.assertEqual((entry.size_bytes, entry.media), (100, MediaType.JPEG))
        self.assertEqual(self.visible(), jpeg(100))

    def test_disk_refuses(self) -> None:
        """What the disk does not take is read from memory by those who wait, and then let go."""
        before = self.descriptors()
        incoming = self.incoming()
        incoming.hold()
        incoming.begin(100)
        incoming.write(jpeg(100))
        (self.root / "release").write_bytes(b"in the way")
        self.assertIsNone(self.successResultOf(self.finish(incoming)))
        self.assertEqual((incoming.unstored, incoming.over), ("ENOTDIR", False))
        incoming.attach(self)
        incoming.release()
        self.assertEqual(incoming.read(self, 0, 1000), jpeg(100))
        incoming.detach(self)
        self.assertTrue(incoming.over)
        self.assertEqual((self.temporary(), self.descriptors()), ([], before))

    def test_over_the_bound(self) -> None:
        """Past the bound on what is held nothing is written, whatever its length was said to be."""
        self.patch(room, "SLACK_BYTES", 150)
        self.room = Room(store=self.store, index=MemoryIndex(), max_bytes=0, clock=Clock())
        coming = [self.incoming() for _ in range(3)]
        for incoming, declared in zip(coming, (100, None, 100), strict=True):
            incoming.begin(declared)
            incoming.write(jpeg(100))
        for incoming in coming:
            self.successResultOf(self.finish(incoming))
        self.assertEqual([each.unstored for each in coming], [None, "cache-full", "cache-full"])
        self.assertIsNone(self.room.claim(150))

    def test_over_the_bound_midway(self) -> None:
        """What was written of images that grew past the bound counts until it is gone."""
        bound = 3 * LARGE
        self.patch(room, "SLACK_BYTES", bound)
        self.room = Room(store=self.store, index=MemoryIndex(), max_bytes=0, clock=Clock())
        coming = [self.incoming() for _ in range(9)]
        for incoming in coming:
            incoming.begin(None)
        body, most = jpeg(LARGE), 0
        for start in range(0, LARGE, 50_000):
            for incoming in coming:
                incoming.write(body[start : start + 50_000])
            there = (self.root / layout.INCOMING).iterdir()
            most = max(most, sum(each.stat().st_size for each in there))
        self.assertTrue(0 < most <= bound, most)
        self.assertEqual(coming[0].unstored, "cache-full")
        for incoming in coming:
            incoming.fail(CoverError())
        self.assertEqual((self.temporary(), self.room.claim(bound)), ([], None))


class LargeTests(IncomingTests):
    """An image that flows to its readers while it arrives."""

    def begun(self, in_thread: InThread = at_once, body: bytes | None = None) -> Incoming:
        """A large image of which so much has come."""
        incoming = self.incoming(in_thread)
        incoming.begin(LARGE)
        incoming.write(jpeg(LARGE)[:1000] if body is None else body)
        return incoming

    def test_announced(self) -> None:
        """It is announced once, when its first bytes proved to be of an image."""
        incoming = self.incoming()
        incoming.begin(LARGE)
        incoming.write(HEAD[:7])
        self.assertEqual(self.announced, [])
        incoming.write(jpeg(LARGE)[7:1000])
        incoming.write(jpeg(LARGE)[1000:2000])
        self.assertEqual(self.announced, [incoming])
        self.assertEqual(incoming.length, LARGE)
        incoming.fail(CoverError())

    def test_readers_at_their_own_pace(self) -> None:
        """Each reader gets all that has come, from where it stands, in its own pieces."""
        body = jpeg(LARGE)
        incoming = self.begun()
        incoming.attach(self)
        incoming.attach("another")
        self.assertEqual(incoming.read(self, 0, 10), body[:10])
        self.assertEqual(incoming.read(self, 500, 10_000), body[500:1000])
        self.assertEqual(incoming.read(self, 1000, 10), b"")
        more = incoming.more(1000)
        self.assertNoResult(more)
        incoming.write(body[1000:])
        self.successResultOf(more)
        self.assertEqual(incoming.read(self, 1000, LARGE), body[1000:])
        self.successResultOf(self.finish(incoming))
        self.assertEqual(incoming.read(self, 0, LARGE), body)
        incoming.detach(self)
        incoming.detach("another")
        self.assertEqual(self.visible(), body)

    def test_closed_after_the_last(self) -> None:
        """The file stays open for those who still read, and no longer."""
        before = self.descriptors()
        incoming = self.begun(body=jpeg(LARGE))
        incoming.attach(self)
        self.successResultOf(self.finish(incoming))
        self.assertEqual(self.descriptors(), before + 1)
        incoming.detach(self)
        self.assertEqual(self.descriptors(), before)

    def test_evicted_while_read(self) -> None:
        """A reader finishes an image that was evicted meanwhile."""
        incoming = self.begun(body=jpeg(LARGE))
        incoming.attach(self)
        self.successResultOf(self.finish(incoming))
        self.store.remove(layout.image_path(KEY, MediaType.JPEG))
        self.assertEqual(incoming.read(self, 0, LARGE), jpeg(LARGE))
        incoming.detach(self)

    def test_fails_midway(self) -> None:
        """Readers get what had come and then the error; nothing is kept."""
        before = self.descriptors()
        incoming = self.begun()
        incoming.attach(self)
        more = incoming.more(1000)
        incoming.fail(NotReached("cut"))
        self.successResultOf(more)
        self.assertEqual(incoming.read(self, 0, 5000), jpeg(1000))
        self.assertRaises(NotReached, incoming.read, self, 1000, 10)
        self.successResultOf(incoming.more(1000))
        incoming.detach(self)
        self.assertEqual((self.visible(), self.temporary()), (None, []))
        self.assertEqual(self.descriptors(), before)

    def test_first_error_counts(self) -> None:
        """What failed first is what is told."""
        incoming = self.begun()
        incoming.attach(self)
        incoming.fail(NotReached("first"))
        incoming.fail(BadUpstream("second"))
        error = self.assertRaises(CoverError, incoming.read, self, 1000, 10)
        self.assertEqual(error.detail, "first")
        incoming.detach(self)

    def test_no_second_answer(self) -> None:
        """Once bytes are on the disk and with readers, another answer can't take their place."""
        incoming = self.begun()
        self.assertRaises(BadUpstream, incoming.begin, LARGE)
        incoming.fail(CoverError())

    def test_too_late(self) -> None:
        """A reader that comes after the end is told so, and gets no empty image."""
        incoming = self.begun(body=jpeg(LARGE))
        self.successResultOf(self.finish(incoming))
        incoming.attach(self)
        self.assertRaises(StoreFailed, incoming.read, self, 0, 10)
        incoming.detach(self)

    def test_leaves_while_waiting(self) -> None:
        """A reader that leaves takes nothing from another."""
        incoming = self.begun()
        incoming.attach(self)
        incoming.attach("another")
        hasty, patient = incoming.more(1000), incoming.more(1000)
        hasty.cancel()
        self.failureResultOf(hasty, CancelledError)
        incoming.detach(self)
        incoming.write(b"x")
        self.successResultOf(patient)
        incoming.detach("another")
        incoming.fail(CoverError())

    def test_leaves_while_woken(self) -> None:
        """A reader may make another leave when it is woken."""
        incoming = self.begun()
        first, second, third = (incoming.more(1000) for _ in range(3))
        first.addCallback(lambda _: second.cancel())
        incoming.write(b"x")
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)
        self.successResultOf(third)
        incoming.fail(CoverError())

    def full(self, *_: Any) -> None:
        """What a full disk says."""
        raise OSError(28, "No space left on device")

    def test_disk_fills_up(self) -> None:
        """When the disk is full, readers get the rest from memory; nothing stays of either."""
        body, before = jpeg(LARGE), self.descriptors()
        incoming = self.begun()
        incoming.attach(self)
        self.patch(self.store, "append", self.full)
        incoming.write(body[1000:2000])
        self.assertEqual(incoming.unstored, "ENOSPC")
        self.assertEqual(incoming.read(self, 0, 5000), body[:1000])
        self.assertEqual(incoming.read(self, 1000, 5000), body[1000:2000])
        more = incoming.more(2000)
        incoming.write(body[2000:])
        self.successResultOf(more)
        self.assertIsNone(self.successResultOf(self.finish(incoming)))
        self.assertEqual(incoming.read(self, 2000, LARGE), body[2000:])
        incoming.detach(self)
        self.assertEqual((self.visible(), self.temporary()), (None, []))
        self.assertEqual(self.descriptors(), before)

    def test_disk_is_full(self) -> None:
        """It is announced when it is known whether its first bytes are stored."""
        self.patch(self.store, "append", self.full)
        told: list[str | None] = []
        self.announce = lambda each: told.append(each.unstored)
        incoming = self.incoming(self.disk)
        incoming.begin(LARGE)
        incoming.write(jpeg(LARGE)[:1000])
        self.assertEqual(told, [])
        self.disk.let_all_go()
        self.assertEqual(told, ["ENOSPC"])
        incoming.fail(CoverError())
        self.assertEqual(self.temporary(), [])

    def test_memory_is_bounded(self) -> None:
        """What all readers have passed goes when memory is short; then the archive is paused."""
        self.patch(room, "MOST_UNSTORED_BYTES", 5000)
        self.patch(self.store, "append", self.full)
        body = jpeg(LARGE)
        self.announce = lambda each: each.attach("slow")
        incoming = self.incoming()
        incoming.begin(LARGE)
        incoming.write(body[:4000])
        incoming.attach("quick")
        self.assertIsNone(incoming.room())
        incoming.write(body[4000:8000])
        paused = incoming.room()
        assert paused is not None
        incoming.read("quick", 0, LARGE)
        self.assertNoResult(paused)
        self.assertFalse(incoming.over)
        self.assertEqual(incoming.read("slow", 0, 3500), body[:3500])
        self.successResultOf(paused)
        # The beginning is gone: who comes now is too late.
        self.assertTrue(incoming.over)
        self.assertEqual(incoming.read("slow", 3500, 3500), body[3500:7000])
        for reader in ("quick", "slow"):
            incoming.detach(reader)
        with self.assertRaises(StoreFailed) as caught:
            incoming.write(body[8000:9000])
        incoming.fail(caught.exception)
        self.assertFalse(self.room.crowded)

    def test_no_memory_for_one_more(self) -> None:
        """One that nobody can read yet is refused while memory is full of others."""
        self.patch(room, "MOST_UNSTORED_BYTES", 2000)
        self.patch(room, "FOR_SMALL_BYTES", 3000)
        self.patch(self.store, "append", self.full)
        body = jpeg(4000)
        first, second = self.incoming(), self.incoming()
        for incoming in (first, second):
            incoming.hold()
            incoming.begin(len(body))
            incoming.write(body)
        self.assertIsNone(self.successResultOf(self.finish(first)))
        error = self.failureResultOf(self.finish(second), StoreFailed).value
        second.fail(error)
        second.release()
        first.attach(self)
        first.release()
        self.assertEqual(first.read(self, 0, 5000), body)
        first.detach(self)
        self.assertFalse(self.room.crowded)

    def test_memory_for_small_ones(self) -> None:
        """Slow clients of a large image keep nobody from a thumbnail."""
        self.patch(room, "MOST_UNSTORED_BYTES", 5000)
        self.patch(self.store, "append", self.full)
        self.announce = lambda each: each.attach("slow")
        large = self.begun(body=jpeg(LARGE)[:6000])
        self.assertIsNotNone(large.room())
        small = self.incoming()
        small.hold()
        small.begin(4000)
        small.write(jpeg(4000))
        self.assertIsNone(self.successResultOf(self.finish(small)))
        small.attach("quick")
        small.release()
        self.assertEqual(small.read("quick", 0, 5000), jpeg(4000))
        small.detach("quick")
        large.detach("slow")
        large.fail(CoverError())


class SlowDiskTests(IncomingTests):
    """The disk is held back, as a thread can be."""

    def begun(self) -> Incoming:
        """A large image whose first piece waits for the disk."""
        incoming = self.incoming(self.disk)
        incoming.begin(LARGEST)
        incoming.write(jpeg(1000))
        return incoming

    def test_archive_pauses(self) -> None:
        """So much may wait for the disk; then the archive waits, until there is room again."""
        incoming = self.begun()
        self.assertIsNone(incoming.room())
        incoming.write(b"x" * BACKLOG_BYTES)
        room = incoming.room()
        assert room is not None
        self.assertNoResult(room)
        self.disk.let_all_go()
        self.successResultOf(room)
        self.assertIsNone(incoming.room())
        incoming.fail(CoverError())

    def test_nothing_before_the_disk(self) -> None:
        """Readers read from the disk alone, so what waits for it is not there yet."""
        incoming = self.begun()
        incoming.attach(self)
        self.assertEqual(incoming.read(self, 0, 10), b"")
        more = incoming.more(0)
        self.assertNoResult(more)
        self.disk.let_one_go()
        self.successResultOf(more)
        self.assertEqual(incoming.read(self, 0, 10), jpeg(10))
        incoming.fail(CoverError())
        incoming.detach(self)

    def test_one_piece_at_a_time(self) -> None:
        """Pieces that come meanwhile are written together and in order."""
        incoming = self.begun()
        for n in range(5):
            incoming.write(b"%d" % n * 10)
        self.assertEqual(len(self.disk.waiting), 1)
        incoming.attach(self)
        self.disk.let_all_go()
        self.assertEqual(incoming.read(self, 1000, 100), b"".join(b"%d" % n * 10 for n in range(5)))
        incoming.fail(CoverError())
        incoming.detach(self)

    def test_finish_waits(self) -> None:
        """The end waits for the pieces before it."""
        incoming = self.incoming(self.disk)
        body = jpeg(LARGE)
        incoming.begin(LARGE)
        incoming.write(body[:1000])
        incoming.write(body[1000:])
        finished = self.finish(incoming)
        self.assertNoResult(finished)
        self.disk.let_all_go()
        entry = self.successResultOf(finished)
        assert entry is not None
        self.assertEqual(entry.size_bytes, LARGE)
        self.assertEqual((self.visible(), self.temporary()), (body, []))

    def test_fails_during_a_write(self) -> None:
        """A failure while a piece is being written leaves nothing, however the two end."""
        before = self.descriptors()
        for held in (False, True):
            incoming = self.begun()
            if held:
                self.disk.let_one_go()
                incoming.write(b"y" * 100)
            incoming.fail(NotReached("cut"))
            self.disk.let_all_go()
            self.assertEqual((self.visible(), self.temporary()), (None, []))
        self.assertEqual(self.descriptors(), before)

    def test_disk_refuses_later(self) -> None:
        """An error of the disk wakes readers, who go on from memory, and whoever waits for room."""
        incoming = self.begun()
        incoming.attach(self)
        incoming.write(b"x" * BACKLOG_BYTES)
        room, more = incoming.room(), incoming.more(0)
        assert room is not None
        for file in self.root.rglob("*"):
            if file.is_dir():
                file.rmdir()
        (self.root / layout.INCOMING).write_bytes(b"in the way")
        self.disk.let_all_go()
        self.successResultOf(room)
        self.successResultOf(more)
        self.assertEqual(incoming.read(self, 0, 10), jpeg(10))
        incoming.detach(self)
        self.assertRaises(StoreFailed, incoming.write, b"x")
        incoming.fail(CoverError())

    @examples(30)
    @given(
        st.integers(SMALL_BYTES + 1, SMALL_BYTES + 3000),
        st.lists(st.integers(20_000, 120_000), min_size=1, max_size=12),
        st.lists(st.sampled_from(["disk", "read", "one"]), max_size=20),
    )
    def test_any_pace(self, size: int, pieces: list[int], turns: list[str]) -> None:
        """However fast disk and readers are, each reader reads exactly the image."""
        body = jpeg(size)
        incoming = self.incoming(self.disk)
        incoming.begin(size)
        read = [b"", b""]
        for n, _ in enumerate(read):
            incoming.attach(n)
        at, turn = 0, 0
        while at < size:
            piece = body[at : at + pieces[turn % len(pieces)]]
            incoming.write(piece)
            at += len(piece)
            what = turns[turn % len(turns)] if turns else "disk"
            turn += 1
            if what == "disk":
                self.disk.let_all_go()
            elif what == "one" and self.disk.waiting:
                self.disk.let_one_go()
            else:
                read[0] += incoming.read(0, len(read[0]), 5000)
        finished = self.finish(incoming)
        self.disk.let_all_go()
        self.successResultOf(finished)
        for n in range(2):
            while len(read[n]) < size:
                data = incoming.read(n, len(read[n]), 70_000)
                assert data
                read[n] += data
            incoming.detach(n)
        self.assertEqual(read, [body, body])
        self.assertEqual(self.visible(), body)
