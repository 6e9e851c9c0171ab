"""When to leave a host alone: refused connections and 503 or 429 mean "slow down" (pure)."""

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
"""One slow answer says little; so many in a row say that the host is not answering."""


@attrs.define(eq=False)
class _Circuit:
    failures: int = 0
    timeouts: int = 0
    open_until: float = 0.0
    probing_until: float = 0.0


@attrs.define(eq=False)
class Breaker:
    """
    One circuit a host: closed (ask), open (do not), half-open (one request at a time may ask).

    Pauses double from FIRST_PAUSE_S to LONGEST_PAUSE_S, each with up to a quarter of jitter, so
    that several proxies do not come back in step. Hosts without trouble take no memory.
    """

    jitter: Callable[[], float] = random.random
    probe_s: float = 60.0
    _circuits: dict[str, _Circuit] = attrs.field(factory=dict, init=False)

    def admit(self, host: str, now: float) -> None:
        """
        Ask for leave to send one request; tell its end by succeeded() or one of the failures.

        :raises Unavailable: not now; `retry_after_s` says when the next probe is due.
        """
        circuit = self._circuits.get(host)
        if circuit is None or circuit.open_until == 0.0:
            return
        wait = max(circuit.open_until, circuit.probing_until) - now
        if wait > 0:
            raise Unavailable(
                f"{host} is left alone for {wait:.0f} s more", retry_after_s=max(1.0, wait)
            )
        # A probe that never reports (its task was cancelled) must not keep the circuit open.
        circuit.probing_until = now + self.probe_s

    def succeeded(self, host: str) -> None:
        """The host answered: close the circuit."""
        self._circuits.pop(host, None)

    def overloaded(self, host: str, now: float, retry_after_s: float | None = None) -> float:
        """The host refused, or said 503 or 429: open at once. Returns the pause in seconds."""
        circuit = self._circuits.setdefault(host, _Circuit())
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**circuit.failures)
        pause *= 1 + self.jitter() / 4
        if retry_after_s is not None:
            pause = max(1.0, min(retry_after_s, LONGEST_RETRY_AFTER_S))
        if now < circuit.open_until:
            # Sent before the circuit opened: the same trouble, told by one more request.
            if retry_after_s is not None:
                circuit.open_until = max(circuit.open_until, now + pause)
            return circuit.open_until - now
        circuit.failures = min(circuit.failures + 1, 10)
        circuit.open_until = now + pause
        circuit.probing_until = 0.0
        return pause

    def timed_out(self, host: str, now: float) -> None:
        """No answer in time: open after TIMEOUTS_IN_A_ROW of these."""
        circuit = self._circuits.setdefault(host, _Circuit())
        circuit.timeouts += 1
        if circuit.timeouts >= TIMEOUTS_IN_A_ROW or circuit.open_until:
            self.overloaded(host, now)

    def released(self, host: str) -> None:
        """The request ended without saying anything about the host (cancelled, say)."""
        circuit = self._circuits.get(host)
        if circuit is not None:
            circuit.probing_until = 0.0
            if not circuit.open_until and not circuit.timeouts:
                del self._circuits[host]

    def open_hosts(self, now: float) -> tuple[str, ...]:
        """The hosts that are being left alone now."""
        return tuple(sorted(h for h, c in self._circuits.items() if c.open_until > now))
