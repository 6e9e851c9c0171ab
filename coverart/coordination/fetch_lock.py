"""
One fetch among all processes: who fetches a thing holds a lock in Redis until it is stored.

A lock is a key that ends by itself, with a random token of its owner's
(https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/). Who waits for it asks again,
at growing intervals. An owner that fails leaves its error in the key for those who wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from coverart import errors
from coverart.coordination.lua_scripts import Script
from coverart.coordination.redis_client import RedisAway, RedisLink
from coverart.errors import CoverError

LOCK_LIFE_S = 10.0
"""So long others wait for a process that was killed."""
ERROR_LIFE_S = 2.0
"""So long an error is left for those who wait; they ask more often."""
_LOCKS_LAYOUT = 1
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25


def locks_prefix(cache_name: str) -> bytes:
    """
    The beginning of the keys of the leader's lock and those of fetches.

    Apart from the layout of the index, so that old and new versions have one leader and one fetch.
    """
    return f"coverart:{_LOCKS_LAYOUT}:{cache_name}:".encode()


def pause_s(waited_s: float) -> float:
    """Until a lock is asked for again, in seconds: 40 questions in two and a half seconds."""
    return min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, waited_s / 10))


class HeldLocks:
    """The locks that this process holds; one loop renews them, all at once."""

    log = Logger()

    def __init__(self, link: RedisLink, renew: Script, keys: Sequence[bytes]) -> None:
        """:param renew: given a life in ms, and names and tokens."""
        self._link = link
        self._script = renew
        self._keys = keys
        self._names: dict[str, bytes] = {}
        self._renewal = LoopingCall(self._renew)
        self._renewal.clock = link.clock

    def add(self, name: bytes, token: str) -> None:
        self._names[token] = name
        if not self._renewal.running:
            self._renewal.start(LOCK_LIFE_S / 3, now=False).addErrback(
                lambda failure: self.log.failure(
                    "renewing the locks of fetches failed; another process may fetch the same",
                    failure,
                )
            )

    def remove(self, tokens: Iterable[str]) -> None:
        """They are renewed no more."""
        for token in tokens:
            self._names.pop(token, None)

    async def _renew(self) -> None:
        if not self._names:
            self._renewal.stop()
            return
        words = [word for token, name in self._names.items() for word in (name, token)]
        with suppress(RedisAway):
            await self._link.run(self._script, self._keys, int(LOCK_LIFE_S * 1000), *words)


def pack_error(error: CoverError) -> str:
    """An error as it is left in a lock."""
    told = [type(error).__name__, error.detail, error.retry_after_s]
    return "-" + json.dumps(told)


def unpack_error(packed: bytes) -> CoverError:
    """The inverse of pack_error, of an error."""
    name, detail, retry_after_s = json.loads(packed[1:])
    error: CoverError = getattr(errors, name, CoverError)(detail)
    error.retry_after_s = retry_after_s
    return error
