"""What the operator reads of covers that are not stored."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.size_limits import TELL_EVERY_S, Room
from coverart.index.memory import MemoryIndex
from coverart.store.image_store import ImageStore
from tests.support.doubles import folder


class RoomTests(SynchronousTestCase):
    """A disk that fails now and then."""

    def test_told_once_a_minute(self) -> None:
        """Trouble that comes and goes is a line a minute, with all that it was about, and its end."""
        lines: list[str] = []

        def note(event: Any) -> None:
            if isinstance(event.get("log_source"), Room):
                lines.append(formatEvent(event))

        observer: Any = note
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        clock = Clock()
        room = Room(
            store=ImageStore(folder(self)), index=MemoryIndex(), max_bytes=10**9, clock=clock
        )
        for _ in range(6):
            clock.advance(TELL_EVERY_S / 5)
            room.failed("a/path", OSError(28, "No space left on device"))
            room.stored()
        first, end, second, last = lines
        self.assertIn("are not stored", first)
        self.assertIn("again; 1 in 0 s", end)
        self.assertIn("5 in the last 48 s", second)
        self.assertIn("again; 5 in 48 s", last)
