"""What time does to an answer (the vocabulary of RFC 9111 and RFC 5861)."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.freshness import (
    CLOCK_SLACK_S,
    Lifetimes,
    Verdict,
    alias_is_fresh,
    judge_image,
    judge_listing,
    listing_is_fresh,
)
from coverart.model import (
    Absence,
    Alias,
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
from tests.support.strategies import MBID, examples

LIVES = Lifetimes(alias_s=100, listing_s=50, absent_s=20, absent_thumb_s=5)
FRONT = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="front")
BY_ID = AliasKey(entity=Entity.RELEASE, mbid=MBID, name=7)
REF = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
ENTRY = FileEntry(size_bytes=10, stored_at=0, media=MediaType.JPEG)


def alias(checked_at: float) -> Alias:
    """Where a name pointed at that time."""
    return Alias(target=Target(ref=REF), checked_at=checked_at)


class AliasTests(SynchronousTestCase):
    """Names that point at images."""

    def judge(self, now: float, key: AliasKey = FRONT) -> Verdict:
        """The verdict on an alias checked at 1000, its image held."""
        found = Found(key=REF.at(250), entry=ENTRY, alias=alias(1000))
        return judge_image(ImageRequest(alias=key, size=250), found, now, LIVES)

    def test_timeline(self) -> None:
        """Fresh until its lifetime is over, then stale without limit: never an error instead."""
        self.assertEqual(self.judge(1000), Verdict.HIT)
        self.assertEqual(self.judge(1099.9), Verdict.HIT)
        self.assertEqual(self.judge(1100), Verdict.STALE)
        self.assertEqual(self.judge(10**10), Verdict.STALE)

    def test_clock_set_back(self) -> None:
        """A check further ahead than clocks may differ is stale, not fresh until they catch up."""
        self.assertEqual(self.judge(1000 - CLOCK_SLACK_S), Verdict.HIT)
        self.assertEqual(self.judge(999 - CLOCK_SLACK_S), Verdict.STALE)

    def test_id(self) -> None:
        """An id names the same bytes after a merge, so it never ages."""
        self.assertEqual(self.judge(10**10, BY_ID), Verdict.HIT)
        self.assertTrue(alias_is_fresh(BY_ID, alias(0), 10**10, LIVES))

    def test_own_image(self) -> None:
        """An image by its own name has no alias and is valid until evicted."""
        found = Found(key=REF.at(0), entry=ENTRY)
        request = ImageRequest(alias=BY_ID, size=0)
        self.assertEqual(judge_image(request, found, 10**10, LIVES), Verdict.HIT)

    def test_known_but_not_held(self) -> None:
        """A fresh alias without its image is fetched; a target known does not make a hit."""
        found = Found(alias=alias(1000), target=Target(ref=REF))
        request = ImageRequest(alias=FRONT, size=250)
        self.assertEqual(judge_image(request, found, 1001, LIVES), Verdict.FETCH)

    def test_no_lifetime(self) -> None:
        """With a lifetime of 0 everything is asked again, and still served at once."""
        never = Lifetimes(alias_s=0)
        self.assertFalse(alias_is_fresh(FRONT, alias(1000), 1000, never))


class ListingTests(SynchronousTestCase):
    """Listings."""

    def test_timeline(self) -> None:
        """Fresh, then stale without limit; a clock set back far makes it stale as well."""
        entry = FileEntry(size_bytes=10, stored_at=1000)
        found = Found(key=ListingKey(entity=Entity.RELEASE, mbid=MBID), entry=entry)
        for now, verdict in (
            *((1000, Verdict.HIT), (1049.9, Verdict.HIT), (1050, Verdict.STALE)),
            *((10**10, Verdict.STALE), (1000 - CLOCK_SLACK_S, Verdict.HIT)),
            (999 - CLOCK_SLACK_S, Verdict.STALE),
        ):
            with self.subTest(now=now):
                self.assertEqual(judge_listing(found, now, LIVES), verdict)
        self.assertTrue(listing_is_fresh(entry, 1000, LIVES))

    def test_unknown(self) -> None:
        """Of what nothing is known, the archive is asked."""
        self.assertEqual(judge_listing(Found(), 1000, LIVES), Verdict.FETCH)


class AbsenceTests(SynchronousTestCase):
    """Remembered 404s."""

    def test_of_an_image(self) -> None:
        """A name past its time may lead to another image by now: it is asked about behind."""
        request = ImageRequest(alias=FRONT, size=0)
        for checked_at, verdict in ((1000, Verdict.ABSENT), (10, Verdict.ABSENT_STALE)):
            found = Found(
                alias=alias(checked_at),
                target=Target(ref=REF),
                absence=Absence(since=1000, until=1020),
            )
            self.assertEqual(judge_image(request, found, 1001, LIVES), verdict)

    def test_lives(self) -> None:
        """A size not derived yet is asked for again sooner than art that is not there."""
        self.assertEqual(LIVES.absence(FRONT, 1000), Absence(since=1000, until=1020))
        listing = ListingKey(entity=Entity.RELEASE, mbid=MBID)
        self.assertEqual(LIVES.absence(listing, 1000), Absence(since=1000, until=1020))
        self.assertEqual(LIVES.absence(REF.at(250), 1000), Absence(since=1000, until=1005))

    def test_timeline(self) -> None:
        """Absent for its life, then as long again while it is asked about, then forgotten."""
        found = Found(absence=Absence(since=1000, until=1020))
        for now, verdict in (
            *((1000, Verdict.ABSENT), (1019.9, Verdict.ABSENT), (1020, Verdict.ABSENT_STALE)),
            *((1039.9, Verdict.ABSENT_STALE), (1040, Verdict.FETCH), (10**10, Verdict.FETCH)),
            *((1000 - CLOCK_SLACK_S, Verdict.ABSENT), (999 - CLOCK_SLACK_S, Verdict.FETCH)),
        ):
            with self.subTest(now=now):
                request = ImageRequest(alias=FRONT, size=250)
                self.assertEqual(judge_image(request, found, now, LIVES), verdict)
                self.assertEqual(judge_listing(found, now, LIVES), verdict)

    def test_held_after_all(self) -> None:
        """What is held is served, whatever a 404 said meanwhile."""
        found = Found(
            key=REF.at(250), entry=ENTRY, alias=alias(1000), absence=Absence(since=1000, until=1020)
        )
        request = ImageRequest(alias=FRONT, size=250)
        self.assertEqual(judge_image(request, found, 1001, LIVES), Verdict.HIT)

    @examples(100)
    @given(st.floats(0, 1e10), st.floats(0, 1e10), st.booleans(), st.booleans())
    def test_held_is_served(self, now: float, then: float, absent: bool, named: bool) -> None:
        """No time and no absence ever turns something held into a fetch or a 404."""
        found = Found(
            key=REF.at(250),
            entry=ENTRY,
            alias=alias(then) if named else None,
            absence=Absence(since=then, until=then + 20) if absent else None,
        )
        verdict = judge_image(ImageRequest(alias=FRONT, size=250), found, now, LIVES)
        self.assertIn(verdict, (Verdict.HIT, Verdict.STALE))
