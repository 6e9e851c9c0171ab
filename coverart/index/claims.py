"""
Who fetches a thing, among all processes: the one that holds its lock in Redis, until it is stored.

A lock is a key that ends by itself, with a random token of its owner's
(https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/); `lua/claim.lua` decides who
gets it. Who waits for it asks again, at growing intervals. An owner that fails leaves its error in the
key for those who wait.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from coverart import errors
from coverart.coordination.redis_client import RedisAway
from coverart.errors import CoverError, Overloaded
from coverart.index.base import Claim

LOCK_LIFE_S = 10.0
"""Seconds until the lock of a process that was killed ends."""
LONGEST_WAIT_S = 120.0
"""Seconds until take() gives up: twice the default of COVER_ART_UPSTREAM_TIMEOUT."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25
_LIFE_MS = int(LOCK_LIFE_S * 1000)


class Run(Protocol):
    """Runs one of the index's scripts. :raises RedisAway: it can't be run now."""

    def __call__(self, name: str, /, *args: bytes | str | float) -> Awaitable[Any]: ...


def pause_s(waited_s: float) -> float:
    """Until a lock is asked for again, in seconds: 40 questions in two and a half seconds."""
    return min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, waited_s / 10))


class Claims:
    """The claims of this process; one loop renews their locks, all at once."""

    log = Logger()

    def __init__(
        self, run: Run, clock: IReactorTime, longest_wait_s: float = LONGEST_WAIT_S
    ) -> None:
        """:param longest_wait_s: for other processes, until take() gives up."""
        self._run = run
        self._clock = clock
        self._longest_wait_s = longest_wait_s
        self._names: dict[str, bytes] = {}
        self._renewal = LoopingCall(self._renew)
        self._renewal.clock = clock

    async def take(
        self, name: bytes, *, again: bool = False
    ) -> tuple[list[Any] | None, Claim | None]:
        """
        Claim a thing; waits while another process has it.

        :param name: the packed key of a file, or of an alias with the size that is asked for.
        :param again: also where the file is held.
        :returns: entry and absence of the file, packed, or None if Redis can't be asked; no claim
            where the file is held.
        :raises Overloaded: others had it for all of the longest wait.
        :raises CoverError: the process that was waited for failed, with its error.
        """
        token, began = secrets.token_hex(12), self._clock.seconds()
        waited = False
        while True:
            try:
                became, *known = await self._run(
                    "claim", name, token, _LIFE_MS, int(again), int(waited)
                )
            except RedisAway:
                return None, Claim(name=name, waited=waited)
            if became == 1:
                self._hold(name, token)
                return known, Claim(name=name, token=token, waited=waited)
            if became == 0:
                return known, None
            if became != -1:
                raise unpack_error(became)
            waited_s = self._clock.seconds() - began
            if waited_s >= self._longest_wait_s:
                raise Overloaded(
                    f"another process is still fetching it after {waited_s:.0f} s",
                    retry_after_s=LOCK_LIFE_S,
                )
            await deferLater(self._clock, pause_s(waited_s))
            waited = True

    def _hold(self, name: bytes, token: str) -> None:
        self._names[token] = name
        if not self._renewal.running:
            self._renewal.start(LOCK_LIFE_S / 3, now=False).addErrback(
                lambda failure: self.log.failure(
                    "renewing the locks of fetches failed; another process may fetch the same",
                    failure,
                )
            )

    def end(self, claims: Sequence[Claim]) -> list[bytes | str]:
        """Renew claims no more. :returns: the words by which a script ends them."""
        for claim in claims:
            self._names.pop(claim.token, None)
        return _words((claim.name, claim.token) for claim in claims if claim.token)

    async def _renew(self) -> None:
        if not self._names:
            self._renewal.stop()
            return
        words = _words((name, token) for token, name in self._names.items())
        with suppress(RedisAway):
            await self._run("renew", _LIFE_MS, *words)


def _words(claims: Iterable[tuple[bytes, str]]) -> list[bytes | str]:
    return [word for claim in claims for word in claim]


_TOLD = re.compile(r"(.*) \[([a-z_]+) ([!-~]*) ([0-9]*)\]", re.DOTALL)


def pack_error(error: CoverError) -> str:
    """
    An error as it is left in a lock.

    Versions before this one read three fields, so what else there is ends the second.
    """
    more = f"{error.proxy_error} {error.host} {error.received or ''}"
    told = [type(error).__name__, f"{error.detail} [{more}]", error.retry_after_s]
    return "-" + json.dumps(told)


def unpack_error(packed: bytes) -> CoverError:
    """The inverse of pack_error, of an error; of earlier versions', too."""
    name, detail, retry_after_s = json.loads(packed[1:])
    told = _TOLD.fullmatch(detail)
    error: CoverError = getattr(errors, name, CoverError)(detail if told is None else told[1])
    error.retry_after_s = retry_after_s
    if told is not None:
        error.proxy_error, error.host = told[2], told[3]
        error.received = int(told[4]) if told[4] else None
    return error
