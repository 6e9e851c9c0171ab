"""
Who may do a thing that only one process of all should do: fetch a cover, clean the cache.

A lease is a key that vanishes by itself: taken with SET NX PX and a random owner, renewed at a
third of its life, released only by its owner (https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/).
A leader's token is new with each term and is checked by every step that destroys; and since a
process can be stopped between a check and the step, the leader also knows by its own clock until
when its term was sure to last.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart import errors
from coverart.coordination.lua_scripts import Script, load_scripts
from coverart.coordination.redis_client import RedisAway, RedisLink
from coverart.coordination.untold_mark import Mark
from coverart.errors import CoverError, FileNotInArchive, NotInArchive

LEADER_LIFE_S = 15.0
FETCH_LIFE_S = 10.0
FALLBACK_S = 2.0
"""A waiter that heard nothing looks again after at most so long."""

_SCRIPTS = load_scripts(Path(__file__).with_name("lua"))
Work = Callable[[], Coroutine[Deferred[Any], Any, bytes]]


class Leadership(Protocol):
    """The election of the process that cleans."""

    @property
    def token(self) -> str | None:
        """This term's token while this process surely leads; None if it does not."""

    async def stand(self) -> str | None:
        """Take the lead if nobody has it, or go on with it. :returns: the token, if leading."""

    async def resign(self) -> None:
        """Let another process lead, at once."""


class Fetches(Protocol):
    """Sees to it that of all processes one does a piece of work."""

    async def once(self, name: bytes, work: Work, *, doubt: bool = False) -> bytes:
        """
        Do the work, unless another process is at it: then wait for what comes of that.

        :param name: of the work; the same in all processes.
        :param doubt: the name is the packed key of a file that the work stores; it is looked
            after should this process be killed at it.
        :param work: returns what others need to know, a few bytes.
        :returns: what the work returned, here or there.
        :raises CoverError: as the work did, here or there.
        """


class Alone:
    """Both for a process that has the cache for itself."""

    token = ""

    async def stand(self) -> str | None:
        return self.token

    async def resign(self) -> None:
        return

    async def once(self, name: bytes, work: Work, *, doubt: bool = False) -> bytes:  # noqa: ARG002
        return await work()


class RedisLeadership:
    """Leadership by a lease in Redis."""

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


@attrs.define(eq=False)
class _Awaited:
    """Callers in this process who wait for one name."""

    waiting: list[Deferred[bytes | None]] = attrs.field(factory=list)


class RedisFetches:
    """Work done once among processes, by leases in Redis; its end is published to all."""

    log = Logger()

    def __init__(
        self,
        link: RedisLink,
        prefix: bytes,
        clock: IReactorTime,
        mark: Mark,
        *,
        life_s: float = FETCH_LIFE_S,
    ) -> None:
        """:param mark: left before a file is stored that Redis can't be told to be in doubt."""
        self._link = link
        self._mark = mark
        self._prefix = prefix + b"get:"
        self._channel = prefix + b"done"
        self._doubt = prefix + b"doubt"
        self._clock = clock
        self._life_s = life_s
        self._awaited: dict[bytes, list[Deferred[bytes | None]]] = {}

    def start(self) -> None:
        """Begin to listen for the ends of others' work."""
        self._link.listen(self._channel, self._heard)

    async def once(self, name: bytes, work: Work, *, doubt: bool = False) -> bytes:
        key = self._prefix + name
        owner = secrets.token_hex(12)
        while True:
            # Listening before asking: an end told in between is not missed.
            told = self._wait(name)
            try:
                left_ms = await self._link.run(
                    _ACQUIRE,
                    (key,),
                    key,
                    owner,
                    int(self._life_s * 1000),
                    self._doubt,
                    name if doubt else b"",
                )
            except RedisAway:
                told.cancel()
                if doubt:
                    self._mark.leave()
                return await work()
            if left_ms == -1:
                told.cancel()
                return await self._do(name, key, owner, work, doubt=doubt)
            # The owner may have been killed, or its message lost: look again then.
            patience_s = min(FALLBACK_S, max(left_ms, 20) / 1000 + 0.02)
            end = await told.addTimeout(patience_s, self._clock, onTimeoutCancel=_nothing)
            if end is not None:
                return _understand(end)

    async def _do(self, name: bytes, key: bytes, owner: str, work: Work, *, doubt: bool) -> bytes:
        renewal = LoopingCall(self._renew, key, owner)
        renewal.clock = self._clock
        renewal.start(self._life_s / 3, now=False).addErrback(
            lambda failure: self.log.failure("renewing a lease", failure)
        )
        end = _failed(CoverError("a fetch ended unexpectedly"))
        settled = b""
        try:
            result = await work()
            end, settled = b"+" + result, name
        except CoverError as error:
            # Nothing was stored, so nothing is in doubt.
            end, settled = _failed(error), name
            raise
        finally:
            renewal.stop()
            Deferred.fromCoroutine(self._release(name, key, owner, end, settled if doubt else b""))
        return result

    async def _renew(self, key: bytes, owner: str) -> None:
        try:
            await self._link.run(_RENEW, (key,), key, owner, int(self._life_s * 1000))
        except RedisAway:
            return

    async def _release(
        self, name: bytes, key: bytes, owner: str, end: bytes, settled: bytes
    ) -> None:
        message = len(name).to_bytes(1, "big") + name + end
        try:
            await self._link.run(
                _RELEASE, (key,), key, owner, self._channel, message, self._doubt, settled
            )
        except RedisAway:
            return

    def _wait(self, name: bytes) -> Deferred[bytes | None]:
        waiting = self._awaited.setdefault(name, [])

        def gone(d: Deferred[bytes | None]) -> None:
            waiting.remove(d)
            if not waiting and self._awaited.get(name) is waiting:
                del self._awaited[name]
            d.callback(None)

        d: Deferred[bytes | None] = Deferred(gone)
        waiting.append(d)
        return d

    def _heard(self, message: bytes) -> None:
        name, end = message[1 : 1 + message[0]], message[1 + message[0] :]
        for d in self._awaited.pop(name, []):
            d.callback(end)


def _nothing(result: bytes | Failure | None, _: float) -> None:
    """Patience ran out; cancelling gave None already."""
    if isinstance(result, Failure):
        result.trap(CancelledError)


def _failed(error: CoverError) -> bytes:
    """An error as others are told it."""
    return (
        b"-"
        + json.dumps(
            {
                "error": type(error).__name__,
                "detail": error.detail,
                "retry_after_s": error.retry_after_s,
                "derived": isinstance(error, FileNotInArchive),
            }
        ).encode()
    )


def _understand(end: bytes) -> bytes:
    """What the work returned elsewhere. :raises CoverError: as it did there."""
    if end[:1] == b"+":
        return end[1:]
    told = json.loads(end[1:])
    kind = getattr(errors, told["error"], CoverError)
    if kind is NotInArchive:
        kind = FileNotInArchive if told["derived"] else NotInArchive
        raise kind(told["detail"])
    raise kind(told["detail"], retry_after_s=told["retry_after_s"])


_ACQUIRE = Script(
    """
-- key, owner, life in ms, set for what may be left half done, member of it (none where empty):
-- -1 if it is the caller's now, else how long it still is another's
if redis.call('SET', ARGV[1], ARGV[2], 'NX', 'PX', ARGV[3]) then
  if ARGV[5] ~= '' then redis.call('SADD', ARGV[4], ARGV[5]) end
  return -1
end
local left = redis.call('PTTL', ARGV[1])
if left < 0 or left > tonumber(ARGV[3]) then
  -- Another program wrote it, or the server's clock was set back: no lease of ours is so long.
  redis.call('PEXPIRE', ARGV[1], ARGV[3])
  return tonumber(ARGV[3])
end
return left
"""
)

_RENEW = Script(
    """
if redis.call('GET', ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('PEXPIRE', ARGV[1], ARGV[3])
"""
)

_RELEASE = Script(
    """
-- key, owner, channel, what to tell those who wait (none where the channel is empty), set of what
-- may be left half done, member of it that is not (none where empty)
if ARGV[6] ~= '' then redis.call('SREM', ARGV[5], ARGV[6]) end
if redis.call('GET', ARGV[1]) == ARGV[2] then redis.call('DEL', ARGV[1]) end
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
"""
)
