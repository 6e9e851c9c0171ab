"""Bodies of files: from the disk, and while they arrive."""

import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.download import SMALL_BYTES, Download
from coverart.cache.size_limits import Room
from coverart.cache.writer import Writer
from coverart.errors import NotReached
from coverart.index.memory import MemoryIndex
from coverart.model import ORIGINAL, Entity, ImageRef
from coverart.store.image_store import ImageStore
from coverart.web.conditional import Span
from coverart.web.delivery import PIECE_BYTES, Arriving, Body, OpenFile, Source
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
        self.key = "/release/x/front"
        self.identify = lambda: "0" * 32

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


class HeldTests(SynchronousTestCase):
    """What is whole: a file on the disk, a body in memory."""

    def get(self, source: Source, start: int, stop: int, pause_after: int = -1) -> Client:
        """What a client gets of it."""
        client: Any = Client()
        client.pause_after = pause_after
        Body(source, Span(start, stop)).render(client)
        got: Client = client
        return got

    def file(self, body: bytes = BODY) -> OpenFile:
        path = folder(self) / "file"
        path.write_bytes(body)
        return OpenFile(os.open(path, os.O_RDONLY))

    def test_sizes(self) -> None:
        """Small or large, exactly the span is sent, and the file is closed."""
        for start, stop in ((0, 10), (5, 5 + PIECE_BYTES), (7, PIECE_BYTES + 8), (0, SIZE)):
            for source in (self.file(), Source(BODY)):
                client = self.get(source, start, stop)
                self.assertEqual((client.received, client.finished), (BODY[start:stop], True))
                self.assertIsNone(client.producer)
                if isinstance(source, OpenFile):
                    self.assertRaises(OSError, os.fstat, source.fd)

    def test_slow_client(self) -> None:
        """A client that pauses gets no more than it took, and the rest later."""
        source = self.file()
        client = self.get(source, 0, SIZE, pause_after=2)
        self.assertEqual((client.received, client.finished), (BODY[: 2 * PIECE_BYTES], False))
        client.producer.resumeProducing()
        self.assertEqual((client.received, client.finished), (BODY, True))
        self.assertRaises(OSError, os.fstat, source.fd)

    def test_client_leaves(self) -> None:
        """The file is closed when its client leaves."""
        source = self.file()
        self.get(source, 0, SIZE, pause_after=1).producer.stopProducing()
        self.assertRaises(OSError, os.fstat, source.fd)

    def test_headers_alone(self) -> None:
        """Without a span nothing is written; the answer ends and the file is closed."""
        source = self.file()
        client: Any = Client()
        Body(source, None).render(client)
        self.assertEqual((client.pieces, client.finished), ([], True))
        self.assertRaises(OSError, os.fstat, source.fd)

    def test_shorter_than_said(self) -> None:
        """A file that was cut meanwhile breaks the connection: no whole-looking answer."""
        source = self.file(BODY[:1000])
        client = self.get(source, 0, SIZE)
        self.assertEqual((client.received, client.finished), (BODY[:1000], False))
        self.assertTrue(client.aborted)
        self.assertRaises(OSError, os.fstat, source.fd)


class ArrivingTests(SynchronousTestCase):
    """What is still arriving."""

    def setUp(self) -> None:
        self.store = ImageStore(folder(self))
        self.download = Download(
            KEY,
            store=self.store,
            room=Room(store=self.store, index=MemoryIndex(), max_bytes=SIZE, clock=Clock()),
            writer=Writer(self.store, at_once),
            stored_at=1000,
            announce=lambda _: None,
        )
        self.download.begin(SIZE)
        self.download.write(BODY[:1000])
        self.before = len(os.listdir("/proc/self/fd"))

    def follow(self, start: int = 0, stop: int = SIZE, pause_after: int = -1) -> Client:
        """A client that asks for part of it."""
        client: Any = Client()
        client.pause_after = pause_after
        Body(Arriving(self.download, start), Span(start, stop)).render(client)
        followed: Client = client
        return followed

    def rest(self) -> None:
        """The rest arrives."""
        self.download.write(BODY[1000:])
        self.successResultOf(Deferred.fromCoroutine(self.download.finish()))
        self.download.end()

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
        self.download.end(NotReached("cut"))
        self.assertEqual((client.finished, client.aborted), (False, True))
        self.assertFalse(paused.aborted)
        paused.producer.resumeProducing()
        self.assertEqual((paused.finished, paused.aborted), (False, True))
        self.assertEqual(self.open_files(), -1)
