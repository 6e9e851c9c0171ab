"""
Which of the processes that share a cache cleans it.

The leader holds a lock in Redis: a key that ends by itself, renewed at a third of its life, with a
token of its owner's (https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/). The
token is new with each term, and every step that destroys checks it. A process can be stopped between
the check and the step, so the leader also knows by its own clock until when its term surely lasts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from twisted.logger import Logger

from coverart.coordination.lua_scripts import load_scripts
from coverart.coordination.redis_client import RedisAway, RedisLink

LEADER_LIFE_S = 15.0
_LOCKS_LAYOUT = 1

_SCRIPTS = load_scripts(Path(__file__).with_name("lua"))


def locks_prefix(cache_name: str) -> bytes:
    """
    The beginning of the keys of the leader's lock and those of fetches.

    Apart from the layout of the index, so that old and new versions have one leader and one fetch.
    """
    return f"coverart:{_LOCKS_LAYOUT}:{cache_name}:".encode()


class Leadership(Protocol):
    """The election of the process that cleans."""

    @property
    def token(self) -> str | None:
        """This term's token while this process surely leads; None if it does not."""

    async def stand(self) -> str | None:
        """Take the lead if nobody has it, or go on with it. :returns: the token, if leading."""

    async def resign(self) -> None:
        """Let another process lead, at once."""


class Alone:
    """The leader of a cache that one process has for itself."""

    token = ""

    async def stand(self) -> str | None:
        return self.token

    async def resign(self) -> None:
        return


class RedisLeadership:
    """Leadership by a lock in Redis."""

    log = Logger()

    def __init__(
        self,
        link: RedisLink,
        prefix: bytes,
        name: str,
        *,
        life_s: float = LEADER_LIFE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        :param prefix: of the keys of locks.
        :param name: tells operators which process it is.
        :param monotonic: seconds that go on while the process is stopped.
        """
        self._link = link
        self._key = prefix + b"lead"
        self._name = name
        self._life_s = life_s
        self.monotonic = monotonic
        self._token: str | None = None
        self._sure_until = 0.0

    @property
    def token(self) -> str | None:
        return self._token if self.monotonic() < self._sure_until else None

    async def stand(self) -> str | None:
        # Counted from before the request left: the term in Redis can only begin later.
        asked = self.monotonic()
        token = self.token or f"{self._name}:{secrets.token_hex(8)}"
        try:
            leads = await self._link.run(
                _SCRIPTS["lead"], (self._key,), token, int(self._life_s * 1000), writes=True
            )
        except RedisAway:
            return None
        if leads:
            if token != self._token:
                self.log.info("leading the cleanup as {token}", token=token)
            self._token = token
            self._sure_until = asked + self._life_s
        elif self.token is not None:
            self.log.warn("lost the lead of the cleanup; this process tries to lead again")
            self._token = None
        return self.token

    async def resign(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            with suppress(RedisAway):
                await self._link.run(_SCRIPTS["resign"], (self._key,), token)
