"""
The connection to Redis: one address in three forms, scripts by their hash, and what is down is down.

The only module that imports txredisapi. A Redis that does not answer must not hold up requests:
after a failure, calls fail at once for a while, and the disk answers in place of the index. One
that answers and refuses writes is not down: it is read, and what frees memory goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import attrs
import txredisapi
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed  # noqa: A004
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.coordination.redis_url import Address

REPLY_S = 1.0
"""A command that takes longer is given up, and its connection with it."""
GRACE_S = 0.05
GRACE_TURNS = 3
"""
So many turns of the reactor more, since a reply may have come while the reactor was busy with
something else: timers run before sockets are read, and a late reader is not a silent Redis.
"""
PAUSE_S = 2.0
"""So long nothing is asked after a failure, but for one call that finds out."""


_CODE = re.compile(r"(?:^|[- ])(OOM|MISCONF|NOREPLICAS|READONLY|MASTERDOWN|LOADING|WRONGTYPE)\b")
"""What an error of Redis is about; before Redis 7, a script's stands in the middle of a sentence."""
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
_PAST_MAXMEMORY = "redis.call('DEL', ARGV[1] .. 'room')\n"
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


class RedisGarbled(RedisAway):
    """Redis answers, and holds something else than what this program writes there."""


@attrs.frozen
class Script:
    """A Lua script, sent by its hash once the server knows it (EVALSHA)."""

    text: str
    grows: bool = False
    """Its first write takes memory: a Redis that is full refuses it."""
    writes: bool = False
    """It wrote, if its reply is not 0."""

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - Redis' own name for it


class _Listener(txredisapi.SubscriberProtocol):  # type: ignore[misc]
    """Hears one channel."""

    def connectionMade(self) -> Any:
        # Not after a login that was refused.
        self.whenConnected().addCallback(self._subscribe)
        return super().connectionMade()

    def _subscribe(self, _: object) -> None:
        # One that is lost before the answer is made anew.
        self.subscribe([self.factory.channel]).addErrback(lambda _: None)
        self.factory.listening(True)

    def messageReceived(self, pattern: bytes, channel: bytes, message: bytes) -> None:  # noqa: ARG002
        self.factory.heard(message)

    def connectionLost(self, why: Any) -> None:
        self.factory.listening(False)
        super().connectionLost(why)


class RedisLink:
    """One process's way to Redis: a connection for commands, one to listen."""

    log = Logger()

    def __init__(self, address: Address, clock: IReactorTime, reactor: Any) -> None:
        self.address = address
        self.clock = clock
        self.run_id = b""
        """
        What tells the run of Redis that answered last from all others.

        Empty where this user may not ask.
        """
        self._introduced: Any = None
        self.came_back: Callable[[], object] = lambda: None
        """Called when Redis answers, or takes writes, again."""
        self._reactor = reactor
        self._sentinel: Any = None
        self._commands: Any = None
        self._listener: Any = None
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
        self._commands = self._start(_Factory(self.address, self._lost))

    def listen(self, channel: bytes, heard: Callable[[bytes], None]) -> None:
        """Call `heard` with each message on a channel, for as long as the link lives."""
        factory = _ListenerFactory(self.address, lambda _: None)
        factory.channel = channel
        factory.heard = heard
        self._listener = factory
        self._start(factory)

    @property
    def listening(self) -> bool:
        """Whether messages are heard now; those sent while not are lost."""
        return self._listener is not None and self._listener.is_listening

    async def close(self) -> None:
        for factory in (self._commands, self._listener):
            if factory is not None:
                await factory.disconnect()
        if self._sentinel is not None:
            await self._sentinel.disconnect()

    async def run(self, script: Script, *args: bytes | str | float) -> Any:
        """
        Run a script with these arguments; if Redis is full, all the same.

        :returns: the reply: bytes, ints, None, or lists of them.
        :raises RedisRefuses: Redis takes no writes, for another reason than its memory.
        :raises RedisGarbled: a key of the script's holds something else than it should.
        :raises RedisAway: it can't be run now, by whatever cause.
        """
        try:
            reply = await self._call(lambda connection: connection.eval(script.text, [], args))
        except RedisRefuses as refusal:
            if refusal.code != "OOM":
                raise
            text = _PAST_MAXMEMORY + script.text
            return await self._call(lambda connection: connection.eval(text, [], args))
        proven = script.grows or (script.writes and self._refusal != "OOM")
        if self._refusal and proven and reply:
            self._refusal = ""
            self.log.info("Redis at {address} takes writes again", address=str(self.address))
            self.came_back()
        return reply

    async def command(self, *words: bytes | str | float) -> Any:
        """Send a plain command. :raises RedisAway: it can't be sent now."""
        return await self._call(lambda connection: connection.execute_command(*words))

    async def info(self, section: str) -> bytes:
        """
        What Redis says of itself; empty where it does not let this user ask.

        :raises RedisAway: it can't be asked now.
        """
        reply: bytes = await self._call(
            lambda connection: connection.execute_command("INFO", section).addErrback(
                _empty_if_forbidden
            )
        )
        return reply

    async def _call(self, send: Callable[[Any], Deferred[Any]]) -> Any:
        if self.clock.seconds() < self._away_until:
            raise RedisAway(f"{self.address} is away")
        factory = self._commands
        if factory is None:
            raise RedisAway("not connected")
        if self._away and not factory.size:
            # Known to be gone, and the factory is at it: no use in waiting.
            raise RedisAway(f"{self.address} is away")
        try:
            connection = await self._patiently(factory.getConnection(peek=True))
            if connection is not self._introduced:
                self._introduced = connection
                # Its answer comes before all others.
                connection.execute_command("INFO", "server").addBoth(self._learn_run_id)
            reply = await self._patiently(send(connection), connection)
        except txredisapi.ResponseError as error:
            raise self._refused(error) from error
        except (txredisapi.RedisError, TimeoutError, OSError) as error:
            self._lost(f"{type(error).__name__} {error}")
            raise RedisAway(str(error)) from error
        if isinstance(reply, txredisapi.ResponseError):
            raise self._refused(reply)
        self._answers()
        return reply

    def _learn_run_id(self, reply: bytes | Failure) -> None:
        found = _RUN_ID.search(reply) if isinstance(reply, bytes) else None
        self.run_id = b"" if found is None else found[1]

    def _answers(self) -> None:
        if self._away:
            self._away = False
            self.log.info("Redis at {address} answers again", address=str(self.address))
            self.came_back()

    async def _patiently(self, awaited: Deferred[Any], connection: Any = None) -> Any:
        """What is awaited, or TimeoutError; a connection that is silent is given up."""
        late = False
        timers: list[IDelayedCall] = []

        def wait_on(turns: int) -> None:
            nonlocal late
            if turns:
                timers[:] = [self.clock.callLater(GRACE_S, wait_on, turns - 1)]
                return
            late = True
            if connection is not None:
                # Its replies would be taken for those of later commands.
                connection.transport.abortConnection()
            else:
                awaited.cancel()

        timers.append(self.clock.callLater(REPLY_S, wait_on, GRACE_TURNS))
        try:
            return await awaited
        except (CancelledError, txredisapi.ConnectionError):
            if late:
                raise TimeoutError(f"no reply within {REPLY_S:g} s") from None
            raise
        finally:
            for timer in timers:
                if timer.active():
                    timer.cancel()

    def _refused(self, error: Exception) -> RedisAway:
        """What is to be thought of an error that Redis answered with."""
        text = str(error)
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

    def _start(self, factory: Any) -> Any:
        address = self.address
        if address.service is not None:
            if self._sentinel is None:
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
        return factory


def _empty_if_forbidden(failure: Failure) -> bytes | Failure:
    """A command that Redis does not let this user send says nothing about the others."""
    failure.trap(txredisapi.ResponseError)
    return b"" if _FORBIDDEN.match(str(failure.value)) else failure


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


class _ListenerFactory(_Factory):
    protocol = _Listener
    channel = b""
    heard: Callable[[bytes], None]
    is_listening = False

    def listening(self, now: bool) -> None:
        """Told by the protocol."""
        self.is_listening = now
