"""
The connection to Redis: one address in three forms, scripts by their hash, and what is down is down.

The only module that imports txredisapi. A Redis that does not answer must not hold up requests:
after a failure, calls fail at once for a while, and the disk answers in place of the index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import attrs
import txredisapi
from twisted.internet.defer import CancelledError, Deferred, TimeoutError  # noqa: A004
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from coverart.redis_address import Address

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


class RedisAway(Exception):
    """Redis can't be asked now: unreachable, too slow, full, or a replica that takes no writes."""


@attrs.frozen
class Script:
    """A Lua script, sent by its hash once the server knows it (EVALSHA)."""

    text: str
    writes: bool = True

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - Redis' own name for it


class _Listener(txredisapi.SubscriberProtocol):  # type: ignore[misc]
    """Hears one channel."""

    def connectionMade(self) -> Any:
        done = super().connectionMade()
        return done.addCallback(self._subscribe)

    def _subscribe(self, _: object) -> None:
        if self.connected:
            self.subscribe([self.factory.channel])
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
        self.came_back: Callable[[], object] = lambda: None
        """Called when Redis answers again after it was away."""
        self._clock = clock
        self._reactor = reactor
        self._sentinel: Any = None
        self._commands: Any = None
        self._listener: Any = None
        self._away_until = 0.0
        self._away = False

    @property
    def available(self) -> bool:
        """Whether the last that was heard of Redis was good."""
        return not self._away and self._commands is not None

    def connect(self) -> None:
        """Begin; what is asked before the connection stands waits for it."""
        self._commands = self._start(_CommandFactory(self.address))

    def listen(self, channel: bytes, heard: Callable[[bytes], None]) -> None:
        """Call `heard` with each message on a channel, for as long as the link lives."""
        factory = _ListenerFactory(self.address)
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
        Run a script with these arguments.

        :returns: the reply: bytes, ints, None, or lists of them.
        :raises RedisAway: it can't be run now, by whatever cause.
        """
        return await self._call(lambda connection: connection.eval(script.text, [], args))

    async def command(self, *words: bytes | str | float) -> Any:
        """Send a plain command. :raises RedisAway: it can't be sent now."""
        return await self._call(lambda connection: connection.execute_command(*words))

    async def _call(self, send: Callable[[Any], Deferred[Any]]) -> Any:
        if self._clock.seconds() < self._away_until:
            raise RedisAway(f"{self.address} is away")
        factory = self._commands
        if factory is None:
            raise RedisAway("not connected")
        if self._away and not factory.size:
            # Known to be gone, and the factory is at it: no use in waiting.
            raise RedisAway(f"{self.address} is away")
        try:
            connection = await self._patiently(factory.getConnection(peek=True))
            reply = await self._patiently(send(connection), connection)
        except txredisapi.ResponseError as error:
            raise self._refused(error) from error
        except (txredisapi.RedisError, TimeoutError, OSError) as error:
            self._lost(f"{type(error).__name__} {error}")
            raise RedisAway(str(error)) from error
        if isinstance(reply, txredisapi.ResponseError):
            raise self._refused(reply)
        if self._away:
            self._away = False
            self.log.info("Redis at {address} answers again", address=str(self.address))
            self.came_back()
        return reply

    async def _patiently(self, awaited: Deferred[Any], connection: Any = None) -> Any:
        """What is awaited, or TimeoutError; a connection that is silent is given up."""
        late = False
        timers: list[IDelayedCall] = []

        def wait_on(turns: int) -> None:
            nonlocal late
            if turns:
                timers[:] = [self._clock.callLater(GRACE_S, wait_on, turns - 1)]
                return
            late = True
            if connection is not None:
                # Its replies would be taken for those of later commands.
                connection.transport.abortConnection()
            else:
                awaited.cancel()

        timers.append(self._clock.callLater(REPLY_S, wait_on, GRACE_TURNS))
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
        """Redis answered with an error: full, read-only, still loading, or a mistake of ours."""
        text = str(error)
        if text.startswith(("READONLY", "MASTERDOWN", "LOADING")):
            # Another server may be the master by now: look for it anew.
            for connection in list(self._commands.pool):
                connection.transport.loseConnection()
        self._lost(text)
        return RedisAway(text)

    def _lost(self, why: str) -> None:
        self._away_until = self._clock.seconds() + PAUSE_S
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


def _settle(factory: Any, address: Address) -> None:
    txredisapi.RedisFactory.__init__(
        factory,
        uuid=str(address),
        dbid=address.database or None,
        poolsize=1,
        isLazy=True,
        charset=None,
        password=address.password,
        # Timed here, with an eye on the reactor's own lateness.
        replyTimeout=None,
        convertNumbers=False,
        username=address.username,
    )
    factory.initialDelay = 0.2
    factory.maxDelay = 3.0


class _CommandFactory(txredisapi.RedisFactory):  # type: ignore[misc]
    def __init__(self, address: Address) -> None:
        _settle(self, address)


class _ListenerFactory(txredisapi.RedisFactory):  # type: ignore[misc]
    protocol = _Listener
    channel = b""
    heard: Callable[[bytes], None]
    is_listening = False

    def __init__(self, address: Address) -> None:
        _settle(self, address)

    def listening(self, now: bool) -> None:
        """Told by the protocol."""
        self.is_listening = now
