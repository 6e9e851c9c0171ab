"""Bodies of files: from the disk, and while they arrive."""

import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.download import SMALL_BYTES, Incoming
from coverart.cache.size_limits import Room
from coverart.errors import NotReached
from coverart.index.memory import MemoryIndex
from coverart.model import ORIGINAL, Entity, ImageRef
from coverart.store.image_store import ImageStore
from coverart.web.conditional import Span
from coverart.web.delivery import (
    AT_ONCE_BYTES,
    PIECE_BYTES,
    ArrivingBody,
    FileBody,
    Part,
    multipart,
)
from tests.support.doubles import at_once, folder
from tests.support.strategies import MBID

KEY = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7).at(ORIGINAL)
SIZE = SMALL_BYTES * 2
BODY = (b"\xff\xd8\xff\xe0" + b"".join(b"%07d." % n for n in range(SIZE // 8 + 1)))[:SIZE]


class Client:
    """
    A request whose client takes what it is given, or pauses.

    Not one over an agent in memory: there, a producer that is pulled from needs the reactor.
    """

    def __init__(self) -> None:
        self.received = b""
        self.pieces: list[int] = []
        self.producer: Any = None
        self.finished = self.aborted = False
        self.pause_after = -1
        self.transport = self

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        assert not self.finished
        self.received += data
        self.pieces.append(len(data))
        if len(self.pieces) == self.pause_after:
            self.producer.pauseProducing()

    def finish(self) -> None:
        self.finished = True

    def abortConnection(self) -> None:
        self.aborted = True


class FileBodyTests(SynchronousTestCase):
    """What lies on the disk."""

    def get(self, parts: list[Part]) -> tuple[bytes, int]:
        """The body, and the descriptor that it was read from."""
        path = folder(self) / "file"
        path.write_bytes(BODY)
        fd = os.open(path, os.O_RDONLY)
        client: Any = Client()
        FileBody(fd, parts).render(client)
        while client.producer is not None:
            client.producer.resumeProducing()
        self.assertTrue(client.finished)
        return client.received, fd

    def test_sizes(self) -> None:
        """Small or large, exactly the span is sent, and the file is closed."""
        for start, stop in ((0, 10), (5, 5 + AT_ONCE_BYTES), (7, AT_ONCE_BYTES + 8), (0, SIZE)):
            body, fd = self.get([Part(b"", Span(start, stop))])
            self.assertEqual(body, BODY[start:stop])
            self.assertRaises(OSError, os.fstat, fd)

    def test_parts(self) -> None:
        """Parts come with their heads, in order."""
        for spans in ((Span(0, 5), Span(10, 15)), (Span(0, AT_ONCE_BYTES), Span(SIZE - 5, SIZE))):
            _, parts = multipart(spans, SIZE, "image/jpeg")
            body, _ = self.get(parts)
            expected = b"".join(p.head + BODY[p.span.start : p.span.stop] for p in parts)
            self.assertEqual(body, expected)
            self.assertEqual(len(body), sum(part.size_bytes for part in parts))

    def test_nothing(self) -> None:
        """A body without parts closes the file as well."""
        body, fd = self.get([])
        self.assertEqual(body, b"")
        self.assertRaises(OSError, os.fstat, fd)


class ArrivingBodyTests(SynchronousTestCase):
    """What is still arriving."""

    def setUp(self) -> None:
        self.store = ImageStore(folder(self))
        self.incoming = Incoming(
            KEY,
            store=self.store,
            room=Room(store=self.store, index=MemoryIndex(), max_bytes=SIZE, clock=Clock()),
            in_thread=at_once,
            largest_bytes=SIZE,
            stored_at=1000,
            announce=lambda _: None,
        )
        self.incoming.begin(SIZE)
        self.incoming.write(BODY[:1000])
        self.before = len(os.listdir("/proc/self/fd"))

    def follow(self, start: int = 0, stop: int = SIZE, pause_after: int = -1) -> Client:
        """A client that asks for part of it."""
        client: Any = Client()
        client.pause_after = pause_after
        ArrivingBody(self.incoming, Span(start, stop)).render(client)
        followed: Client = client
        return followed

    def rest(self) -> None:
        """The rest arrives."""
        self.incoming.write(BODY[1000:])
        self.successResultOf(Deferred.fromCoroutine(self.incoming.finish()))

    def open_files(self) -> int:
        """Files open beyond those of the beginning."""
        return len(os.listdir("/proc/self/fd")) - self.before

    def test_at_once(self) -> None:
        """What has come is sent at once, the rest as it comes, and then the answer ends."""
        client = self.follow()
        self.assertEqual(client.received, BODY[:1000])
        self.assertFalse(client.finished)
        self.rest()
        self.assertEqual((client.received, client.finished), (BODY, True))
        self.assertLessEqual(max(client.pieces), PIECE_BYTES)
        self.assertEqual(self.open_files(), -1)

    def test_span(self) -> None:
        """A range of it ends as soon as it is there, before the image is."""
        early, late = self.follow(10, 20), self.follow(SIZE - 5, SIZE)
        self.assertEqual((early.received, early.finished), (BODY[10:20], True))
        self.assertEqual(late.received, b"")
        self.rest()
        self.assertEqual((late.received, late.finished), (BODY[-5:], True))

    def test_slow_client(self) -> None:
        """A client that pauses gets no more than it took, holds up nobody, and goes on later."""
        slow, quick = self.follow(pause_after=1), self.follow()
        self.rest()
        self.assertEqual((slow.received, quick.received), (BODY[:1000], BODY))
        self.assertEqual(self.open_files(), 0)
        slow.pause_after = 3
        slow.producer.resumeProducing()
        self.assertEqual(len(slow.pieces), 3)
        slow.producer.resumeProducing()
        self.assertEqual((slow.received, slow.finished), (BODY, True))
        self.assertEqual(self.open_files(), -1)

    def test_paused_while_waiting(self) -> None:
        """What comes while a client pauses is not sent before it resumes."""
        client = self.follow()
        client.producer.pauseProducing()
        self.rest()
        self.assertEqual(client.received, BODY[:1000])
        client.producer.resumeProducing()
        self.assertEqual((client.received, client.finished), (BODY, True))

    def test_client_leaves(self) -> None:
        """A client that leaves lets go of the file and cancels nothing."""
        client, other = self.follow(), self.follow()
        client.producer.stopProducing()
        self.rest()
        self.assertEqual((client.received, client.finished), (BODY[:1000], False))
        self.assertEqual((other.received, other.finished), (BODY, True))
        self.assertEqual(self.open_files(), -1)

    def test_fails_midway(self) -> None:
        """An image that breaks off breaks the connection: no whole-looking answer."""
        client = self.follow()
        paused = self.follow(pause_after=1)
        self.incoming.fail(NotReached("cut"))
        self.assertEqual((client.finished, client.aborted), (False, True))
        self.assertFalse(paused.aborted)
        paused.producer.resumeProducing()
        self.assertEqual((paused.finished, paused.aborted), (False, True))
        self.assertEqual(self.open_files(), -1)
