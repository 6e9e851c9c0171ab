"""The index in memory keeps the promises of an index, and its own bounds."""

import tracemalloc
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import given
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from coverart.index.base import Index
from coverart.index.eviction_order import Eviction
from coverart.index.memory import MemoryIndex
from coverart.model import (
    Absence,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    ListingKey,
    MediaType,
    Target,
)
from tests.support.index_promises import (
    ALIAS,
    BACK,
    FRONT,
    MERGED,
    NOW,
    OTHER,
    PROMISES,
    REF,
    Step,
    clock,
    keeps_step,
    request,
    steps,
)
from tests.support.strategies import examples

T = TypeVar("T")


class MemoryIndexTests(SynchronousTestCase):
    """MemoryIndex."""

    def result(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """What a call of the index returns, which must not take it a turn of the reactor."""
        answer: T = self.successResultOf(Deferred.fromCoroutine(work))
        return answer

    def test_promises(self) -> None:
        """Every promise of an index is kept."""
        self.assertGreater(len(PROMISES), 20)
        for promise in PROMISES:
            with self.subTest(promise=promise.__name__):

                async def keep(index: Index) -> None:
                    await promise(index)  # noqa: B023 - called in this turn of the loop

                self.result(keep(MemoryIndex(now=clock)))

    @examples(150)
    @given(steps)
    def test_any_order(self, story: list[Step]) -> None:
        """Whatever happens in whatever order, totals and answers are exact after each step."""
        self.result(keeps_step(MemoryIndex(now=clock), story))

    def test_absences_bounded(self) -> None:
        """The 404s remembered are bounded; the one remembered longest ago is forgotten first."""
        index = MemoryIndex(most_absences=3, now=clock)
        keys = [
            ListingKey(entity=Entity.RELEASE, mbid=f"00000000-0000-0000-0000-{n:012x}")
            for n in range(5)
        ]
        for n, key in enumerate(keys[:3]):
            self.result(index.put_absence(key, Absence(since=NOW + n, until=NOW + n + 9)))
        self.result(index.put_absence(keys[0], Absence(since=NOW + 5, until=NOW + 9)))
        for n, key in enumerate(keys[3:]):
            self.result(index.put_absence(key, Absence(since=NOW + n, until=NOW + n + 9)))
        known = [self.result(index.find_listing(key)).absence is not None for key in keys]
        self.assertEqual(known, [True, False, False, True, True])
        self.assertEqual(self.result(index.totals()).absences, 3)

    def test_due_aliases(self) -> None:
        """Names not confirmed since are handed out once, however few at a time."""
        index = MemoryIndex(now=clock)
        names = [
            AliasKey(entity=Entity.RELEASE, mbid=f"00000000-0000-0000-0000-{n:012x}", name="front")
            for n in range(4)
        ]
        aliases = [Alias(target=Target(ref=REF), checked_at=NOW + 60 * n) for n in range(4)]
        for n in (2, 0, 3, 1):
            self.result(index.put_alias(names[n], aliases[n]))
        self.assertEqual(self.result(index.due_aliases(NOW, 10, "")), [])
        due = [self.result(index.due_aliases(NOW + 180, 2, "")) for _ in range(3)]
        self.assertEqual([len(each) for each in due], [2, 1, 0])
        self.assertEqual(dict(due[0] + due[1]), dict(zip(names[:3], aliases, strict=False)))
        self.assertEqual(self.result(index.find_image(request(names[0]))).alias, aliases[0])

    def test_due_only_as_known(self) -> None:
        """What was confirmed, forgotten or is an id is not due; what was put twice is due once."""
        index = MemoryIndex(now=clock)
        self.result(index.put_alias(FRONT, ALIAS))
        confirmed = Alias(target=Target(ref=OTHER), checked_at=NOW + 300)
        self.result(index.put_alias(FRONT, confirmed))
        self.result(index.put_alias(BACK, ALIAS))
        self.result(index.forget_alias(BACK))
        self.result(index.put_alias(MERGED, ALIAS))
        self.assertEqual(self.result(index.due_aliases(NOW + 100, 10, "")), [])
        self.result(index.put_alias(BACK, ALIAS))
        self.result(index.put_alias(BACK, ALIAS))
        self.assertEqual(self.result(index.due_aliases(NOW + 100, 10, "")), [(BACK, ALIAS)])
        self.assertEqual(self.result(index.due_aliases(NOW + 400, 10, "")), [(FRONT, confirmed)])

    def test_refreshed_for_ever(self) -> None:
        """
        What is refreshed again and again takes no more memory than what is stored once.

        Behind an image that stays the oldest, places of a listing gathered by the hundred thousand.
        """
        listing = ListingKey(entity=Entity.RELEASE, mbid=REF.mbid)
        image = FileEntry(size_bytes=10, stored_at=NOW, media=MediaType.JPEG)
        orders: tuple[Eviction, ...] = ("oldest", "least-useful")
        for eviction in orders:
            index = MemoryIndex(eviction=eviction, now=lambda: NOW + 10**6)
            self.result(index.put_file(REF.at(250), image))
            self.result(index.put_alias(BACK, Alias(target=Target(ref=REF), checked_at=NOW)))
            tracemalloc.start()
            self.addCleanup(tracemalloc.stop)
            for n in range(1, 5_001):
                entry = FileEntry(size_bytes=10, stored_at=NOW + n)
                self.result(index.put_file(listing, entry))
                self.result(index.use([(listing, 3)]))
                self.result(index.put_file(OTHER.at(500), image))
                self.result(index.forget_file(OTHER.at(500), image))
                alias = Alias(target=Target(ref=REF), checked_at=NOW + n)
                self.result(index.put_alias(FRONT, alias))
            taken, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(taken, 400_000, eviction)
            self.assertEqual(
                self.result(index.first_to_evict(9)), [(REF.at(250), image), (listing, entry)]
            )
            due = self.result(index.due_aliases(NOW + 20_000, 9, ""))
            self.assertEqual({key for key, _ in due}, {BACK, FRONT})

    def test_odd_slices(self) -> None:
        """A slice under suspicion is named once."""
        index = MemoryIndex(now=clock)
        self.result(index.suspect(REF.at(250)))
        self.result(index.suspect(REF.at(500)))
        self.assertEqual(self.result(index.odd_slices()), [int(REF.mbid[:3], 16)])
        self.assertEqual(self.result(index.odd_slices()), [])
