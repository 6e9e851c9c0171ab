"""One request to the archive: bounded, honest about what went wrong, and telling the breaker."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import DNSLookupError, NoRouteError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived
from twisted.web.server import NOT_DONE_YET

from coverart.archive.archive_client import DRAIN_S, ArchiveClient, Limits
from coverart.archive.circuit_breaker import LONGEST_RETRY_AFTER_S, TIMEOUTS_IN_A_ROW, Breaker
from coverart.archive.proxies import read_proxies
from coverart.archive.safe_connect import make_client
from coverart.archive.source import FetchDeadline
from coverart.archive.transfer import BytesSink
from coverart.archive.url_policy import Hop, Rules
from coverart.errors import (
    BadUpstream,
    CoverError,
    FileNotInArchive,
    NotInArchive,
    NotReached,
    PassingTrouble,
    Unavailable,
    UpstreamTimeout,
)
from tests.support.doubles import (
    Answer,
    ScriptedArchive,
    cut,
    hang_up,
    redirect,
    reply,
    stall,
)
from tests.support.strategies import examples

ASKED = "http://archive/x"
HOP = Rules(("archive:80", "other:80")).check("http://archive/x")
OTHER = Rules(("archive:80", "other:80")).check("http://other/x")


class ClientTests(SynchronousTestCase):
    """ArchiveClient over a scripted archive."""

    def setUp(self) -> None:
        self.archive = ScriptedArchive()
        self.clock = Clock()
        self.clock.advance(1000)
        self.sink = BytesSink(1_000_000)
        self.deadline = FetchDeadline(at=2000)
        self.client = self.made()

    def made(self, concurrency: int = 4) -> ArchiveClient:
        """A client with a clock that stands still."""
        self.breaker = Breaker(jitter=lambda: 0.0)
        return ArchiveClient(
            http=self.archive.http(),
            clock=self.clock,
            breaker=self.breaker,
            limits=Limits(total_s=60, concurrency=concurrency),
            user_agent="coverart/0 ( test )",
        )

    def get(self, *, hop: Hop = HOP, sink: bool = True) -> Deferred[bytes | None]:
        """One GET, as far as it gets without time passing."""
        d: Deferred[bytes | None] = Deferred.fromCoroutine(
            self.client.get(hop, "1", self.deadline, self.sink if sink else None)
        )
        self.archive.flush()
        return d

    def ends(self, error: type[CoverError], *answers: Answer | Exception) -> CoverError:
        """The error that an answer leads to."""
        self.archive.on(ASKED, *answers)
        value: CoverError = self.failureResultOf(self.get(), error).value
        self.assertIs(type(value), error)
        return value

    def left_alone(self, hop: Hop = HOP) -> bool:
        """Whether the host is not asked now."""
        try:
            self.breaker.returned(self.breaker.admit(hop.origin, self.clock.seconds()))
        except Unavailable:
            return True
        return False


class AnswerTests(ClientTests):
    """What answers mean."""

    def test_whole(self) -> None:
        """The body of a 200 goes to the sink; the request says who asks, and costs a hop."""
        self.archive.on(ASKED, reply(200, b"cover"))
        self.assertIsNone(self.successResultOf(self.get()))
        self.assertEqual(self.sink.body, b"cover")
        request = self.archive.requests[0]
        self.assertEqual(request.getHeader("user-agent"), "coverart/0 ( test )")
        self.assertEqual(self.deadline.hops, 1)

    def test_redirects(self) -> None:
        """A redirect of any kind gives its Location and is not followed; empty if it has none."""
        for code in (301, 302, 303, 307, 308):
            self.archive.on(ASKED, redirect("http://elsewhere/y", code))
            self.assertEqual(self.successResultOf(self.get()), b"http://elsewhere/y")
        self.archive.on(ASKED, reply(302))
        self.assertEqual(self.successResultOf(self.get()), b"")
        self.assertEqual(set(self.archive.asked), {ASKED})

    def test_statuses_made_up(self) -> None:
        """Numbers that are no statuses are counted as one, so that no archive fills our memory."""
        for code in (0, 99, 600, 999, *range(10_000, 10_050), 10**40):
            self.ends(BadUpstream, reply(code, b""))
        value = self.client.metrics.value
        name = "coverart_upstream_requests_total"
        self.assertEqual(value(name, hop="1", status="no-status"), 55)
        self.assertLess(self.client.metrics.expose().count(name.encode()), 5)

    def test_body_where_none_makes_sense(self) -> None:
        """A page with 200 in place of a redirect is the archive's mistake."""
        self.archive.on(ASKED, reply(200, b"<html>"))
        self.failureResultOf(self.get(sink=False), BadUpstream)

    def test_statuses(self) -> None:
        """404 is no such art; some errors may pass; the rest makes no sense."""
        self.ends(FileNotInArchive, reply(404, b"no"))
        self.archive.on(ASKED, reply(404, b"no"))
        error = self.failureResultOf(self.get(sink=False), NotInArchive).value
        self.assertNotIsInstance(error, FileNotInArchive)
        for code in (500, 502, 504):
            self.ends(PassingTrouble, reply(code, b"trouble"))
        for code in (204, 206, 300, 304, 400, 401, 403, 410, 418, 501):
            self.ends(BadUpstream, reply(code, b"" if code in (204, 304) else b"what"))
        self.assertFalse(self.left_alone())

    def test_cut(self) -> None:
        """A body shorter than declared, or no answer at all, is trouble that may pass."""
        self.ends(PassingTrouble, cut(b"half", 100))
        self.ends(PassingTrouble, hang_up)
        self.assertFalse(self.left_alone())

    def test_unframed(self) -> None:
        """A body with neither length nor framing may have been cut, so it is not taken."""

        def answer(request: Any) -> Any:
            # As an HTTP/1.0 server ends a body: by hanging up.
            request.channel.transport.write(b"HTTP/1.0 200 OK\r\n\r\nhalf a cover?")
            request.channel.transport.loseConnection()
            return NOT_DONE_YET

        self.ends(BadUpstream, answer)

    def test_too_large(self) -> None:
        """A body over the sink's limit is refused, as declared or as it comes."""
        self.sink = BytesSink(10)
        self.ends(BadUpstream, reply(200, b"x" * 11))

    def test_errors_of_any_body(self) -> None:
        """However long the page of an error is, its status is what counts."""
        self.ends(FileNotInArchive, reply(404, b"x" * 1_000_000))
        self.ends(FileNotInArchive, reply(404, b"again"))


class SlowDownTests(ClientTests):
    """When the archive asks to be left alone."""

    def test_refused(self) -> None:
        """A refused connection means too much was asked: the host is left alone at once."""
        for error in (Refused(), NoRouteError(), DNSLookupError("no such name")):
            self.client = self.made()
            refusal = self.ends(NotReached, error)
            self.assertEqual((refusal.status, refusal.retry_after_s), (503, 5))
            self.assertTrue(self.left_alone())
            asked = len(self.archive.asked)
            self.failureResultOf(self.get(), Unavailable)
            self.assertEqual(len(self.archive.asked), asked)

    def test_said(self) -> None:
        """503 and 429 too; other hosts are asked as before; an answer ends it."""
        for code in (503, 429):
            self.client = self.made()
            error = self.ends(Unavailable, reply(code, b"slow down"))
            self.assertEqual(error.retry_after_s, 5)
            self.assertTrue(self.left_alone())
            self.archive.on("http://other/x", reply(200, b"cover"))
            self.successResultOf(self.get(hop=OTHER))
            self.clock.advance(5)
            self.archive.on(ASKED, reply(404))
            self.failureResultOf(self.get(), NotInArchive)
            self.assertFalse(self.left_alone())

    def test_tls(self) -> None:
        """What is wrong with TLS is told as OpenSSL tells it, and is no trouble of the host."""
        refused = SSL.Error([("SSL routines", "", "certificate verify failed")])
        for reason, words in (
            (refused, "certificate verify failed"),
            (VerificationError([]), "VerificationError"),
            (SSL.SysCallError(104, "reset"), "reset"),
        ):
            error = self.ends(PassingTrouble, ResponseNeverReceived([Failure(reason)]))
            self.assertIn(words, error.detail)
        self.assertFalse(self.left_alone())

    def test_comes_back_gently(self) -> None:
        """After trouble one request finds out; the rest is told so, and sent nowhere."""
        self.client = self.made(concurrency=10)
        self.ends(Unavailable, reply(503))
        self.clock.advance(5)
        self.archive.on(ASKED, stall())
        self.archive.asked.clear()
        probe, *others = [self.get() for _ in range(10)]
        self.assertEqual(len(self.archive.asked), 1)
        for d in others:
            self.assertEqual(self.failureResultOf(d, Unavailable).value.retry_after_s, 1)
        probe.addErrback(lambda _: None).cancel()

    def test_retry_after(self) -> None:
        """Retry-After counts in seconds; a date or nonsense does not."""
        for value, pause_s in {
            "120": 120,
            "0": 1,
            "999999999": LONGEST_RETRY_AFTER_S,
            "Sun, 06 Nov 1994 08:50:37 GMT": 5,
            "soon": 5,
            "-1": 5,
            "1.5": 5,
            "9" * 30: 5,
            "\xb2": 5,
        }.items():
            self.client = self.made()
            error = self.ends(Unavailable, reply(503, b"", retry_after=value))
            self.assertEqual(error.retry_after_s, pause_s, value)

    @examples(60)
    @given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40))
    def test_any_retry_after(self, value: str) -> None:
        """Retry-After of any content gives a bounded pause."""
        self.client = self.made()
        error = self.ends(Unavailable, reply(503, b"", retry_after=value))
        assert error.retry_after_s is not None
        self.assertTrue(1 <= error.retry_after_s <= LONGEST_RETRY_AFTER_S)

    def test_places(self) -> None:
        """So many requests are under way at once; the next is sent when one has ended."""
        self.client = self.made(concurrency=2)
        self.archive.on(ASKED, stall(b"x", 2))
        running = [self.get() for _ in range(3)]
        self.assertEqual(
            (len(self.archive.asked), self.client.metrics.value("coverart_upstream_waiting")),
            (2, 1),
        )
        self.archive.requests[0].write(b"y")
        self.archive.flush()
        self.successResultOf(running[0])
        self.assertEqual(
            (len(self.archive.asked), self.client.metrics.value("coverart_upstream_waiting")),
            (3, 0),
        )

    def test_place_given_back(self) -> None:
        """However a request ends, its place is free again."""
        self.client = self.made(concurrency=1)
        for answer in (reply(200, b"x"), reply(404), hang_up, cut(b"x", 9), ValueError("odd")):
            self.archive.on(ASKED, answer)
            self.get().addErrback(lambda _: None)
        self.archive.on(ASKED, stall())
        self.get().addErrback(lambda _: None).cancel()
        self.archive.on(ASKED, reply(200, b"x"))
        self.assertIsNone(self.successResultOf(self.get()))


class TimeTests(ClientTests):
    """Silence."""

    def test_no_answer(self) -> None:
        """No headers in time is a timeout; so many in a row, and the host is left alone."""
        self.archive.on(ASKED, stall())
        for n in range(TIMEOUTS_IN_A_ROW):
            self.assertFalse(self.left_alone(), n)
            d = self.get()
            self.clock.advance(29)
            self.assertNoResult(d)
            self.clock.advance(1)
            self.archive.flush()
            self.failureResultOf(d, UpstreamTimeout)
        self.assertTrue(self.left_alone())

    def test_silence(self) -> None:
        """A body that falls silent ends; one that trickles goes on."""
        self.archive.on(ASKED, stall(b"12345", 10))
        d = self.get()
        self.clock.advance(29)
        self.archive.requests[0].write(b"6")
        self.archive.flush()
        self.clock.advance(29)
        self.archive.flush()
        self.assertNoResult(d)
        self.clock.advance(1)
        self.archive.flush()
        self.failureResultOf(d, UpstreamTimeout)
        self.assertFalse(self.left_alone())

    def test_silence_after_the_head(self) -> None:
        """A redirect is its head: a body that stalls or drips costs a moment, not the fetch."""

        def dawdle(request: Any) -> Any:
            request.setResponseCode(307)
            request.setHeader(b"location", b"http://elsewhere/y")
            request.setHeader(b"content-length", b"100")
            request.write(b"see")
            return NOT_DONE_YET

        self.archive.on(ASKED, dawdle)
        asked = self.get()
        self.assertNoResult(asked)
        for _ in range(4):
            self.clock.advance(DRAIN_S / 4)
            if self.archive.requests[0].channel is not None and not asked.called:
                self.archive.requests[0].write(b".")
            self.archive.flush()
        self.assertEqual(self.successResultOf(asked), b"http://elsewhere/y")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """A request called off before its answer ends as such, not as the archive's trouble."""
        self.archive.on(ASKED, stall())
        d = self.get()
        d.cancel()
        self.archive.flush()
        self.failureResultOf(d, CancelledError)
        self.assertFalse(self.left_alone())

    def test_cancelled_in_the_body(self) -> None:
        """The same in the middle of a body."""
        self.archive.on(ASKED, stall(b"12345", 10))
        d = self.get()
        d.cancel()
        self.archive.flush()
        self.failureResultOf(d, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_timer_left(self) -> None:
        """A request that ended leaves no timer behind."""
        for answer in (reply(200, b"x"), reply(404, b"y"), hang_up, cut(b"x", 5), redirect("/z")):
            self.archive.on(ASKED, answer)
            self.get().addErrback(lambda _: None)
            self.assertEqual(self.clock.getDelayedCalls(), [])


class TcpTransport(StringTransport):
    """A connection in memory."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing is delayed."""


class ByProxyTests(SynchronousTestCase):
    """ArchiveClient where a proxy leads out."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        rules = Rules(("archive.org",))
        proxies = read_proxies({"HTTPS_PROXY": "http://us3r:s3cret@127.0.0.1:3128"})
        http, _ = make_client(
            self.reactor, rules, clock=self.reactor, connections_per_host=1, proxies=proxies
        )
        self.client = ArchiveClient(
            http=http,
            clock=self.reactor,
            breaker=Breaker(),
            limits=Limits(),
            user_agent="x",
            proxies=proxies,
        )
        asked = self.client.get(
            rules.check("https://archive.org/x"), "1", FetchDeadline(at=60), BytesSink(1)
        )
        self.answer: Deferred[Any] = Deferred.fromCoroutine(asked)

    def timeout(self) -> str:
        self.reactor.advance(Limits().silence_s)
        error: UpstreamTimeout = self.failureResultOf(self.answer, UpstreamTimeout).value
        return error.detail

    def connect(self) -> StringTransport:
        client: Any = self.reactor.tcpClients[0]
        host, port, factory, *_ = client
        self.assertEqual((host, port), ("127.0.0.1", 3128))
        self.proxy = factory.buildProtocol(IPv4Address("TCP", host, port))
        transport = TcpTransport()
        self.proxy.makeConnection(transport)
        return transport

    WORDS = "proxy http://127.0.0.1:3128 did not open a way to archive.org:443 in time"

    def test_never_connected(self) -> None:
        """Who does not let connect is the proxy, and it is told so."""
        self.assertEqual(self.timeout(), self.WORDS)

    def test_never_opened(self) -> None:
        """The same of who never answers CONNECT; the connection ends."""
        transport = self.connect()
        self.assertIn(b"CONNECT archive.org:443 ", transport.value())
        self.assertEqual(self.timeout(), self.WORDS)
        self.assertTrue(transport.disconnected)

    def test_silent_behind_it(self) -> None:
        """Once the way is open either may be at fault."""
        transport = self.connect()
        self.proxy.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n")
        self.assertIn(b"\x16\x03", transport.value())
        told = "archive.org:443 (by proxy http://127.0.0.1:3128) did not answer in time"
        self.assertEqual(self.timeout(), told)

    def test_left(self) -> None:
        """Who leaves while the proxy is silent is told nothing, and the connection ends."""
        transport = self.connect()
        self.answer.cancel()
        self.failureResultOf(self.answer, CancelledError)
        self.assertTrue(transport.disconnected)
