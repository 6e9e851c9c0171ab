"""
One running piece of work per key in this process, one Deferred per waiter.

Klein cancels the Deferred of a client that leaves. Were it shared, the first to leave would take
the answer from all others, so each waiter has its own and the work belongs to nobody: it goes on
to its end, and what it fetched is kept for the next client.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Announce = Callable[[T], None]
Work = Callable[[Announce[T]], Coroutine[Deferred[Any], Any, T]]


@attrs.define(eq=False)
class _Running(Generic[T]):
    waiters: list[Deferred[T]] = attrs.field(factory=list)
    patient: list[Deferred[T]] = attrs.field(factory=list)
    early: T | None = None
    """The answer that was announced before the work ended."""

    def announce(self, answer: T) -> None:
        if self.early is None:
            self.early = answer
            _tell(self.waiters, answer)


@attrs.define(eq=False)
class Flight(Generic[K, T]):
    """Joins callers who want the same key at the same time."""

    _running: dict[K, _Running[T]] = attrs.field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many callers wait for an answer."""
        return sum(len(each.waiters) for each in self._running.values())

    def running(self, key: K) -> bool:
        """Say whether a call of run() with this key would join others."""
        return key in self._running

    def run(self, key: K, work: Work[T]) -> Deferred[T]:
        """
        Join the work running for `key`, or start it.

        :param work: called only if nothing runs for this key, with a function that hands an
            early answer to all waiters (and to all who join from then on) while the work goes
            on. The first early answer counts.
        :returns: this caller's own Deferred: the early answer, or what the work returns or
            raises. Cancelling it leaves the work and the other waiters alone.
        """
        running = self._running.get(key)
        if running is not None:
            return _wait(running.waiters) if running.early is None else succeed(running.early)
        running = self._running[key] = _Running()
        mine = _wait(running.waiters)
        # The work may end at once, so the waiter is in place before it starts.
        Deferred.fromCoroutine(work(running.announce)).addBoth(self._land, key, running)
        return mine

    def landing(self, key: K) -> Deferred[T] | None:
        """What the work running for `key` ends with, early answers aside; None if none runs."""
        running = self._running.get(key)
        return None if running is None else _wait(running.patient)

    def over(self, key: K) -> Deferred[Any]:
        """Fires when the work running for `key` has ended, well or not, if any runs."""
        landing = self.landing(key)
        return succeed(None) if landing is None else landing.addErrback(lambda _: None)

    def _land(self, result: T | Failure, key: K, running: _Running[T]) -> None:
        # Out of the way first: a waiter that asks again from its callback starts anew.
        del self._running[key]
        for waiters in (running.waiters, running.patient):
            if waiters:
                _tell(waiters, result)


def _wait(waiters: list[Deferred[T]]) -> Deferred[T]:
    d: Deferred[T] = Deferred(waiters.remove)
    waiters.append(d)
    return d


def _tell(waiters: list[Deferred[T]], result: T | Failure) -> None:
    while waiters:
        # Taken out before it is told: whatever it does then, it is not told twice.
        waiter = waiters.pop(0)
        if isinstance(result, Failure):
            # Each its own Failure: callbacks along one chain change the traceback they carry.
            waiter.errback(Failure(result.value))
        else:
            waiter.callback(result)
