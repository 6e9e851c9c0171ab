"""The catalogue of the simulated archive: the same from the same seed, without a table behind it."""

import re
from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from coverart.simulator.catalogue import Catalogue
from coverart.simulator.scramble import Scramble


class ScrambleTests(SynchronousTestCase):
    """Names that look random and can be read back."""

    scramble = Scramble(b"k" * 32)

    def test_mbid_reads_back(self) -> None:
        """An MBID gives back the kind and index it was made of, at both ends of the range."""
        for kind, index in [(0, 0), (0, 1), (3, 7), (1, 2**32 - 1), (15, 123_456_789)]:
            with self.subTest(kind=kind, index=index):
                self.assertEqual(
                    self.scramble.read_mbid(self.scramble.mbid(kind, index)), (kind, index)
                )

    def test_mbid_shape(self) -> None:
        """An MBID is a lower-case version-4 UUID, as MusicBrainz makes them today."""
        for index in range(200):
            mbid = self.scramble.mbid(0, index)
            self.assertEqual(UUID(mbid).version, 4)
            self.assertEqual(str(UUID(mbid)), mbid)

    def test_stranger(self) -> None:
        """A UUID made elsewhere, another key's MBID, upper case and nonsense are no names of ours."""
        ours = self.scramble.mbid(0, 5)
        strangers = [
            "76df3287-6cda-33eb-8e9a-044b5e15ffdd",
            "00000000-0000-4000-8000-000000000000",
            Scramble(b"other" * 4).mbid(0, 5),
            ours.upper(),
            ours.replace("-", ""),
            "front",
            "",
        ]
        for stranger in strangers:
            with self.subTest(stranger=stranger):
                self.assertIsNone(self.scramble.read_mbid(stranger))

    def test_image_ids(self) -> None:
        """Image ids have eleven digits and never meet, whatever the key."""
        ids = {self.scramble.image_id(number) for number in range(50_000)}
        ids.add(self.scramble.image_id(2**36 - 1))
        self.assertEqual(len(ids), 50_001)
        self.assertTrue(all(len(str(image_id)) == 11 for image_id in ids))


class CatalogueTests(SynchronousTestCase):
    """What there is, and what a name stands for."""

    def setUp(self) -> None:
        self.catalogue = Catalogue(seed=3, releases=2000)

    def test_same_seed_same_archive(self) -> None:
        """Two catalogues of one seed are equal; another seed shares no MBID with them."""
        again, other = Catalogue(3, 2000), Catalogue(4, 2000)
        self.assertEqual(self.catalogue.release(77), again.release(77))
        self.assertEqual(self.catalogue.examples(), again.examples())
        self.assertIsNone(other.find("release", self.catalogue.release(77).mbid))

    def test_size_does_not_matter(self) -> None:
        """A hundred million releases answer as fast as a thousand: nothing is built in advance."""
        catalogue = Catalogue(3, 100_000_000)
        last = catalogue.release(99_999_999)
        self.assertEqual(catalogue.find("release", last.mbid), last)

    def test_membership(self) -> None:
        """An MBID is found under its own entity, inside the catalogue's size, and nowhere else."""
        release, event = self.catalogue.release(5), self.catalogue.event(0)
        self.assertEqual(self.catalogue.find("release", release.mbid), release)
        self.assertEqual(self.catalogue.find("event", event.mbid), event)
        self.assertIsNone(self.catalogue.find("event", release.mbid))
        self.assertIsNone(self.catalogue.find("release-group", release.mbid))
        self.assertIsNone(Catalogue(3, 100).find("release", self.catalogue.release(100).mbid))

    def test_group_shows_a_front(self) -> None:
        """A group gives a release with a front, or nothing when none of its releases has one."""
        with_art = without = 0
        for index in range(300):
            group = self.catalogue.release_group(index)
            shown = self.catalogue.find("release-group", group.mbid)
            fronts = [
                mbid
                for mbid in group.releases
                if (found := self.catalogue.find("release", mbid)) and found.front
            ]
            self.assertEqual(shown.mbid if shown else None, fronts[0] if fronts else None)
            with_art, without = with_art + bool(shown), without + (not shown)
        self.assertGreater(with_art, 200)
        self.assertGreater(without, 0)

    def test_merged(self) -> None:
        """A merged MBID gives the release it was merged into, and has no item of its own."""
        merged = self.catalogue.merged(0)
        into = self.catalogue.find("release", merged.mbid)
        assert into is not None
        self.assertEqual(into.mbid, merged.into)
        self.assertIsNone(self.catalogue.item(merged.mbid))

    def test_mix(self) -> None:
        """The mix is about the archive's: most art is JPEG, a fifth has none, some lacks a front."""
        releases = [self.catalogue.release(index) for index in range(2000)]
        images = [image for release in releases for image in release.images]
        bare = sum(not release.images for release in releases)
        frontless = sum(bool(release.images) and not release.front for release in releases)
        self.assertTrue(330 < bare < 470, bare)
        self.assertTrue(0 < frontless < 200, frontless)
        self.assertEqual({image.ext for image in images}, {"jpg", "png", "gif", "pdf"})
        self.assertGreater(sum(image.ext == "jpg" for image in images) / len(images), 0.75)
        self.assertTrue(any(len(release.images) >= 10 for release in releases))
        self.assertTrue(0 < sum(release.old_listing for release in releases) < 400)
        self.assertTrue(0 < sum(image.weight == "large" for image in images) < len(images) / 10)

    def test_without_art(self) -> None:
        """The share of releases without art is as asked, the examples apart."""
        none = Catalogue(3, 500, without_art=1)
        self.assertTrue(all(not none.release(index).images for index in range(20, 500)))
        self.assertTrue(none.release(0).images)

    def test_examples(self) -> None:
        """Each example is what its name says, in a small catalogue as in a large one."""
        catalogue = Catalogue(9, 20)
        examples = catalogue.examples()

        def front(name: str):
            mbid = re.split("/", examples[name])[2]
            item = catalogue.find("release", mbid)
            assert item is not None
            return item, item.front

        for name in ("jpeg", "png", "gif", "pdf"):
            self.assertEqual(front(name)[1].ext, name.replace("jpeg", "jpg"))
        self.assertTrue(front("animated")[1].animated)
        self.assertEqual(front("no_art")[0].images, ())
        self.assertIsNone(front("no_front")[1])
        self.assertTrue(front("no_front")[0].images)
        self.assertIsNone(front("no_back")[0].back)
        self.assertGreaterEqual(len(front("many_images")[0].images), 10)
        self.assertTrue(front("old_listing")[0].old_listing)
        self.assertIn(1200, front("underived_thumb")[1].underived)
        self.assertEqual(front("large_original")[1].weight, "large")
        self.assertIsNone(catalogue.find("release", examples["unknown"].split("/")[2]))

    def test_refuses_nonsense(self) -> None:
        """Numbers out of range are refused at once, not found out about later."""
        with self.assertRaises(ValueError):
            Catalogue(1, 3)
        with self.assertRaises(ValueError):
            Catalogue(1, 100, without_art=2)
        with self.assertRaises(IndexError):
            self.catalogue.release(2000)
        with self.assertRaises(IndexError):
            self.catalogue.release(-1)


class ChangeTests(SynchronousTestCase):
    """What a test may change while the archive runs."""

    def setUp(self) -> None:
        self.catalogue = Catalogue(seed=3, releases=100)
        self.many = self.catalogue.release(8)

    def test_set_front(self) -> None:
        """Another image becomes the only front; the images themselves stay."""
        other = self.many.images[5]
        self.catalogue.set_front(self.many.mbid, other.id)
        now = self.catalogue.release(8)
        assert now.front is not None
        self.assertEqual(now.front.id, other.id)
        self.assertEqual(sum(image.front for image in now.images), 1)
        self.assertEqual([i.id for i in now.images], [i.id for i in self.many.images])
        with self.assertRaises(LookupError):
            self.catalogue.set_front(self.many.mbid, 1)

    def test_remove_and_add(self) -> None:
        """Removed art is gone, and what is added later has an id never used before."""
        before = {image.id for image in self.many.images}
        self.catalogue.remove_art(self.many.mbid)
        self.assertIsNone(self.catalogue.item(self.many.mbid))
        first = self.catalogue.add_art(self.many.mbid)
        second = self.catalogue.add_art(self.many.mbid)
        now = self.catalogue.release(8)
        assert now.front is not None
        self.assertEqual(now.front.id, second.id)
        self.assertFalse({first.id, second.id} & before)
        self.assertNotEqual(first.id, second.id)

    def test_add_to_one_without(self) -> None:
        """A release without art can be given some, and its group then shows it."""
        bare = self.catalogue.release(5)
        self.assertEqual(bare.images, ())
        added = self.catalogue.add_art(bare.mbid)
        self.assertEqual(self.catalogue.release(5).front, added)

    def test_merge(self) -> None:
        """A merged release answers as the other one, whose images now include its own."""
        gone, stays = self.catalogue.release(0), self.catalogue.release(1)
        earlier = self.catalogue.merged(0)
        self.assertEqual(earlier.into, gone.mbid)
        self.catalogue.merge(gone.mbid, stays.mbid)
        for name in (gone.mbid, earlier.mbid):
            found = self.catalogue.find("release", name)
            assert found is not None
            self.assertEqual(found.mbid, stays.mbid)
            self.assertIsNotNone(found.image(gone.images[0].id))
            self.assertEqual(found.front, stays.front)
        self.assertIsNone(self.catalogue.item(gone.mbid))

    def test_choose(self) -> None:
        """A group can be told to show another release."""
        group = self.catalogue.release_group(0)
        self.catalogue.choose(group.mbid, group.releases[1])
        shown = self.catalogue.find("release-group", group.mbid)
        assert shown is not None
        self.assertEqual(shown.mbid, group.releases[1])

    def test_derive(self) -> None:
        """Missing thumbnails can be made."""
        release = self.catalogue.release(10)
        self.catalogue.derive(release.mbid)
        self.assertTrue(all(not image.underived for image in self.catalogue.release(10).images))

    def test_reset(self) -> None:
        """All changes can be forgotten."""
        self.catalogue.remove_art(self.many.mbid)
        self.catalogue.merge(self.catalogue.release(0).mbid, self.catalogue.release(1).mbid)
        self.catalogue.reset()
        self.assertEqual(self.catalogue.release(8), self.many)
        self.assertEqual(
            self.catalogue.find("release", self.catalogue.release(0).mbid),
            self.catalogue.release(0),
        )
