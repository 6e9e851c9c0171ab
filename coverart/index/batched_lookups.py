"""
Batches look-ups: calls made while one is in flight go out together in the next.

The first is sent at once, so a single one waits for nothing; under load one round trip serves all
that were made meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

Q = TypeVar("Q")
A = TypeVar("A")

AskAll = Callable[[list[Q]], Coroutine[Deferred[Any], Any, Sequence[A]]]


class BatchedLookups(Generic[Q, A]):
    """Asks many at once what its callers ask one by one."""

    def __init__(self, ask_all: AskAll[Q, A], most: int) -> None:
        """
        :param ask_all: answers questions in their order.
        :param most: limit of questions in one call; the others wait for the next.
        """
        self._ask_all = ask_all
        self._most = most
        self._waiting: list[tuple[Q, Deferred[A]]] = []
        self._under_way = False

    def ask(self, question: Q) -> Deferred[A]:
        """
        The answer, or what asking for it (and for those beside it) raised.

        Cancelling it leaves the others alone.
        """
        d: Deferred[A] = Deferred()
        self._waiting.append((question, d))
        if not self._under_way:
            self._under_way = True
            Deferred.fromCoroutine(self._ask_until_none_waits())
        return d

    async def _ask_until_none_waits(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            try:
                answers = await self._ask_all([question for question, _ in asked])
                told = list(zip(asked, answers, strict=True))
            except Exception as error:
                for _, d in asked:
                    # Each its own Failure: callbacks along one chain change the one they carry.
                    d.errback(Failure(error))
            else:
                for (_, d), answer in told:
                    d.callback(answer)
        self._under_way = False
