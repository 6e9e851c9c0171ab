"""How a process waits for another's fetch, and what it is told of a failure."""

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.coordination.leader import locks_prefix
from coverart.errors import (
    BadUpstream,
    CoverError,
    NotInArchive,
    NotReached,
    Overloaded,
    Unavailable,
)
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

    def test_cause(self) -> None:
        """What failed at which host goes along; what an archive says can't pass for it."""
        error = BadUpstream("it said [dns_error evil 200]", proxy_error="connection_terminated")
        error.host, error.received = "[2001:db8::1]:8443", 502
        told = unpack_error(pack_error(error).encode())
        self.assertEqual(
            (told.detail, told.proxy_error, told.host, told.received),
            (error.detail, "connection_terminated", "[2001:db8::1]:8443", 502),
        )
        plain = BadUpstream("it said [dns_error evil 200]")
        told = unpack_error(pack_error(plain).encode())
        self.assertEqual((told.detail, told.host, told.received), (plain.detail, "", None))

    def test_versions(self) -> None:
        """Versions before this one wrote three fields and read three, the second for the log."""
        old = unpack_error(b'-["NotReached", "archive.org:443: refused", 12.5]')
        self.assertEqual((type(old), old.detail), (NotReached, "archive.org:443: refused"))
        self.assertEqual((old.proxy_error, old.host), (NotReached.proxy_error, ""))
        error = NotReached("refused", retry_after_s=3.0, proxy_error="connection_refused")
        error.host = "archive.org"
        self.assertEqual(
            json.loads(pack_error(error)[1:]),
            ["NotReached", "refused [connection_refused archive.org ]", 3.0],
        )

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
