"""Which size stands in for one that the archive has not made."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.substitutes import MOST_RULED_OUT, Substitutes
from coverart.model import (
    MEGABYTE,
    ORIGINAL,
    SIZES,
    Absence,
    AliasKey,
    Entity,
    FileEntry,
    Found,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
    Target,
)

MBID = "76df3287-6cda-33eb-8e9a-044b5e15ffdd"
FRONT = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="front")
IMAGE = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
NOW = 1000.0
NOTHING = Found()
GONE = Found(absence=Absence(since=NOW - 10, until=NOW + 10))
FORGOTTEN = Found(absence=Absence(since=NOW - 30, until=NOW - 15))


def front(size: int) -> ImageRequest:
    return ImageRequest(alias=FRONT, size=size)


def held(size: int, size_bytes: int = 1000, media: MediaType = MediaType.JPEG) -> Found:
    entry = FileEntry(size_bytes=size_bytes, stored_at=1, media=media)
    return Found(key=IMAGE.at(size), entry=entry, target=Target(ref=IMAGE))


class SubstitutesTests(SynchronousTestCase):
    """The policy that takes larger sizes as the archive has them."""

    def setUp(self) -> None:
        self.policy = Substitutes(most_bytes=2 * MEGABYTE)

    def choices(self, known: dict[int, Found], missing: int = 250) -> list[int]:
        """The sizes to try, of those of which this is known."""
        larger = self.policy.larger(front(missing))
        looked_up = [(each, known.get(each.size, NOTHING)) for each in larger]
        chosen = self.policy.choose(IMAGE.at(missing), looked_up, NOW)
        return [request.size for request, _ in chosen]

    def test_larger_ones_in_order(self) -> None:
        """From the next size up to the original, never a smaller one; by the name that was asked."""
        for size, larger in ((250, [500, 1200, 0]), (500, [1200, 0]), (1200, [0]), (0, [])):
            got = self.policy.larger(front(size))
            self.assertEqual([each.size for each in got], larger)
            self.assertTrue(all(each.alias is FRONT for each in got))
            self.assertEqual(self.policy.may(front(size)), bool(larger))

    def test_nothing_for_a_listing(self) -> None:
        """Only an image has sizes."""
        listing = ListingKey(entity=Entity.RELEASE, mbid=MBID)
        self.assertFalse(self.policy.may(listing))
        self.assertEqual(list(self.policy.larger(listing)), [])

    def test_off(self) -> None:
        """With 0 nothing stands in for anything."""
        off = Substitutes(most_bytes=0)
        for size in (*SIZES, ORIGINAL):
            self.assertFalse(off.may(front(size)))
            self.assertEqual(list(off.larger(front(size))), [])

    def test_held_first(self) -> None:
        """What is held goes before what would have to be asked for; each in the order of sizes."""
        self.assertEqual(self.choices({}), [500, 1200, 0])
        self.assertEqual(self.choices({1200: held(1200)}), [1200, 500, 0])
        self.assertEqual(self.choices({0: held(0), 1200: held(1200)}), [1200, 0, 500])

    def test_known_to_be_missing(self) -> None:
        """A larger size of which a 404 is remembered is not asked for; one that is forgotten is."""
        self.assertEqual(self.choices({500: GONE, 1200: FORGOTTEN}), [1200, 0])
        self.assertEqual(self.choices(dict.fromkeys((500, 1200, 0), GONE)), [])

    def test_original(self) -> None:
        """It may have just so many bytes, which have to be declared, and is no PDF; thumbnails may be any."""
        for size_bytes, media, suits in (
            (2 * MEGABYTE, MediaType.PNG, True),
            (2 * MEGABYTE, None, True),
            (2 * MEGABYTE + 1, MediaType.JPEG, False),
            (1, MediaType.PDF, False),
            (None, None, False),
        ):
            self.assertEqual(self.policy.suits(ORIGINAL, size_bytes, media), suits)
            self.assertTrue(self.policy.suits(1200, size_bytes, MediaType.JPEG))

    def test_original_that_is_held(self) -> None:
        """It is judged by its entry, and not asked for where it does not do."""
        large = held(0, 3 * MEGABYTE)
        pdf = held(0, media=MediaType.PDF)
        for known, chosen in ((held(0), [0]), (large, []), (pdf, [])):
            self.assertEqual(self.choices({0: known}, missing=1200), chosen)

    def test_known_as_pdf(self) -> None:
        """An original whose name says that it is a PDF is not asked for."""
        for extension, chosen in (("pdf", []), ("png", [0]), (None, [0])):
            known = Found(target=Target(ref=IMAGE, extension=extension))
            self.assertEqual(self.choices({0: known}, missing=1200), chosen)

    def test_ruled_out(self) -> None:
        """An original that did not do is not asked for again, whichever size is missing."""
        self.policy.rule_out(IMAGE.at(250))
        for missing, chosen in ((250, [500, 1200]), (1200, [])):
            self.assertEqual(self.choices({}, missing), chosen)
        # It was, by another limit, or another's wish: then it is there.
        self.assertEqual(self.choices({0: held(0)}, 1200), [0])

    def test_ruled_out_bounded(self) -> None:
        """So many are remembered; the first goes first."""
        for image_id in range(MOST_RULED_OUT):
            ref = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=image_id)
            self.policy.rule_out(ref.at(250))
        self.assertEqual(self.choices({}, 1200), [])
        for image_id in range(8):
            ref = ImageRef(owner=Entity.EVENT, mbid=MBID, image_id=image_id)
            self.policy.rule_out(ref.at(250))
        self.assertEqual(self.choices({}, 1200), [0])
