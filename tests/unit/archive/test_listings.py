"""The archive's listing: what is accepted, and where its URLs lead afterwards."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive import listings
from coverart.errors import BadUpstream
from tests.support.strategies import MBID, examples

HERE = "https://covers.example/caa"

NEW_FORM: dict[str, Any] = {
    "images": [
        {
            "approved": True,
            "back": False,
            "comment": "Größe: 30 cm \u266a",
            "edit": 96644755,
            "front": True,
            "id": 34782911204,
            "image": f"https://coverartarchive.org/release/{MBID}/34782911204.png",
            "thumbnails": {
                "1200": f"https://coverartarchive.org/release/{MBID}/34782911204-1200.jpg",
                "250": f"https://coverartarchive.org/release/{MBID}/34782911204-250.jpg",
                "500": f"https://coverartarchive.org/release/{MBID}/34782911204-500.jpg",
                "large": f"https://coverartarchive.org/release/{MBID}/34782911204-500.jpg",
                "small": f"https://coverartarchive.org/release/{MBID}/34782911204-250.jpg",
            },
            "types": ["Front"],
        }
    ],
    "release": f"https://musicbrainz.org/release/{MBID}",
}
OLD_FORM: dict[str, Any] = {
    "images": [
        {
            "approved": True,
            "id": "829521842",
            "image": f"http://coverartarchive.org/release/{MBID}/829521842.jpg",
            "thumbnails": {
                "large": f"http://coverartarchive.org/release/{MBID}/829521842-500.jpg",
                "small": f"http://coverartarchive.org/release/{MBID}/829521842-250.jpg",
            },
            "types": ["Front", "Booklet"],
        }
    ],
    "release": f"http://musicbrainz.org/release/{MBID}",
}


def written(body: bytes) -> bytes:
    """A listing as it leaves a proxy that is reached by HERE."""
    return HERE.encode().join(listings.cut(body))


def rewritten(document: object) -> dict[str, Any]:
    """A listing as it leaves this proxy."""
    turned = json.loads(written(json.dumps(document).encode()))
    assert isinstance(turned, dict)
    return turned


def urls(document: dict[str, Any]) -> list[object]:
    """Every image and thumbnail URL of a listing."""
    found: list[object] = []
    for image in document["images"]:
        if "image" in image:
            found.append(image["image"])
        thumbnails = image.get("thumbnails", {})
        found.extend(thumbnails.values() if isinstance(thumbnails, dict) else [thumbnails])
    return found


def replaced(document: object, old: str, new: str) -> Any:
    """A document with one piece of text for another."""
    return json.loads(json.dumps(document).replace(old, new))


_json: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=12),
        st.sampled_from(
            [
                f"http://coverartarchive.org/release/{MBID}/7-250.jpg",
                f"https://evil.example/release/{MBID}/7.png",
                *("javascript:alert(1)", "//evil.example/x", "http://evil.example/", "\ud800"),
                f"https://x/release/{MBID}/7.jpg\ud800",
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["images", "image", "thumbnails", "250"]), st.text()),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)
_listings = st.builds(
    lambda images, more: {**more, "images": images},
    st.lists(
        st.fixed_dictionaries({}, optional={"image": _json, "thumbnails": _json, "id": _json}),
        max_size=3,
    ),
    st.dictionaries(st.text(max_size=5), _json, max_size=2),
)


class CheckTests(SynchronousTestCase):
    """What is taken for a listing."""

    def test_listings(self) -> None:
        """Both forms, and one without images, are listings."""
        empty: dict[str, Any] = {"images": []}
        for document in (NEW_FORM, OLD_FORM, empty):
            listings.check(json.dumps(document).encode())

    def test_others(self) -> None:
        """Pages, cut listings and JSON of another shape are refused."""
        body = json.dumps(NEW_FORM).encode()
        for other in (
            *(b"", b"<html>", b"null", b"[]", b"1", b'"images"', b"{}", body[:-1], body + b"x"),
            *(b'{"images":{}}', b'{"images":null}', b'{"images":[1]}', b'{"images":[[]]}'),
            *(b'{"images":[]', b"\xff\xfe\x00", b'{"images":["\xff"]}', b"\0" * 100),
            b"[" * 1_000_000,
            b'{"images":[' + b'{"a":' * 1_000_000,
            b'{"images":[],"n":' + b"9" * 100_000 + b"}",
        ):
            with self.subTest(body=other[:40]):
                self.assertRaises(BadUpstream, listings.check, other)
                self.assertRaises(BadUpstream, listings.cut, other)

    def test_no_numbers(self) -> None:
        """What Python's parser takes for numbers and JSON does not is refused."""
        for number in (b"NaN", b"Infinity", b"-Infinity"):
            body = b'{"images":[],"n":' + number + b"}"
            self.assertRaises(BadUpstream, listings.check, body)

    @examples(200)
    @given(st.one_of(st.binary(max_size=100), _json.map(lambda v: json.dumps(v).encode())))
    def test_anything(self, body: bytes) -> None:
        """Whatever comes is a listing, or the archive's mistake; never another error."""
        try:
            listings.check(body)
        except BadUpstream:
            self.assertRaises(BadUpstream, listings.cut, body)

    def test_larger(self) -> None:
        """What is past the bound is not looked at."""
        body = b'{"images":[]}' + b" " * listings.LARGEST_BYTES
        self.assertRaises(BadUpstream, listings.check, body)

    def test_depths(self) -> None:
        """However deep a document nests, it can be written out again or is refused."""
        for depth in (10, 49, 50, 500, *range(900, 1000, 3), 2_000):
            body = b'{"images":[],"x":' + b"[" * depth + b"]" * depth + b"}"
            try:
                written(body)
            except BadUpstream:
                self.assertRaises(BadUpstream, listings.check, body)
            if depth < listings.MOST_DEEP:
                listings.check(body)
            else:
                self.assertRaises(BadUpstream, listings.check, body)


class CutTests(SynchronousTestCase):
    """URLs that lead to this proxy."""

    def test_new_form(self) -> None:
        """Each image and thumbnail keeps its path and its extension under the public URL."""
        expected = replaced(NEW_FORM, "https://coverartarchive.org", HERE)
        self.assertEqual(rewritten(NEW_FORM), expected)

    def test_old_form(self) -> None:
        """Plain http becomes the public URL too; ids stay strings, MusicBrainz's URL stays."""
        expected = replaced(OLD_FORM, "http://coverartarchive.org", HERE)
        self.assertEqual(rewritten(OLD_FORM), expected)

    def test_event(self) -> None:
        """Listings of events lead here as well."""
        event = replaced(NEW_FORM, "coverartarchive.org/release", "eventartarchive.org/event")
        expected = replaced(event, "https://eventartarchive.org", HERE)
        self.assertEqual(rewritten(event), expected)

    def test_elsewhere(self) -> None:
        """A URL that names nothing this proxy can answer is left out."""
        elsewhere: tuple[object, ...] = (
            *("https://evil.example/x.jpg", f"https://x/release/{MBID}/", "ftp://x/y", "", 7),
            *(None, [], {}, f"/release/{MBID}/7.jpg", f"//x/release/{MBID}/7.jpg"),
            *(f"https://x/release/{MBID}/7.jpg?to=evil", f"https://x/release/{MBID}/7.jpg#evil"),
            *(f"https://x/release/{MBID}/7.jpg\n", f"https://x/../release/{MBID}/7.jpg"),
            f"https://x/release/{MBID}/\ud800.jpg",
        )
        for url in elsewhere:
            document = {"images": [{"image": url, "thumbnails": {"250": url}, "id": 1}]}
            with self.subTest(url=url):
                self.assertEqual(rewritten(document), {"images": [{"thumbnails": {}, "id": 1}]})

    def test_odd_thumbnails(self) -> None:
        """Thumbnails in a form unknown here could lead anywhere, so they are left out."""
        for odd in ("https://evil.example/x", ["https://evil.example/x"], 7):
            self.assertEqual(urls(rewritten({"images": [{"thumbnails": odd}]})), [])

    def test_any_host(self) -> None:
        """What counts is the path: a listing may name a mirror, a port or a user."""
        for base in ("HTTPS://CoverArtArchive.org", "http://x:8080", "https://u:p@mirror"):
            document = {"images": [{"image": f"{base}/release/{MBID}/7.jpg"}]}
            self.assertEqual(urls(rewritten(document)), [f"{HERE}/release/{MBID}/7.jpg"])

    def test_half_characters(self) -> None:
        """A lone surrogate in a comment is JSON and stays as it is."""
        document = {"images": [{"comment": "\ud800"}]}
        self.assertEqual(rewritten(document), document)

    def test_too_great(self) -> None:
        """A number that no float holds does not become one that no JSON parser takes."""
        for number in (b"1e999", b"-1e999", b"9" * 5_000):
            body = b'{"images":[],"n":' + number + b"}"
            self.assertRaises(BadUpstream, listings.check, body)
            self.assertRaises(BadUpstream, listings.cut, body)

    def test_other_letters(self) -> None:
        """Only UTF-8 is a listing; a client may read no other."""
        for coding in ("utf-16", "utf-32", "utf-8-sig", "latin-1"):
            body = '{"images":[],"x":"\u00e9"}'.encode(coding)
            self.assertRaises(BadUpstream, listings.check, body)

    def test_twice_the_key(self) -> None:
        """A key that comes twice counts once, the last time, and is still rewritten; also a list of images."""
        two = b'{"images":[{"image":"http://evil.example/a"}],"images":[]}'
        self.assertEqual(written(two), b'{"images":[]}')
        body = (
            b'{"images":[{"image":"http://evil.example/a","image":"http://x/release/%s/7.jpg"}]}'
            % MBID.encode()
        )
        turned = json.loads(written(body))
        self.assertEqual(urls(turned), [f"{HERE}/release/{MBID}/7.jpg"])

    @examples(200)
    @given(_listings)
    @example({"images": [{"image": "\ud800"}]})
    def test_all_lead_here(self, document: dict[str, Any]) -> None:
        """Of a listing of any content, every URL left leads here; the rest is as it was."""
        try:
            turned = rewritten(document)
        except BadUpstream:
            self.assertRaises(BadUpstream, listings.check, json.dumps(document).encode())
            return
        for url in urls(turned):
            assert isinstance(url, str)
            self.assertTrue(url.startswith(f"{HERE}/release/{MBID}/7"), url)
        for before, after in zip(document["images"], turned["images"], strict=True):
            self.assertEqual(before.get("id"), after.get("id"))
        for key in document.keys() - {"images"}:
            self.assertEqual(document[key], turned[key])
