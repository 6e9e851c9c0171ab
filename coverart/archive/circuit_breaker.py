"""When not to ask a host for a while: refused connections and 503 or 429 mean "slow down" (pure)."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from coverart.errors import Unavailable

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
"""archive.org refuses connections for about a minute after too many requests."""
LONGEST_RETRY_AFTER_S = 600.0
TIMEOUTS_IN_A_ROW = 3
"""Timeouts in a row that open the circuit: one slow answer says little."""
FULL_PLACES = 16
"""Trial slots at which a host counts as recovered: its circuit is closed."""
MOST_HOSTS = 1000
"""Limit of hosts in trouble that are remembered; past it the one to be asked again soonest is forgotten."""
CROWDED_S = 1.0
"""Retry-After while the trial slots of a recovering host are taken."""


@attrs.frozen(eq=False)
class Leave:
    """Leave to send one request."""

    host: str
    openings: int
    """How often any circuit had opened when it was given."""


@attrs.define(eq=False)
class _Circuit:
    failures: int = 0
    """Openings since the host last was as ever."""
    timeouts: int = 0
    opened: int = 0
    """Which opening was the last; 0 if the circuit is closed."""
    open_until: float = 0.0
    places: int = 1
    """Requests that may run at once after the pause."""
    running: int = 0


@attrs.define(eq=False)
class Breaker:
    """
    One circuit a host: closed (ask), open (do not), recovering (ask with few at once).

    Pauses double from FIRST_PAUSE_S to LONGEST_PAUSE_S, each with up to a quarter of jitter, so
    that several proxies do not come back in step. After a pause one request may find out; each
    answer makes one more place, so that the load doubles with each round of answers, until
    FULL_PLACES. Only requests sent since the circuit opened count for that: those under way
    before know nothing of what followed. Hosts without trouble take no memory.
    """

    jitter: Callable[[], float] = random.random
    _openings: int = attrs.field(default=0, init=False)
    _circuits: dict[str, _Circuit] = attrs.field(factory=dict, init=False)

    def admit(self, host: str, now: float) -> Leave:
        """
        Ask for leave to send one request; it ends by what came of it, told by one of the others.

        :raises Unavailable: not now; `retry_after_s` says when to ask again.
        """
        circuit = self._circuits.get(host)
        if circuit is not None and circuit.opened:
            wait = circuit.open_until - now
            if wait > 0 or circuit.running >= circuit.places:
                wait = max(CROWDED_S, wait)
                raise Unavailable(f"{host} is not asked for {wait:.0f} s more", retry_after_s=wait)
            circuit.running += 1
        return Leave(host, self._openings)

    def returned(self, leave: Leave) -> None:
        """The request ended and says nothing of the host: another may take its place."""
        circuit = self._circuits.get(leave.host)
        if circuit is not None and circuit.opened and not self._is_late(leave, circuit):
            circuit.running -= 1

    def succeeded(self, leave: Leave) -> None:
        """The host answered: let one more at once, until it has recovered."""
        circuit = self._circuits.get(leave.host)
        if circuit is None or self._is_late(leave, circuit):
            return
        if circuit.opened:
            circuit.running -= 1
        circuit.timeouts = 0
        circuit.places += 1
        if not circuit.opened or circuit.places >= FULL_PLACES:
            del self._circuits[leave.host]

    def overloaded(self, leave: Leave, now: float, retry_after_s: float | None = None) -> float:
        """
        The host refused, or said 503 or 429: open at once.

        :param retry_after_s: as the host wished; taken in place of our own pause, within limits.
        :returns: the pause in seconds.
        """
        circuit = self._circuit(leave.host)
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**circuit.failures)
        pause *= 1 + self.jitter() / 4
        if retry_after_s is not None:
            pause = max(1.0, min(retry_after_s, LONGEST_RETRY_AFTER_S))
        if self._is_late(leave, circuit):
            # The same trouble, told by one more request; a wish for a longer pause still counts.
            if retry_after_s is not None:
                circuit.open_until = max(circuit.open_until, now + pause)
            return max(1.0, circuit.open_until - now)
        self._openings += 1
        circuit.opened = self._openings
        circuit.failures = min(circuit.failures + 1, 10)
        circuit.open_until = now + pause
        circuit.places, circuit.running = 1, 0
        return pause

    def timed_out(self, leave: Leave, now: float) -> None:
        """No answer in time: open after TIMEOUTS_IN_A_ROW of these."""
        circuit = self._circuit(leave.host)
        circuit.timeouts += 1
        if circuit.timeouts >= TIMEOUTS_IN_A_ROW or circuit.opened:
            self.overloaded(leave, now)

    def _circuit(self, host: str) -> _Circuit:
        circuit = self._circuits.get(host)
        if circuit is None:
            # A redirect can name any number of hosts that are not there.
            while len(self._circuits) >= MOST_HOSTS:
                del self._circuits[min(self._circuits, key=self._until)]
            circuit = self._circuits[host] = _Circuit()
        return circuit

    def _until(self, host: str) -> float:
        return self._circuits[host].open_until

    @staticmethod
    def _is_late(leave: Leave, circuit: _Circuit) -> bool:
        """Say whether a request was sent before the circuit last opened."""
        return leave.openings < circuit.opened
