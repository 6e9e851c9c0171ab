"""Reading a whole directory: names straight to packed keys, and what a scan makes of it."""

import errno
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.freshness import CLOCK_SLACK_S
from coverart.index.base import Index
from coverart.index.codec import (
    pack_alias,
    pack_alias_key,
    pack_entry,
    pack_file_key,
    pack_seen,
    unpack_alias,
)
from coverart.index.memory import MemoryIndex
from coverart.maintenance.reconcile import Difference, compare
from coverart.maintenance.scan import SECOND_LOOK_S, Scan, Scanner
from coverart.model import (
    ORIGINAL,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
    Target,
)
from coverart.store import layout
from coverart.store.disk_walk import read_slice, survey
from coverart.store.image_store import ImageStore, link_target
from coverart.store.packed_names import pack_files, pack_links
from tests.support.disk import LATE, packed, put_file, unpacked, walk
from tests.support.doubles import at_once
from tests.support.strategies import MBID, OTHER_MBID, examples, image_refs, image_requests

NOW = 1_700_000_000.0
DIGITS = MBID[:3]
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
LISTING = b'{"images":[]}'
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
REF = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
FRONT = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="front")
GROUP_FRONT = AliasKey(entity=Entity.RELEASE_GROUP, mbid=OTHER_MBID, name="front")

mbids = st.one_of(
    st.sampled_from(
        (
            MBID,
            OTHER_MBID,
            MBID.upper(),
            MBID.replace("-", ""),
            MBID[:-1],
            f"{MBID}0",
            " " + MBID[1:],
            MBID.replace("-", "a", 1),
            f"x{MBID}",
        )
    ),
    st.uuids().map(lambda mbid: DIGITS + str(mbid)[3:]),
)
words = st.one_of(
    st.sampled_from(
        ("front", "back", "Front", "", "0", "07", "1_000", " 7", "+7", "\u0667", "\xb2", "-7")
    ),
    st.integers(0, 10**20).map(str),
    st.integers(1, 50).map(str),
)
ends = st.one_of(
    st.sampled_from(
        (".jpg", ".png", ".gif", ".pdf", ".json", ".JPG", ".jpeg", "", ".", "_250.jpg", "_500.jpg")
    ),
    st.sampled_from(("_1200.jpg", "_250.png", "_300.jpg", "_250.jpg.jpg", "_.jpg", ".jpg.stale")),
)
names = st.one_of(
    st.builds(lambda mbid, word, end: f"{mbid}_{word}{end}", mbids, words, ends),
    st.builds(lambda mbid, end: f"{mbid}{end}", mbids, ends),
    st.text(st.characters(exclude_characters="/\0"), max_size=60),
)
entities = st.sampled_from(Entity)
folders = st.builds(
    lambda entity, digits: f"{entity}/{digits[0]}/{digits[:2]}/{digits}",
    st.one_of(entities.map(str), st.just("releases")),
    st.sampled_from((DIGITS, OTHER_MBID[:3], "35", "353a")),
)
texts = st.one_of(
    st.builds(lambda folder, name: f"../../../../{folder}/{name}", folders, names),
    st.builds(lambda name: f"../../../../release/3/35/{DIGITS}/{name}", names),
    st.sampled_from(("", "x", "/etc/passwd", f"../../../release/3/35/{DIGITS}/{MBID}_7.jpg")),
)


def expected_file(entity: Entity, name: str) -> bytes | None:
    """The packed key of a regular file, by way of the model."""
    place = layout.identify(f"{layout.folder(entity, DIGITS)}/{name}")
    key = None if place is None else place.file_key
    return None if key is None else pack_file_key(key)


def expected_link(entity: Entity, name: str, text: str) -> tuple[bytes, bytes] | None:
    """Packed key and value of an alias, by way of the model."""
    path = f"{layout.folder(entity, DIGITS)}/{name}"
    link = layout.read_link(path, text)
    place = layout.identify(path)
    if link is None or place is None or not isinstance(place.thing, ImageRequest):
        return None
    alias = Alias(target=link_target(link[0], link[1]), checked_at=NOW)
    return pack_alias_key(place.thing.alias), pack_alias(alias)


class PackedNamesTests(SynchronousTestCase):
    """Names of a folder say what layout and packing say."""

    @examples(400)
    @given(entities, st.lists(names, max_size=6, unique=True))
    def test_files(self, entity: Entity, found: list[str]) -> None:
        """Regular files, alone and among others: the same keys, the same are not ours."""
        said = pack_files(entity, DIGITS, [(name, 5, NOW) for name in found])
        self.assertEqual(
            [None if each is None else each[0] for each in said],
            [expected_file(entity, name) for name in found],
        )

    @examples(400)
    @given(entities, st.lists(st.tuples(names, texts), max_size=6))
    def test_links(self, entity: Entity, found: list[tuple[str, str]]) -> None:
        """Symlinks: the same aliases, the same are not ours."""
        said = pack_links(entity, DIGITS, [(name, text, NOW) for name, text in found])
        self.assertEqual(
            [None if each is None else each[:2] for each in said],
            [expected_link(entity, name, text) for name, text in found],
        )

    @examples(200)
    @given(image_requests(st.just(MBID)), image_refs(), st.sampled_from(MediaType))
    def test_ours(self, request: ImageRequest, ref: ImageRef, original: MediaType) -> None:
        """What the cache itself writes is understood: its files, and its links to them."""
        media = original if request.size == ORIGINAL else MediaType.JPEG
        key = ref.at(request.size)
        folder, _, name = layout.image_path(key, media).rpartition("/")
        ((said),) = pack_files(ref.owner, folder[-3:], [(name, 1, NOW)])
        entry = FileEntry(size_bytes=1, stored_at=NOW, media=media)
        self.assertEqual(said, pack_seen((key, entry)))
        link = layout.alias_path(request, media)
        text = layout.link_text(link, layout.image_path(key, media))
        name = link.rpartition("/")[2]
        ((found),) = pack_links(request.alias.entity, DIGITS, [(name, text, NOW)])
        alias = Alias(target=link_target(key, media), checked_at=NOW)
        self.assertEqual(found and found[:2], pack_seen((request.alias, alias)))

    def test_entries(self) -> None:
        """Size, time and type of a file are in its entry; what is too large for one is not ours."""
        found = [
            (f"{MBID}_7_250.jpg", 5, NOW),
            (f"{MBID}_7.pdf", 6, NOW + 0.25),
            (f"{MBID}.json", 7, NOW),
            (f"{MBID}_8.jpg", 1 << 32, NOW),
        ]
        thumbnail = FileEntry(size_bytes=5, stored_at=NOW, media=MediaType.JPEG)
        original = FileEntry(size_bytes=6, stored_at=NOW + 0.25, media=MediaType.PDF)
        listing = FileEntry(size_bytes=7, stored_at=NOW)
        self.assertEqual(
            pack_files(Entity.RELEASE, DIGITS, found),
            [
                pack_seen((REF.at(250), thumbnail)),
                pack_seen((REF.at(ORIGINAL), original)),
                pack_seen((ListingKey(entity=Entity.RELEASE, mbid=MBID), listing)),
                None,
            ],
        )


class Disk(SynchronousTestCase):
    """A cache directory."""

    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        self.store = ImageStore(self.root)
        self.clock = Clock()
        self.index = MemoryIndex()

    def result(self, work: Any) -> Any:
        """What a coroutine gives that waits for nothing."""
        return self.successResultOf(Deferred.fromCoroutine(work))

    def put(self, key: ImageKey, body: bytes = JPEG, media: MediaType = MediaType.JPEG) -> str:
        """Store an image. :returns: its path."""
        path = layout.image_path(key, media)
        put_file(self.store, path, body, NOW)
        return path

    def fill(self) -> None:
        """Four files, two names with three links."""
        other = ImageRef(owner=Entity.EVENT, mbid=OTHER_MBID, image_id=8)
        self.put(REF.at(250))
        self.put(REF.at(500))
        self.put(other.at(ORIGINAL), PNG, MediaType.PNG)
        put_file(
            self.store,
            layout.listing_path(ListingKey(entity=Entity.RELEASE, mbid=MBID)),
            LISTING,
            NOW,
        )
        for size, at in ((250, NOW), (500, NOW + 60)):
            request = ImageRequest(alias=FRONT, size=size)
            self.store.links.make(request, REF.at(size), MediaType.JPEG, at)
        request = ImageRequest(alias=GROUP_FRONT, size=250)
        self.store.links.make(request, REF.at(250), MediaType.JPEG, NOW)

    def scattered(self) -> None:
        """What is not ours, at every depth."""
        leaf = self.root / layout.folder(Entity.RELEASE, MBID)
        for path in (self.root / "notes.txt", self.root / "release/x", leaf / "thumbs.db"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        (leaf / "folder").mkdir()
        (self.root / "release/3/35/999").mkdir()
        (leaf / f"{MBID}_front.gif").symlink_to("/etc/passwd")
        (leaf / f"{MBID}_9.jpg.stale").write_bytes(JPEG)
        (self.root / ".incoming/left").write_bytes(JPEG)


SLICES = (int(DIGITS, 16), int(OTHER_MBID[:3], 16))


class ReadingTests(Disk):
    """The reader of the disk."""

    def test_as_examined(self) -> None:
        """What a slice shows is what a look at each path by itself shows."""
        self.fill()
        self.scattered()
        for path in layout.alias_paths(FRONT):
            self.store.links.retire(path, NOW + 30)
        files: dict[FileKey, FileEntry] = {}
        aliases: dict[AliasKey, Alias] = {}
        for found in self.root.rglob("*.*"):
            path = str(found.relative_to(self.root))
            on_disk = self.store.examine(path)
            place = layout.identify(layout.unretired(path))
            if on_disk is None or place is None:
                continue
            files[on_disk.key] = on_disk.entry
            if on_disk.alias is not None and isinstance(place.thing, ImageRequest):
                known = aliases.get(place.thing.alias)
                if known is None or known.checked_at < on_disk.alias.checked_at:
                    aliases[place.thing.alias] = on_disk.alias
        shown: dict[bytes, bytes] = {}
        for number in SLICES:
            shown |= packed(str(self.root), number)
        self.assertEqual(unpacked(shown), (files, aliases))
        self.assertEqual((len(files), len(aliases)), (4, 2))

    def test_nothing(self) -> None:
        """A directory that is not there is empty."""
        nowhere = str(self.root / "nowhere")
        self.assertEqual(survey(nowhere), ([], []))
        self.assertEqual(packed(nowhere, 0x353), {})

    def test_survey(self) -> None:
        """The slices that have folders are found; what is not ours is named, wherever it lies."""
        self.fill()
        self.scattered()
        numbers, strangers = survey(str(self.root))
        self.assertEqual(numbers, sorted(SLICES))
        self.assertEqual(sorted(strangers), ["notes.txt", "release/3/35/999", "release/x"])
        (folder, *_) = read_slice(str(self.root), SLICES[0]).folders
        self.assertEqual(
            sorted(folder.strangers),
            [f"{MBID}_9.jpg.stale", f"{MBID}_front.gif", "folder", "thumbs.db"],
        )

    def test_another_disk(self) -> None:
        """A folder may be a symlink, to spread a cache over disks; a loop of them ends."""
        self.fill()
        (self.root / "release/3").rename(self.root / "elsewhere")
        (self.root / "release/3").symlink_to(self.root / "elsewhere")
        (self.root / "event/8").symlink_to("..")
        self.assertIn(SLICES[0], survey(str(self.root))[0])
        self.assertEqual(len(list(walk(str(self.root)))), 6)

    def test_ahead_of_the_clock(self) -> None:
        """Of two symlinks of a name, one that is stamped ahead of the clock is not the latest."""
        self.fill()
        links = read_slice(str(self.root), SLICES[0])
        key = pack_alias_key(FRONT)
        self.assertEqual(unpack_alias(links.things(LATE)[key]).checked_at, NOW + 60)
        self.assertEqual(unpack_alias(links.things(NOW + 30 - CLOCK_SLACK_S)[key]).checked_at, NOW)


def entry(size_bytes: int, stored_at: float = NOW) -> bytes:
    return pack_entry(FileEntry(size_bytes=size_bytes, stored_at=stored_at, media=MediaType.JPEG))


class CompareTests(Disk):
    """What disk and index say of one slice."""

    def compared(self, known: dict[bytes, bytes], before: float = 0.0) -> Difference:
        return compare(read_slice(str(self.root), SLICES[0]), known, NOW + 100, before)

    def setUp(self) -> None:
        super().setUp()
        self.fill()
        self.known = packed(str(self.root), SLICES[0])

    def test_the_same(self) -> None:
        """No difference; a file system may keep times less precisely."""
        self.assertEqual(self.compared(self.known), Difference())
        key = pack_file_key(REF.at(250))
        self.known[key] = entry(len(JPEG), NOW - 0.5)
        self.assertEqual(self.compared(self.known), Difference())

    def test_news(self) -> None:
        """What the index lacks, and names that were confirmed since."""
        image, name = pack_file_key(REF.at(250)), pack_alias_key(FRONT)
        del self.known[image]
        older = Alias(target=Target(ref=REF), checked_at=NOW)
        self.known[name] = pack_alias(older)
        self.assertEqual(set(self.compared(self.known).news), {image, name})

    def test_lost(self) -> None:
        """Files that are gone, of another size, or stored anew; not names."""
        other = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=9)
        was = {
            pack_file_key(REF.at(250)): entry(len(JPEG) + 1),
            pack_file_key(REF.at(500)): entry(len(JPEG), NOW - 60),
            pack_file_key(other.at(250)): entry(5),
        }
        back = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="back")
        alias = pack_alias(Alias(target=Target(ref=other), checked_at=NOW))
        found = self.compared(self.known | was | {pack_alias_key(back): alias})
        self.assertEqual((found.lost, found.news, found.nameless), (was, {}, {}))
        self.assertEqual(len(found.dangling), 2)
        found = self.compared(self.known | {pack_alias_key(back): alias}, before=NOW + 1)
        self.assertEqual(found.nameless, {pack_alias_key(back): alias})

    def test_links(self) -> None:
        """Symlinks whose file is gone, that lead elsewhere, and that are past their time."""
        self.store.remove(layout.image_path(REF.at(500), MediaType.JPEG))
        small, large = (
            layout.alias_path(ImageRequest(alias=FRONT, size=size), MediaType.JPEG)
            for size in (250, 500)
        )
        moved = Target(ref=ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=9))
        alias = pack_alias(Alias(target=moved, checked_at=NOW + 90))
        found = self.compared(self.known | {pack_alias_key(FRONT): alias}, before=NOW + 30)
        self.assertEqual((set(found.dangling), found.overdue), ({large}, [small]))
        self.assertEqual(found.outdated, {small: alias, large: alias})


class ScannerTests(Disk):
    """Scanner."""

    def scan(self, index: Index | None, *, dry_run: bool = False, verify: bool = False) -> Scan:
        """Scan, with as much time for second looks as they need."""
        self.told: list[tuple[int, int]] = []
        scanner = Scanner(
            index=index,
            store=self.store,
            in_thread=at_once,
            clock=self.clock,
            dry_run=dry_run,
            verify=verify,
            told=lambda done, of, _: self.told.append((done, of)),
        )
        scanning = Deferred.fromCoroutine(scanner.run())
        while not scanning.called:
            self.before_second_look()
            self.clock.advance(SECOND_LOOK_S)
        seen: Scan = self.successResultOf(scanning)
        return seen

    def before_second_look(self) -> None:
        """What happens between the first look and the second."""

    def learnt(self) -> MemoryIndex:
        """An index that knows the directory."""
        index = MemoryIndex()
        for number in survey(str(self.root))[0]:
            self.result(index.learn_packed(list(packed(str(self.root), number).items())))
        self.result(index.set_whole())
        return index

    def test_disk_alone(self) -> None:
        """Without an index everything on the disk is counted, and nothing touched."""
        self.fill()
        self.scattered()
        (self.root / layout.image_path(REF.at(500), MediaType.JPEG)).unlink()
        before = sorted(self.root.rglob("*"))
        seen = self.scan(None)
        self.assertEqual((seen.files, seen.size_bytes), (3, len(JPEG) + len(PNG) + len(LISTING)))
        self.assertEqual(seen.by_entity, {"release": 2, "release-group": 0, "event": 1})
        self.assertEqual((seen.links, seen.aliases, seen.dangling), (3, 2, 1))
        self.assertEqual((seen.unfinished, seen.foreign, seen.damaged), (1, 7, 0))
        self.assertIn("notes.txt", seen.foreign_names)
        self.assertEqual(seen.differences, 0)
        self.assertEqual(sorted(self.root.rglob("*")), before)
        self.assertEqual(self.told[-1], (2, 2))

    def test_nothing_to_mend(self) -> None:
        """An index that agrees is left alone, and takes no second look."""
        self.fill()
        seen = self.scan(self.learnt())
        self.assertEqual((seen.learnt, seen.forgotten, self.clock.seconds()), (0, 0, 0.0))

    def test_both_directions(self) -> None:
        """The index learns what it lacks, and forgets what is gone or of another size."""
        self.fill()
        index = self.learnt()
        self.put(REF.at(1200))
        self.store.remove(layout.image_path(REF.at(250), MediaType.JPEG))
        cut = self.root / layout.image_path(REF.at(500), MediaType.JPEG)
        cut.write_bytes(JPEG[:10])
        dry = self.scan(index, dry_run=True)
        self.assertEqual((dry.learnt, dry.forgotten, dry.differences), (1, 2, 3))
        self.assertTrue(cut.exists())
        seen = self.scan(index)
        self.assertEqual((seen.learnt, seen.forgotten), (1, 2))
        self.assertFalse(cut.exists())
        totals = self.result(index.totals())
        self.assertEqual(
            (totals.files, totals.size_bytes), (3, len(JPEG) + len(PNG) + len(LISTING))
        )
        self.assertEqual(self.scan(index).differences, 0)

    def test_of_a_moment(self) -> None:
        """What is stored and removed meanwhile by a running service is no difference."""
        self.fill()
        index = self.learnt()
        path = self.put(REF.at(1200))
        entry = FileEntry(size_bytes=len(JPEG), stored_at=NOW, media=MediaType.JPEG)
        self.before_second_look = lambda: self.result(index.put_file(REF.at(1200), entry))  # type: ignore[method-assign]
        self.assertEqual(self.scan(index).differences, 0)
        self.result(index.forget_file(REF.at(1200), entry))
        self.before_second_look = lambda: self.store.remove(path)  # type: ignore[method-assign,assignment]
        self.assertEqual(self.scan(index).differences, 0)
        self.assertEqual(self.result(index.totals()).files, 4)

    def test_lost_everything(self) -> None:
        """An index that was emptied is filled at once and knows that it is whole."""
        self.fill()
        dry = self.scan(self.index, dry_run=True)
        self.assertEqual((dry.learnt, self.result(self.index.whole())), (6, False))
        self.assertEqual(self.result(self.index.totals()).files, 0)
        seen = self.scan(self.index)
        self.assertEqual((seen.learnt, self.result(self.index.whole())), (6, True))
        self.assertEqual(self.result(self.index.totals()), self.result(self.learnt().totals()))

    def test_verify(self) -> None:
        """Images that begin otherwise than their name says, and empty files, are removed."""
        self.fill()
        index = self.learnt()
        wrong = self.put(REF.at(1200), b"<html>")
        self.result(index.learn_packed(list(packed(str(self.root), SLICES[0]).items())))
        empty = self.root / layout.image_path(REF.at(ORIGINAL), MediaType.GIF)
        empty.touch()
        self.assertEqual(self.scan(index).differences, 0)
        dry = self.scan(index, dry_run=True, verify=True)
        self.assertEqual((dry.damaged, dry.learnt, dry.forgotten), (2, 0, 1))
        self.assertTrue((self.root / wrong).exists())
        seen = self.scan(index, verify=True)
        self.assertEqual((seen.damaged, seen.learnt, seen.forgotten), (2, 0, 1))
        self.assertEqual(
            sorted(seen.damaged_names), sorted([wrong, str(empty.relative_to(self.root))])
        )
        self.assertFalse((self.root / wrong).exists() or empty.exists())
        self.assertEqual(self.result(index.totals()).files, 4)
        self.assertEqual(self.scan(index, verify=True).differences, 0)

    def test_fetched_anew(self) -> None:
        """A damaged image that is stored anew before it is removed stays, and stays known."""
        self.fill()
        index = self.learnt()
        path = self.put(REF.at(250), b"<html>")
        entry = FileEntry(size_bytes=len(JPEG), stored_at=NOW + 60, media=MediaType.JPEG)

        remove_damaged = self.store.remove_damaged

        def fetched_meanwhile(damaged: str) -> bool:
            put_file(self.store, path, JPEG, NOW + 60)
            self.result(index.put_file(REF.at(250), entry))
            return remove_damaged(damaged)

        self.patch(self.store, "remove_damaged", fetched_meanwhile)
        self.assertEqual(self.scan(index, verify=True).damaged_names, [path])
        self.assertEqual((self.root / path).read_bytes(), JPEG)
        self.assertEqual(self.result(index.totals()).files, 4)

    def test_unreadable(self) -> None:
        """A file that can't be read now is not damaged: it stays, and stays known."""
        self.fill()
        index = self.learnt()
        path = layout.image_path(REF.at(250), MediaType.JPEG)
        opens = self.store.open

        def fails(opened: str) -> int:
            if opened == path:
                raise OSError(errno.EMFILE, "Too many open files", opened)
            return opens(opened)

        self.patch(self.store, "open", fails)
        self.assertEqual(self.scan(index, verify=True).damaged, 0)
        self.assertTrue((self.root / path).exists())
        self.assertEqual(self.result(index.totals()).files, 4)

    def test_damaged_listing(self) -> None:
        """A listing that does not parse, as after a power failure, is damaged, too."""
        self.fill()
        index = self.learnt()
        path = layout.listing_path(ListingKey(entity=Entity.RELEASE, mbid=MBID))
        put_file(self.store, path, b"\0" * len(LISTING), NOW)
        self.assertEqual(self.scan(index, verify=True).damaged_names, [path])
        self.assertFalse((self.root / path).exists())
        self.assertEqual(self.result(index.totals()).files, 3)

    def test_verify_without_index(self) -> None:
        """The same with nothing but the disk."""
        wrong = self.put(REF.at(250), PNG)
        self.assertEqual(self.scan(None, verify=True).damaged_names, [wrong])
        self.assertFalse((self.root / wrong).exists())

    def test_many_names(self) -> None:
        """Of very many foreign files some are named and all counted."""
        for number in range(50):
            (self.root / f"{number}.txt").touch()
        seen = self.scan(None)
        self.assertEqual((seen.foreign, len(seen.foreign_names)), (50, 20))


class HeldTests(Disk):
    """Seeing whether a directory is served."""

    def test_held(self) -> None:
        """While any process holds it, it is; holding twice is once."""
        other = ImageStore(self.root)
        self.assertFalse(self.store.is_served())
        self.store.serving.take()
        self.store.serving.take()
        other.serving.take()
        self.assertTrue(self.store.is_served())
        self.store.serving.release()
        self.assertTrue(self.store.is_served())
        other.serving.release()
        self.assertFalse(self.store.is_served())
