"""The archive's ways: how many hops what costs, and what is remembered of them."""

from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive import follow_redirects as module
from coverart.archive import upstream
from coverart.archive.archive_client import ArchiveClient, Limits
from coverart.archive.circuit_breaker import Breaker
from coverart.archive.follow_redirects import Redirects
from coverart.archive.listings import LARGEST_BYTES
from coverart.archive.source import FetchDeadline
from coverart.archive.transfer import BytesSink
from coverart.archive.upstream import Upstream
from coverart.archive.url_policy import Rules
from coverart.errors import (
    BadUpstream,
    CoverError,
    FileNotInArchive,
    NotInArchive,
    NotReached,
    PassingTrouble,
    StoreFailed,
    Unavailable,
)
from coverart.model import ORIGINAL, AliasKey, Entity, ImageRef, ListingKey, Name, Target
from tests.support.doubles import ScriptedArchive, cut, redirect, reply, stall
from tests.support.strategies import MBID, OTHER_MBID

T = TypeVar("T")

CAA = "https://coverartarchive.org"
EAA = "https://eventartarchive.org"
IA = "https://archive.org/download"
DOWNLOADS = {Entity.RELEASE: f"{IA}/", Entity.EVENT: f"{IA}/"}
NODE = "https://ia801.us.archive.org/7/items"
NODE_2 = "https://dn720.ca.archive.org/0/items"
REF = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
PNG = Target(ref=REF, extension="png")
THUMB = f"mbid-{MBID}/mbid-{MBID}-7_thumb250.jpg"
LARGER = f"mbid-{MBID}/mbid-{MBID}-7_thumb500.jpg"
FULL = f"mbid-{MBID}/mbid-{MBID}-7.png"
INDEX = f"mbid-{MBID}/index.json"


def name(name: Name = "front", entity: Entity = Entity.RELEASE) -> AliasKey:
    """A name under the MBID used here."""
    return AliasKey(entity=entity, mbid=MBID, name=name)


class UpstreamTests(SynchronousTestCase):
    """Upstream over a scripted archive."""

    def setUp(self) -> None:
        self.archive = ScriptedArchive()
        self.clock = Clock()
        self.upstream = self.made()

    def made(self, downloads: Mapping[Entity, str] = DOWNLOADS, caa: str = CAA) -> Upstream:
        """An upstream that knows nothing yet."""
        client = ArchiveClient(
            http=self.archive.http(),
            clock=self.clock,
            breaker=Breaker(jitter=lambda: 0.0),
            limits=Limits(),
            user_agent="coverart/0",
        )
        rules = Rules(
            ("archive.org", "*.archive.org", "coverartarchive.org", "eventartarchive.org")
        )
        return Upstream(
            Redirects(client, rules, self.clock, lambda: 0.0),
            bases={Entity.RELEASE: caa, Entity.RELEASE_GROUP: caa, Entity.EVENT: EAA},
            downloads=downloads,
            metrics=client.metrics,
        )

    def chain(self, file: str, body: bytes, node: str = NODE) -> None:
        """archive.org sends to a node, which has the file."""
        self.archive.on(f"{IA}/{file}", redirect(f"{node}/{file}", 302))
        self.archive.on(f"{node}/{file}", reply(200, body))

    def run_(self, work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        """Some work, as far as it gets without time passing."""
        d: Deferred[T] = Deferred.fromCoroutine(work)
        for _ in range(6):
            self.archive.flush()
        return d

    def result(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """What some work returns at once."""
        found: T = self.successResultOf(self.run_(work))
        return found

    def fails(
        self, work: Coroutine[Deferred[Any], Any, object], error: type[CoverError]
    ) -> CoverError:
        """What some work raises at once."""
        value: CoverError = self.failureResultOf(self.run_(work), error).value
        return value

    def image(
        self, size: int = 250, target: Target = PNG, deadline: FetchDeadline | None = None
    ) -> Coroutine[Deferred[Any], Any, bytes]:
        """The bytes of an image."""

        async def fetch() -> bytes:
            sink = BytesSink(1000)
            await self.upstream.image(target, size, sink, deadline or self.deadline())
            return sink.body

        return fetch()

    def deadline(self) -> FetchDeadline:
        """Of a fetch that begins now."""
        return FetchDeadline(at=60)

    def asked(self) -> list[str]:
        """What was asked for since the last time."""
        asked = list(self.archive.asked)
        self.archive.asked.clear()
        return asked


class ResolveTests(UpstreamTests):
    """Hop 1."""

    def test_names(self) -> None:
        """Each name is asked for at its own host, without a size, and tells image and extension."""
        event = ImageRef(owner=Entity.EVENT, mbid=MBID, image_id=7)
        for key, url, ref in (
            (name(), f"{CAA}/release/{MBID}/front", REF),
            (name("back"), f"{CAA}/release/{MBID}/back", REF),
            (name(7), f"{CAA}/release/{MBID}/7", REF),
            (name(entity=Entity.RELEASE_GROUP), f"{CAA}/release-group/{MBID}/front", REF),
            (name(entity=Entity.EVENT), f"{EAA}/event/{MBID}/front", event),
        ):
            self.archive.on(url, redirect(f"{IA}/{FULL}"))
            deadline = self.deadline()
            target = self.result(self.upstream.resolve(key, deadline))
            self.assertEqual(target, Target(ref=ref, extension="png"))
            self.assertEqual((self.asked(), deadline.hops), ([url], 1))

    def test_merged(self) -> None:
        """The image belongs to the MBID that Location names, not to the one asked for."""
        file = f"mbid-{OTHER_MBID}/mbid-{OTHER_MBID}-7.jpg"
        self.archive.on(f"{CAA}/release/{MBID}/front", redirect(f"{IA}/{file}"))
        target = self.result(self.upstream.resolve(name(), self.deadline()))
        self.assertEqual(target.ref.mbid, OTHER_MBID)

    def test_not_there(self) -> None:
        """404 at hop 1: there is no such art, and that is not for soon."""
        error = self.fails(self.upstream.resolve(name(), self.deadline()), NotInArchive)
        self.assertNotIsInstance(error, FileNotInArchive)

    def test_nonsense(self) -> None:
        """Redirects to anything but an image of an item are refused before they are asked."""
        for location in (
            *("https://evil.example/x.jpg", "http://archive.org/x", f"{IA}/{INDEX}", "", "/"),
            *(f"{IA}/mbid-{MBID}/x.jpg", "http://169.254.169.254/", f"http://127.0.0.1/{FULL}"),
            *(f"{IA}/{THUMB}", f"{IA}/x/{FULL}", f"https://archive.org/{FULL}", f"{NODE}/{FULL}"),
            *(f"{CAA}/download/{FULL}", f"https://ia801.us.archive.org/download/{FULL}"),
        ):
            self.archive.on(f"{CAA}/release/{MBID}/front", redirect(location))
            self.fails(self.upstream.resolve(name(), self.deadline()), BadUpstream)
            self.assertEqual(self.asked(), [f"{CAA}/release/{MBID}/front"])

    def test_place_of_a_mirror(self) -> None:
        """Where a mirror may lead: /download/ on a host named in full, or below its own base."""
        key = name()
        for location, allowed in (
            (f"{IA}/{FULL}", True),
            (f"{CAA}/art/download/{FULL}", True),
            (f"{CAA}/download/{FULL}", True),
            (f"{CAA}/art/{FULL}", False),
            (f"{IA}/x/{FULL}", False),
            (f"https://ia801.us.archive.org/download/{FULL}", False),
        ):
            self.upstream = self.made({}, f"{CAA}/art")
            self.archive.on(f"{CAA}/art/release/{MBID}/front", redirect(location))
            if allowed:
                self.assertEqual(self.result(self.upstream.resolve(key, self.deadline())), PNG)
            else:
                self.fails(self.upstream.resolve(key, self.deadline()), BadUpstream)
            self.assertEqual(self.upstream.can_fetch(PNG, 250), allowed, location)

    def test_another_id(self) -> None:
        """An id is the same in every item, so hop 1 may name another item for it, not another id."""
        self.archive.on(f"{CAA}/release/{MBID}/8", redirect(f"{IA}/{FULL}"))
        self.fails(self.upstream.resolve(name(8), self.deadline()), BadUpstream)

    def test_once_more(self) -> None:
        """Trouble that may pass is tried a second time after a pause, and no third time."""
        url = f"{CAA}/release/{MBID}/front"
        self.archive.on(url, reply(500), redirect(f"{IA}/{FULL}"))
        d = self.run_(self.upstream.resolve(name(), self.deadline()))
        self.assertNoResult(d)
        self.clock.advance(module.RETRY_PAUSE_S)
        self.archive.flush()
        self.assertEqual(self.successResultOf(d), PNG)
        self.archive.on(url, reply(500))
        d = self.run_(self.upstream.resolve(name(), self.deadline()))
        self.clock.advance(module.RETRY_PAUSE_S)
        self.archive.flush()
        self.failureResultOf(d, PassingTrouble)
        self.assertEqual(self.asked(), [url] * 4)

    def test_not_once_more(self) -> None:
        """What asks to be left alone, and what is no passing trouble, is not tried again."""
        url = f"{CAA}/release/{MBID}/front"
        for answer, error in (
            (reply(503), Unavailable),
            (Refused(), NotReached),
            (reply(403), BadUpstream),
            (reply(404), NotInArchive),
        ):
            self.upstream = self.made()
            self.archive.on(url, answer)
            self.fails(self.upstream.resolve(name(), self.deadline()), error)
            self.assertEqual(self.asked(), [url])

    def test_called_off(self) -> None:
        """Calling off ends it then and there: no second try after the caller's time is up."""
        self.archive.on(f"{CAA}/release/{MBID}/front", stall())
        d = self.run_(self.upstream.resolve(name(), self.deadline()))
        d.cancel()
        self.failureResultOf(d, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ImageTests(UpstreamTests):
    """Hops 2 and 3, and what is skipped."""

    def test_two_hops_then_one(self) -> None:
        """A known target skips hop 1; the node learnt for an item skips hop 2 for all its files."""
        self.chain(THUMB, b"small")
        deadline = self.deadline()
        self.assertEqual(self.result(self.image(deadline=deadline)), b"small")
        self.assertEqual((self.asked(), deadline.hops), ([f"{IA}/{THUMB}", f"{NODE}/{THUMB}"], 2))
        self.archive.on(f"{NODE}/{LARGER}", reply(200, b"larger"))
        deadline = self.deadline()
        self.assertEqual(self.result(self.image(500, deadline=deadline)), b"larger")
        self.assertEqual((self.asked(), deadline.hops), ([f"{NODE}/{LARGER}"], 1))

    def test_original(self) -> None:
        """An original is asked for by its extension, and can't be without it."""
        self.chain(FULL, b"full")
        self.assertEqual(self.result(self.image(ORIGINAL)), b"full")
        unknown = Target(ref=REF)
        self.assertFalse(self.upstream.can_fetch(unknown, ORIGINAL))
        self.assertTrue(self.upstream.can_fetch(unknown, 250))
        self.failureResultOf(self.run_(self.image(ORIGINAL, unknown)), ValueError)

    def test_node_is_wrong(self) -> None:
        """A node that has not what it had falls back to the full chain, and the new one is learnt."""
        self.chain(THUMB, b"small")
        self.result(self.image())
        for trouble in (reply(404), reply(500), reply(503), Refused(), cut(b"x", 10)):
            self.upstream = self.made()
            self.chain(THUMB, b"small")
            self.result(self.image())
            self.asked()
            self.archive.on(f"{NODE}/{LARGER}", trouble)
            self.chain(LARGER, b"larger", NODE_2)
            self.assertEqual(self.result(self.image(500)), b"larger")
            expected = [f"{NODE}/{LARGER}", f"{IA}/{LARGER}", f"{NODE_2}/{LARGER}"]
            self.assertEqual(self.asked(), expected)
            self.archive.on(f"{NODE_2}/{THUMB}", reply(200, b"small"))
            self.result(self.image())
            self.assertEqual(self.asked(), [f"{NODE_2}/{THUMB}"])

    def test_our_own_disk(self) -> None:
        """What our side refuses of a body is no fault of the node: it stays known, nobody else is asked."""
        self.chain(THUMB, b"thumb")
        self.result(self.image())
        self.asked()

        class Full(BytesSink):
            def write(self, data: bytes) -> None:
                raise StoreFailed("no room")

        async def fetch() -> None:
            await self.upstream.image(PNG, 250, Full(1000), self.deadline())

        self.fails(fetch(), StoreFailed)
        self.result(self.image())
        self.assertEqual(self.asked(), [f"{NODE}/{THUMB}"] * 2)

    def test_wrong_node_is_forgotten(self) -> None:
        """A node that failed is not asked again, though no other took its place."""
        self.chain(THUMB, b"small")
        self.result(self.image())
        self.archive.on(f"{NODE}/{LARGER}", reply(404))
        self.archive.on(f"{IA}/{LARGER}", reply(200, b"larger"))
        self.assertEqual(self.result(self.image(500)), b"larger")
        self.asked()
        self.assertEqual(self.result(self.image(500)), b"larger")
        self.assertEqual(self.asked(), [f"{IA}/{LARGER}"])

    def test_not_derived(self) -> None:
        """404 behind hop 1 says that this file is missing, not the art: that passes soon."""
        self.archive.on(f"{IA}/{THUMB}", redirect(f"{NODE}/{THUMB}", 302))
        self.fails(self.image(), FileNotInArchive)

    def test_no_way_out(self) -> None:
        """Every hop is checked: no node may send anywhere else, or round and round."""
        for location in ("http://127.0.0.1/x", "https://10.0.0.1/x", "https://evil.example/x"):
            self.archive.on(f"{IA}/{THUMB}", redirect(location, 302))
            self.fails(self.image(), BadUpstream)
            self.assertEqual(self.asked(), [f"{IA}/{THUMB}"])
        self.archive.on(f"{IA}/{THUMB}", redirect(f"{NODE}/{THUMB}", 302))
        self.archive.on(f"{NODE}/{THUMB}", redirect("http://169.254.169.254/", 302))
        self.fails(self.image(), BadUpstream)
        self.assertEqual(len(self.asked()), 2)

    def test_loop(self) -> None:
        """A loop ends after four hops in all, the first one included."""
        self.archive.on(f"{IA}/{THUMB}", redirect(f"{IA}/{THUMB}", 302))
        self.fails(self.image(), BadUpstream)
        self.assertLessEqual(len(self.asked()), 3)

    def test_node_of_another_form(self) -> None:
        """Only a folder of items that had the very file is worth remembering."""
        self.archive.on(f"{IA}/{THUMB}", reply(200, b"direct"))
        self.assertEqual(self.result(self.image()), b"direct")
        self.asked()
        self.result(self.image())
        self.assertEqual(self.asked(), [f"{IA}/{THUMB}"])
        for path in ("view/x.jpg", "7/items/x.jpg", f"view/{THUMB}"):
            odd = f"https://ia801.us.archive.org/{path}"
            self.archive.on(f"{IA}/{THUMB}", redirect(odd, 302))
            self.archive.on(odd, reply(200, b"odd"))
            self.result(self.image())
            self.asked()
            self.result(self.image())
            self.assertEqual(self.asked(), [f"{IA}/{THUMB}", odd])

    def test_node_of_another_item(self) -> None:
        """What answered for one item teaches nothing about another: a bad node can't draw it in."""
        for number, theirs in enumerate(
            (OTHER_MBID, f"{OTHER_MBID}/?/mbid-{OTHER_MBID}", "x" * 900)
        ):
            for file, fetch in (
                (THUMB, self.image),
                (
                    INDEX,
                    lambda: self.upstream.listing(
                        ListingKey(entity=Entity.RELEASE, mbid=MBID), self.deadline()
                    ),
                ),
            ):
                last = file.rpartition("/")[2]
                bad = f"https://ia{number}.us.archive.org/bad/items/mbid-{theirs}/{last}"
                self.archive.on(f"{CAA}/release/{MBID}", redirect(f"{IA}/{INDEX}"))
                self.archive.on(f"{IA}/{file}", redirect(bad, 302))
                self.archive.on(bad, reply(200, b"whatever"))
                self.result(fetch())
                self.asked()
                ref = ImageRef(owner=Entity.RELEASE, mbid=OTHER_MBID, image_id=7)
                right = f"mbid-{OTHER_MBID}/mbid-{OTHER_MBID}-7_thumb250.jpg"
                self.archive.on(f"{IA}/{right}", reply(200, b"right"))
                self.assertEqual(self.result(self.image(target=Target(ref=ref))), b"right")
                self.assertEqual(self.asked(), [f"{IA}/{right}"])

    def test_nodes_bounded(self) -> None:
        """So many nodes are remembered; the one used longest ago is forgotten first."""
        self.patch(upstream, "MOST_NODES", 2)
        refs = [
            ImageRef(owner=Entity.RELEASE, mbid=f"00000000-0000-0000-0000-{n:012x}", image_id=1)
            for n in range(3)
        ]
        for n in (0, 1, 0, 2):
            mbid = refs[n].mbid
            self.chain(f"mbid-{mbid}/mbid-{mbid}-1_thumb250.jpg", b"x")
            self.result(self.image(target=Target(ref=refs[n])))
        hops = []
        for n in (0, 2, 1):
            deadline = self.deadline()
            self.result(self.image(target=Target(ref=refs[n]), deadline=deadline))
            hops.append(deadline.hops)
        self.assertEqual(hops, [1, 1, 2])

    def test_way_unknown(self) -> None:
        """Where only hop 1 can tell the way, it is asked first and its folder is used then."""
        self.upstream = self.made({})
        self.assertFalse(self.upstream.can_fetch(PNG, 250))
        self.archive.on(f"{CAA}/release/{MBID}/front", redirect(f"{IA}/{FULL}"))
        self.result(self.upstream.resolve(name(), self.deadline()))
        self.assertTrue(self.upstream.can_fetch(PNG, 250))
        event = Target(ref=ImageRef(owner=Entity.EVENT, mbid=OTHER_MBID, image_id=7))
        self.assertFalse(self.upstream.can_fetch(event, 250))
        self.chain(THUMB, b"small")
        self.assertEqual(self.result(self.image()), b"small")

    def test_way_lost_while_waiting(self) -> None:
        """If the way was known when it was asked for, and is not any more: hop 1 tells it again."""
        self.upstream = self.made({})
        self.archive.on(f"{CAA}/release/{MBID}/{PNG.ref.image_id}", redirect(f"{IA}/{FULL}"))
        self.chain(THUMB, b"small")
        self.assertEqual(self.result(self.image()), b"small")

    def test_mirror_of_two_hosts(self) -> None:
        """Where hop 1 leads for one item says nothing of where another lies."""
        self.upstream = self.made({})
        elsewhere = f"{CAA}/download/mbid-{OTHER_MBID}/mbid-{OTHER_MBID}-7.jpg"
        self.archive.on(f"{CAA}/release/{MBID}/front", redirect(f"{IA}/{FULL}"))
        self.archive.on(f"{CAA}/release/{OTHER_MBID}/front", redirect(elsewhere))
        other = AliasKey(entity=Entity.RELEASE, mbid=OTHER_MBID, name="front")
        for key in (name(), other):
            self.result(self.upstream.resolve(key, self.deadline()))
        self.chain(THUMB, b"small")
        self.assertEqual(self.result(self.image()), b"small")
        third = ImageRef(owner=Entity.RELEASE, mbid=MBID[:-1] + "1", image_id=7)
        self.assertFalse(self.upstream.can_fetch(Target(ref=third), 250))


class ListingTests(UpstreamTests):
    """Listings."""

    def listing(self) -> Coroutine[Deferred[Any], Any, bytes]:
        """The listing used here."""
        return self.upstream.listing(ListingKey(entity=Entity.RELEASE, mbid=MBID), self.deadline())

    def test_chain(self) -> None:
        """All three hops, and the body as it came."""
        self.archive.on(f"{CAA}/release/{MBID}", redirect(f"{IA}/{INDEX}"))
        self.chain(INDEX, b'{"images": [] }')
        self.assertEqual(self.result(self.listing()), b'{"images": [] }')
        self.assertEqual(
            self.asked(), [f"{CAA}/release/{MBID}", f"{IA}/{INDEX}", f"{NODE}/{INDEX}"]
        )

    def test_to_an_image(self) -> None:
        """A listing that leads to an image is refused."""
        self.archive.on(f"{CAA}/release/{MBID}", redirect(f"{IA}/{FULL}"))
        self.fails(self.listing(), BadUpstream)

    def test_too_large(self) -> None:
        """A listing of any length does not fill the memory."""
        self.archive.on(f"{CAA}/release/{MBID}", redirect(f"{IA}/{INDEX}"))
        self.chain(INDEX, b"x" * (LARGEST_BYTES + 1))
        self.fails(self.listing(), BadUpstream)

    def test_second_try_is_whole(self) -> None:
        """A listing cut short is fetched again, and the pieces are not glued together."""
        self.archive.on(f"{CAA}/release/{MBID}", redirect(f"{IA}/{INDEX}"))
        self.chain(INDEX, b"")
        self.archive.on(f"{NODE}/{INDEX}", cut(b'{"ima', 20), reply(200, b'{"images":[]}'))
        d = self.run_(self.listing())
        self.clock.advance(module.RETRY_PAUSE_S)
        for _ in range(6):
            self.archive.flush()
        self.assertEqual(self.successResultOf(d), b'{"images":[]}')
