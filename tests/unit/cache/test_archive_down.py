"""An hour without the archive, and its return, by a clock that is moved by hand."""

from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive.archive_client import ArchiveClient, Limits
from coverart.archive.circuit_breaker import Breaker
from coverart.archive.follow_redirects import Redirects
from coverart.archive.upstream import Upstream
from coverart.archive.url_policy import Rules
from coverart.cache import refresh as module
from coverart.cache.answers import Absent, Answer, Held, Status
from coverart.cache.lookup import CoverCache
from coverart.cache.miss import Fetcher
from coverart.cache.refresh import REFRESHES_AT_ONCE
from coverart.cache.size_limits import Room
from coverart.errors import Unavailable
from coverart.freshness import Lifetimes
from coverart.index.memory import MemoryIndex
from coverart.metrics import Metrics
from coverart.model import AliasKey, Entity, ImageRequest, ListingKey
from coverart.store.image_store import ImageStore
from tests.support.doubles import HeldBack, ScriptedArchive, folder, redirect, reply, stall

CAA = "https://coverartarchive.org"
IA = "https://archive.org/download"
NODE = "https://ia801.us.archive.org/7/items"
JPEG = b"\xff\xd8\xff\xe0" + bytes(100)
HOUR_S = 3600
EVERY_S = 5
"""So often something cold is asked for; a divisor of all pauses, so no probe is missed."""
LIFE_S = 600
MOST_A_HOST = 62
"""As docs/operations.md says: after 5, 15, 35 and 75 s, then each minute."""


def mbid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def front(number: int, size: int = 250) -> ImageRequest:
    name = AliasKey(entity=Entity.RELEASE, mbid=mbid(number), name="front")
    return ImageRequest(alias=name, size=size)


class ArchiveDownTests(SynchronousTestCase):
    """The cache over a scripted archive; what is not told at once fails the test."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.archive = ScriptedArchive()
        self.disk = HeldBack()
        self.metrics = Metrics()
        index, store = MemoryIndex(), ImageStore(folder(self))
        rules = Rules(("archive.org", "*.archive.org", "coverartarchive.org"))
        limits = Limits()
        client = ArchiveClient(
            http=self.archive.http(),
            clock=self.clock,
            breaker=Breaker(jitter=lambda: 0.0),
            limits=limits,
            user_agent="coverart/0",
        )
        upstream = Upstream(
            Redirects(client, rules, self.clock, lambda: 0.0),
            bases=dict.fromkeys(Entity, CAA),
            downloads={Entity.RELEASE: f"{IA}/"},
            metrics=client.metrics,
        )
        fetcher = Fetcher(
            index=index,
            store=store,
            room=Room(store=store, index=index, max_bytes=1 << 30, clock=self.clock),
            upstream=upstream,
            in_thread=self.disk,
            clock=self.clock,
            now=self.now,
            limits=limits,
        )
        self.cache = CoverCache(
            index=index,
            store=store,
            fetcher=fetcher,
            lifetimes=Lifetimes(
                alias_s=LIFE_S, listing_s=LIFE_S, absent_s=3600, absent_thumb_s=300
            ),
            clock=self.clock,
            now=self.now,
            metrics=self.metrics,
        )
        for number in range(260):
            self.serve(number)

    def now(self) -> float:
        """The time of day."""
        return 1_700_000_000 + self.clock.seconds()

    def serve(self, number: int) -> None:
        """Let the archive have a front, and a listing."""
        item = f"mbid-{mbid(number)}"
        file = f"{item}/{item}-7_thumb250.jpg"
        on = self.archive.on
        on(f"{CAA}/release/{mbid(number)}/front", redirect(f"{IA}/{item}/{item}-7.jpg"))
        on(f"{IA}/{file}", redirect(f"{NODE}/{file}", 302))
        on(f"{NODE}/{file}", reply(200, JPEG))
        on(f"{CAA}/release/{mbid(number)}", redirect(f"{IA}/{item}/index.json"))
        on(f"{IA}/{item}/index.json", reply(200, b'{"images": []}'))

    def ask(self, thing: ImageRequest | ListingKey) -> Deferred[Answer]:
        """One request, as far as it gets without time passing."""
        d: Deferred[Answer] = Deferred.fromCoroutine(self.cache.get(thing))
        for _ in range(8):
            self.archive.flush()
            self.disk.let_all_go()
        return d

    def got(self, thing: ImageRequest | ListingKey) -> Answer:
        """What a request is answered with at once."""
        answer: Answer = self.successResultOf(self.ask(thing))
        return answer

    def asked(self) -> Counter[str]:
        """Requests that left since the last time, by host."""
        hosts = Counter(url.split("/")[2] for url in self.archive.asked)
        self.archive.asked.clear()
        return hosts

    def without(self, seconds: int) -> Counter[str]:
        """The archive refuses connections for so long; returns what it saw meanwhile."""
        held: list[Any] = [front(1), front(2), ListingKey(entity=Entity.RELEASE, mbid=mbid(3))]
        for thing in held:
            self.assertIs(self.got(thing).status, Status.MISS)
        gone = front(999)
        self.assertIsInstance(self.got(gone), Absent)
        self.asked()
        self.archive.down = Refused()
        seen = Counter[Status]()
        for second in range(0, seconds, EVERY_S):
            cold: list[Any] = [front(10 + second % 250)]
            if second % 60 == 0:
                for thing in held:
                    answer = self.got(thing)
                    assert isinstance(answer, Held)
                    seen[answer.status] += 1
                self.assertIs(self.got(gone).status, Status.ABSENT)
                cold += [front(1, 500), ListingKey(entity=Entity.RELEASE, mbid=mbid(10))]
            for thing in cold:
                error = self.failureResultOf(self.ask(thing), Unavailable).value
                self.assertEqual(error.status, 503)
                self.assertTrue(1 <= error.retry_after_s <= 60)
            self.clock.advance(EVERY_S)
        # Fresh at first, stale from then on, and served all the while.
        self.assertEqual(seen.total(), 3 * seconds // 60)
        self.assertEqual(seen[Status.HIT], 3 * LIFE_S // 60)
        self.assertEqual(set(seen), {Status.HIT, Status.STALE})
        return self.asked()

    def test_refused(self) -> None:
        """All that is held is served for an hour; the rest is a 503 at once; few requests leave."""
        asked = self.without(HOUR_S)
        self.assertEqual(set(asked), {"coverartarchive.org", "archive.org", NODE.split("/")[2]})
        for host, count in asked.items():
            self.assertLessEqual(count, 1 + MOST_A_HOST, host)

    def test_returns(self) -> None:
        """When it is back, the first request after a pause is served, and what was stale renewed."""
        self.without(2 * LIFE_S)
        self.archive.down = None
        self.clock.advance(60)
        self.assertIs(self.got(front(10)).status, Status.MISS)
        self.assertIs(self.got(front(1)).status, Status.STALE)
        self.archive.flush()
        self.assertIs(self.got(front(1)).status, Status.HIT)

    def test_refreshes_bounded(self) -> None:
        """Few stale answers are renewed at once and not many wait for that; all are served."""
        self.patch(module, "MOST_REFRESHES", REFRESHES_AT_ONCE + 2)
        stale = [front(number) for number in range(10)]
        for number, thing in enumerate(stale):
            self.got(thing)
            self.archive.on(f"{CAA}/release/{mbid(number)}/front", stall())
        self.asked()
        self.clock.advance(LIFE_S)
        for thing in stale:
            self.assertIs(self.got(thing).status, Status.STALE)
        self.assertEqual(self.asked().total(), REFRESHES_AT_ONCE)
        put_off = self.metrics.value("coverart_overload_total", what="refresh")
        self.assertEqual(put_off, len(stale) - REFRESHES_AT_ONCE - 2)
        # They end by their time, and those that waited have theirs.
        self.clock.pump([30] * 4)
        self.assertEqual(self.asked().total(), 2)
