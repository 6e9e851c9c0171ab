"""The body of one answer: as fast as it is stored, and no faster."""

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH

from coverart.archive.transfer import BytesSink, transfer
from coverart.errors import BadUpstream, PassingTrouble, StoreFailed, UpstreamTimeout


class Connection:
    """What a body's protocol sees of its connection."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pauseProducing")

    def resumeProducing(self) -> None:
        self.calls.append("resumeProducing")

    def loseConnection(self) -> None:
        self.calls.append("loseConnection")


class Answer:
    """An answer whose body is handed over by hand."""

    def __init__(self, length: object = UNKNOWN_LENGTH) -> None:
        self.length = length
        self.connection = Connection()
        self.protocol: Any = None

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self.connection)

    def ends(self, reason: Exception) -> None:
        """The body is over, for this reason."""
        self.protocol.connectionLost(Failure(reason))


class Slow:
    """A sink that has no room until it is told."""

    def __init__(self) -> None:
        self.received = b""
        self.begun: list[int | None] = []
        self.rooms: list[Deferred[None]] = []
        self.full = False
        self.error: Exception | None = None

    def begin(self, length: int | None) -> None:
        self.begun.append(length)

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.received += data

    def room(self) -> Deferred[None] | None:
        if not self.full:
            return None
        self.rooms.append(Deferred())
        return self.rooms[-1]


class TransferTests(SynchronousTestCase):
    """transfer()."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sink = Slow()
        self.answer = Answer(10)

    def begin(self) -> Deferred[None]:
        """Take the body."""
        answer: Any = self.answer
        return transfer(answer, self.sink, 20, self.clock)

    def test_length(self) -> None:
        """The sink learns the declared length, or that there is none."""
        self.begin()
        self.answer = Answer()
        self.begin()
        self.assertEqual(self.sink.begun, [10, None])

    def test_whole(self) -> None:
        """It fires when the whole body was taken, and leaves no timer."""
        d = self.begin()
        self.answer.protocol.dataReceived(b"cover")
        self.assertNoResult(d)
        self.answer.ends(ResponseDone())
        self.successResultOf(d)
        self.assertEqual((self.sink.received, self.clock.getDelayedCalls()), (b"cover", []))

    def test_cut(self) -> None:
        """An end without framing, or before the declared length, is no whole body."""
        for reason, error in (
            (PotentialDataLoss(), BadUpstream),
            (OSError("reset"), PassingTrouble),
        ):
            d = self.begin()
            self.answer.ends(reason)
            self.assertIs(type(self.failureResultOf(d).value), error)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_backpressure(self) -> None:
        """While the sink has no room the connection pauses, and that is no silence of its own."""
        d = self.begin()
        self.sink.full = True
        self.answer.protocol.dataReceived(b"a")
        self.assertEqual(self.answer.connection.calls, ["pauseProducing"])
        self.clock.advance(1000)
        self.assertNoResult(d)
        self.sink.full = False
        self.sink.rooms[0].callback(None)
        self.assertEqual(self.answer.connection.calls, ["pauseProducing", "resumeProducing"])
        self.clock.advance(19)
        self.assertNotIn("loseConnection", self.answer.connection.calls)
        self.clock.advance(1)
        self.assertIn("loseConnection", self.answer.connection.calls)
        self.answer.ends(OSError("aborted"))
        self.failureResultOf(d, UpstreamTimeout)

    def test_lost_while_paused(self) -> None:
        """A connection lost while the sink has no room is not woken afterwards."""
        d = self.begin()
        self.sink.full = True
        self.answer.protocol.dataReceived(b"a")
        self.answer.ends(OSError("reset"))
        self.failureResultOf(d, PassingTrouble)
        self.sink.rooms[0].callback(None)
        self.assertEqual(self.answer.connection.calls, ["pauseProducing"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_sink_refuses(self) -> None:
        """What the sink raises ends the connection and is what is told; the rest is not offered."""
        d = self.begin()
        self.sink.error = StoreFailed("full")
        self.answer.protocol.dataReceived(b"a")
        self.assertEqual(self.answer.connection.calls, ["loseConnection"])
        self.sink.error = None
        self.answer.protocol.dataReceived(b"b")
        self.answer.ends(OSError("aborted"))
        self.failureResultOf(d, StoreFailed)
        self.assertEqual((self.sink.received, self.clock.getDelayedCalls()), (b"", []))

    def test_sink_wants_none(self) -> None:
        """A body that is too large as declared is not taken at all."""
        answer: Any = self.answer
        d = transfer(answer, BytesSink(9), 20, self.clock)
        self.assertEqual(self.answer.connection.calls, ["loseConnection"])
        self.answer.ends(OSError("aborted"))
        self.failureResultOf(d, BadUpstream)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """Calling off ends the connection."""
        d = self.begin()
        d.cancel()
        self.failureResultOf(d, CancelledError)
        self.assertEqual(self.answer.connection.calls, ["loseConnection"])
        self.answer.ends(OSError("aborted"))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class BytesSinkTests(SynchronousTestCase):
    """A small body in memory."""

    def test_starts_over(self) -> None:
        """A second answer takes the place of the first."""
        sink = BytesSink(10)
        sink.begin(None)
        sink.write(b"first")
        sink.begin(6)
        sink.write(b"sec")
        sink.write(b"ond")
        self.assertEqual(sink.body, b"second")

    def test_bounded(self) -> None:
        """Its limit holds for what is declared and for what comes."""
        sink = BytesSink(10)
        self.assertRaises(BadUpstream, sink.begin, 11)
        sink.begin(10)
        sink.write(b"x" * 10)
        self.assertRaises(BadUpstream, sink.write, b"x")
