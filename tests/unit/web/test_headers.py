"""Statuses and headers of the contract, for every route alike."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyChannel

from coverart.cache.answers import Absent, Status
from coverart.errors import (
    BadUpstream,
    CoverError,
    Malformed,
    NotInArchive,
    NotReached,
    Overloaded,
    Refused,
    StoreFailed,
    Unavailable,
    UpstreamTimeout,
)
from coverart.freshness import Lifetimes
from coverart.model import AliasKey, Entity, ImageRequest, ListingKey, MediaType, Name
from coverart.web import error_answers
from coverart.web import headers as responses
from coverart.web.access_log import LoggedRequest
from coverart.web.conditional import Span, Validators
from coverart.web.headers import span_to_send
from tests.support.strategies import MBID, examples

FILE = Validators(size_bytes=1000, modified=784111777)


def request(method: bytes = b"GET", **headers: str) -> LoggedRequest:
    """A request as it came in."""
    made = LoggedRequest(DummyChannel(), False)
    made.method = method
    made.clientproto = b"HTTP/1.1"
    for name, value in headers.items():
        made.requestHeaders.setRawHeaders(name.replace("_", "-"), [value])
    return made


def header(made: LoggedRequest, name: str) -> str | None:
    """A header of the answer."""
    values = made.responseHeaders.getRawHeaders(name)
    return None if values is None else str(values[-1])


class RefusalTests(SynchronousTestCase):
    """Errors."""

    def test_table(self) -> None:
        """Each error has its status, its life in caches, and JSON that says what it is."""
        for error, status, life in (
            (Malformed("x"), 400, "no-store"),
            (NotInArchive(), 404, "public, max-age=60"),
            (Refused(405, "no"), 405, "no-store"),
            (BadUpstream(), 502, "no-store"),
            (Unavailable(), 503, "no-store"),
            (NotReached(), 503, "no-store"),
            (Overloaded(), 503, "no-store"),
            (StoreFailed(), 503, "no-store"),
            (UpstreamTimeout(), 504, "no-store"),
            (CoverError(), 500, "no-store"),
        ):
            made = request()
            body = error_answers.refuse(made, error)
            with self.subTest(error=error):
                self.assertEqual((made.code, header(made, "cache-control")), (status, life))
                self.assertEqual(header(made, "content-type"), "application/json")
                self.assertIn("default-src 'none'", header(made, "content-security-policy") or "")
                self.assertEqual(header(made, "content-length"), str(len(body)))
                self.assertEqual(list(json.loads(body)), ["error"])

    def test_details_stay_here(self) -> None:
        """What an error knows of paths, hosts and requests is not told to the client."""
        for kind in (NotInArchive, BadUpstream, Unavailable, StoreFailed):
            body = error_answers.refuse(request(), kind("10.0.0.7 at /srv/secret"))
            self.assertNotIn(b"secret", body)

    def test_retry_after(self) -> None:
        """503 says when to come back: whole seconds, one at least."""
        for pause_s, said in ((None, "5"), (0.0, "5"), (0.2, "1"), (7.1, "8"), (600.0, "600")):
            made = request()
            error_answers.refuse(made, Unavailable(retry_after_s=pause_s))
            self.assertEqual(header(made, "retry-after"), said)
        made = request()
        error_answers.refuse(made, BadUpstream())
        self.assertIsNone(header(made, "retry-after"))

    def test_allow(self) -> None:
        """405 says what is allowed; so does OPTIONS."""
        made = request(b"POST")
        error_answers.refuse(made, Refused(405, "no", {b"allow": b"GET, HEAD, OPTIONS"}))
        self.assertEqual(header(made, "allow"), "GET, HEAD, OPTIONS")
        made = request(b"OPTIONS")
        self.assertEqual(responses.options(made), b"")
        self.assertEqual(header(made, "allow"), "GET, HEAD, OPTIONS")

    def test_head(self) -> None:
        """HEAD tells the length of the body that GET would get, and sends none."""
        made = request(b"HEAD")
        self.assertEqual(error_answers.refuse(made, NotInArchive()), b"")
        got = error_answers.refuse(request(), NotInArchive())
        self.assertEqual(header(made, "content-length"), str(len(got)))

    def test_our_mistakes(self) -> None:
        """An error that is none of these is logged, and the client is told no more than 500."""
        made = request()
        failure = Failure(ZeroDivisionError("secret"))
        self.patch(error_answers, "log", Logger())
        body = error_answers.explain(made, failure)
        self.assertEqual(made.code, 500)
        self.assertNotIn(b"secret", body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        error_answers.explain(made, Failure(Malformed("x")))
        self.assertEqual(self.flushLoggedErrors(), [])


class HeaderTests(SynchronousTestCase):
    """Headers of covers."""

    def test_for_all(self) -> None:
        """Every answer may be read by any page, and its type is not guessed."""
        made = request()
        responses.open_to_all(made)
        self.assertEqual(header(made, "access-control-allow-origin"), "*")
        self.assertEqual(header(made, "x-content-type-options"), "nosniff")

    def test_lives(self) -> None:
        """By an id for good; by a role, and a listing, for its lifetime."""
        lives = Lifetimes(alias_s=100, listing_s=50)

        def life(name: Name | None) -> str | None:
            made = request()
            alias = AliasKey(entity=Entity.RELEASE, mbid=MBID, name=name or "front")
            listing = ListingKey(entity=Entity.RELEASE, mbid=MBID)
            thing = listing if name is None else ImageRequest(alias=alias, size=250)
            responses.cacheable(made, thing, lives)
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

    def test_every_status(self) -> None:
        """However an answer came about, both headers say so."""
        for status in Status:
            for joined in (False, True):
                made = request()
                responses.say_status(made, Absent(status=status, joined=joined, hops=2))
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
        return span_to_send(made, FILE)

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
        error_answers.refuse(made, error)
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
        error_answers.refuse(made, error)
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
