"""Files that come and go without ever being seen half."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from coverart.errors import StoreFailed
from coverart.model import (
    ORIGINAL,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
    Target,
)
from coverart.store import layout
from coverart.store.atomic_files import Temporary
from coverart.store.image_store import ImageStore, OnDisk
from coverart.store.orphans import remove_orphans, unfinished
from tests.support.disk import packed, put_file, unpacked, walk
from tests.support.doubles import folder
from tests.support.strategies import MBID, OTHER_MBID, examples

REF = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
FRONT = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="front")
GROUP = AliasKey(entity=Entity.RELEASE_GROUP, mbid=OTHER_MBID, name="front")
LISTING = ListingKey(entity=Entity.RELEASE, mbid=MBID)
JPEG = b"\xff\xd8\xff\xe0" + b"jpeg" * 10
PNG = b"\x89PNG\r\n\x1a\n" + b"png" * 10
THUMB = layout.image_path(REF.at(250), MediaType.JPEG)
LINK = layout.alias_path(ImageRequest(alias=FRONT, size=250), MediaType.JPEG)
ORPHAN = "0123456789abcdef" + "0" * 8


def nothing() -> None:
    """Ends no sweep."""


@contextlib.contextmanager
def open_folder(path: str) -> Iterator[int]:
    """A descriptor of a folder, as another process would have it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


class StoreTests(SynchronousTestCase):
    """One store in a directory of its own."""

    def setUp(self) -> None:
        self.root = folder(self) / "cache"
        self.store = ImageStore(self.root)

    def incoming(self) -> list[str]:
        """What lies in the folder of unfinished files."""
        return sorted(os.listdir(self.root / layout.INCOMING))

    def put(self, path: str = THUMB, body: bytes = JPEG, at: float = 1000) -> None:
        """A file as the store writes it."""
        put_file(self.store, path, body, at)


class OpenTests(StoreTests):
    """Where a store can be."""

    def test_made(self) -> None:
        """The directory is made with its parents, and nothing is left in it by the trial."""
        self.assertTrue(self.root.is_dir())
        self.assertEqual(self.incoming(), [])
        self.assertTrue(self.store.usable())

    def test_not_a_directory(self) -> None:
        """A place that can't be a directory is refused with a reason."""
        file = self.root / "file"
        file.write_bytes(b"")
        error = self.assertRaises(StoreFailed, ImageStore, file)
        self.assertIn("directory", error.detail)

    def test_usable(self) -> None:
        """A directory that was taken away is not usable."""
        shutil.rmtree(self.root)
        self.assertFalse(self.store.usable())


class WriteTests(StoreTests):
    """How a file becomes visible."""

    def test_nothing_before_commit(self) -> None:
        """A file is at its place whole, with its time, or not at all."""
        temporary = self.store.begin()
        self.store.append(temporary, JPEG[:10])
        self.assertIsNone(self.store.stat(THUMB))
        self.assertEqual(list(walk(str(self.root))), [])
        self.store.append(temporary, JPEG[10:])
        self.store.make_durable(temporary, 1000.5)
        self.store.put_in_place(temporary.path, THUMB)
        os.close(temporary.fd)
        self.assertEqual(pathlib.Path(self.store.absolute(THUMB)).read_bytes(), JPEG)
        status = self.store.stat(THUMB)
        assert status is not None
        self.assertEqual((status.st_mtime, status.st_size), (1000.5, len(JPEG)))
        self.assertEqual(self.incoming(), [])

    def test_abandoned(self) -> None:
        """What is abandoned leaves nothing, also if the directory is gone by then."""
        self.store.abandon(self.store.begin())
        self.assertEqual(self.incoming(), [])
        temporary = self.store.begin()
        shutil.rmtree(self.root)
        self.store.abandon(temporary)
        self.assertRaises(OSError, os.fstat, temporary.fd)

    def test_in_place_of_another(self) -> None:
        """A file put in place of one that is being read leaves the reader its own."""
        self.put(body=JPEG)
        fd = self.store.open(THUMB)
        self.addCleanup(os.close, fd)
        self.put(body=JPEG + b"new")
        self.assertEqual(os.read(fd, 1000), JPEG)
        self.assertEqual(pathlib.Path(self.store.absolute(THUMB)).read_bytes(), JPEG + b"new")

    def test_directory_emptied(self) -> None:
        """Somebody may empty the whole directory while we run; the next file makes it again."""
        self.put()
        shutil.rmtree(self.root)
        self.assertIsNone(self.store.stat(THUMB))
        self.assertIsNone(self.store.find(LISTING))
        self.assertEqual(remove_orphans(str(self.store.root), 0, nothing), 0)
        self.assertFalse(self.store.remove(THUMB))
        self.put()
        self.assertEqual(pathlib.Path(self.store.absolute(THUMB)).read_bytes(), JPEG)

    def test_latest_of_many(self) -> None:
        """Of many who write a listing at once, the one that was asked for last has its place."""
        path = layout.listing_path(LISTING)

        def write(first: int) -> None:
            for at in range(first, 200, 8):
                put_file(self.store, path, b"%d" % at, at)

        threads = [threading.Thread(target=write, args=(8 - n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(pathlib.Path(self.store.absolute(path)).read_bytes(), b"199")
        self.assertEqual(self.incoming(), [])

    def test_remove(self) -> None:
        """Removing says whether there was something."""
        self.put()
        self.assertEqual([self.store.remove(THUMB), self.store.remove(THUMB)], [True, False])

    def test_evicted_after_it_was_cut_short(self) -> None:
        """A file that was cut short goes with its entry: found later, it would be taken for whole."""
        entry = FileEntry(size_bytes=len(JPEG), stored_at=1000, media=MediaType.JPEG)
        self.put(body=JPEG[:-5], at=2000)
        self.store.remove_entry(REF.at(250), entry)
        self.assertIsNone(self.store.stat(THUMB))
        self.put(at=2000)
        self.store.remove_entry(REF.at(250), entry)
        self.assertIsNotNone(self.store.stat(THUMB), "stored anew since")

    def test_path_of(self) -> None:
        """An image's place needs its type, a listing's does not."""
        self.assertEqual(self.store.path_of(REF.at(250), MediaType.JPEG), THUMB)
        self.assertTrue(self.store.path_of(LISTING, None).endswith(f"{MBID}.json"))
        self.assertRaises(ValueError, self.store.path_of, REF.at(250), None)

    def test_not_through_a_link(self) -> None:
        """A symlink in the place of a file is not opened, wherever it leads."""
        outside = self.root.parent / "secret"
        outside.write_bytes(JPEG)
        (self.root / THUMB).parent.mkdir(parents=True)
        (self.root / THUMB).symlink_to(outside.resolve())
        self.assertRaises(OSError, self.store.open, THUMB)
        self.assertIsNone(self.store.examine(THUMB))

    def test_no_regular_file(self) -> None:
        """A pipe, a device by a link or a folder is no file, and looking at it never blocks."""
        place = self.root / THUMB
        place.parent.mkdir(parents=True)
        for make in (
            lambda: os.mkfifo(place),
            lambda: place.symlink_to("/dev/zero"),
            lambda: place.symlink_to(place.name),
            place.mkdir,
        ):
            make()
            self.assertIsNone(self.store.stat(THUMB))
            self.assertRaises(OSError, self.store.open, THUMB)
            self.assertIsNone(self.store.examine(THUMB))
            if place.is_dir():
                self.assertFalse(self.store.remove(THUMB))
                self.put()
                self.assertEqual(place.read_bytes(), JPEG)
            else:
                self.assertTrue(self.store.remove(THUMB))

    def test_folder_in_use(self) -> None:
        """A folder that holds something is in the way, and stays."""
        (self.root / THUMB).mkdir(parents=True)
        (self.root / THUMB / "mine").write_bytes(b"precious")
        self.assertRaises(OSError, self.put)
        self.assertEqual(self.incoming(), [])
        self.assertEqual((self.root / THUMB / "mine").read_bytes(), b"precious")


class OrphanTests(StoreTests):
    """Unfinished files of processes that are gone."""

    def test_only_unlocked(self) -> None:
        """The file of a living writer stays; that of a killed one goes."""
        mine = self.store.begin()
        self.addCleanup(os.close, mine.fd)
        orphan = self.root / layout.INCOMING / ORPHAN
        orphan.write_bytes(b"half")
        self.assertEqual(remove_orphans(str(self.store.root), 0, nothing), 1)
        self.assertEqual(self.incoming(), [os.path.basename(mine.path)])

    def test_finished_since(self) -> None:
        """A file whose writer closed it without a name is an orphan."""
        temporary = self.store.begin()
        os.close(temporary.fd)
        self.assertEqual(remove_orphans(str(self.store.root), 0, nothing), 1)

    def test_links(self) -> None:
        """Symlinks can't be locked, so those of the last minute stay."""
        link = self.root / layout.INCOMING / ORPHAN
        link.symlink_to("nowhere")
        made = link.lstat().st_mtime
        self.assertEqual(remove_orphans(str(self.store.root), made + 59, nothing), 0)
        self.assertEqual(remove_orphans(str(self.store.root), made + 61, nothing), 1)
        link.symlink_to("made while the clock was ahead")
        self.assertEqual(remove_orphans(str(self.store.root), made - 3600, nothing), 1)
        self.assertEqual(self.incoming(), [])

    def test_odd_things(self) -> None:
        """What else lies there is passed over."""
        (self.root / layout.INCOMING / ORPHAN).mkdir()
        (self.root / layout.INCOMING / "notes.txt").write_bytes(b"precious")
        self.assertEqual(remove_orphans(str(self.store.root), 10**10, nothing), 0)
        # A pipe has no writer that holds a lock; above all it is not waited for.
        os.mkfifo(self.root / layout.INCOMING / ORPHAN[::-1])
        self.assertEqual(remove_orphans(str(self.store.root), 0, nothing), 1)
        self.assertEqual(self.incoming(), [ORPHAN, "notes.txt"])

    def test_not_through_a_symlink(self) -> None:
        """A symlink in the place of the folder is not followed: what lies there is not ours."""
        elsewhere = self.root / "elsewhere"
        (self.root / layout.INCOMING).rename(elsewhere)
        (self.root / layout.INCOMING).symlink_to(elsewhere)
        (elsewhere / ORPHAN).write_bytes(b"precious")
        self.assertEqual(remove_orphans(str(self.store.root), 10**10, nothing), 0)
        self.assertEqual(unfinished(str(self.root)), [])
        self.assertEqual((elsewhere / ORPHAN).read_bytes(), b"precious")

    def test_no_locks(self) -> None:
        """
        A file system without locks: files are written all the same, and nothing is left open.

        What was not written to for a minute has no writer; what is younger may have one.
        """

        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        self.patch(fcntl, "flock", no_locks)
        before = len(os.listdir("/proc/self/fd"))
        ImageStore(self.root)
        self.put()
        self.assertEqual(pathlib.Path(self.store.absolute(THUMB)).read_bytes(), JPEG)
        left = self.store.begin()
        os.close(left.fd)
        now = os.stat(left.path).st_mtime
        self.assertEqual(remove_orphans(str(self.store.root), now + 59, nothing), 0)
        self.assertEqual(remove_orphans(str(self.store.root), now + 61, nothing), 1)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)


class LinkTests(StoreTests):
    """Aliases as symlinks."""

    def link(self, alias: AliasKey = FRONT, size: int = 250, at: float = 1000) -> None:
        """A symlink as the store makes it."""
        request = ImageRequest(alias=alias, size=size)
        self.store.links.make(request, REF.at(size), MediaType.JPEG, at)

    def test_relative(self) -> None:
        """A link leads to its image also after the whole directory was moved."""
        self.put()
        self.link()
        self.link(GROUP)
        self.assertFalse(os.readlink(self.root / LINK).startswith("/"))
        moved = self.root.rename(self.root.parent / "moved")
        self.assertEqual((moved / LINK).read_bytes(), JPEG)
        group = layout.alias_path(ImageRequest(alias=GROUP, size=250), MediaType.JPEG)
        self.assertEqual((moved / group).read_bytes(), JPEG)

    def test_found(self) -> None:
        """What a link says is found again: the image, the target, the time it was confirmed."""
        self.put(at=900)
        self.link(at=1000.25)
        found = self.store.find(ImageRequest(alias=FRONT, size=250))
        assert found is not None
        assert found.alias is not None
        self.assertEqual(found.key, REF.at(250))
        expected = FileEntry(size_bytes=len(JPEG), stored_at=900, media=MediaType.JPEG)
        self.assertEqual(found.entry, expected)
        self.assertEqual((found.alias.target, found.alias.checked_at), (Target(ref=REF), 1000.25))

    def test_original_tells_extension(self) -> None:
        """A link to an original tells its extension, which a thumbnail's can't."""
        path = layout.image_path(REF.at(ORIGINAL), MediaType.PNG)
        self.put(path, PNG)
        request = ImageRequest(alias=FRONT, size=ORIGINAL)
        self.store.links.make(request, REF.at(ORIGINAL), MediaType.PNG, 1000)
        found = self.store.find(request)
        assert found is not None
        assert found.alias is not None
        self.assertEqual(found.alias.target, Target(ref=REF, extension="png"))

    def test_in_place_of_another(self) -> None:
        """A link made again points at the new image."""
        other = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=8)
        self.put(layout.image_path(other.at(250), MediaType.JPEG), JPEG + b"8")
        self.link()
        self.store.links.make(
            ImageRequest(alias=FRONT, size=250), other.at(250), MediaType.JPEG, 1000
        )
        self.assertEqual((self.root / LINK).read_bytes(), JPEG + b"8")

    def test_dangling(self) -> None:
        """A link whose image was evicted finds nothing."""
        self.link()
        self.assertIsNone(self.store.find(ImageRequest(alias=FRONT, size=250)))
        self.assertIsNone(self.store.stat(LINK))

    def test_touched(self) -> None:
        """Confirming an alias renews all its links and no file."""
        self.put()
        self.link()
        self.link(size=500)
        self.store.links.confirm(FRONT, Alias(target=Target(ref=REF), checked_at=2000))
        times = {os.lstat(path).st_mtime for path in (self.root / LINK).parent.glob("*_front_*")}
        self.assertEqual(times, {2000})
        self.assertEqual(os.stat(self.root / THUMB).st_mtime, 1000)

    def test_not_touched(self) -> None:
        """Confirming an alias removes older links to another image, in sight and retired."""
        self.put()
        self.link()
        self.link(size=500)
        self.store.links.retire(LINK, 2000)
        self.store.links.confirm(
            FRONT, Alias(target=Target(ref=attrs.evolve(REF, image_id=8)), checked_at=2000)
        )
        self.assertEqual(list((self.root / LINK).parent.glob("*_front_*")), [])
        self.assertFalse(self.store.links.exist(FRONT))

    def test_not_outdated(self) -> None:
        """A link that was made since the alias was looked at stays, wherever it leads."""
        self.put()
        self.link(at=3000)
        alias = Alias(target=Target(ref=attrs.evolve(REF, image_id=8)), checked_at=2000)
        self.store.links.remove_outdated(FRONT, alias)
        self.assertEqual((self.root / LINK).read_bytes(), JPEG)
        self.assertTrue(self.store.links.exist(FRONT))

    def test_unlinked(self) -> None:
        """Removing an alias removes its links alone; where its name is an image's own, nothing."""
        self.put()
        self.link()
        self.link(GROUP)
        self.store.links.remove(FRONT)
        self.assertFalse(os.path.lexists(self.root / LINK))
        self.store.links.remove(REF.own_name)
        self.assertEqual(pathlib.Path(self.store.absolute(THUMB)).read_bytes(), JPEG)
        self.assertIsNotNone(self.store.find(ImageRequest(alias=GROUP, size=250)))

    def test_removed_alone(self) -> None:
        """Nobody can put a later symlink there between the look at a stamp and the removal."""
        request = ImageRequest(alias=FRONT, size=250)
        self.put()
        self.store.links.make(request, REF.at(250), MediaType.JPEG, 1000)
        kept_waiting = []
        look = self.store.stamp

        def stamp(path: str) -> float:
            with open_folder(os.path.dirname(self.store.absolute(path))) as fd:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    kept_waiting.append(False)
                except BlockingIOError:
                    kept_waiting.append(True)
            return look(path)

        self.patch(self.store, "stamp", stamp)
        self.store.links.remove(FRONT, 1000)
        self.assertEqual(kept_waiting, [True])
        self.assertFalse(self.store.links.exist(FRONT))

    def test_retired(self) -> None:
        """An alias past its time is out of nginx's sight, is found, and serves again if confirmed."""
        self.put()
        self.link(at=1000)
        for path in layout.alias_paths(FRONT):
            self.store.links.retire(path, 1000)
        self.assertTrue(os.path.lexists(self.root / LINK))
        for path in layout.alias_paths(FRONT):
            self.store.links.retire(path, 1001)
        self.assertFalse(os.path.lexists(self.root / LINK))
        found = self.store.find(ImageRequest(alias=FRONT, size=250))
        assert found is not None
        assert found.alias is not None
        self.assertEqual((found.key, found.alias.checked_at), (REF.at(250), 1000))
        self.store.links.confirm(FRONT, Alias(target=Target(ref=REF), checked_at=2000))
        self.assertEqual((self.root / LINK).read_bytes(), JPEG)

    def test_earlier_stays_out(self) -> None:
        """A link is not replaced by one that was asked for earlier, unless a wrong clock made it."""
        other = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=8)
        request = ImageRequest(alias=FRONT, size=250)
        self.link(at=2000)
        self.store.links.make(request, other.at(250), MediaType.JPEG, 1999)
        self.assertIn("_7_250", os.readlink(self.root / LINK))
        self.assertEqual(os.listdir(self.root / layout.INCOMING), [])
        self.link(at=time.time() + 3600)
        self.store.links.make(request, other.at(250), MediaType.JPEG, 2000)
        self.assertIn("_8_250", os.readlink(self.root / LINK))

    def test_retired_files(self) -> None:
        """No regular file is ever retired."""
        self.put()
        for path in layout.alias_paths(REF.own_name):
            self.store.links.retire(path, 10**10)
        self.assertEqual(pathlib.Path(self.store.absolute(THUMB)).read_bytes(), JPEG)


class UnreadableTests(StoreTests):
    """A file that can't be read for now: nobody can say what it is."""

    def test_stays(self) -> None:
        """A disk that fails, or a process without descriptors, makes no file damaged: it stays."""
        entry = FileEntry(size_bytes=len(JPEG), stored_at=1000, media=MediaType.JPEG)
        self.put()
        for code in (errno.EIO, errno.EMFILE, errno.ENOMEM):

            def refuses(path: str, code: int = code) -> int:
                raise OSError(code, os.strerror(code), path)

            self.patch(self.store, "open", refuses)
            self.assertRaises(OSError, self.store.remove_spoilt, REF.at(250), entry)
            self.assertRaises(OSError, self.store.remove_damaged, THUMB)
            self.assertIsNone(self.store.find(ImageRequest(alias=REF.own_name, size=250)))
            self.assertEqual((self.root / THUMB).read_bytes(), JPEG)

    def test_link_stays(self) -> None:
        """A symlink whose file can't be looked at is none without a file."""
        self.put()
        request = ImageRequest(alias=FRONT, size=250)
        self.store.links.make(request, REF.at(250), MediaType.JPEG, 1000)
        looked_at = os.stat

        def refuses(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            if str(path).endswith(LINK) and kwargs.get("follow_symlinks", True):
                raise OSError(errno.EIO, "Input/output error", path)
            return looked_at(path, *args, **kwargs)

        self.patch(os, "stat", refuses)
        self.assertFalse(self.store.links.remove_dangling(LINK))
        self.assertTrue((self.root / LINK).is_symlink())


class FindTests(StoreTests):
    """What is adopted from the disk."""

    def found(self, path: str) -> OnDisk | None:
        """What examine() says."""
        return self.store.examine(path)

    def test_own(self) -> None:
        """A file under an image's own name is that image."""
        self.put(at=1234.5)
        found = self.store.find(ImageRequest(alias=REF.own_name, size=250))
        expected = FileEntry(size_bytes=len(JPEG), stored_at=1234.5, media=MediaType.JPEG)
        self.assertEqual(found, OnDisk(key=REF.at(250), entry=expected))

    def test_any_type(self) -> None:
        """An original is found whatever its type, if it is what its name says."""
        request = ImageRequest(alias=REF.own_name, size=ORIGINAL)
        self.put(layout.image_path(REF.at(ORIGINAL), MediaType.JPEG), PNG)
        self.assertIsNone(self.store.find(request))
        self.put(layout.image_path(REF.at(ORIGINAL), MediaType.PNG), PNG)
        found = self.store.find(request)
        assert found is not None
        self.assertIs(found.entry.media, MediaType.PNG)

    def test_listing(self) -> None:
        """A listing is found as it was stored."""
        self.put(layout.listing_path(LISTING), b'{"images":[]}')
        found = self.store.find(LISTING)
        self.assertEqual(found, OnDisk(key=LISTING, entry=FileEntry(size_bytes=13, stored_at=1000)))

    def test_not_adopted(self) -> None:
        """Empty files, pages, folders, and what has no place here are not taken for covers."""
        for path, body in (
            (THUMB, b""),
            (THUMB, b"<!DOCTYPE html><html>"),
            (THUMB, PNG),
            (LINK, JPEG),
            (layout.listing_path(LISTING), b""),
        ):
            self.put(path, body)
            self.assertIsNone(self.found(path), path)
            self.store.remove(path)
        for path in (THUMB, layout.listing_path(LISTING), LINK):
            (self.root / path).mkdir()
            self.assertIsNone(self.found(path), path)
            (self.root / path).rmdir()
        for path in ("", "x", "../x", layout.INCOMING, f"{layout.INCOMING}/x", "release/3/35/353"):
            self.assertIsNone(self.found(path), path)

    def test_foreign_links(self) -> None:
        """A link that does not lead to an image's own place below is not followed."""
        self.put()
        secret = self.root.parent / "secret.jpg"
        secret.write_bytes(JPEG)
        link = self.root / LINK
        for text in (
            *(str(secret.resolve()), "../../../../../secret.jpg", os.path.basename(THUMB)),
            *(f"../../../../{LINK}", f"../../../../release/../{THUMB}", "/dev/zero", "x" * 200),
            layout.link_text(LINK, layout.image_path(REF.at(500), MediaType.JPEG)),
        ):
            with self.subTest(text=text):
                link.symlink_to(text)
                self.assertIsNone(self.found(LINK))
                link.unlink()

    def test_linked_folder(self) -> None:
        """A loop of folders ends in nothing."""
        (self.root / "release").symlink_to(".")
        self.assertIsNone(self.found(THUMB))


class RebuildTests(StoreTests):
    """Reading everything back."""

    def test_all(self) -> None:
        """A walk sees every file and alias with what the store gave them, and nothing else."""
        self.put(at=900.5)
        self.put(layout.listing_path(LISTING), b"{}", 901)
        self.store.links.make(
            ImageRequest(alias=GROUP, size=250), REF.at(250), MediaType.JPEG, 902.25
        )
        self.store.begin()
        folder = (self.root / THUMB).parent
        (folder / "notes.txt").write_bytes(b"x")
        (folder / f"{MBID}_9.png").write_bytes(b"")
        (folder / f"{MBID}_front.jpg").write_bytes(JPEG)
        (folder / f"{MBID}_back.jpg").symlink_to("/etc/passwd")
        (folder / f"{OTHER_MBID}_7.jpg").write_bytes(JPEG)
        (folder / f"{MBID}_12.jpg").mkdir()
        (self.root / "lost+found").mkdir()
        seen = dict(walk(str(self.root)))
        self.assertEqual(set(seen), {REF.at(250), LISTING, GROUP})
        self.assertEqual(
            seen[REF.at(250)],
            FileEntry(size_bytes=len(JPEG), stored_at=900.5, media=MediaType.JPEG),
        )
        self.assertEqual(seen[LISTING], FileEntry(size_bytes=2, stored_at=901))
        group = self.store.find(ImageRequest(alias=GROUP, size=250))
        assert group is not None
        self.assertEqual(seen[GROUP], group.alias)

    def test_slice(self) -> None:
        """A slice is the part of a walk whose MBIDs begin with its digits."""
        other = ImageRef(owner=Entity.EVENT, mbid=OTHER_MBID, image_id=8)
        self.put()
        self.put(layout.image_path(other.at(ORIGINAL), MediaType.PNG), PNG)
        self.store.links.make(
            ImageRequest(alias=FRONT, size=250), REF.at(250), MediaType.JPEG, 1000
        )
        for number, files, aliases in (
            (0x353, {REF.at(250)}, {FRONT}),
            (0x76D, {other.at(ORIGINAL)}, set()),
            (0, set(), set()),
        ):
            shown = unpacked(packed(str(self.root), number))
            self.assertEqual((set(shown[0]), set(shown[1])), (files, aliases))

    def test_nothing(self) -> None:
        """A directory that is not there holds nothing."""
        self.assertEqual(list(walk(str(self.root / "nowhere"))), [])


# Any order of everything


_KEYS = tuple(
    ImageRef(owner=Entity.RELEASE, mbid=mbid, image_id=image_id).at(size)
    for mbid in (MBID, OTHER_MBID)
    for image_id in (7, 8)
    for size in (ORIGINAL, 250)
)
_keys = st.sampled_from(_KEYS)
_names = st.sampled_from((FRONT, GROUP))


@attrs.define(eq=False)
class Writing:
    """A file being written, and what was written of it."""

    temporary: Temporary
    body: bytes = JPEG


class StoreMachine(RuleBasedStateMachine):
    """Writers, sweeps, evictions and an operator with rm -r, in any order."""

    writers: Bundle[Writing] = Bundle("writers")

    @initialize()
    def open(self) -> None:
        self.root = tempfile.mkdtemp()
        self.store = ImageStore(pathlib.Path(self.root))
        self.held: dict[str, bytes] = {}
        self.links: dict[str, tuple[int, str]] = {}
        self.open_fds: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "root"):
            for fd in self.open_fds:
                os.close(fd)
            shutil.rmtree(self.root, ignore_errors=True)

    @rule(target=writers)
    def begin(self) -> Writing:
        writing = Writing(self.store.begin())
        self.open_fds.add(writing.temporary.fd)
        self.store.append(writing.temporary, JPEG)
        return writing

    @rule(writing=writers, data=st.binary(max_size=20))
    def append(self, writing: Writing, data: bytes) -> None:
        self.store.append(writing.temporary, data)
        writing.body += data

    @rule(writing=consumes(writers), key=_keys, at=st.integers(1, 10**9))
    def commit(self, writing: Writing, key: ImageKey, at: int) -> None:
        path = layout.image_path(key, MediaType.JPEG)
        lost = not os.path.exists(writing.temporary.path)
        try:
            self.store.make_durable(writing.temporary, at)
            self.store.put_in_place(writing.temporary.path, path)
        except OSError:
            assert lost, "a commit failed though its file was there"
            self.store.abandon(writing.temporary)
        else:
            assert not lost
            os.close(writing.temporary.fd)
            self.held[path] = writing.body
        self.open_fds.discard(writing.temporary.fd)

    @rule(writing=consumes(writers))
    def abandon(self, writing: Writing) -> None:
        self.store.abandon(writing.temporary)
        self.open_fds.discard(writing.temporary.fd)

    @rule(name=_names, key=_keys, at=st.integers(1, 10**9))
    def link(self, name: AliasKey, key: ImageKey, at: int) -> None:
        request = ImageRequest(alias=name, size=key.size)
        # As a file of the same moment was written there.
        os.makedirs(os.path.join(self.root, layout.INCOMING), exist_ok=True)
        self.store.links.make(request, key, MediaType.JPEG, at)
        link = layout.alias_path(request, MediaType.JPEG)
        if at >= self.links.get(link, (0, ""))[0]:
            self.links[link] = at, layout.image_path(key, MediaType.JPEG)

    @rule(name=_names)
    def unlink(self, name: AliasKey) -> None:
        self.store.links.remove(name)
        for path in layout.alias_paths(name):
            self.links.pop(path, None)

    @rule(key=_keys)
    def remove(self, key: ImageKey) -> None:
        path = layout.image_path(key, MediaType.JPEG)
        assert self.store.remove(path) == (self.held.pop(path, None) is not None)

    @rule()
    def sweep(self) -> None:
        before = len(self.open_fds)
        orphan = os.path.join(self.root, layout.INCOMING, ORPHAN)
        os.makedirs(os.path.dirname(orphan), exist_ok=True)
        with open(orphan, "wb"):
            pass
        assert remove_orphans(str(self.store.root), 0, nothing) == 1
        assert len(self.open_fds) == before

    @rule()
    def emptied(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.held.clear()
        self.links.clear()

    @invariant()
    def whole_or_not_there(self) -> None:
        if not hasattr(self, "root"):
            return
        for key in _KEYS:
            path = layout.image_path(key, MediaType.JPEG)
            found = self.store.find(ImageRequest(alias=key.ref.own_name, size=key.size))
            assert (found is not None) == (path in self.held)
            if found is not None:
                assert found.key == key
                assert pathlib.Path(self.store.absolute(path)).read_bytes() == self.held[path]
        for link, (_, target) in self.links.items():
            found = self.store.examine(link)
            assert (found is not None) == (target in self.held), link
            if found is not None:
                assert self.store.path_of(found.key, found.entry.media) == target
        seen = {key for key, _ in walk(str(self.root))}
        assert len(seen & set(_KEYS)) == len(self.held)


class AnyOrderTests(SynchronousTestCase):
    """What is visible is always whole."""

    def test_any_order(self) -> None:
        """Whatever is begun, committed, linked, removed or swept away, no file is seen half."""
        bounded = settings(max_examples=25, stateful_step_count=20, deadline=None)
        run_state_machine_as_test(StoreMachine, settings=bounded)

    @examples(30)
    @given(st.lists(st.binary(max_size=300), max_size=8))
    def test_as_written(self, pieces: list[bytes]) -> None:
        """A file holds what was appended, in order, whatever the pieces."""
        with tempfile.TemporaryDirectory() as root:
            store = ImageStore(pathlib.Path(root))
            temporary = store.begin()
            for piece in pieces:
                store.append(temporary, piece)
            store.make_durable(temporary, 5)
            store.put_in_place(temporary.path, THUMB)
            os.close(temporary.fd)
            self.assertEqual(pathlib.Path(store.absolute(THUMB)).read_bytes(), b"".join(pieces))
