"""When a host is not asked for a while, as timelines in plain seconds."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive import circuit_breaker as module
from coverart.archive.circuit_breaker import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    LONGEST_RETRY_AFTER_S,
    TIMEOUTS_IN_A_ROW,
    Breaker,
    Leave,
)
from coverart.errors import Unavailable
from tests.support.strategies import examples

HOST = "archive.org:443"
OTHER = "ia800.us.archive.org:443"


class BreakerTests(SynchronousTestCase):
    """One circuit for each host."""

    def setUp(self) -> None:
        self.breaker = Breaker(jitter=lambda: 0.0)

    def refused(self, now: float, host: str = HOST) -> float:
        """Seconds until the next try, as told to a request that may not be sent."""
        refusal = self.assertRaises(Unavailable, self.breaker.admit, host, now)
        wait_s: float = refusal.retry_after_s
        return wait_s

    def fails(self, now: float, retry_after_s: float | None = None, host: str = HOST) -> float:
        """One request is sent and finds the host overloaded; the pause that follows."""
        return self.breaker.overloaded(self.breaker.admit(host, now), now, retry_after_s)

    def succeeds(self, now: float, host: str = HOST) -> None:
        """One request is sent and answered."""
        self.breaker.succeeded(self.breaker.admit(host, now))

    def let_in(self, now: float) -> list[Leave]:
        """All that may be sent at once."""
        leaves: list[Leave] = []
        while len(leaves) < 1000:
            try:
                leaves.append(self.breaker.admit(HOST, now))
            except Unavailable:
                break
        return leaves

    def test_no_trouble(self) -> None:
        """A host that answers is asked as often as anybody likes."""
        self.assertEqual(len(self.let_in(1)), 1000)
        for now in range(100):
            self.succeeds(now)
        self.assertEqual(len(self.let_in(100)), 1000)

    def test_opens_at_once(self) -> None:
        """One refusal is enough; the pause is told, counted down, and then over."""
        self.assertEqual(self.fails(100), 5)
        self.assertEqual(self.refused(100), 5)
        self.assertEqual(self.refused(103), 2)
        self.assertEqual(self.refused(104.9), 1)
        self.breaker.admit(HOST, 105)

    def test_hosts_bounded(self) -> None:
        """Whoever makes up hosts fills no memory; the one in trouble longest is forgotten first."""
        self.patch(module, "MOST_HOSTS", 3)
        for number in range(50):
            self.fails(101, host=f"made-up-{number}.archive.org:443")
            self.breaker.timed_out(self.breaker.admit(f"slow-{number}", 101), 101)
        self.assertEqual(self.refused(101, "made-up-49.archive.org:443"), 5)
        for number in range(48):
            self.breaker.admit(f"made-up-{number}.archive.org:443", 102)

    def test_other_hosts(self) -> None:
        """The trouble of one host is not that of another."""
        self.fails(100)
        self.breaker.admit(OTHER, 100)

    def test_one_probe(self) -> None:
        """After the pause one request finds out; the others are told to come back in a moment."""
        self.fails(100)
        self.breaker.admit(HOST, 105)
        self.assertEqual(self.refused(105), 1)
        self.assertEqual(self.refused(120), 1)

    def test_recovers(self) -> None:
        """Once the probe is answered, the host is asked as often as anybody likes."""
        self.fails(100)
        (probe,) = self.let_in(105)
        self.breaker.succeeded(probe)
        self.assertEqual(len(self.let_in(105)), 1000)

    def test_probe_fails(self) -> None:
        """Each probe that fails doubles the pause, up to a minute."""
        now, pauses = 100.0, []
        for _ in range(7):
            pauses.append(self.fails(now))
            now += pauses[-1]
        self.assertEqual(pauses, [5, 10, 20, 40, 60, 60, 60])

    def test_trickle(self) -> None:
        """A host that refuses for an hour is asked 62 times, whatever clients do."""
        asked = 0
        for tenth in range(36_000):
            for leave in self.let_in(tenth / 10):
                asked += 1
                self.breaker.overloaded(leave, tenth / 10)
        # Before the first refusal nobody knew; then 5, 10, 20, 40 and ever 60 s.
        self.assertEqual(asked - 1000, 4 + (3600 - 75 - 1) // 60)
        self.assertEqual((FIRST_PAUSE_S, LONGEST_PAUSE_S), (5, 60))

    def test_recovered_starts_over(self) -> None:
        """Once it has recovered, the next trouble begins with a short pause again."""
        self.fails(100)
        self.fails(105)
        self.succeeds(115)
        self.assertEqual(self.fails(116), 5)

    def test_many_at_once(self) -> None:
        """Requests already on their way when the circuit opened do not each double the pause."""
        leaves = [self.breaker.admit(HOST, 100) for _ in range(16)]
        self.assertEqual(self.breaker.overloaded(leaves.pop(), 100), 5)
        for leave in leaves:
            self.assertEqual(self.breaker.overloaded(leave, 101), 4)
        self.assertEqual(self.fails(105), 10)

    def test_late_failure(self) -> None:
        """One that was sent before the pause and fails after it is no news either."""
        late = self.breaker.admit(HOST, 100)
        self.fails(100)
        probe = self.breaker.admit(HOST, 105)
        self.breaker.timed_out(late, 110)
        self.refused(110)
        self.breaker.succeeded(probe)
        self.assertEqual(len(self.let_in(110)), 1000)

    def test_late_success(self) -> None:
        """An answer to what was sent before ends no pause that the host asked for since."""
        late = self.breaker.admit(HOST, 100)
        self.fails(100, retry_after_s=120)
        self.breaker.succeeded(late)
        self.assertEqual(self.refused(101), 119)

    def test_late_release(self) -> None:
        """The end of a request that is no probe makes room for no second probe."""
        late = self.breaker.admit(HOST, 100)
        self.fails(100)
        self.breaker.admit(HOST, 105)
        self.breaker.returned(late)
        self.refused(105)

    def test_retry_after(self) -> None:
        """Retry-After is honoured in place of our own pause, within limits."""
        for asked, pause in ((120, 120), (3, 3), (0, 1), (-7, 1), (1e9, LONGEST_RETRY_AFTER_S)):
            self.breaker = Breaker(jitter=lambda: 1.0)
            self.assertEqual(self.fails(100, retry_after_s=asked), pause)

    def test_jitter(self) -> None:
        """A pause is up to a quarter longer, so that several proxies do not come back in step."""
        self.breaker = Breaker(jitter=lambda: 1.0)
        self.assertEqual(self.fails(100), 6.25)
        self.breaker = Breaker(jitter=lambda: 0.5)
        self.assertEqual(self.fails(100), 5.625)

    def test_timeouts(self) -> None:
        """One slow answer opens nothing; so many in a row do."""
        for _ in range(TIMEOUTS_IN_A_ROW):
            self.breaker.timed_out(self.breaker.admit(HOST, 100), 100)
        self.assertEqual(self.refused(100), 5)

    def test_timeouts_apart(self) -> None:
        """An answer between them starts the count of timeouts again."""
        for _ in range(5):
            for _ in range(TIMEOUTS_IN_A_ROW - 1):
                self.breaker.timed_out(self.breaker.admit(HOST, 100), 100)
            self.succeeds(100)
        self.breaker.admit(HOST, 100)

    def test_probe_times_out(self) -> None:
        """A probe without an answer is a failed probe."""
        self.fails(100)
        self.breaker.timed_out(self.breaker.admit(HOST, 105), 110)
        self.assertEqual(self.refused(110), 10)

    def test_released(self) -> None:
        """A probe that was called off makes room for the next at once."""
        self.fails(100)
        self.breaker.returned(self.breaker.admit(HOST, 105))
        self.breaker.admit(HOST, 105)
        self.refused(105)

    def test_released_says_nothing(self) -> None:
        """Calling off ends no pause and forgets no timeout."""
        late = self.breaker.admit(HOST, 100)
        self.fails(100)
        self.breaker.returned(late)
        self.assertEqual(self.refused(101), 4)
        for _ in range(TIMEOUTS_IN_A_ROW):
            self.breaker.timed_out(self.breaker.admit(OTHER, 100), 100)
            with_nothing_said = self.breaker.admit(OTHER, 106)
            self.breaker.returned(with_nothing_said)
        self.refused(101, OTHER)

    @examples(200)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["admit", "succeeded", "overloaded", "timed_out", "called off"]),
                st.floats(0, 30),
                st.one_of(st.none(), st.floats(-10, 1e6)),
                st.integers(0, 50),
            ),
            max_size=40,
        )
    )
    def test_never_for_ever(self, story: list[tuple[str, float, float | None, int]]) -> None:
        """Whatever happens, a wait is bounded and then one may go; while open, none may."""
        breaker, now = Breaker(jitter=lambda: 1.0), 1000.0
        out: list[Leave] = []
        open_until = 0.0
        for what, pause, retry_after_s, which in story:
            now += pause
            try:
                if what == "admit" or not out:
                    out.append(breaker.admit(HOST, now))
                    self.assertGreaterEqual(now, open_until)
                    continue
                leave = out.pop(which % len(out))
                match what:
                    case "overloaded":
                        told = breaker.overloaded(leave, now, retry_after_s)
                        # Seconds since long ago leave their last digits behind.
                        self.assertTrue(1 <= told <= LONGEST_RETRY_AFTER_S + 1e-6, told)
                        # No pause ends early; told is a second at least.
                        open_until = max(open_until, now + told - 1 - 1e-6)
                    case "timed_out":
                        breaker.timed_out(leave, now)
                    case "succeeded":
                        breaker.succeeded(leave)
                    case _:
                        breaker.returned(leave)
            except Unavailable as error:
                wait_s = error.retry_after_s or 0.0
                self.assertLessEqual(1, wait_s)
                self.assertLessEqual(wait_s, LONGEST_RETRY_AFTER_S + 1e-6)
                for leave in out:
                    breaker.returned(leave)
                breaker.returned(breaker.admit(HOST, now + wait_s))
