"""Names on disk: each says what it is of, and no other name says the same."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.model import (
    ORIGINAL,
    AliasKey,
    Entity,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
)
from coverart.store import layout
from coverart.store.layout import Place, identify
from tests.support.strategies import (
    MBID,
    OTHER_MBID,
    examples,
    image_keys,
    image_requests,
    listing_keys,
    things,
)

FOLDER = "release/3/35/353"


def place_path(place: Place) -> str:
    """Where a thing of this type belongs."""
    if isinstance(place.thing, ListingKey):
        return layout.listing_path(place.thing)
    assert place.media is not None
    return layout.alias_path(place.thing, place.media)


_pieces = st.lists(
    st.sampled_from(
        [
            *("release", "release-group", "event", "/", "3", "35", "353", "7", "76", "76d"),
            *(MBID, MBID.upper(), OTHER_MBID, "_", "front", "back", "12", "0", "_250", "_500"),
            *(".jpg", ".png", ".pdf", ".json", ".jpeg", ".", "..", "\n", "\0", "\u0661"),
        ]
    ),
    max_size=14,
).map("".join)


class PathTests(SynchronousTestCase):
    """From a thing to its path."""

    def test_documented(self) -> None:
        """The paths are those of the contract, which nginx's configuration spells too."""
        front = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="front")
        ref = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=12)
        group = AliasKey(entity=Entity.RELEASE_GROUP, mbid=OTHER_MBID, name="front")
        for path, expected in (
            (layout.image_path(ref.at(250), MediaType.JPEG), f"{FOLDER}/{MBID}_12_250.jpg"),
            (layout.image_path(ref.at(ORIGINAL), MediaType.PDF), f"{FOLDER}/{MBID}_12.pdf"),
            (
                layout.alias_path(ImageRequest(alias=front, size=500), MediaType.JPEG),
                f"{FOLDER}/{MBID}_front_500.jpg",
            ),
            (
                layout.alias_path(ImageRequest(alias=group, size=ORIGINAL), MediaType.PNG),
                f"release-group/7/76/76d/{OTHER_MBID}_front.png",
            ),
            (
                layout.listing_path(ListingKey(entity=Entity.EVENT, mbid=MBID)),
                f"event/3/35/353/{MBID}.json",
            ),
        ):
            self.assertEqual(path, expected)

    def test_candidates(self) -> None:
        """An original can be of four types, a thumbnail is always JPEG."""
        front = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="front")
        name = f"{FOLDER}/{MBID}_front"
        self.assertEqual(
            set(layout.candidates(ImageRequest(alias=front, size=ORIGINAL))),
            {f"{name}.jpg", f"{name}.png", f"{name}.gif", f"{name}.pdf"},
        )
        self.assertEqual(
            layout.candidates(ImageRequest(alias=front, size=250)), (f"{name}_250.jpg",)
        )
        self.assertEqual(len(set(layout.alias_paths(front))), 7)

    @examples(200)
    @given(image_requests(), image_requests())
    def test_alias_paths_hold_all(self, one: ImageRequest, other: ImageRequest) -> None:
        """All that removing an alias has to look at is named, and nothing of another name."""
        named = set(layout.alias_paths(one.alias))
        self.assertLessEqual(set(layout.candidates(one)), named)
        if one.alias != other.alias:
            self.assertFalse(named & set(layout.alias_paths(other.alias)))


class IdentifyTests(SynchronousTestCase):
    """From a path to what it is of."""

    @examples(200)
    @given(things())
    def test_round_trip(self, thing: ImageRequest | ListingKey) -> None:
        """Every path of a thing identifies as that thing."""
        if isinstance(thing, ListingKey):
            found = identify(layout.listing_path(thing))
            self.assertEqual(found, Place(thing=thing, media=None))
            return
        for path in layout.candidates(thing):
            place = identify(path)
            assert place is not None
            self.assertEqual(place.thing, thing)
            self.assertEqual(place_path(place), path)

    @examples(100)
    @given(image_keys(), st.sampled_from(MediaType))
    def test_files(self, key: ImageKey, media: MediaType) -> None:
        """An image's own place gives its key; a thumbnail that is no JPEG has no place."""
        place = identify(layout.image_path(key, media))
        if key.size != ORIGINAL and media is not MediaType.JPEG:
            self.assertIsNone(place)
        else:
            assert place is not None
            self.assertEqual((place.file_key, place.media), (key, media))

    @examples(100)
    @given(listing_keys())
    def test_listing_key(self, key: ListingKey) -> None:
        """A listing's place gives its key."""
        place = identify(layout.listing_path(key))
        assert place is not None
        self.assertEqual(place.file_key, key)

    def test_only_links(self) -> None:
        """Where a name is no image's own, no regular file belongs."""
        for path in (
            f"{FOLDER}/{MBID}_front.jpg",
            f"{FOLDER}/{MBID}_back_250.jpg",
            f"release-group/3/35/353/{MBID}_front.jpg",
        ):
            place = identify(path)
            assert place is not None
            self.assertIsNone(place.file_key)

    def test_not_ours(self) -> None:
        """What is nearly a path of the cache is none."""
        for path in (
            *("", "/", ".incoming/abc", f"/{FOLDER}/{MBID}.json", f"{FOLDER}/{MBID}.json/"),
            *(f"{FOLDER}/{MBID}.json\n", f"{FOLDER}/{MBID}_front.jpg\n", f"{FOLDER}/{MBID}"),
            *(f"{FOLDER}/{MBID}_front.jpeg", f"{FOLDER}/{MBID}_front_300.jpg"),
            *(f"{FOLDER}/{MBID}_front_250.png", f"{FOLDER}/{MBID}_0.jpg", f"{FOLDER}/{MBID}_.jpg"),
            *(f"{FOLDER}/{MBID}_007.jpg", f"{FOLDER}/{MBID}_{'9' * 19}.jpg"),
            *(f"{FOLDER}/{MBID}_\u0661.jpg", f"{FOLDER}/{OTHER_MBID}.json"),
            *(f"release/3/35/354/{MBID}.json", f"release/3/36/353/{MBID}.json"),
            *(f"release/4/35/353/{MBID}.json", f"release/3/35/353/../353/{MBID}.json"),
            *(f"{FOLDER}/{MBID.upper()}.json", f"{FOLDER}/{MBID}_FRONT.jpg"),
            *(f"release-group/3/35/353/{MBID}_12.jpg", f"release-group/3/35/353/{MBID}_back.jpg"),
            f"event/3/35/353/{MBID}_back.jpg",
        ):
            with self.subTest(path=path):
                self.assertIsNone(identify(path))

    @examples(500)
    @given(st.one_of(st.text(max_size=120), _pieces))
    def test_anything(self, path: str) -> None:
        """Text of any kind is none of ours, or the one path of what it is of."""
        place = identify(path)
        if place is not None:
            self.assertEqual(place_path(place), path)

    @examples(200)
    @given(things(), st.data())
    def test_one_letter_off(self, thing: ImageRequest | ListingKey, data: st.DataObject) -> None:
        """A letter changed in a path never leaves it identifying as what it was."""
        path = (
            layout.listing_path(thing)
            if isinstance(thing, ListingKey)
            else layout.candidates(thing)[0]
        )
        at = data.draw(st.integers(0, len(path) - 1))
        letter = data.draw(st.characters().filter(lambda c: c != path[at]))
        place = identify(path[:at] + letter + path[at + 1 :])
        if place is not None:
            self.assertNotEqual((place.thing, place.media), _of(path))


def _of(path: str) -> tuple[object, object]:
    place = identify(path)
    assert place is not None
    return place.thing, place.media


class LinkTests(SynchronousTestCase):
    """What symlinks hold."""

    def test_relative(self) -> None:
        """A link climbs to the root of the cache and down again, so the cache can move."""
        self.assertEqual(
            layout.link_text(f"{FOLDER}/{MBID}_front_250.jpg", f"{FOLDER}/{MBID}_12_250.jpg"),
            f"../../../../{FOLDER}/{MBID}_12_250.jpg",
        )

    @examples(200)
    @given(image_requests(), image_keys(), st.sampled_from(MediaType))
    def test_round_trip(self, request: ImageRequest, key: ImageKey, media: MediaType) -> None:
        """A link is read back where its name and its target agree in size and type."""
        link, target = layout.alias_path(request, media), layout.image_path(key, media)
        found = layout.read_link(link, layout.link_text(link, target))
        if key.size != request.size or (media is not MediaType.JPEG and key.size != ORIGINAL):
            self.assertIsNone(found)
        else:
            self.assertEqual(found, (key, media, target))

    @examples(300)
    @given(image_requests(), st.one_of(st.text(max_size=120), _pieces), st.integers(0, 6))
    def test_anything(self, request: ImageRequest, text: str, climbs: int) -> None:
        """No other text leads anywhere but to an image's own place below the root."""
        link = layout.candidates(request)[0]
        found = layout.read_link(link, "../" * climbs + text)
        if found is not None:
            key, media, path = found
            self.assertEqual(path, layout.image_path(key, media))
            self.assertEqual("../" * climbs + text, layout.link_text(link, path))

    def test_elsewhere(self) -> None:
        """Links out of the cache, to other links, to listings and to other types lead nowhere."""
        link = f"{FOLDER}/{MBID}_front_250.jpg"
        up = "../../../../"
        self.assertIsNotNone(layout.read_link(link, f"{up}{FOLDER}/{MBID}_12_250.jpg"))
        for text in (
            *("/etc/passwd", "../../../../../etc/passwd", "", ".", f"{MBID}_12_250.jpg"),
            *(f"{up}{FOLDER}/{MBID}_back_250.jpg", f"{up}{FOLDER}/{MBID}.json"),
            *(f"{up}{FOLDER}/{MBID}_12_500.jpg", f"{up}{FOLDER}/{MBID}_12.jpg"),
            *(f"../{up}{FOLDER}/{MBID}_12_250.jpg", f"{up}./{FOLDER}/{MBID}_12_250.jpg"),
            f"{up}release-group/3/35/353/{MBID}_front_250.jpg",
        ):
            with self.subTest(text=text):
                self.assertIsNone(layout.read_link(link, text))
        original = f"{FOLDER}/{MBID}_front.jpg"
        self.assertIsNotNone(layout.read_link(original, f"{up}{FOLDER}/{MBID}_12.jpg"))
        self.assertIsNone(layout.read_link(original, f"{up}{FOLDER}/{MBID}_12.png"))
        self.assertIsNone(layout.read_link("notes.txt", f"{FOLDER}/{MBID}_12.jpg"))
        self.assertIsNone(layout.read_link(f"{FOLDER}/{MBID}.json", f"{up}{FOLDER}/{MBID}_12.jpg"))
