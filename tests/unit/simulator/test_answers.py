"""What each hop of the simulated archive answers, checked against the facts about the real one."""

import json

from twisted.trial.unittest import SynchronousTestCase

from coverart.simulator import answers
from coverart.simulator.answers import Answer, FilesWanted, FileWanted, Places
from coverart.simulator.catalogue import Catalogue

PLACES = Places(
    release="http://caa",
    event="http://eaa",
    archive="http://ia",
    node1="http://n1",
    node2="http://n2",
)


class RedirectServiceTests(SynchronousTestCase):
    """Hop 1: coverartarchive.org and eventartarchive.org."""

    def setUp(self) -> None:
        self.catalogue = Catalogue(seed=1, releases=100)
        self.release = self.catalogue.release(0)
        self.mbid = self.release.mbid

    def get(self, path: str, *, host: str = "release", method: str = "GET") -> Answer:
        answer = answers.redirect_service(self.catalogue, PLACES, host, method, path)
        self.assertEqual(answer.header(b"Access-Control-Allow-Origin"), b"*")
        return answer

    def location(self, path: str, host: str = "release") -> str:
        answer = self.get(path, host=host)
        self.assertEqual(answer.status, 307, path)
        return (answer.header(b"Location") or b"").decode()

    def test_images(self) -> None:
        """Front, back and id, with sizes and extensions, redirect to the file they mean."""
        front, back = self.release.front, self.release.back
        assert front is not None
        assert back is not None
        base = f"http://ia/download/mbid-{self.mbid}/mbid-{self.mbid}"
        for name, file in {
            "front": f"{front.id}.jpg",
            "front-250": f"{front.id}_thumb250.jpg",
            "front-500.jpg": f"{front.id}_thumb500.jpg",
            "front.jpg": f"{front.id}.jpg",
            "back-1200": f"{back.id}_thumb1200.jpg",
            f"{back.id}": f"{back.id}.jpg",
            f"{back.id}-250.jpg": f"{back.id}_thumb250.jpg",
        }.items():
            with self.subTest(name=name):
                self.assertEqual(self.location(f"/release/{self.mbid}/{name}"), f"{base}-{file}")

    def test_looseness(self) -> None:
        """Names that begin with front are the front, and sizes match by their first digits."""
        front = self.release.front
        assert front is not None
        base = f"http://ia/download/mbid-{self.mbid}/mbid-{self.mbid}-{front.id}"
        for name, tail in {
            "frontier": ".jpg",
            "front-2500": "_thumb250.jpg",
            "front-5000x": "_thumb500.jpg",
            "front-300": ".jpg",
            "front-250/more": "_thumb250.jpg",
            f"{front.id}abc-250": "_thumb250.jpg",
        }.items():
            with self.subTest(name=name):
                self.assertEqual(self.location(f"/release/{self.mbid}/{name}"), base + tail)

    def test_any_spelling(self) -> None:
        """The path is decoded once; slashes, single dots and what follows a name do not count."""
        front = self.release.front
        assert front is not None
        base = f"http://ia/download/mbid-{self.mbid}/mbid-{self.mbid}-{front.id}"
        for path, tail in {
            f"//release///{self.mbid}//front/": ".jpg",
            f"/release/./{self.mbid}/./front/../x": ".jpg",
            f"/%72elease%2f{self.mbid}%2Ffront%2d250": "_thumb250.jpg",
            f"/release/{self.mbid}/00{front.id}-500.": "_thumb500.jpg",
            f"/release/{self.mbid}/front%0a\xff": ".jpg",
        }.items():
            with self.subTest(path=path):
                self.assertEqual(self.location(path), base + tail)
        self.assertIn("index.json", self.location(f"/release//{self.mbid}/./"))
        for path in (
            *(f"/./release/{self.mbid}/front", f"/release/{self.mbid}/.", "/%2e%2e/release"),
            *(f"/release/{self.mbid}/%2566ront", f"/release/{self.mbid}/../front"),
            # These the nginx in front of the service refuses.
            *(f"/release/{self.mbid}/front/../../../..", f"/release/{self.mbid}/front%00"),
            *(f"/release/{self.mbid}/front%", f"/release/{self.mbid}/front%zz"),
        ):
            with self.subTest(path=path):
                self.assertEqual(self.get(path).status, 400)
        self.assertEqual(self.get(f"/release/{self.mbid}/0").status, 404)

    def test_pages(self) -> None:
        """Besides covers there are a page, leave for crawlers and the way to the manual."""
        self.assertEqual(self.get("/").status, 200)
        self.assertEqual(self.get("/robots.txt").body, b"User-agent: *\nAllow: /")
        api = self.get("//api/")
        self.assertEqual(api.status, 301)
        self.assertEqual(
            api.header(b"Location"), b"https://musicbrainz.org/doc/Cover_Art_Archive/API"
        )
        self.assertEqual(self.get("/favicon.ico").status, 400)
        self.assertEqual(self.get("/img/logo.svg").status, 404)

    def test_listing(self) -> None:
        """The listing is asked for with and without a slash."""
        for path in (f"/release/{self.mbid}", f"/release/{self.mbid}/"):
            self.assertEqual(self.location(path), f"http://ia/download/mbid-{self.mbid}/index.json")

    def test_merged_and_group(self) -> None:
        """A merged MBID and a group lead to the MBID of the release that holds the art."""
        merged, group = self.catalogue.merged(0), self.catalogue.release_group(0)
        self.assertIn(f"/mbid-{self.mbid}/", self.location(f"/release/{merged.mbid}/front"))
        for name in ("", "/", "/front", "/front-250.jpg"):
            self.assertIn(
                f"/mbid-{self.mbid}/", self.location(f"/release-group/{group.mbid}{name}")
            )
        self.assertEqual(self.get(f"/release-group/{group.mbid}/back").status, 400)

    def test_event(self) -> None:
        """Events live on their own host and have no back."""
        event = self.catalogue.event(0)
        self.assertIn(f"/mbid-{event.mbid}/", self.location(f"/event/{event.mbid}/front", "event"))
        self.assertEqual(self.get(f"/event/{event.mbid}/back", host="event").status, 400)
        self.assertEqual(self.get(f"/event/{event.mbid}/front").status, 400)
        self.assertEqual(self.get(f"/release/{self.mbid}/front", host="event").status, 400)

    def test_malformed(self) -> None:
        """A malformed MBID (upper case too), an unknown name or entity: 400 with a page."""
        for path in [
            "/release/x/front",
            "/release",
            f"/release/{self.mbid.upper()}/front",
            f"/release/{self.mbid}x/front",
            f"/release/{self.mbid}/side",
            f"/artist/{self.mbid}/front",
        ]:
            with self.subTest(path=path):
                answer = self.get(path)
                self.assertEqual(answer.status, 400)
                self.assertIn(b"html", answer.body)

    def test_missing(self) -> None:
        """No such release, no art, no front, no such id: 404 with an HTML body."""
        examples = self.catalogue.examples()
        without = self.catalogue.release(5)
        for path in [
            examples["unknown"],
            examples["no_art"],
            examples["no_front"],
            examples["no_back"],
            f"/release/{without.mbid}/",
            f"/release/{self.mbid}/12345678901",
        ]:
            with self.subTest(path=path):
                answer = self.get(path)
                self.assertEqual(answer.status, 404)
                self.assertEqual(answer.header(b"Content-Type"), b"text/html; charset=utf-8")

    def test_methods(self) -> None:
        """OPTIONS tells the methods, HEAD redirects as GET does, anything else is 405."""
        path = f"/release/{self.mbid}/front"
        self.assertEqual(self.get(path, method="HEAD"), self.get(path))
        options = self.get(path, method="OPTIONS")
        self.assertEqual((options.status, options.header(b"Allow")), (200, b"GET, HEAD, OPTIONS"))
        self.assertEqual(self.get(path, method="POST").status, 405)

    def test_options(self) -> None:
        """OPTIONS knows only plain names, of any entity alike, and asks nothing about them."""
        for path, status in {
            "/": 200,
            "/*": 200,
            "/*/x": 400,
            "/robots.txt": 400,
            f"/release/{self.mbid}": 200,
            f"/release/{self.mbid}/7-500.png": 200,
            f"/release-group/{self.mbid}/back-250": 200,
            f"/release/{self.mbid}/front-1000": 400,
            f"/release/{self.mbid}/-250": 400,
            f"/release/{self.mbid}/frontal": 400,
            "/release/x/front": 400,
        }.items():
            with self.subTest(path=path):
                self.assertEqual(self.get(path, method="OPTIONS").status, status)


class ArchiveTests(SynchronousTestCase):
    """Hop 2: archive.org."""

    def setUp(self) -> None:
        self.catalogue = Catalogue(seed=1, releases=100)
        self.mbid = self.catalogue.release(0).mbid

    def test_families(self) -> None:
        """An item keeps to one of the two families of nodes, unless they take turns."""
        seen = set()
        for index in range(20, 60):
            mbid = self.catalogue.release(index).mbid
            path = f"/download/mbid-{mbid}/some-file.jpg"
            answer = answers.archive(self.catalogue, PLACES, "GET", path)
            assert isinstance(answer, Answer)
            if answer.status == 404:
                continue
            self.assertEqual(answer.status, 302)
            location = (answer.header(b"Location") or b"").decode()
            self.assertRegex(
                location, rf"^(http://n1/\d+|http://n2/0)/items/mbid-{mbid}/some-file\.jpg$"
            )
            self.assertEqual(answer, answers.archive(self.catalogue, PLACES, "GET", path))
            seen.add(location[:9])
        self.assertEqual(seen, {"http://n1", "http://n2"})
        turns = {answers.node_url(PLACES, self.mbid, turn)[:9] for turn in (1, 2)}
        self.assertEqual(turns, {"http://n1", "http://n2"})

    def test_unknown_item(self) -> None:
        """An item that is not there is a 404, be it a stranger or a release without art."""
        for mbid in ("76df3287-6cda-33eb-8e9a-044b5e15ffdd", self.catalogue.release(5).mbid):
            answer = answers.archive(self.catalogue, PLACES, "GET", f"/download/mbid-{mbid}/x")
            assert isinstance(answer, Answer)
            self.assertEqual(answer.status, 404)

    def test_files(self) -> None:
        """The metadata lists the files an item has, with size and digests."""
        wanted = answers.archive(self.catalogue, PLACES, "GET", f"/metadata/mbid-{self.mbid}/files")
        assert isinstance(wanted, FilesWanted)
        files = answers.item_files(wanted.item)
        answer = answers.files_answer(wanted.item, tuple(b"x" * n for n in range(len(files))))
        result = json.loads(answer.body)["result"]
        self.assertEqual(result[0]["name"], "index.json")
        self.assertEqual(set(result[1]), {"name", "size", "md5", "sha1"})
        self.assertEqual(len(result), 1 + 4 * len(wanted.item.images))


class NodeTests(SynchronousTestCase):
    """Hop 3: a storage node."""

    def setUp(self) -> None:
        self.catalogue = Catalogue(seed=1, releases=100)
        self.release = self.catalogue.release(0)
        self.mbid = self.release.mbid

    def get(self, name: str, mbid: str | None = None) -> Answer | FileWanted:
        mbid = mbid or self.mbid
        return answers.node(self.catalogue, "GET", f"/0/items/mbid-{mbid}/{name}")

    def test_files(self) -> None:
        """Originals and thumbnails are found under either family of paths."""
        image = self.release.images[0]
        for size in (None, 250, 500, 1200):
            name = answers.file_name(self.release, image, size)
            for start in ("/0", "/17"):
                self.assertEqual(
                    answers.node(self.catalogue, "GET", f"{start}/items/mbid-{self.mbid}/{name}"),
                    FileWanted(item=self.release, image=image, size=size),
                )

    def test_missing(self) -> None:
        """A wrong extension, a strange id, another item's file and an underived size are 404."""
        image = self.release.images[0]
        other = self.catalogue.release(1)
        pending = self.catalogue.release(10)
        for mbid, name in [
            (self.mbid, f"mbid-{self.mbid}-{image.id}.png"),
            (self.mbid, f"mbid-{self.mbid}-12345678901.jpg"),
            (self.mbid, answers.file_name(other, other.images[0], None)),
            (other.mbid, f"mbid-{other.mbid}-{other.images[0].id}_thumb250.png"),
            (pending.mbid, answers.file_name(pending, pending.images[0], 1200)),
        ]:
            with self.subTest(name=name):
                answer = self.get(name, mbid)
                assert isinstance(answer, Answer)
                self.assertEqual(answer.status, 404)
        ready = self.get(answers.file_name(pending, pending.images[0], None), pending.mbid)
        self.assertIsInstance(ready, FileWanted)

    def test_no_cors(self) -> None:
        """A node sends no CORS header, but exact metadata of the file."""
        wanted = self.get(answers.file_name(self.release, self.release.images[0], 250))
        assert isinstance(wanted, FileWanted)
        answer = answers.file_answer(wanted, b"bytes")
        self.assertIsNone(answer.header(b"Access-Control-Allow-Origin"))
        for name in (b"ETag", b"Last-Modified", b"Accept-Ranges"):
            self.assertIsNotNone(answer.header(name))

    def test_charset_sometimes(self) -> None:
        """Some images come with a charset in their type, and always the same ones."""
        kinds = set()
        for index in range(100):
            for image in self.catalogue.release(index).images:
                wanted = FileWanted(item=self.release, image=image, size=250)
                kinds.add(answers.file_answer(wanted, b"").header(b"Content-Type"))
        self.assertEqual(kinds, {b"image/jpeg", b"image/jpeg; charset=UTF-8"})

    def test_listing(self) -> None:
        """The listing has the fields clients rely on, under the archive's true names."""
        listing = json.loads(answers.listing(self.release))
        self.assertEqual(listing["release"], f"https://musicbrainz.org/release/{self.mbid}")
        image = listing["images"][0]
        base = f"https://coverartarchive.org/release/{self.mbid}/{image['id']}"
        self.assertEqual(image["image"], f"{base}.jpg")
        self.assertEqual(image["types"], ["Front"])
        self.assertEqual(
            image["thumbnails"],
            {
                "250": f"{base}-250.jpg",
                "500": f"{base}-500.jpg",
                "1200": f"{base}-1200.jpg",
                "small": f"{base}-250.jpg",
                "large": f"{base}-500.jpg",
            },
        )

    def test_old_listing(self) -> None:
        """Old listings have plain http, ids as text and two thumbnails."""
        image = json.loads(answers.listing(self.catalogue.release(9)))["images"][0]
        self.assertIsInstance(image["id"], str)
        self.assertTrue(image["image"].startswith("http://coverartarchive.org/"))
        self.assertEqual(set(image["thumbnails"]), {"small", "large"})

    def test_event_listing(self) -> None:
        """Listings of events name the event and know no back."""
        event = self.catalogue.event(0)
        listing = json.loads(answers.listing(event))
        self.assertEqual(listing["event"], f"https://musicbrainz.org/event/{event.mbid}")
        self.assertNotIn("back", listing["images"][0])
        self.assertIn("://eventartarchive.org/event/", listing["images"][0]["image"])


class ConditionalTests(SynchronousTestCase):
    """304, 206 and 416 from a node."""

    answer = Answer(
        status=200,
        headers=(
            (b"ETag", b'"a-1"'),
            (b"Last-Modified", b"Sat, 01 Jan 2022 00:00:00 GMT"),
        ),
        body=b"0123456789",
    )

    def test_ranges(self) -> None:
        """One range gives that part; several, or nonsense, give the whole; too far is refused."""
        for wanted, status, body in [
            (b"bytes=0-3", 206, b"0123"),
            (b"bytes=7-", 206, b"789"),
            (b"bytes=-2", 206, b"89"),
            (b"bytes=8-99", 206, b"89"),
            (b"bytes=-99", 206, b"0123456789"),
            (b"bytes=10-", 416, b""),
            (b"bytes=-0", 416, b""),
            (b"bytes=0-1,3-4", 200, b"0123456789"),
            (b"lines=1-2", 200, b"0123456789"),
        ]:
            with self.subTest(wanted=wanted):
                got = answers.conditional(self.answer, wanted_range=wanted)
                self.assertEqual((got.status, got.body), (status, body))
        got = answers.conditional(self.answer, wanted_range=b"bytes=2-4")
        self.assertEqual(got.header(b"Content-Range"), b"bytes 2-4/10")

    def test_not_modified(self) -> None:
        """A matching tag or a late enough date gives 304; the tag decides if both are sent."""
        date = b"Sun, 02 Jan 2022 00:00:00 GMT"
        early = b"Fri, 31 Dec 2021 00:00:00 GMT"
        for tag, since, status in [
            (b'"a-1"', None, 304),
            (b'"x", W/"a-1"', None, 304),
            (b"*", None, 304),
            (b'"x"', None, 200),
            (b'"x"', date, 200),
            (None, date, 304),
            (None, early, 200),
            (None, b"yesterday", 200),
        ]:
            with self.subTest(tag=tag, since=since):
                got = answers.conditional(self.answer, if_none_match=tag, if_modified_since=since)
                self.assertEqual(got.status, status)
