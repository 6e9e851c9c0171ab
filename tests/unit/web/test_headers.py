"""Statuses and headers of the contract, for every route alike."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.answers import Absent, Status
from coverart.errors import Refused
from coverart.freshness import Lifetimes
from coverart.model import AliasKey, Entity, ImageRequest, ListingKey, MediaType, Name
from coverart.web import headers as responses
from coverart.web.access_log import LoggedRequest
from coverart.web.conditional import Span, Validators
from coverart.web.headers import refuse, span_to_send
from tests.support.requests import header, request
from tests.support.strategies import MBID, examples

FILE = Validators(size_bytes=1000, modified=784111777)


class HeaderTests(SynchronousTestCase):
    """Headers of covers."""

    def test_for_all(self) -> None:
        """Every answer may be read by any page, and its type is not guessed."""
        made = request()
        responses.open_to_all(made)
        self.assertEqual(header(made, "access-control-allow-origin"), "*")
        self.assertEqual(header(made, "x-content-type-options"), "nosniff")
        self.assertEqual(header(made, "cross-origin-resource-policy"), "cross-origin")

    def test_for_none(self) -> None:
        """What is for operators alone is not opened to pages; its type is not guessed either."""
        made = request()
        responses.open_to_all(made)
        responses.open_to_none(made)
        for name, _ in responses.OPEN_TO_ALL:
            self.assertIsNone(header(made, name.decode()))
        self.assertEqual(header(made, "x-content-type-options"), "nosniff")

    def test_options(self) -> None:
        """OPTIONS says what is allowed."""
        made = request(b"OPTIONS")
        self.assertEqual(responses.options(made), b"")
        self.assertEqual(header(made, "allow"), "GET, HEAD, OPTIONS")

    def test_lives(self) -> None:
        """By an id for good; by a role, and a listing, for its lifetime."""
        lives = Lifetimes(alias_s=100, listing_s=50)

        def life(name: Name | None) -> str | None:
            made = request()
            alias = AliasKey(entity=Entity.RELEASE, mbid=MBID, name=name or "front")
            listing = ListingKey(entity=Entity.RELEASE, mbid=MBID)
            made.thing = listing if name is None else ImageRequest(alias=alias, size=250)
            responses.describe(made, Absent(status=Status.ABSENT), lives)
            return header(made, "cache-control")

        self.assertEqual(life(7), "public, max-age=31536000, immutable")
        self.assertEqual(life("front"), "public, max-age=100")
        self.assertEqual(life(None), "public, max-age=50")

    def test_types(self) -> None:
        """The exact type of the bytes; a PDF runs nothing."""
        for media, said in (
            (MediaType.JPEG, "image/jpeg"),
            (MediaType.PNG, "image/png"),
            (MediaType.GIF, "image/gif"),
            (MediaType.PDF, "application/pdf"),
            (None, "application/json"),
        ):
            made = request()
            responses.typed(made, media)
            self.assertEqual(header(made, "content-type"), said)
            policy = header(made, "content-security-policy")
            self.assertEqual(policy is not None, media is MediaType.PDF)

    def test_embedded(self) -> None:
        """A PDF can be embedded by pages of any origin and has no rights there; an error can not."""
        made = request()
        responses.typed(made, MediaType.PDF)
        policy = (header(made, "content-security-policy") or "").split("; ")
        self.assertEqual(policy, ["default-src 'none'", "sandbox"])
        self.assertEqual(header(made, "cross-origin-embedder-policy"), "require-corp")
        made = request(range="bytes=1000-")
        error = self.assertRaises(Refused, span_to_send, made, MediaType.PDF, FILE)
        refuse(made, error)
        self.assertIn("frame-ancestors 'none'", header(made, "content-security-policy") or "")
        self.assertIsNone(header(made, "cross-origin-embedder-policy"))

    def test_every_status(self) -> None:
        """However an answer came about, both headers say so."""
        for status in Status:
            for joined in (False, True):
                made = request()
                made.thing = ListingKey(entity=Entity.RELEASE, mbid=MBID)
                answer = Absent(status=status, joined=joined, hops=2)
                responses.describe(made, answer, Lifetimes())
                self.assertEqual(header(made, "x-cache-status"), status.value)
                self.assertTrue((header(made, "cache-status") or "").startswith("coverart; "))
                self.assertTrue(made.outcome.startswith(status.value))
                # What a fetch took is told of who began it.
                self.assertEqual(made.hops, 0 if joined else 2)
                collapsed = "collapsed" in (header(made, "cache-status") or "")
                self.assertEqual(collapsed, joined)


class SpanTests(SynchronousTestCase):
    """What of a body is sent."""

    def span(self, made: LoggedRequest) -> Span | None:
        """What is sent of 1000 bytes."""
        return span_to_send(made, None, FILE)

    def test_whole(self) -> None:
        """All of it, with what the next request can be conditional on."""
        made = request()
        self.assertEqual(self.span(made), Span(0, 1000))
        self.assertEqual((made.code, header(made, "content-length")), (200, "1000"))
        self.assertEqual(header(made, "etag"), f'"{FILE.etag}"')
        self.assertEqual(header(made, "last-modified"), "Sun, 06 Nov 1994 08:49:37 GMT")
        self.assertEqual(header(made, "accept-ranges"), "bytes")

    def test_head(self) -> None:
        """HEAD has the headers of the whole, whatever range it names (section 14.2)."""
        made = request(b"HEAD", range="bytes=0-9")
        self.assertIsNone(self.span(made))
        self.assertEqual((made.code, header(made, "content-length")), (200, "1000"))

    def test_not_modified(self) -> None:
        """304 sends nothing and declares no length of what it does not send."""
        made = request(if_none_match=f'"{FILE.etag}"', range="bytes=0-9")
        self.assertIsNone(self.span(made))
        self.assertEqual((made.code, header(made, "content-length")), (304, None))
        self.assertIsNotNone(header(made, "etag"))

    def test_failed(self) -> None:
        """412 tells nothing of the file."""
        made = request(if_match='"x"')
        error = self.assertRaises(Refused, self.span, made)
        refuse(made, error)
        self.assertEqual(made.code, 412)
        for name in ("etag", "last-modified", "accept-ranges"):
            self.assertFalse(made.responseHeaders.hasHeader(name))

    def test_range(self) -> None:
        """A range says where it lies."""
        made = request(range="bytes=-100")
        self.assertEqual(self.span(made), Span(900, 1000))
        self.assertEqual((made.code, header(made, "content-length")), (206, "100"))
        self.assertEqual(header(made, "content-range"), "bytes 900-999/1000")

    def test_not_there(self) -> None:
        """416 says how long the file is."""
        made = request(range="bytes=1000-")
        error = self.assertRaises(Refused, self.span, made)
        refuse(made, error)
        self.assertEqual(made.code, 416)
        self.assertEqual(header(made, "content-range"), "bytes */1000")

    def test_several(self) -> None:
        """A request for several ranges gets the whole (section 14.2 leaves that to the server)."""
        made = request(range="bytes=0-9,20-29")
        self.assertEqual(self.span(made), Span(0, 1000))
        self.assertEqual((made.code, header(made, "content-length")), (200, "1000"))

    @examples(200)
    @given(
        st.sampled_from([b"GET", b"HEAD"]),
        st.dictionaries(
            st.sampled_from(
                ["range", "if-range", "if-none-match", "if-modified-since", "if-match"]
            ),
            st.one_of(
                st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
                st.sampled_from([f'"{FILE.etag}"', "bytes=0-1", "bytes=5-1", "bytes=0-0,5-", "*"]),
            ),
        ),
    )
    def test_lengths_agree(self, method: bytes, headers: dict[str, str]) -> None:
        """Whatever is asked, as many bytes are sent as are declared."""
        more: dict[str, Any] = {name.replace("-", "_"): value for name, value in headers.items()}
        made = request(method, **more)
        try:
            sent = self.span(made)
        except Refused:
            return
        length = header(made, "content-length")
        if method == b"GET" and made.code in (200, 206):
            assert sent is not None
            self.assertEqual(str(sent.stop - sent.start), length)
        else:
            self.assertIsNone(sent)
