"""Files on their way to their names: in batches, with errors of their own."""

import errno
import os
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.writer import BATCHES_AT_ONCE, Link, NewFile, Writer, Written
from coverart.errors import BadUpstream
from coverart.model import (
    Alias,
    AliasKey,
    Entity,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
    Target,
)
from coverart.store import layout
from coverart.store.image_store import ImageStore
from tests.support.doubles import HeldBack, folder
from tests.support.strategies import MBID

FRONT = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="front")


def image(number: int) -> ImageKey:
    return ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=number).at(250)


def body(number: int) -> bytes:
    return b"\xff\xd8\xff\xe0 number %d" % number


def new(number: int, **given: Any) -> NewFile:
    """A small image."""
    return NewFile(
        key=image(number),
        media=MediaType.JPEG,
        body=body(number),
        stored_at=1000 + number,
        **given,
    )


class WriterTests(SynchronousTestCase):
    """A disk that is held back: its threads go on when a test says so."""

    def setUp(self) -> None:
        self.store = ImageStore(folder(self))
        self.disk = HeldBack()
        self.writer = Writer(self.store, self.disk)
        self.open: list[int] = []
        self.addCleanup(self.close)

    def close(self) -> None:
        for fd in self.open:
            os.close(fd)

    def commit(self, *files: NewFile) -> list[Deferred[Written]]:
        return [self.writer.commit(file).addCallback(self.note) for file in files]

    def note(self, written: Written) -> Written:
        self.open.append(written.temporary.fd)
        return written

    def there(self, *numbers: int) -> list[bytes | None]:
        """What lies in the place of each image."""
        paths = [
            self.store.root / layout.image_path(image(number), MediaType.JPEG) for number in numbers
        ]
        return [path.read_bytes() if path.is_file() else None for path in paths]

    def begun(self) -> int:
        return len(os.listdir(self.store.root / layout.INCOMING))

    def test_what_waits_goes_together(self) -> None:
        """While threads are busy, all files that come are one hand-over; each has its own answer."""
        numbers = range(BATCHES_AT_ONCE + 20)
        committed = self.commit(*(new(number) for number in numbers))
        self.assertEqual(len(self.disk.waiting), BATCHES_AT_ONCE)
        self.disk.let_one_go()
        self.assertEqual(len(self.disk.waiting), BATCHES_AT_ONCE)
        self.disk.let_all_go()
        for number, d in zip(numbers, committed, strict=True):
            written = self.successResultOf(d)
            self.assertTrue(written.named)
            self.assertEqual(os.pread(written.temporary.fd, 100, 0), body(number))
        self.assertEqual(self.there(*numbers), [body(number) for number in numbers])
        self.assertEqual(self.begun(), 0)

    def batch(self, *files: NewFile) -> list[Deferred[Written]]:
        """These files as one batch, as soon as others are done."""
        others = [new(90 + number) for number in range(BATCHES_AT_ONCE)]
        self.commit(*others)
        return self.commit(*files)

    def test_durable_before_named(self) -> None:
        """Of a batch no name appears before all bytes of it are durable."""
        events: list[str] = []

        def note(name: str, real: Any) -> Any:
            def noted(*args: Any) -> Any:
                events.append(name)
                return real(*args)

            return noted

        for name in ("append", "make_durable", "put_in_place"):
            self.patch(self.store, name, note(name, getattr(self.store, name)))
        self.batch(new(1), new(2), new(3))
        for _ in range(BATCHES_AT_ONCE):
            self.disk.let_one_go()
        events.clear()
        self.disk.let_all_go()
        self.assertEqual(events, ["append"] * 3 + ["make_durable"] * 3 + ["put_in_place"] * 3)

    def test_errors_are_their_files_own(self) -> None:
        """One that fails, at whatever step, keeps no other from the disk, and leaves nothing."""
        for step in ("append", "make_durable", "put_in_place"):
            real = getattr(self.store, step)
            calls: list[int] = []

            def fails(*args: Any, real: Any = real, calls: list[int] = calls) -> Any:
                calls.append(1)
                if len(calls) == BATCHES_AT_ONCE + 2:
                    raise OSError(errno.EIO, "no")
                return real(*args)

            self.patch(self.store, step, fails)
            first, second, third = self.batch(new(1), new(2), new(3))
            self.disk.let_all_go()
            self.successResultOf(first)
            self.failureResultOf(second, OSError)
            self.successResultOf(third)
            self.patch(self.store, step, real)
            self.assertEqual(self.there(1, 2, 3), [body(1), None, body(3)], step)
            self.assertEqual(self.begun(), 0, step)

    def test_not_what_it_should_be(self) -> None:
        """What its check refuses is not written."""

        def check() -> None:
            raise BadUpstream("no listing")

        key = ListingKey(entity=Entity.RELEASE, mbid=MBID)
        file = NewFile(key=key, media=None, body=b"<html>", stored_at=5, latest=True, check=check)
        (refused,) = self.commit(file)
        self.disk.let_all_go()
        self.failureResultOf(refused, BadUpstream)
        self.assertIsNone(self.store.stat(layout.listing_path(key)))
        self.assertEqual(self.begun(), 0)

    def link(self) -> Link:
        """A name to be made with the image of number 1."""
        alias = Alias(target=Target(ref=image(1).ref), checked_at=500)
        request = ImageRequest(alias=FRONT, size=250)
        return Link(request, alias, outdated=True)

    def test_linked(self) -> None:
        """A name comes with the file that it leads to; the error of one keeps no other from its own."""
        self.commit(new(1, link=self.link()))
        self.disk.let_all_go()
        path = layout.alias_path(ImageRequest(alias=FRONT, size=250), MediaType.JPEG)
        self.assertEqual((self.store.root / path).read_bytes(), body(1))

    def test_large_ones_apart(self) -> None:
        """Large files that wait for the disk keep no small one waiting, nor the other way round."""
        for _ in range(20):
            self.writer.append(None, b"a large one").addCallback(self.store.abandon)
        large = len(self.disk.waiting)
        (small,) = self.commit(new(1))
        self.assertEqual(len(self.disk.waiting), large + 1)
        self.disk.let_one_go(large)
        self.successResultOf(small)
        self.disk.let_all_go()
