"""
The connection to Redis: scripts are sent by their hash, and a failed Redis is not asked for two seconds.

The only module that imports txredisapi. A Redis that does not answer must not hold up requests: after
a failure calls fail at once, and the disk answers in place of the index. A Redis that refuses writes
still answers: it is read, and scripts that free memory are run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import txredisapi
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.coordination.lua_scripts import Script
from coverart.coordination.redis_url import Address

REPLY_S = 1.0
"""Seconds until a command is given up, and its connection with it."""
GRACE_S = 0.05
GRACE_TURNS = 3
"""
Turns of the reactor before it is given up: timers run before sockets are read, so a reply may have
come while the reactor was busy.
"""
PAUSE_S = 2.0
"""Seconds until Redis is asked again after a failure; one call finds out whether it answers."""


_CODE = re.compile(r"(?:^|[- ])(OOM|MISCONF|NOREPLICAS|READONLY|MASTERDOWN|LOADING|WRONGTYPE)\b")
"""The code of an error of Redis; before Redis 7, a script's stands in the middle of a sentence."""
_REFUSALS = {
    "OOM": "out of memory; the index is kept past maxmemory, by what the cache's limit allows",
    "MISCONF": "it can't save to its disk",
    "NOREPLICAS": "it has too few replicas",
}
"""Errors of a Redis that can be read and takes no writes."""
_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "LOADING"})
"""Another server may be the master by now."""
_BAD_DATA = re.compile("WRONGTYPE|not an integer|not a valid float|not a float|user_script")
"""How Redis says that a script can't go on with what it found."""
_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_FORBIDDEN = re.compile("NOPERM|ERR unknown command")
"""How Redis says that this user may not send a command, or nobody may."""
_PAST_MAXMEMORY = "redis.call('DEL', KEYS[1] .. 'room')\n"
"""
Before a script, this lets a full Redis run it: a write that takes no memory came first, and no
script is ended half done. For what is bounded by something else than Redis' memory only.
"""


class RedisAway(Exception):
    """Redis can't be asked now: unreachable, too slow, starting, or a replica."""


class RedisRefuses(RedisAway):
    """Redis answers, and takes no writes: it is full, or can't save what it is told."""

    def __init__(self, text: str, code: str) -> None:
        """:param code: the first word of the error."""
        super().__init__(text)
        self.code = code


class _UnknownScript(RedisAway):
    """Redis was not sent the text of this script since it was started."""


class RedisGarbled(RedisAway):
    """Redis answers, and holds data that this program can't have written."""


class RedisLink:
    """One process's connection to Redis."""

    log = Logger()

    def __init__(self, address: Address, clock: IReactorTime, reactor: Any) -> None:
        self.address = address
        self.clock = clock
        self._awaited: dict[Deferred[Any], float] = {}
        """Replies that have not come yet, and when each was asked for, the oldest first."""
        self._watch: IDelayedCall | None = None
        self.run_id = b""
        """
        What tells the run of Redis that answered last from all others.

        Empty where this user may not ask.
        """
        self._introduced: Any = None
        self._reactor = reactor
        self._sentinel: Any = None
        self._commands: Any = None
        self._away_until = 0.0
        self._away = False
        self._refusal = ""
        """Why Redis takes no writes, as its error begins; empty while it does."""

    @property
    def available(self) -> bool:
        """Whether Redis can be asked and told, by the last that was heard of it."""
        if self._away or self._refusal not in ("", "OOM"):
            return False
        return self._commands is not None

    def connect(self) -> None:
        """Begin; what is asked before the connection stands waits for it."""
        address = self.address
        factory = self._commands = _Factory(address, self._lost)
        endpoint: Any
        if address.service is not None:
            self._sentinel = txredisapi.Sentinel(address.hosts)
            factory.sentinel_manager = self._sentinel
            factory.service_name = address.service
            factory.is_master = True
            endpoint = txredisapi._SentinelEndpoint(factory)  # noqa: SLF001 - made nowhere else
        elif address.path is not None:
            endpoint = UNIXClientEndpoint(self._reactor, address.path)
        else:
            ((host, port),) = address.hosts
            endpoint = HostnameEndpoint(self._reactor, host, port, timeout=5)
        factory.startConnecting(endpoint)

    async def close(self) -> None:
        if self._commands is not None:
            await self._commands.disconnect()
        if self._sentinel is not None:
            await self._sentinel.disconnect()

    async def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        *args: bytes | str | float,
        writes: bool = False,
    ) -> Any:
        """
        Run a script with these keys and arguments; if Redis is full, all the same.

        :param writes: it begins with a write that a Redis which takes no writes refuses.
        :returns: the reply: bytes, ints, None, or lists of them.
        :raises RedisRefuses: Redis takes no writes, for another reason than its memory.
        :raises RedisGarbled: a key of the script's holds something else than it should.
        :raises RedisAway: it can't be run now, by whatever cause.
        """
        words = (len(keys), *keys, *args)
        try:
            try:
                reply = await self.command("EVALSHA", script.sha, *words)
            except _UnknownScript:
                reply = await self.command("EVAL", script.text, *words)
        except RedisRefuses as refusal:
            if refusal.code != "OOM":
                raise
            return await self.command("EVAL", _PAST_MAXMEMORY + script.text, *words)
        if writes and self._refusal:
            self._refusal = ""
            self.log.info("Redis at {address} takes writes again", address=str(self.address))
        return reply

    async def info(self, section: str) -> bytes:
        """
        What Redis says of itself; empty where it does not let this user ask.

        :raises RedisAway: it can't be asked now.
        """
        reply: bytes = await self.command("INFO", section)
        return reply

    async def command(self, *words: bytes | str | float) -> Any:
        """Send a plain command. :raises RedisAway: it can't be sent now."""
        if self.clock.seconds() < self._away_until:
            raise RedisAway(f"{self.address} is away")
        try:
            connection = await self._connection()
            if connection is not self._introduced:
                self._introduced = connection
                # Its answer comes before all others.
                self._send(connection, "INFO", "server").addBoth(self._learn_run_id)
            reply = await self._send(connection, *words)
        except txredisapi.ResponseError as error:
            if words[0] == "INFO" and _FORBIDDEN.match(str(error)):
                # Other commands may be allowed.
                return b""
            raise self._refused(error) from error
        except (txredisapi.RedisError, OSError) as error:
            self._lost(f"{type(error).__name__} {error}")
            raise RedisAway(str(error)) from error
        except CancelledError as error:
            if self._away:
                raise RedisAway(f"{self.address} is away") from error
            raise
        self._answers()
        return reply

    async def _connection(self) -> Any:
        factory = self._commands
        if factory is None:
            raise RedisAway("not connected")
        if factory.size:
            return factory.pool[0]
        if self._away:
            # The factory is connecting again: nobody waits for that.
            raise RedisAway(f"{self.address} is away")
        return await self._timed(factory.getConnection(peek=True))

    def _send(self, connection: Any, *words: bytes | str | float) -> Deferred[Any]:
        return self._timed(connection.execute_command(*words))

    def _timed(self, awaited: Deferred[Any]) -> Deferred[Any]:
        """Give up the connection after REPLY_S; one timer watches all replies."""
        self._awaited[awaited] = self.clock.seconds()
        if self._watch is None:
            self._watch = self.clock.callLater(REPLY_S, self._look)
        return awaited.addBoth(self._answered, awaited)

    def _answered(self, reply: Any, awaited: Deferred[Any]) -> Any:
        del self._awaited[awaited]
        return reply

    def _look(self, turns: int = GRACE_TURNS) -> None:
        self._watch = None
        if not self._awaited:
            return
        left_s = next(iter(self._awaited.values())) + REPLY_S - self.clock.seconds()
        if left_s > 0:
            self._watch = self.clock.callLater(left_s, self._look)
        elif turns:
            self._watch = self.clock.callLater(GRACE_S, self._look, turns - 1)
        else:
            self._lost(f"no reply within {REPLY_S:g} s")
            # A late reply would be taken for that of a later command.
            for connection in list(self._commands.pool):
                connection.transport.abortConnection()
            for awaited in list(self._awaited):
                awaited.cancel()

    def _learn_run_id(self, reply: bytes | Failure) -> None:
        found = _RUN_ID.search(reply) if isinstance(reply, bytes) else None
        self.run_id = b"" if found is None else found[1]

    def _answers(self) -> None:
        if self._away:
            self._away = False
            self.log.info("Redis at {address} answers again", address=str(self.address))

    def _refused(self, error: Exception) -> RedisAway:
        """The exception for an error that Redis replied."""
        text = str(error)
        if text.startswith("NOSCRIPT"):
            return _UnknownScript(text)
        match = _CODE.search(text)
        code = "" if match is None else match[1]
        if code in _REFUSALS:
            self._answers()
            if self._refusal != code:
                self._refusal = code
                self.log.warn(
                    "Redis at {address} refuses writes: {why}",
                    address=str(self.address),
                    why=_REFUSALS[code],
                )
            return RedisRefuses(text, code)
        if code in _ELSEWHERE:
            for connection in list(self._commands.pool):
                connection.transport.loseConnection()
        elif _BAD_DATA.search(text) and "can't" not in text:  # It may not run a command.
            self._answers()
            return RedisGarbled(text)
        self._lost(text)
        return RedisAway(text)

    def _lost(self, why: str) -> None:
        self._away_until = self.clock.seconds() + PAUSE_S
        if not self._away:
            self._away = True
            self.log.warn(
                "Redis at {address} is away ({why}); the disk answers meanwhile",
                address=str(self.address),
                why=why,
            )


class _Factory(txredisapi.RedisFactory):  # type: ignore[misc]
    """Makes one connection, again and again; a refused login is trouble like any other."""

    initialDelay = 0.2
    maxDelay = 3.0

    def __init__(self, address: Address, refused: Callable[[str], None]) -> None:
        """:param refused: called with what Redis says to a login or a database that it refuses."""
        super().__init__(
            uuid=str(address),
            dbid=address.database or None,
            poolsize=1,
            charset=None,
            password=address.password,
            # Timed here, with an eye on the reactor's own lateness.
            replyTimeout=None,
            convertNumbers=False,
            username=address.username,
        )
        self._refused = refused

    def stopTrying(self) -> Deferred[None]:
        """Asked for when a login is refused: the password or Redis' place for clients may come."""
        return succeed(None)

    def connectionError(self, why: str) -> None:
        self._refused(why)
