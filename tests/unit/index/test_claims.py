"""How a process waits for another's fetch, and what it is told of a failure."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.coordination.leader import locks_prefix
from coverart.errors import BadUpstream, CoverError, NotInArchive, Overloaded, Unavailable
from coverart.index.claims import Claims, pack_error, pause_s, unpack_error


class ClaimsTests(SynchronousTestCase):
    """The words of a claim, and its pauses."""

    def test_pauses(self) -> None:
        """Who waits asks soon at first, then four times a second: 40 times in two and a half seconds."""
        waited_s, asked = 0.0, 0
        while waited_s < 2.5:
            pause = pause_s(waited_s)
            self.assertGreaterEqual(pause, 0.02)
            self.assertLessEqual(pause, 0.25)
            waited_s += pause
            asked += 1
        self.assertLessEqual(asked, 41)
        self.assertEqual(pause_s(60), 0.25)

    def test_errors(self) -> None:
        """An error is told as it is, by its kind; one that is not known is told as any."""
        for error in (
            BadUpstream("not a picture"),
            Unavailable("the breaker is open", retry_after_s=12.5),
            NotInArchive("no such art"),
            CoverError(),
        ):
            told = unpack_error(pack_error(error).encode())
            self.assertIs(type(told), type(error))
            self.assertEqual((told.detail, told.retry_after_s), (error.detail, error.retry_after_s))
        later = unpack_error(b'-["Later", "of another version", null]')
        self.assertEqual((type(later), later.detail), (CoverError, "of another version"))

    def test_old_and_new(self) -> None:
        """Locks have the keys they always had, so that old and new versions have one leader."""
        self.assertEqual(locks_prefix("default"), b"coverart:1:default:")

    def test_waits_within_bounds(self) -> None:
        """Where another process holds a claim for good, those who wait give up and may come back."""

        async def held(*_: object) -> Any:
            return [-1, None, None]

        clock = Clock()
        waiting = Deferred.fromCoroutine(Claims(held, clock, longest_wait_s=30).take(b"name"))
        clock.pump([0.25] * 119)
        self.assertNoResult(waiting)
        clock.pump([0.25] * 2)
        error = self.failureResultOf(waiting, Overloaded).value
        self.assertEqual(error.detail, "another process is still fetching it after 30 s")
        self.assertEqual((error.status, error.retry_after_s), (503, 10))
