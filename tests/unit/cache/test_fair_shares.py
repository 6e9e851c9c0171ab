"""How many fetches one client may start, by plain numbers and a clock set by hand."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from coverart.cache.fair_shares import MINUTE_S, MOST_CLIENTS, FairShares, Share
from coverart.errors import CoverError, TooManyFetches, UpstreamTimeout
from coverart.metrics import Metrics
from tests.support.strategies import examples

ONE, OTHER = "192.0.2.1", "192.0.2.2"


@attrs.frozen
class Got:
    """What a fetch came to."""

    hops: int


class ShareTests(SynchronousTestCase):
    """Six fetches a minute: one each ten seconds."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.shares = FairShares(6, self.clock, self.metrics)

    def of(self, address: str) -> Share:
        """The share of an address that is counted."""
        share = self.shares.of(ip_address(address))
        assert share is not None
        return share

    def spent(self, address: str = ONE) -> int:
        """How many fetches a client may start now, and starts."""
        count = 0
        while True:
            try:
                self.of(address).spend()
            except TooManyFetches:
                return count
            count += 1

    def refused(self) -> TooManyFetches:
        """What a client is told who may start no more."""
        error = self.assertRaises(TooManyFetches, self.of(ONE).spend)
        assert isinstance(error, TooManyFetches)
        return error

    def test_a_minute(self) -> None:
        """A minute's worth at once, then one each time that its part of the minute is over."""
        self.assertEqual(self.spent(), 6)
        self.clock.advance(9.9)
        self.assertEqual(self.spent(), 0)
        self.clock.advance(0.1)
        self.assertEqual(self.spent(), 1)
        self.clock.advance(35)
        self.assertEqual(self.spent(), 3)
        self.clock.advance(5)
        self.assertEqual(self.spent(), 1)
        self.clock.advance(10 * MINUTE_S)
        self.assertEqual(self.spent(), 6)

    def test_each_its_own(self) -> None:
        """What one client starts is not counted for another."""
        self.assertEqual(self.spent(ONE), 6)
        self.assertEqual(self.spent(OTHER), 6)
        self.assertEqual(self.spent("2001:db8:1:2::1"), 6)
        self.assertEqual(self.spent("2001:db8:1:3::1"), 6)

    def test_ipv6_by_64(self) -> None:
        """All addresses of a /64 are one client."""
        self.assertEqual(self.spent("2001:db8:1:2::1"), 6)
        self.assertEqual(self.spent("2001:db8:1:2:ffff:ffff:ffff:ffff"), 0)

    def test_not_counted(self) -> None:
        """Loopback, private and link-local addresses, and who has none; their neighbours are."""
        for address in (
            *("127.0.0.1", "127.255.255.255", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
            *("192.168.255.255", "169.254.1.1", "::1", "fc00::1", "fdff::1", "fe80::1", "febf::1"),
        ):
            self.assertIsNone(self.shares.of(ip_address(address)), address)
        for address in (
            *("126.255.255.255", "11.0.0.1", "172.15.0.1", "172.32.0.1", "192.169.0.1"),
            *("100.64.0.1", "::2", "fbff::1", "fec0::1", "2001:db8::1"),
        ):
            self.assertIsNotNone(self.shares.of(ip_address(address)), address)
        self.assertIsNone(self.shares.of(None))

    def test_off(self) -> None:
        """With 0, nobody is counted."""
        self.assertIsNone(FairShares(0, self.clock, self.metrics).of(ip_address(ONE)))

    def test_told(self) -> None:
        """The client is told how many, and when it may start one more."""
        self.spent()
        error = self.refused()
        self.assertEqual((error.status, error.retry_after_s), (429, 10))
        self.assertIn("6 a minute", error.said)
        self.assertIn("try again in 10 s", error.said)
        self.clock.advance(9.5)
        self.assertIn("try again in 1 s", self.refused().said)

    def test_refusals_are_free(self) -> None:
        """Who asks again and again while it is refused waits no longer for it."""
        self.spent()
        for _ in range(100):
            self.refused()
        self.clock.advance(10)
        self.assertEqual(self.spent(), 1)

    def test_maybe_on_the_disk(self) -> None:
        """What may need no fetch is not refused; it is only asked where it would be."""
        self.of(ONE).spend(unless=lambda: self.fail("not refused"))
        self.spent()
        self.of(ONE).spend(unless=lambda: True)
        self.assertRaises(TooManyFetches, self.of(ONE).spend, unless=lambda: False)

    def test_settled(self) -> None:
        """Counted is what asked the archive something, with or without an answer."""
        share = self.of(ONE)
        late = UpstreamTimeout()
        late.hops = 1
        for outcome, counted in (
            (succeed(Got(3)), True),
            (succeed(Got(0)), False),
            (fail(late), True),
            (fail(UpstreamTimeout()), False),
            (fail(ValueError()), True),
        ):
            share.spend()
            settled: Deferred[Any] = Deferred.fromCoroutine(share.settled(outcome))
            settled.addErrback(lambda failure: failure.trap(CoverError, ValueError))
            self.successResultOf(settled)
            self.assertEqual(self.spent(), 5 if counted else 6, outcome)
            self.clock.advance(10 * MINUTE_S)

    def test_client_left(self) -> None:
        """A fetch goes on without its client, and stays counted."""
        share = self.of(ONE)
        share.spend()
        forever: Deferred[Got] = Deferred()
        settled = Deferred.fromCoroutine(share.settled(forever))
        settled.cancel()
        self.failureResultOf(settled, CancelledError)
        self.assertEqual(self.spent(), 5)

    def test_log_and_count(self) -> None:
        """Each refusal is counted; the log names the client once a minute."""
        said: list[str] = []

        def note(event: Any) -> None:
            said.append(event.get("who"))

        observe: Any = note
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        for _ in range(6):
            self.spent(ONE)
            self.spent(OTHER)
            self.clock.advance(9)
        self.assertEqual(said, [ONE, OTHER])
        self.clock.advance(6)
        self.spent(ONE)
        self.assertEqual(said, [ONE, OTHER, ONE])
        refused = self.metrics.value("coverart_overload_total", what="share")
        self.assertEqual(refused, 13)

    def test_forgotten(self) -> None:
        """Who has nothing to pay any more is forgotten, as others start fetches."""
        for number in range(100):
            self.of(f"198.51.100.{number}").spend()
        self.assertEqual(len(self.shares), 100)
        self.clock.advance(10)
        for _ in range(60):
            self.of(ONE).spend(unless=lambda: True)
        self.assertEqual(len(self.shares), 1)

    def test_bounded(self) -> None:
        """However many clients there are, so many are remembered, and it is the quiet ones that go."""
        for number in range(MOST_CLIENTS + 500):
            self.of(f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}").spend()
            if number % 100 == 0:
                self.of(ONE).spend(unless=lambda: True)
        self.assertEqual(len(self.shares), MOST_CLIENTS)
        self.assertEqual(self.spent(ONE), 0)

    @examples(200)
    @given(st.lists(st.floats(0, 30), max_size=60))
    def test_any_minute(self, pauses: list[float]) -> None:
        """In no minute a client starts more than a minute's worth and what became due in it."""
        clock = Clock()
        shares = FairShares(6, clock, self.metrics)
        started = []
        for pause in pauses:
            clock.advance(pause)
            share = shares.of(ip_address(ONE))
            assert share is not None
            try:
                share.spend()
            except TooManyFetches:
                continue
            started.append(clock.seconds())
        for at in started:
            self.assertLessEqual(sum(at <= each < at + MINUTE_S for each in started), 12)
