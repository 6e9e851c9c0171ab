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
MOST_HOSTS = 1000
"""Limit of hosts in trouble that are remembered; past it the one in trouble longest is forgotten."""
PROBE_S = 1.0
"""Retry-After while one request finds out whether a host is back."""


@attrs.frozen(eq=False)
class Leave:
    """Leave to send one request."""

    host: str


@attrs.define(eq=False)
class _Circuit:
    openings: int = 0
    """Openings since the host last was as ever; 0 if the circuit is closed."""
    timeouts: int = 0
    open_until: float = 0.0
    probe: Leave | None = None
    """The one request that may be sent after the pause."""


@attrs.define(eq=False)
class Breaker:
    """
    One circuit a host: closed (ask), open (do not), half-open (one request finds out).

    Pauses double from FIRST_PAUSE_S to LONGEST_PAUSE_S, each with up to a quarter of jitter, so
    that several proxies do not come back in step. What becomes of a request that was sent before
    the circuit opened decides nothing: it knows nothing of what followed. Hosts without trouble
    take no memory.
    """

    jitter: Callable[[], float] = random.random
    _circuits: dict[str, _Circuit] = attrs.field(factory=dict, init=False)

    def admit(self, host: str, now: float) -> Leave:
        """
        Ask for leave to send one request; it ends by what came of it, told by one of the others.

        :raises Unavailable: not now; `retry_after_s` says when to ask again.
        """
        leave = Leave(host)
        circuit = self._circuits.get(host)
        if circuit is not None and circuit.openings:
            wait = circuit.open_until - now
            if wait > 0 or circuit.probe is not None:
                wait = max(PROBE_S, wait)
                raise Unavailable(f"{host} is not asked for {wait:.0f} s more", retry_after_s=wait)
            circuit.probe = leave
        return leave

    def returned(self, leave: Leave) -> None:
        """The request ended and says nothing of the host: another may find out in its place."""
        circuit = self._circuits.get(leave.host)
        if circuit is not None and circuit.probe is leave:
            circuit.probe = None

    def succeeded(self, leave: Leave) -> None:
        """The host answered."""
        circuit = self._circuits.get(leave.host)
        if circuit is not None and (not circuit.openings or circuit.probe is leave):
            del self._circuits[leave.host]

    def overloaded(self, leave: Leave, now: float, retry_after_s: float | None = None) -> float:
        """
        The host refused, or said 503 or 429: open at once.

        :param retry_after_s: as the host wished; taken in place of our own pause, within limits.
        :returns: the pause in seconds.
        """
        circuit = self._circuit(leave.host)
        if circuit.openings and circuit.probe is not leave:
            # The same trouble, told by one more request.
            return max(PROBE_S, circuit.open_until - now)
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**circuit.openings)
        pause *= 1 + self.jitter() / 4
        if retry_after_s is not None:
            pause = max(1.0, min(retry_after_s, LONGEST_RETRY_AFTER_S))
        circuit.openings = min(circuit.openings + 1, 10)
        circuit.open_until = now + pause
        circuit.probe = None
        return pause

    def timed_out(self, leave: Leave, now: float) -> None:
        """No answer in time: open after TIMEOUTS_IN_A_ROW of these."""
        circuit = self._circuit(leave.host)
        circuit.timeouts += 1
        if circuit.timeouts >= TIMEOUTS_IN_A_ROW or circuit.openings:
            self.overloaded(leave, now)

    def left_s(self, host: str, now: float) -> float | None:
        """Seconds until the host is asked again; None if the next request asks it."""
        circuit = self._circuits.get(host)
        if circuit is None or not circuit.openings:
            return None
        return max(PROBE_S, circuit.open_until - now)

    def _circuit(self, host: str) -> _Circuit:
        circuit = self._circuits.get(host)
        if circuit is None:
            # A redirect can name any number of hosts that are not there.
            if len(self._circuits) >= MOST_HOSTS:
                del self._circuits[next(iter(self._circuits))]
            circuit = self._circuits[host] = _Circuit()
        return circuit
