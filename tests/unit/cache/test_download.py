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
from coverart.cache.download import BACKLOG_BYTES, SMALL_BYTES, Download
from coverart.cache.size_limits import Room
from coverart.cache.writer import InThread, Writer
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


class DownloadTests(SynchronousTestCase):
    """One download, its disk at once or held back."""

    def setUp(self) -> None:
        self.root = folder(self)
        self.store = ImageStore(self.root)
        self.room = Room(
            store=self.store,
            index=MemoryIndex(),
            max_bytes=10 * LARGEST,
            clock=Clock(),
            largest_image_bytes=LARGEST,
        )
        self.announced: list[Download] = []
        self.announce: Callable[[Download], object] = self.announced.append
        self.disk = HeldBack()

    def download(self, in_thread: InThread = at_once, size: int = ORIGINAL) -> Download:
        """A download that starts now."""
        return Download(
            KEY.ref.at(size),
            store=self.store,
            room=self.room,
            writer=Writer(self.store, in_thread),
            stored_at=1000,
            announce=self.announce,
        )

    def finish(self, download: Download) -> Deferred[FileEntry | None]:
        """The end of the download, and of its flight if it ended well."""

        async def finish() -> FileEntry | None:
            entry = await download.finish()
            download.end()
            return entry

        return Deferred.fromCoroutine(finish())

    def finished(self, download: Download) -> FileEntry:
        """What it ended with: stored."""
        entry = self.successResultOf(self.finish(download))
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


class SmallTests(DownloadTests):
    """An image that is answered when it is whole."""

    def test_whole(self) -> None:
        """A small image is announced once it is whole, and visible then, with its time."""
        body, before = jpeg(20_000), self.descriptors()
        download = self.download()
        download.begin(len(body))
        for at in range(0, len(body), 1000):
            download.write(body[at : at + 1000])
            self.assertIsNone(download.room())
        self.assertIsNone(self.visible())
        entry = self.successResultOf(self.finish(download))
        expected = FileEntry(size_bytes=20_000, stored_at=1000, media=MediaType.JPEG)
        self.assertEqual(entry, expected)
        self.assertEqual(self.visible(), body)
        self.assertEqual((self.announced, self.temporary()), ([download], []))
        self.assertEqual(self.descriptors(), before)

    def test_undeclared(self) -> None:
        """A chunked body is as good; it is announced when it is whole and its end is known."""
        body = jpeg(LARGE)
        download = self.download()
        download.begin(None)
        download.write(body)
        self.assertEqual(self.announced, [])
        self.assertEqual(self.finished(download).size_bytes, LARGE)
        self.assertEqual((self.visible(), self.announced), (body, [download]))

    def test_cut_and_too_long(self) -> None:
        """What differs from the declared length is refused, and nothing is kept."""
        for declared in (99, 101):
            download = self.download()
            download.begin(declared)
            download.write(jpeg(100))
            self.failureResultOf(self.finish(download), BadUpstream)
            download.end(CoverError())
        self.assertEqual((self.visible(), self.temporary()), (None, []))

    def test_no_image(self) -> None:
        """A page is refused on its first bytes, in whatever pieces they come."""
        for pieces in ((b"<!DOCTYPE html>",), (b"<", b"!DOC", b"TYPE", b" html>")):
            download = self.download()
            download.begin(15)

            def write(download: Download = download, pieces: tuple[bytes, ...] = pieces) -> None:
                for piece in pieces:
                    download.write(piece)

            self.assertRaises(BadUpstream, write)

    def test_type_in_pieces(self) -> None:
        """A type is told byte by byte as well."""
        download = self.download()
        download.begin(20)
        for n in range(20):
            download.write(jpeg(20)[n : n + 1])
        self.assertIs(self.finished(download).media, MediaType.JPEG)

    def test_too_short(self) -> None:
        """Nothing, or less than tells a type, is no image even where it is as declared."""
        for body in (b"", HEAD[:4]):
            download = self.download()
            download.begin(len(body))
            download.write(body)
            self.failureResultOf(self.finish(download), BadUpstream)

    def test_thumbnail_of_another_type(self) -> None:
        """A thumbnail that is no JPEG is refused."""
        download = self.download(size=250)
        download.begin(None)
        self.assertRaises(BadUpstream, download.write, b"\x89PNG\r\n\x1a\n....")

    def test_over_the_limit(self) -> None:
        """An image over the limit is refused as declared, or as soon as it grows over it."""
        download = self.download()
        self.assertRaises(BadUpstream, download.begin, LARGEST + 1)
        download.begin(None)
        download.write(jpeg(LARGEST))
        self.assertRaises(BadUpstream, download.write, b"x")
        download.end(CoverError())
        self.assertEqual((self.visible(), self.temporary()), (None, []))

    def test_starts_over(self) -> None:
        """As long as nothing is on the disk, a second answer takes the place of a broken one."""
        download = self.download()
        download.begin(50_000)
        download.write(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
        download.begin(100)
        download.write(jpeg(100))
        entry = self.finished(download)
        self.assertEqual((entry.size_bytes, entry.media), (100, MediaType.JPEG))
        self.assertEqual(self.visible(), jpeg(100))

    def test_disk_refuses(self) -> None:
        """What the disk does not take is read from memory by those who wait, and then let go."""
        before = self.descriptors()
        self.announce = lambda each: each.attach(self)
        download = self.download()
        download.begin(100)
        download.write(jpeg(100))
        (self.root / "release").write_bytes(b"in the way")
        self.assertIsNone(self.successResultOf(self.finish(download)))
        self.assertEqual(download.unstored, "ENOTDIR")
        self.assertEqual(download.read(self, 0, 1000), jpeg(100))
        download.detach(self)
        self.assertFalse(self.room.takes_files)
        self.assertEqual((self.temporary(), self.descriptors()), ([], before))

    def test_over_the_bound(self) -> None:
        """Past the bound on what is held nothing is written, whatever its length was said to be."""
        self.patch(room, "SLACK_BYTES", 150)
        self.room = Room(store=self.store, index=MemoryIndex(), max_bytes=0, clock=Clock())
        coming = [self.download() for _ in range(3)]
        for download, declared in zip(coming, (100, None, 100), strict=True):
            download.begin(declared)
            download.write(jpeg(100))
        for download in coming:
            self.successResultOf(self.finish(download))
        self.assertEqual([each.unstored for each in coming], [None, "cache-full", "cache-full"])
        self.assertIsNone(self.room.reserve(150))

    def test_over_the_bound_midway(self) -> None:
        """What was written of images that grew past the bound counts until it is gone."""
        bound = 3 * LARGE
        self.patch(room, "SLACK_BYTES", bound)
        self.room = Room(store=self.store, index=MemoryIndex(), max_bytes=0, clock=Clock())
        coming = [self.download() for _ in range(9)]
        for download in coming:
            download.begin(None)
        body, most = jpeg(LARGE), 0
        for start in range(0, LARGE, 50_000):
            for download in coming:
                download.write(body[start : start + 50_000])
            there = (self.root / layout.INCOMING).iterdir()
            most = max(most, sum(each.stat().st_size for each in there))
        self.assertTrue(0 < most <= bound, most)
        self.assertEqual(coming[0].unstored, "cache-full")
        for download in coming:
            download.end(CoverError())
        self.assertEqual((self.temporary(), self.room.reserve(bound)), ([], None))


class LargeTests(DownloadTests):
    """An image that flows to its readers while it arrives."""

    def begun(self, in_thread: InThread = at_once, body: bytes | None = None) -> Download:
        """A large image of which so much has come."""
        download = self.download(in_thread)
        download.begin(LARGE)
        download.write(jpeg(LARGE)[:1000] if body is None else body)
        return download

    def test_announced(self) -> None:
        """It is announced once, when its first bytes proved to be of an image."""
        download = self.download()
        download.begin(LARGE)
        download.write(HEAD[:7])
        self.assertEqual(self.announced, [])
        download.write(jpeg(LARGE)[7:1000])
        download.write(jpeg(LARGE)[1000:2000])
        self.assertEqual(self.announced, [download])
        self.assertEqual(download.length, LARGE)
        download.end(CoverError())

    def test_readers_at_their_own_pace(self) -> None:
        """Each reader gets all that has come, from where it stands, in its own pieces."""
        body = jpeg(LARGE)
        download = self.begun()
        download.attach(self)
        download.attach("another")
        self.assertEqual(download.read(self, 0, 10), body[:10])
        self.assertEqual(download.read(self, 500, 10_000), body[500:1000])
        self.assertEqual(download.read(self, 1000, 10), b"")
        more = download.more(1000)
        self.assertNoResult(more)
        download.write(body[1000:])
        self.successResultOf(more)
        self.assertEqual(download.read(self, 1000, LARGE), body[1000:])
        self.successResultOf(self.finish(download))
        self.assertEqual(download.read(self, 0, LARGE), body)
        download.detach(self)
        download.detach("another")
        self.assertEqual(self.visible(), body)

    def test_closed_after_the_last(self) -> None:
        """The file stays open for those who still read, and no longer."""
        before = self.descriptors()
        download = self.begun(body=jpeg(LARGE))
        download.attach(self)
        self.successResultOf(self.finish(download))
        self.assertEqual(self.descriptors(), before + 1)
        download.detach(self)
        self.assertEqual(self.descriptors(), before)

    def test_evicted_while_read(self) -> None:
        """A reader finishes an image that was evicted meanwhile."""
        download = self.begun(body=jpeg(LARGE))
        download.attach(self)
        self.successResultOf(self.finish(download))
        self.store.remove(layout.image_path(KEY, MediaType.JPEG))
        self.assertEqual(download.read(self, 0, LARGE), jpeg(LARGE))
        download.detach(self)

    def test_fails_midway(self) -> None:
        """Readers get what had come and then the error; nothing is kept."""
        before = self.descriptors()
        download = self.begun()
        download.attach(self)
        more = download.more(1000)
        download.end(NotReached("cut"))
        self.successResultOf(more)
        self.assertEqual(download.read(self, 0, 5000), jpeg(1000))
        self.assertRaises(NotReached, download.read, self, 1000, 10)
        self.successResultOf(download.more(1000))
        download.detach(self)
        self.assertEqual((self.visible(), self.temporary()), (None, []))
        self.assertEqual(self.descriptors(), before)

    def test_first_error_counts(self) -> None:
        """What failed first is what is told."""
        download = self.begun()
        download.attach(self)
        download.end(NotReached("first"))
        download.end(BadUpstream("second"))
        error = self.assertRaises(CoverError, download.read, self, 1000, 10)
        self.assertEqual(error.detail, "first")
        download.detach(self)

    def test_no_second_answer(self) -> None:
        """Once bytes are on the disk and with readers, another answer can't take their place."""
        download = self.begun()
        self.assertRaises(BadUpstream, download.begin, LARGE)
        download.end(CoverError())

    def test_too_late(self) -> None:
        """A reader that comes after the end is told so, and gets no empty image."""
        download = self.begun(body=jpeg(LARGE))
        self.successResultOf(self.finish(download))
        download.attach(self)
        self.assertRaises(StoreFailed, download.read, self, 0, 10)
        download.detach(self)

    def test_leaves_while_waiting(self) -> None:
        """A reader that leaves takes nothing from another."""
        download = self.begun()
        download.attach(self)
        download.attach("another")
        hasty, patient = download.more(1000), download.more(1000)
        hasty.cancel()
        self.failureResultOf(hasty, CancelledError)
        download.detach(self)
        download.write(b"x")
        self.successResultOf(patient)
        download.detach("another")
        download.end(CoverError())

    def test_leaves_while_woken(self) -> None:
        """A reader may make another leave when it is woken."""
        download = self.begun()
        first, second, third = (download.more(1000) for _ in range(3))
        first.addCallback(lambda _: second.cancel())
        download.write(b"x")
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)
        self.successResultOf(third)
        download.end(CoverError())

    def full(self, *_: Any) -> None:
        """What a full disk says."""
        raise OSError(28, "No space left on device")

    def test_disk_fills_up(self) -> None:
        """When the disk is full, readers get the rest from memory; nothing stays of either."""
        body, before = jpeg(LARGE), self.descriptors()
        download = self.begun()
        download.attach(self)
        self.patch(self.store, "append", self.full)
        download.write(body[1000:2000])
        self.assertEqual(download.unstored, "ENOSPC")
        self.assertEqual(download.read(self, 0, 5000), body[:1000])
        self.assertEqual(download.read(self, 1000, 5000), body[1000:2000])
        more = download.more(2000)
        download.write(body[2000:])
        self.successResultOf(more)
        self.assertIsNone(self.successResultOf(self.finish(download)))
        self.assertEqual(download.read(self, 2000, LARGE), body[2000:])
        download.detach(self)
        self.assertEqual((self.visible(), self.temporary()), (None, []))
        self.assertEqual(self.descriptors(), before)

    def test_disk_is_full(self) -> None:
        """It is announced when it is known whether its first bytes are stored."""
        self.patch(self.store, "append", self.full)
        told: list[str | None] = []
        self.announce = lambda each: told.append(each.unstored)
        download = self.download(self.disk)
        download.begin(LARGE)
        download.write(jpeg(LARGE)[:1000])
        self.assertEqual(told, [])
        self.disk.let_all_go()
        self.assertEqual(told, ["ENOSPC"])
        download.end(CoverError())
        self.assertEqual(self.temporary(), [])

    def test_memory_is_bounded(self) -> None:
        """What all readers have passed goes when memory is short; then the archive is paused."""
        self.patch(room, "MOST_IN_MEMORY_BYTES", 5000)
        self.patch(self.store, "append", self.full)
        body = jpeg(LARGE)
        self.announce = lambda each: each.attach("slow")
        download = self.download()
        download.begin(LARGE)
        download.write(body[:4000])
        download.attach("quick")
        self.assertIsNone(download.room())
        download.write(body[4000:8000])
        paused = download.room()
        assert paused is not None
        download.read("quick", 0, LARGE)
        self.assertNoResult(paused)
        self.assertFalse(download.over)
        self.assertEqual(download.read("slow", 0, 3500), body[:3500])
        self.successResultOf(paused)
        # The beginning is gone: who comes now is too late.
        self.assertTrue(download.over)
        self.assertEqual(download.read("slow", 3500, 3500), body[3500:7000])
        for reader in ("quick", "slow"):
            download.detach(reader)
        with self.assertRaises(StoreFailed) as caught:
            download.write(body[8000:9000])
        download.end(caught.exception)
        self.assertFalse(self.room.crowded(small=False))

    def test_no_memory_for_one_more(self) -> None:
        """One that nobody can read yet is refused while memory is full of others."""
        self.patch(room, "MOST_IN_MEMORY_BYTES", 2000)
        self.patch(room, "FOR_SMALL_BYTES", 3000)
        self.patch(self.store, "append", self.full)
        body = jpeg(4000)
        second = self.download()
        self.announce = lambda each: each.attach(self)
        first = self.download()
        for download in (first, second):
            download.begin(len(body))
            download.write(body)
        self.assertIsNone(self.successResultOf(self.finish(first)))
        error = self.failureResultOf(self.finish(second), StoreFailed).value
        second.end(error)
        self.assertEqual(first.read(self, 0, 5000), body)
        first.detach(self)
        self.assertFalse(self.room.crowded(small=False))

    def test_memory_for_small_ones(self) -> None:
        """Slow clients of a large image keep nobody from a thumbnail."""
        self.patch(room, "MOST_IN_MEMORY_BYTES", 5000)
        self.patch(self.store, "append", self.full)
        self.announce = lambda each: each.attach("slow")
        large = self.begun(body=jpeg(LARGE)[:6000])
        self.assertIsNotNone(large.room())
        self.announce = lambda each: each.attach("quick")
        small = self.download()
        small.begin(4000)
        self.patch(room, "FOR_SMALL_BYTES", 2000)
        small.write(jpeg(4000)[:2000])
        paused = small.room()
        assert paused is not None
        # Below the bound for small ones, and still above that for others.
        large.read("slow", 0, 2000)
        self.successResultOf(paused)
        self.assertIsNone(small.room())
        self.assertIsNotNone(large.room())
        self.patch(room, "FOR_SMALL_BYTES", 4000)
        small.write(jpeg(4000)[2000:])
        self.assertIsNone(self.successResultOf(self.finish(small)))
        self.assertEqual(small.read("quick", 0, 5000), jpeg(4000))
        small.detach("quick")
        large.detach("slow")
        large.end(CoverError())


class SlowDiskTests(DownloadTests):
    """The disk is held back, as a thread can be."""

    def begun(self) -> Download:
        """A large image whose first piece waits for the disk."""
        download = self.download(self.disk)
        download.begin(LARGEST)
        download.write(jpeg(1000))
        return download

    def test_archive_pauses(self) -> None:
        """So much may wait for the disk; then the archive waits, until there is room again."""
        download = self.begun()
        self.assertIsNone(download.room())
        download.write(b"x" * BACKLOG_BYTES)
        room = download.room()
        assert room is not None
        self.assertNoResult(room)
        self.disk.let_all_go()
        self.successResultOf(room)
        self.assertIsNone(download.room())
        download.end(CoverError())

    def test_the_disk_is_not_in_the_way(self) -> None:
        """Readers get what still waits for the disk, and the same when it is there."""
        download = self.begun()
        download.attach(self)
        self.assertEqual(download.read(self, 0, 10), jpeg(10))
        self.disk.let_one_go()
        self.assertEqual(download.read(self, 0, 10), jpeg(10))
        more = download.more(1000)
        self.assertNoResult(more)
        download.write(b"x")
        self.successResultOf(more)
        self.assertEqual(download.read(self, 1000, 10), b"x")
        download.end(CoverError())
        download.detach(self)

    def test_one_piece_at_a_time(self) -> None:
        """Pieces that come meanwhile are written together and in order."""
        download = self.begun()
        for n in range(5):
            download.write(b"%d" % n * 10)
        self.assertEqual(len(self.disk.waiting), 1)
        download.attach(self)
        self.disk.let_all_go()
        self.assertEqual(download.read(self, 1000, 100), b"".join(b"%d" % n * 10 for n in range(5)))
        download.end(CoverError())
        download.detach(self)

    def test_finish_waits(self) -> None:
        """The end waits for the pieces before it."""
        download = self.download(self.disk)
        body = jpeg(LARGE)
        download.begin(LARGE)
        download.write(body[:1000])
        download.write(body[1000:])
        finished = self.finish(download)
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
            download = self.begun()
            if held:
                self.disk.let_one_go()
                download.write(b"y" * 100)
            download.end(NotReached("cut"))
            self.disk.let_all_go()
            self.assertEqual((self.visible(), self.temporary()), (None, []))
        self.assertEqual(self.descriptors(), before)

    def test_disk_refuses_later(self) -> None:
        """An error of the disk wakes readers, who go on from memory, and whoever waits for room."""
        download = self.begun()
        download.attach(self)
        download.write(b"x" * BACKLOG_BYTES)
        room, more = download.room(), download.more(0)
        assert room is not None
        for file in self.root.rglob("*"):
            if file.is_dir():
                file.rmdir()
        (self.root / layout.INCOMING).write_bytes(b"in the way")
        self.disk.let_all_go()
        self.successResultOf(room)
        self.successResultOf(more)
        self.assertEqual(download.read(self, 0, 10), jpeg(10))
        download.detach(self)
        self.assertRaises(StoreFailed, download.write, b"x")
        download.end(CoverError())

    @examples(30)
    @given(
        st.integers(SMALL_BYTES + 1, SMALL_BYTES + 3000),
        st.lists(st.integers(20_000, 120_000), min_size=1, max_size=12),
        st.lists(st.sampled_from(["disk", "read", "one"]), max_size=20),
    )
    def test_any_pace(self, size: int, pieces: list[int], turns: list[str]) -> None:
        """However fast disk and readers are, each reader reads exactly the image."""
        body = jpeg(size)
        download = self.download(self.disk)
        download.begin(size)
        read = [b"", b""]
        for n, _ in enumerate(read):
            download.attach(n)
        at, turn = 0, 0
        while at < size:
            piece = body[at : at + pieces[turn % len(pieces)]]
            download.write(piece)
            at += len(piece)
            what = turns[turn % len(turns)] if turns else "disk"
            turn += 1
            if what == "disk":
                self.disk.let_all_go()
            elif what == "one" and self.disk.waiting:
                self.disk.let_one_go()
            else:
                read[0] += download.read(0, len(read[0]), 5000)
        finished = self.finish(download)
        self.disk.let_all_go()
        self.successResultOf(finished)
        for n in range(2):
            while len(read[n]) < size:
                data = download.read(n, len(read[n]), 70_000)
                assert data
                read[n] += data
            download.detach(n)
        self.assertEqual(read, [body, body])
        self.assertEqual(self.visible(), body)
