"""One client's connection by the clock: what is too late, and what only takes its time."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock, LoopingCall
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from coverart.metrics import Metrics
from coverart.web.connection_limits import KEEP_ALIVE_S, Connections
from coverart.web.http_channel import LARGEST_BODY_BYTES
from coverart.web.site import CoverSite

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Transport(StringTransport):
    """Tells an abort from a polite end."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class Producer:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")


class Held(Resource):
    """Answers when told to."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []

    def render(self, request: Any) -> int:
        self.requests.append(request)
        return NOT_DONE_YET

    def answer(self) -> None:
        request = self.requests.pop(0)
        request.setHeader(b"content-length", b"2")
        request.write(b"ok")
        request.finish()


class ChannelTests(SynchronousTestCase):
    """ClientChannel over a transport in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.held = Held()
        metrics = Metrics()
        connections = Connections(10, metrics, self.clock)
        site = CoverSite(self.held, metrics, connections, self.clock)
        looks = LoopingCall(site.look)
        looks.clock = self.clock
        looks.start(0.5, now=False)
        self.protocols = site.acceptableProtocols()
        self.channel: Any = site.buildProtocol(None)
        self.transport = Transport()
        self.channel.makeConnection(self.transport)

    def statuses(self) -> list[bytes]:
        """Of all answers so far."""
        return [each[:3] for each in self.transport.value().split(b"HTTP/1.1 ")[1:]]

    def trickle(self, data: bytes, seconds: float) -> None:
        """Send a byte a second."""
        for number in range(int(seconds)):
            self.channel.dataReceived(data[number % len(data) :][:1])
            self.clock.advance(1)

    def test_trickle(self) -> None:
        """Headers that come a byte at a time end after KEEP_ALIVE_S."""
        self.channel.dataReceived(ASK[:-2])
        self.trickle(b"X: y\r\n", KEEP_ALIVE_S - 1)
        self.assertEqual(self.statuses(), [])
        self.trickle(b"X", 1)
        self.assertEqual(self.statuses(), [b"408"])
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.held.requests, [])

    def test_slow_body(self) -> None:
        """So does a body."""
        self.channel.dataReceived(b"PUT / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
        self.trickle(b"x", KEEP_ALIVE_S)
        self.assertEqual(self.statuses(), [b"408"])

    def test_nothing_after_a_refusal(self) -> None:
        """Whatever comes behind what was refused is not read, in the same bytes or in others."""
        self.channel.dataReceived(b"GET / HTTP/1.1\r\nX : y\r\nY: z\r\n")
        for data in (b"\r\n", ASK, b"\r\n" + ASK * 3):
            self.channel.dataReceived(data)
        self.assertEqual(self.statuses(), [b"400"])
        self.assertEqual(self.held.requests, [])

    def test_length_of_many_digits(self) -> None:
        """A length that is no number to anybody is refused, and nothing behind it is read."""
        for length in (b"9" * 5_000, b"0" * 15_000):
            self.setUp()
            self.channel.dataReceived(b"PUT / HTTP/1.1\r\nContent-Length: %b\r\n\r\n" % length)
            self.channel.dataReceived(ASK)
            self.assertEqual(self.statuses(), [b"400"], length)
            self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.held.requests, [])

    def test_answer_takes_its_time(self) -> None:
        """While an answer is awaited nobody is late, also not who asked for more meanwhile."""
        self.channel.dataReceived(ASK)
        self.channel.dataReceived(ASK[:10])
        self.clock.advance(10 * KEEP_ALIVE_S)
        self.assertEqual(self.statuses(), [])
        self.held.answer()
        self.assertEqual(self.statuses(), [b"200"])
        self.clock.advance(KEEP_ALIVE_S - 1)
        self.channel.dataReceived(ASK[10:])
        self.held.answer()
        self.assertEqual(self.statuses(), [b"200", b"200"])
        self.clock.advance(KEEP_ALIVE_S - 1)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.statuses(), [b"200", b"200"])

    def test_part_behind_an_answer(self) -> None:
        """Part of a request behind one that was answered at once is timed as any other."""
        self.held.render = self.at_once  # type: ignore[method-assign]
        self.channel.dataReceived(ASK + ASK[:10])
        self.clock.advance(KEEP_ALIVE_S)
        self.assertEqual(self.statuses(), [b"200", b"408"])

    def at_once(self, request: Any) -> int:
        """Answer without waiting."""
        self.held.requests.append(request)
        self.held.answer()
        return NOT_DONE_YET

    def test_bodies(self) -> None:
        """A body is dropped as it comes; one that is announced as too large is refused."""
        put = b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
        self.channel.dataReceived(put % LARGEST_BODY_BYTES + b"x" * LARGEST_BODY_BYTES)
        self.assertEqual(self.held.requests[0].content.read(), b"")
        self.held.answer()
        self.channel.dataReceived(put % (LARGEST_BODY_BYTES + 1))
        self.assertEqual(self.statuses(), [b"200", b"413"])

    def test_waits_for_its_client(self) -> None:
        """An answer is written no further than the client takes, also behind another."""
        self.channel.pauseProducing()
        self.channel.dataReceived(ASK)
        producer = Producer()
        self.held.requests[0].registerProducer(producer, True)
        self.assertEqual(producer.told, ["pause"])
        self.channel.resumeProducing()
        self.assertEqual(producer.told, ["pause", "resume"])

    def test_no_other_protocol(self) -> None:
        """In TLS a client is offered HTTP/1.1 alone, whatever else Twisted could speak."""
        self.assertEqual(self.protocols, [b"http/1.1"])
