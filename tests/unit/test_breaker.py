"""When a host is left alone, as timelines in plain seconds."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.breaker import LONGEST_RETRY_AFTER_S, TIMEOUTS_IN_A_ROW, Breaker
from coverart.errors import Unavailable
from tests.strategies import examples

HOST = "archive.org:443"


class BreakerTests(SynchronousTestCase):
    """One circuit for each host."""

    def setUp(self) -> None:
        self.breaker = Breaker(jitter=lambda: 0.0, probe_s=60.0)

    def refused(self, now: float, host: str = HOST) -> float:
        """Seconds until the next try, as told to a request that may not be sent."""
        refusal = self.assertRaises(Unavailable, self.breaker.admit, host, now)
        wait_s: float = refusal.retry_after_s
        return wait_s

    def test_no_trouble(self) -> None:
        """A host that answers is asked as often as anybody likes."""
        for now in range(100):
            self.breaker.admit(HOST, now)
            self.breaker.succeeded(HOST)
        self.assertEqual(self.breaker.open_hosts(100), ())

    def test_opens_at_once(self) -> None:
        """One refusal is enough; the pause is told, counted down, and then over."""
        self.breaker.admit(HOST, 100)
        self.assertEqual(self.breaker.overloaded(HOST, 100), 5)
        self.assertEqual(self.refused(100), 5)
        self.assertEqual(self.refused(103), 2)
        self.assertEqual(self.refused(104.9), 1)
        self.assertEqual(self.breaker.open_hosts(104), (HOST,))
        self.breaker.admit(HOST, 105)

    def test_other_hosts(self) -> None:
        """The trouble of one host is not that of another."""
        self.breaker.overloaded(HOST, 100)
        self.breaker.admit("ia800.us.archive.org:443", 100)

    def test_one_probe(self) -> None:
        """After the pause one request at a time finds out; the others wait for its answer."""
        self.breaker.overloaded(HOST, 100)
        self.breaker.admit(HOST, 105)
        self.assertEqual(self.refused(105), 60)
        self.assertEqual(self.refused(120), 45)
        self.breaker.succeeded(HOST)
        for _ in range(10):
            self.breaker.admit(HOST, 121)

    def test_probe_fails(self) -> None:
        """Each probe that fails doubles the pause, up to a minute."""
        now, pauses = 100.0, []
        for _ in range(7):
            self.breaker.admit(HOST, now)
            pauses.append(self.breaker.overloaded(HOST, now))
            now += pauses[-1]
        self.assertEqual(pauses, [5, 10, 20, 40, 60, 60, 60])

    def test_success_starts_over(self) -> None:
        """After an answer the next trouble begins with a short pause again."""
        self.breaker.overloaded(HOST, 100)
        self.breaker.admit(HOST, 105)
        self.breaker.overloaded(HOST, 105)
        self.breaker.admit(HOST, 115)
        self.breaker.succeeded(HOST)
        self.assertEqual(self.breaker.overloaded(HOST, 116), 5)

    def test_many_at_once(self) -> None:
        """Requests already on their way when the circuit opened do not each double the pause."""
        for _ in range(16):
            self.breaker.admit(HOST, 100)
        self.assertEqual(self.breaker.overloaded(HOST, 100), 5)
        for _ in range(15):
            self.assertEqual(self.breaker.overloaded(HOST, 101), 4)
        self.breaker.admit(HOST, 105)
        self.assertEqual(self.breaker.overloaded(HOST, 105), 10)

    def test_retry_after_of_a_later_one(self) -> None:
        """A wish to be left alone for longer is honoured whoever brings it; a shorter one is not."""
        self.breaker.overloaded(HOST, 100)
        self.assertEqual(self.breaker.overloaded(HOST, 101, retry_after_s=30), 30)
        self.assertEqual(self.breaker.overloaded(HOST, 102, retry_after_s=1), 29)
        self.assertEqual(self.refused(103), 28)

    def test_retry_after(self) -> None:
        """Retry-After is honoured in place of our own pause, within limits."""
        for asked, pause in ((120, 120), (3, 3), (0, 1), (-7, 1), (1e9, LONGEST_RETRY_AFTER_S)):
            breaker = Breaker(jitter=lambda: 1.0)
            self.assertEqual(breaker.overloaded(HOST, 100, retry_after_s=asked), pause)

    def test_jitter(self) -> None:
        """A pause is up to a quarter longer, so that several proxies do not come back in step."""
        self.assertEqual(Breaker(jitter=lambda: 1.0).overloaded(HOST, 100), 6.25)
        self.assertEqual(Breaker(jitter=lambda: 0.5).overloaded(HOST, 100), 5.625)

    def test_timeouts(self) -> None:
        """One slow answer opens nothing; so many in a row do."""
        for _ in range(TIMEOUTS_IN_A_ROW - 1):
            self.breaker.timed_out(HOST, 100)
            self.breaker.admit(HOST, 100)
        self.breaker.timed_out(HOST, 100)
        self.assertEqual(self.refused(100), 5)

    def test_timeouts_apart(self) -> None:
        """An answer between them starts the count of timeouts again."""
        for _ in range(5):
            for _ in range(TIMEOUTS_IN_A_ROW - 1):
                self.breaker.timed_out(HOST, 100)
            self.breaker.succeeded(HOST)
        self.breaker.admit(HOST, 100)

    def test_probe_times_out(self) -> None:
        """A probe without an answer is a failed probe."""
        self.breaker.overloaded(HOST, 100)
        self.breaker.admit(HOST, 105)
        self.breaker.timed_out(HOST, 110)
        self.assertEqual(self.refused(110), 10)

    def test_released(self) -> None:
        """A probe that was called off makes room for the next at once."""
        self.breaker.overloaded(HOST, 100)
        self.breaker.admit(HOST, 105)
        self.breaker.released(HOST)
        self.breaker.admit(HOST, 105)
        self.refused(105)

    def test_released_says_nothing(self) -> None:
        """Calling off ends no pause and forgets no timeout."""
        self.breaker.overloaded(HOST, 100)
        self.breaker.released(HOST)
        self.assertEqual(self.refused(101), 4)
        other = "ia800.us.archive.org:443"
        for _ in range(TIMEOUTS_IN_A_ROW):
            self.breaker.timed_out(other, 100)
            self.breaker.released(other)
        self.refused(101, other)

    def test_lost_probe(self) -> None:
        """A probe that never tells its end keeps the circuit open no longer than its time."""
        self.breaker.overloaded(HOST, 100)
        self.breaker.admit(HOST, 105)
        self.refused(164)
        self.breaker.admit(HOST, 165)

    @examples(100)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["admit", "succeeded", "overloaded", "timed_out", "released"]),
                st.floats(0, 30),
                st.one_of(st.none(), st.floats(-10, 1e6)),
            ),
            max_size=30,
        )
    )
    def test_never_for_ever(self, story: list[tuple[str, float, float | None]]) -> None:
        """Whatever happened, the wait told is bounded, and when it is over one request may go."""
        breaker, now = Breaker(jitter=lambda: 1.0), 1000.0
        for what, pause, retry_after_s in story:
            now += pause
            try:
                match what:
                    case "admit":
                        breaker.admit(HOST, now)
                    case "overloaded":
                        self.assertGreater(breaker.overloaded(HOST, now, retry_after_s), 0)
                    case "timed_out":
                        breaker.timed_out(HOST, now)
                    case _:
                        getattr(breaker, what)(HOST)
            except Unavailable as error:
                wait_s = error.retry_after_s or 0.0
                self.assertLessEqual(1, wait_s)
                self.assertLessEqual(wait_s, LONGEST_RETRY_AFTER_S)
                breaker.admit(HOST, now + wait_s)
                breaker.released(HOST)
