"""What a path asks for: one key for one thing, and 400 for all the rest."""

import re
from urllib.parse import quote

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive.paths import parse, spell
from coverart.errors import Malformed, NotInArchive
from coverart.model import (
    ORIGINAL,
    SIZES,
    AliasKey,
    Entity,
    ImageRequest,
    ListingKey,
    MediaType,
    Name,
)
from coverart.store import layout
from tests.support.strategies import (
    MBID,
    OTHER_MBID,
    examples,
    image_requests,
    listing_keys,
    things,
)

FILE_NAME = re.compile(
    r"(release|release-group|event)/[0-9a-f]/[0-9a-f]{2}/[0-9a-f]{3}/"
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    rf"(\.json|_(front|back|[1-9][0-9]*)(_({'|'.join(map(str, SIZES))}))?\.(jpg|png|gif|pdf))"
)


def paths_of(thing: ImageRequest | ListingKey) -> list[str]:
    """Every file name that a thing can get."""
    if isinstance(thing, ListingKey):
        return [layout.listing_path(thing)]
    return [
        *layout.candidates(thing),
        *layout.alias_paths(thing.alias),
        *(layout.alias_path(thing, media) for media in MediaType),
    ]


def release(name: Name, size: int = ORIGINAL) -> ImageRequest:
    """A request for an image of the release used here."""
    return ImageRequest(alias=AliasKey(entity=Entity.RELEASE, mbid=MBID, name=name), size=size)


_art_pieces = st.lists(
    st.sampled_from(
        [
            *(b"/", b"//", b"release", b"release-group", b"event", b"download", b"mbid-"),
            *(MBID.encode(), MBID.upper().encode(), OTHER_MBID.encode(), b"front", b"back"),
            *(b"0", b"7", b"1234567890", b"-", b"-250", b"-500", b"-1200", b"_thumb250"),
            *(b".jpg", b".PNG", b".", b"..", b"%2e", b"%2F", b";a=b", b"?", b"#", b"\0"),
            *(b"\r\n", b" ", b"\\", b"\xd9\xa1", b"index.json"),
        ]
    ),
    max_size=10,
).map(b"".join)
"""Pieces of real paths and of attacks, in any order: closer to the edge than random bytes."""


class ParseTests(SynchronousTestCase):
    """From the path of a request to what it asks for."""

    def test_every_route(self) -> None:
        """Each route of the contract means what the table says."""
        group = ImageRequest(
            alias=AliasKey(entity=Entity.RELEASE_GROUP, mbid=MBID, name="front"), size=500
        )
        event = AliasKey(entity=Entity.EVENT, mbid=MBID, name=7)
        for path, thing in {
            f"/release/{MBID}": ListingKey(entity=Entity.RELEASE, mbid=MBID),
            f"/release/{MBID}/": ListingKey(entity=Entity.RELEASE, mbid=MBID),
            f"/release-group/{MBID}/": ListingKey(entity=Entity.RELEASE_GROUP, mbid=MBID),
            f"/event/{MBID}": ListingKey(entity=Entity.EVENT, mbid=MBID),
            f"/release/{MBID}/front": release("front"),
            f"/release/{MBID}/back-250": release("back", 250),
            f"/release/{MBID}/34782911204.png": release(34782911204),
            f"/release/{MBID}/34782911204-1200.jpg": release(34782911204, 1200),
            f"/release-group/{MBID}/front-500.jpg": group,
            f"/event/{MBID}/7": ImageRequest(alias=event, size=ORIGINAL),
            f"/download/mbid-{MBID}/mbid-{MBID}-7.pdf": release(7),
            f"/download/mbid-{MBID}/mbid-{MBID}-7_thumb250.jpg": release(7, 250),
        }.items():
            with self.subTest(path=path):
                self.assertEqual(parse(path.encode()), thing)

    def test_spellings(self) -> None:
        """Every spelling that the archive answers means one thing; nothing else about it counts."""
        front, thumb, seven = release("front"), release("front", 250), release(7)
        for thing, names in {
            front: (
                "front",
                "frontal",
                "front-",
                "front.",
                "front-300",
                "front-1000",
                "front-large",
            ),
            release("front", 1200): ("front-1200", "front-12000", "front.jpg-1200.exe"),
            thumb: (
                "front-2500",
                "front-250px.jpg",
                "front-250.webp",
                "front-250.",
                "front-500-250",
            ),
            release("back", 500): ("back-500", "background-500x"),
            seven: (
                "7",
                "007",
                "7.webp",
                "7x",
                "7_0",
                "7-1000.jpg",
                "7-",
                "7.5",
                "7%0a8",
                "7%d9%a1",
            ),
            release(7, 250): ("7-250", "7-2500", "07x-250.jpg", "7%2D%32%35%30"),
        }.items():
            for name in names:
                for before in (
                    "/release/",
                    "//release/",
                    "/release//",
                    "/release/./",
                    "/%72elease%2F",
                ):
                    for after in ("", "/", "//", "/250", "/x/../..", "/%0a", "/."):
                        path = f"{before}{MBID}/{name}{after}"
                        self.assertEqual(parse(path.encode()), thing, path)
        for path in (f"/release/{MBID}//", f"/release//{MBID}/./", f"//release/{MBID}/%2f"):
            self.assertEqual(parse(path.encode()), ListingKey(entity=Entity.RELEASE, mbid=MBID))

    def test_malformed(self) -> None:
        """What the archive refuses is refused: nothing is guessed, cut off or decoded twice."""
        for path in (
            *("", "/", "//", "*", "release", f"release/{MBID}/front", f"/./release/{MBID}/front"),
            *(
                f"http://host/release/{MBID}/front",
                "/release",
                "/release/",
                "/release/.",
                "/event//",
            ),
            *(
                f"/release/{MBID}/../front",
                f"/release/../release/{MBID}/front",
                f"/release/{MBID}/.",
            ),
            *(
                f"/release/{MBID}/..",
                f"/release/{MBID}/front/../../../..",
                f"/event/{MBID}/7/../../%2e./..",
            ),
            *(
                f"/release;v=1/{MBID}/front",
                f"/release/{MBID};/",
                f"/release/{MBID}%0a/",
                "/%2erelease",
            ),
            *(f"/release/{MBID}/front\0", f"/release/{MBID}/front\0.jpg", f"/release/{MBID}\0/"),
            *(f"/release/{MBID}/front\n", f"/release/{MBID}/\n", f" /release/{MBID}/front"),
            *(
                f"/release/{MBID}/%2566ront",
                f"/release/{MBID}/front%00",
                f"/release/{MBID}/front/%00",
            ),
            *(f"/release/{MBID}/front%", f"/release/{MBID}/front%6", f"/release/{MBID}/%u0066ront"),
            *(f"/release/{MBID}/Front", f"/release/{MBID}/f", f"/release/{MBID}/%c1%a6ront"),
            *(
                f"/release/{MBID}/-7",
                f"/release/{MBID}/+7",
                f"/release/{MBID}/%D9%A1",
                f"/release/{MBID}/%207",
            ),
            *(f"/release/{MBID}/index.json", f"/release/{MBID}.json", f"/release/{MBID}/../../x"),
            *(f"/release-group/{MBID}/back", f"/release-group/{MBID}/7", f"/event/{MBID}/back"),
            *(f"/label/{MBID}/front", f"/Release/{MBID}/front", f"/releases/{MBID}/front"),
            *(f"/release/{MBID[:-1]}/front", f"/release/{MBID}0/front", f"/release/g{MBID[1:]}/"),
            *(f"/release/{MBID.replace('-', '')}/front", "/release/{}/front".format("-" * 36)),
            *(
                "//metrics",
                "/%6detrics",
                "/metrics/",
                f"//admin/purge/release/{MBID}/",
                "/%68ealth",
            ),
            f"/download/mbid-{MBID}/mbid-{OTHER_MBID}-7.jpg",
            f"/download/mbid-{MBID}/mbid-{MBID}-7",
            f"/download/mbid-{MBID}/mbid-{MBID}-7-250.jpg",
            f"/download/mbid-{MBID}/mbid-{MBID}-front.jpg",
            f"/download/mbid-{MBID}/mbid-{MBID}-7.jpg/x",
            f"/download/mbid-{MBID}/index.json",
            f"/download/mbid-{MBID}/../mbid-{MBID}/mbid-{MBID}-7.jpg",
        ):
            with self.subTest(path=path):
                self.assertRaises(Malformed, parse, path.encode())

    def test_no_such_id(self) -> None:
        """An id that no image can have is a 404, as it is for the archive."""
        for name in ("0", "000", "0-250", "0.jpg", "9" * 19, "9" * 300, f"0{'9' * 19}x"):
            self.assertRaises(NotInArchive, parse, f"/release/{MBID}/{name}".encode())
            self.assertRaises(NotInArchive, parse, f"/event/{MBID}/{name}".encode())

    def test_why(self) -> None:
        """A refusal says what is wrong and quotes nothing of the path."""
        for path, why in (
            ("/release/x/front", "an MBID has 8-4-4-4-12 hexadecimal digits"),
            (f"/release/{MBID}/x", "an id begins with digits"),
            (f"/release-group/{MBID}/x", "of a release group there is only the front"),
            ("/x", "it begins with release, release-group, event or download"),
        ):
            error: Malformed = self.assertRaises(Malformed, parse, path.encode())
            self.assertEqual(error.said, f"no such path: {why}")

    def test_endless(self) -> None:
        """A path of any length is refused as quickly as a short one."""
        self.assertRaises(Malformed, parse, b"/release/" + b"a" * 10_000_000)
        self.assertRaises(Malformed, parse, f"/release/{MBID}/front{'/' * 9000}".encode())

    @examples(200)
    @given(things())
    def test_round_trip(self, thing: ImageRequest | ListingKey) -> None:
        """The canonical spelling of a thing is read as that thing."""
        self.assertEqual(parse(spell(thing).encode()), thing)

    @examples(200)
    @given(
        image_requests(), st.sampled_from(["", ".jpg", ".jpeg", ".webp", ".GIF", ".", "/", "//x"])
    )
    def test_spellings_of_an_image(self, request: ImageRequest, extension: str) -> None:
        """Case of the MBID and extension make no second key."""
        lower = spell(request)
        upper = lower.replace(request.alias.mbid, request.alias.mbid.upper())
        self.assertEqual(parse(f"{upper}{extension}".encode()), request)
        self.assertEqual(parse(f"{lower}{extension}".encode()), request)

    @examples(50)
    @given(listing_keys())
    def test_spellings_of_a_listing(self, key: ListingKey) -> None:
        """Neither the case of the MBID nor the slash at the end makes a second key."""
        path = f"/{key.entity.value}/{key.mbid.upper()}"
        self.assertEqual(parse(path.encode()), key)
        self.assertEqual(parse(f"{path}/".encode()), key)

    @examples(100)
    @given(image_requests(), st.sampled_from([".jpg", ".png", ".jpeg", ".JPG"]))
    def test_download_spelling(self, request: ImageRequest, extension: str) -> None:
        """The archive.org spelling of a release's image has the key of the short one."""
        mbid = request.alias.mbid
        thumb = f"_thumb{request.size}" if request.size else ""
        path = f"/download/mbid-{mbid}/mbid-{mbid.upper()}-{request.alias.name}{thumb}{extension}"
        if request.alias.entity is Entity.RELEASE and isinstance(request.alias.name, int):
            self.assertEqual(parse(path.encode()), request)
        elif not isinstance(request.alias.name, int):
            self.assertRaises(Malformed, parse, path.encode())

    @examples(500)
    @given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode), _art_pieces))
    @example(f"/release/{MBID}/front.jp\u017f".encode())
    @example(f"/release/{MBID}/front.jp\u212a".encode())
    def test_anything(self, path: bytes) -> None:
        """Bytes of any kind are malformed, or name a thing that has one spelling."""
        try:
            thing = parse(path)
        except (Malformed, NotInArchive):
            return
        canonical = spell(thing).encode()
        self.assertEqual(parse(canonical), thing)
        self.assertTrue(canonical.isascii())
        for file in paths_of(thing):
            self.assertRegex(file, f"^{FILE_NAME.pattern}$")

    @examples(200)
    @given(things())
    def test_only_keys_become_names(self, thing: ImageRequest | ListingKey) -> None:
        """Every file name of a thing lies in its entity's folder and climbs nowhere."""
        entity = thing.entity if isinstance(thing, ListingKey) else thing.alias.entity
        mbid = thing.mbid if isinstance(thing, ListingKey) else thing.alias.mbid
        for path in paths_of(thing):
            self.assertIsNotNone(FILE_NAME.fullmatch(path), path)
            self.assertNotIn("..", path)
            folder = f"{entity.value}/{mbid[0]}/{mbid[:2]}/{mbid[:3]}/"
            self.assertTrue(path.startswith(folder), path)
            self.assertNotIn("/", path.removeprefix(folder))

    @examples(200)
    @given(things(), st.data())
    def test_one_byte_off(self, thing: ImageRequest | ListingKey, data: st.DataObject) -> None:
        """A byte put into a path makes it malformed, or leaves a thing of the same entity and MBID."""
        path = spell(thing).encode()
        at = data.draw(st.integers(0, len(path)))
        byte = data.draw(st.integers(0, 255))
        changed = path[:at] + bytes([byte]) + path[at:]
        try:
            other = parse(changed)
        except (Malformed, NotInArchive):
            return
        self.assertEqual(spell(other).split("/")[:3], spell(thing).split("/")[:3])

    @examples(200)
    @given(things(), st.data())
    def test_encoded(self, thing: ImageRequest | ListingKey, data: st.DataObject) -> None:
        """A byte may be encoded once, in either case of its digits, and never twice."""
        path = spell(thing)
        at = data.draw(st.integers(1, len(path) - 1))
        for form in ("%{:02x}", "%{:02X}"):
            encoded = f"{path[:at]}{form.format(ord(path[at]))}{path[at + 1 :]}"
            self.assertEqual(parse(encoded.encode()), thing)
        self.assertEqual(parse(b"/" + quote(path, safe="").encode()), thing)
        twice = quote(quote(path[1:], safe=""), safe="")
        self.assertRaises(Malformed, parse, f"/{twice}".encode())
