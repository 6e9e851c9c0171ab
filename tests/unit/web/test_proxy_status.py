"""What is told of 5xx: words for people, fields for programs, Proxy-Status."""

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.errors import (
    BadUpstream,
    CoverError,
    NotInArchive,
    NotReached,
    Overloaded,
    StoreFailed,
    Unavailable,
    UpstreamTimeout,
)
from coverart.web.proxy_status import proxy_status, told
from tests.support.strategies import examples

REGISTERED = {
    # RFC 9209 section 2.3.
    *("dns_timeout", "dns_error", "destination_not_found", "destination_unavailable"),
    *("destination_ip_prohibited", "destination_ip_unroutable", "connection_refused"),
    *("connection_terminated", "connection_timeout", "connection_read_timeout"),
    *("connection_write_timeout", "connection_limit_reached", "tls_protocol_error"),
    *("tls_certificate_error", "tls_alert_received", "http_response_incomplete"),
    *("http_response_body_size", "http_response_timeout", "http_protocol_error"),
    *("proxy_internal_response", "proxy_internal_error", "proxy_configuration_error"),
}


def of(error: CoverError, host: str = "archive.org", received: int | None = None) -> CoverError:
    """The same error, of a host."""
    error.host, error.received = host, received
    return error


class ToldTests(SynchronousTestCase):
    def test_sentences(self) -> None:
        """Which host, what happened, when it is tried again."""
        refused = NotReached("x", proxy_error="connection_refused", retry_after_s=11.2)
        for error, said in (
            (of(refused), "archive.org refuses connections; it is asked again in 12 s"),
            (
                of(Unavailable(retry_after_s=7), received=503),
                "archive.org answered 503; it is asked again in 7 s",
            ),
            (
                of(Unavailable(retry_after_s=7)),
                "archive.org failed and is not asked for a while; it is asked again in 7 s",
            ),
            (
                of(UpstreamTimeout()),
                "archive.org did not answer in time; the next request asks it again",
            ),
            (
                of(UpstreamTimeout(retry_after_s=5)),
                "archive.org did not answer in time; it may be asked again in 5 s",
            ),
            (
                of(BadUpstream(), received=200),
                "archive.org gave no usable answer; the next request asks it again",
            ),
            (
                of(BadUpstream(), received=500),
                "archive.org answered 500; the next request asks it again",
            ),
            (BadUpstream(), "the archive gave no usable answer; the next request asks it again"),
            (Overloaded(retry_after_s=2), "too much is being fetched; try again in 2 s"),
            (StoreFailed(), "the cache can't store files now; try again in 5 s"),
            (CoverError(), "internal error"),
            (NotInArchive(), "no such art"),
        ):
            with self.subTest(said):
                self.assertEqual(told(error)["error"], said)

    def test_fields(self) -> None:
        """Programs get the same without reading words."""
        error = of(Unavailable(retry_after_s=7), received=429)
        del (fields := told(error))["error"]
        self.assertEqual(
            fields,
            {
                "cause": "destination_unavailable",
                "host": "archive.org",
                "received_status": 429,
                "retry_after_s": 7,
            },
        )
        self.assertEqual(list(told(NotInArchive())), ["error"])

    def test_header(self) -> None:
        """The header is a structured field; the kinds are registered ones."""
        self.assertEqual(
            proxy_status(of(Unavailable(retry_after_s=7), received=503)),
            b'coverart; error=destination_unavailable; next-hop="archive.org"; '
            b'received-status=503; details="archive.org answered 503; it is asked again in 7 s"',
        )
        for kind in (BadUpstream, UpstreamTimeout, Unavailable, Overloaded, StoreFailed):
            self.assertIn(kind.proxy_error, REGISTERED)

    @examples(200)
    @given(st.text(max_size=40))
    def test_escaped(self, host: str) -> None:
        """Whatever a host is called, the value stays one line of ASCII, its strings closed."""
        value = proxy_status(of(BadUpstream(), host)).decode("ascii")
        self.assertTrue(value.isprintable())
        left = value
        while '"' in left:
            before, _, left = left.partition('"')
            self.assertNotIn("\\", before)
            while (end := min(left.find('"'), left.find("\\") % (len(left) + 1))) != left.find('"'):
                self.assertIn(left[end + 1], '"\\')
                left = left[end + 2 :]
            left = left[end + 1 :]

    def test_json(self) -> None:
        """The body is JSON."""
        json.dumps(told(of(BadUpstream())))
