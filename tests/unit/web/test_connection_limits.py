"""How many connections there may be: plain numbers and channels that only remember."""

import resource
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from coverart.metrics import Metrics
from coverart.web.connection_limits import (
    IDLE_S,
    KEEP_ALIVE_S,
    MOST_ACCEPTS,
    Connections,
    raise_file_limit,
)

LOOK_S = 0.5


class FakePort:
    """A port that remembers whether it accepts."""

    numberAccepts = 100
    reading = True

    def startReading(self) -> None:
        self.reading = True

    def stopReading(self) -> None:
        self.reading = False


class FakeChannel:
    """A connection that remembers whether it was told to end."""

    transport: Any = None
    ending = False

    def loseConnection(self) -> None:
        self.ending = True

    timeoutConnection = loseConnection


class ConnectionsTests(SynchronousTestCase):
    """Room for four."""

    def setUp(self) -> None:
        self.clock, self.metrics, self.port = Clock(), Metrics(), FakePort()
        self.connections = Connections(4, self.metrics, self.clock)
        self.connections.watch(self.port)

    def come(self, count: int) -> list[FakeChannel]:
        """So many connections, which are at a request each."""
        channels = [FakeChannel() for _ in range(count)]
        for channel in channels:
            self.connections.opened(channel)
            self.connections.asked(channel)
        return channels

    def look(self, times: int) -> None:
        """Time goes on, and connections are looked at as often."""
        for _ in range(times):
            self.clock.advance(LOOK_S)
            self.connections.look()

    def counted(self, what: str) -> float | None:
        """How often something was turned away."""
        return self.metrics.value("coverart_overload_total", what=what)

    def test_below(self) -> None:
        """Below the bound nobody is closed, and ports accept a few at a time."""
        self.come(3)
        self.assertTrue(self.port.reading)
        self.assertEqual(self.port.numberAccepts, MOST_ACCEPTS)
        self.assertEqual(self.metrics.value("coverart_connections"), 3)
        self.port.numberAccepts = 24
        self.come(1)
        self.assertEqual(self.port.numberAccepts, MOST_ACCEPTS)

    def test_full(self) -> None:
        """At the bound ports cease to accept, until one leaves; those at work are not touched."""
        channels = self.come(4)
        self.assertFalse(self.port.reading)
        self.look(100)
        self.assertFalse(any(channel.ending for channel in channels))
        self.connections.closed(channels[2])
        self.assertTrue(self.port.reading)
        self.assertEqual((self.counted("accept"), self.counted("connection")), (1, 0))

    def test_idle(self) -> None:
        """When full, those are closed that have been idle for a while, and no more once there is room."""
        channels = self.come(4)
        self.connections.answered(channels[1])
        self.clock.advance(LOOK_S)
        self.connections.answered(channels[0])
        self.clock.advance(IDLE_S - 3 * LOOK_S)
        self.look(1)
        self.assertFalse(channels[1].ending)
        self.look(1)
        self.assertTrue(channels[1].ending)
        self.assertFalse(channels[0].ending)
        self.connections.closed(channels[1])
        self.look(10)
        self.assertFalse(channels[0].ending)
        self.assertEqual(self.counted("connection"), 1)

    def test_used_again(self) -> None:
        """A connection that is used begins to be idle anew."""
        channels = self.come(4)
        for _ in range(10):
            self.look(1)
            self.connections.asked(channels[0])
            self.connections.answered(channels[0])
        self.assertFalse(channels[0].ending)
        self.connections.drain()
        self.assertEqual([each.ending for each in channels], [True, False, False, False])

    def test_gone(self) -> None:
        """A connection that ended is looked at no more."""
        (channel,) = self.come(1)
        self.connections.answered(channel)
        self.connections.closed(channel)
        self.connections.drain()
        self.assertFalse(channel.ending)
        self.assertEqual(self.metrics.value("coverart_connections"), 0)

    def test_too_long(self) -> None:
        """Too long without a whole request is the end; work is not."""
        idle, busy = self.come(2)
        self.connections.answered(idle)
        self.clock.advance(KEEP_ALIVE_S - 1)
        self.connections.look()
        self.assertFalse(idle.ending)
        self.clock.advance(1)
        self.connections.look()
        self.assertEqual((idle.ending, busy.ending), (True, False))

    def test_stopped_port(self) -> None:
        """A port that was stopped in the meantime is not made to accept."""
        self.port.disconnecting = True  # type: ignore[attr-defined]
        channels = self.come(4)
        self.port.reading = False
        self.connections.closed(channels[0])
        self.assertFalse(self.port.reading)


class FileLimitTests(SynchronousTestCase):
    """How many connections the system's limit allows."""

    def bound(self, soft: int, hard: int, wanted: int = 10_000) -> tuple[int, int]:
        """The bound under a limit, and the limit after that."""
        limit = [(soft, hard)]

        def set_limit(_: int, pair: tuple[int, int]) -> None:
            limit[0] = pair

        self.patch(resource, "getrlimit", lambda _: limit[0])
        self.patch(resource, "setrlimit", set_limit)
        return raise_file_limit(wanted), limit[0][0]

    def test_raised(self) -> None:
        """The soft limit is raised as far as it may be; half of it is for clients' files."""
        self.assertEqual(self.bound(1024, 1024), (256, 1024))
        self.assertEqual(self.bound(1024, 20_000), (9488, 20_000))
        self.assertEqual(self.bound(1024, 1_000_000), (10_000, 65_536))
        self.assertEqual(self.bound(1_000_000, 1_000_000), (10_000, 1_000_000))
        self.assertEqual(self.bound(1024, resource.RLIM_INFINITY), (10_000, 65_536))
        self.assertEqual(self.bound(1024, 65_536, 8), (8, 65_536))
        self.assertEqual(self.bound(2, 2), (1, 2))
