"""Error answers: status, headers and JSON."""

import json

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from coverart.errors import (
    BadUpstream,
    CoverError,
    Malformed,
    NotInArchive,
    NotReached,
    Overloaded,
    Refused,
    StoreFailed,
    TooManyFetches,
    Unavailable,
    UpstreamTimeout,
)
from coverart.web import headers
from coverart.web.headers import explain, refuse
from tests.support.requests import header, request

ON_TROUBLE = {"cause", "request_id"}


class RefusalTests(SynchronousTestCase):
    """Errors."""

    def test_table(self) -> None:
        """Each error has its status, its life in caches, and JSON that says what it is."""
        for error, status, life in (
            (Malformed("x"), 400, "no-store"),
            (NotInArchive(), 404, "public, max-age=60"),
            (Refused(405, "no"), 405, "no-store"),
            (TooManyFetches(300, 0.2), 429, "no-store"),
            (BadUpstream(), 502, "no-store"),
            (Unavailable(), 503, "no-store"),
            (NotReached(), 503, "no-store"),
            (Overloaded(), 503, "no-store"),
            (StoreFailed(), 503, "no-store"),
            (UpstreamTimeout(), 504, "no-store"),
            (CoverError(), 500, "no-store"),
        ):
            made = request()
            body = refuse(made, error)
            with self.subTest(error=error):
                self.assertEqual((made.code, header(made, "cache-control")), (status, life))
                self.assertEqual(header(made, "content-type"), "application/json")
                self.assertIn("default-src 'none'", header(made, "content-security-policy") or "")
                self.assertEqual(header(made, "content-length"), str(len(body)))
                told = json.loads(body)
                self.assertEqual(
                    {*told} - {"retry_after_s"}, {"error", *(ON_TROUBLE if status >= 500 else ())}
                )
                self.assertEqual(header(made, "proxy-status") is not None, status >= 500)
                self.assertRegex(header(made, "x-request-id") or "", "^[0-9a-f]{32}$")
                self.assertEqual(
                    told.get("request_id", header(made, "x-request-id")),
                    header(made, "x-request-id"),
                )

    def test_details_stay_here(self) -> None:
        """What an error knows of paths, hosts and requests is not told to the client."""
        for kind in (NotInArchive, BadUpstream, Unavailable, StoreFailed):
            body = refuse(request(), kind("10.0.0.7 at /srv/secret"))
            self.assertNotIn(b"secret", body)

    def test_retry_after(self) -> None:
        """429 and 503 say when to come back: whole seconds, one at least."""
        for pause_s, said in ((None, "5"), (0.0, "5"), (0.2, "1"), (7.1, "8"), (600.0, "600")):
            made = request()
            refuse(made, Unavailable(retry_after_s=pause_s))
            self.assertEqual(header(made, "retry-after"), said)
        made = request()
        refuse(made, TooManyFetches(300, 7.1))
        self.assertEqual(header(made, "retry-after"), "8")
        made = request()
        refuse(made, BadUpstream())
        self.assertIsNone(header(made, "retry-after"))

    def test_allow(self) -> None:
        """405 says what is allowed."""
        made = request(b"POST")
        refuse(made, Refused(405, "no", {b"allow": b"GET, HEAD, OPTIONS"}))
        self.assertEqual(header(made, "allow"), "GET, HEAD, OPTIONS")

    def test_head(self) -> None:
        """HEAD tells the length of the body that GET would get, and sends none."""
        made = request(b"HEAD")
        self.assertEqual(refuse(made, NotInArchive()), b"")
        got = refuse(request(), NotInArchive())
        self.assertEqual(header(made, "content-length"), str(len(got)))

    def test_our_mistakes(self) -> None:
        """An error that is none of these is logged, and the client is told no more than 500."""
        made = request()
        failure = Failure(ZeroDivisionError("secret"))
        self.patch(headers, "log", Logger())
        body = explain(made, failure)
        self.assertEqual(made.code, 500)
        self.assertNotIn(b"secret", body)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        explain(made, Failure(Malformed("x")))
        self.assertEqual(self.flushLoggedErrors(), [])
