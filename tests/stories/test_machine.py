"""The stories of tests/support/machine.py with a real Redis: the index outlives the process that dies."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar, cast

import pytest_twisted
from greenlet import greenlet
from hypothesis.stateful import run_state_machine_as_test
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from coverart.coordination.leader import RedisLeadership
from coverart.coordination.lua_scripts import Script
from coverart.coordination.redis_client import RedisAway, RedisLink
from coverart.coordination.redis_url import parse_address
from coverart.coordination.untold_mark import Mark
from coverart.index.base import Index
from coverart.index.redis import RedisIndex
from tests.support.machine import CacheMachine
from tests.support.redis_server import RedisServer
from tests.support.strategies import stories

NAME = "machine"


class MortalLink(RedisLink):
    """A link whose process can die: it then hears of nothing any more."""

    asked = 0
    dead = False
    buried = False
    """What is left of the process is collected as garbage: nothing can wait any more."""

    async def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        *args: bytes | str | float,
        writes: bool = False,
    ) -> Any:
        return await self._alive(super().run(script, keys, *args, writes=writes))

    async def command(self, *words: bytes | str | float) -> Any:
        return await self._alive(super().command(*words))

    async def info(self, section: str) -> Any:
        return await self._alive(super().info(section))

    async def _alive(self, asking: Coroutine[Any, Any, Any]) -> Any:
        if self.dead:
            asking.close()
            await self._never()
        self.asked += 1
        failed: Exception | None = None
        try:
            reply = await asking
        except Exception as error:
            # No other: what is collected as garbage has to end.
            failed = error
        self.asked -= 1
        if self.dead:
            await self._never()
        if failed is not None:
            raise failed
        return reply

    async def _never(self) -> None:
        if self.buried:
            raise RedisAway("its process is gone")
        await Deferred()


class RedisMachine(CacheMachine):
    """One process after another on one directory and one Redis."""

    server: ClassVar[RedisServer]

    def __init__(self) -> None:
        super().__init__()
        self.links: list[MortalLink] = []
        self.redis = self.server.client()
        self.redis.flushall()

    def new_process(self) -> None:
        self.far, self.eviction = True, "oldest"
        self.link = MortalLink(parse_address(self.server.url), self.clock, reactor)
        self.links.append(self.link)
        self.link.connect()
        mark = Mark(self.root)
        index = RedisIndex(self.link, NAME, mark, now=self.now)
        self.prefix = index.prefix
        self.index = cast("Index", index)
        self.leadership = RedisLeadership(self.link, index.prefix, NAME)

    def flush_index(self) -> None:
        self.redis.flushall()

    def process_gone(self) -> None:
        self.link.dead = True
        pytest_twisted.blockon(Deferred.fromCoroutine(self.link.close()))
        # As if its leases had run out: nobody waits for that here.
        for key in self.redis.scan_iter(self.prefix + b"get:*"):
            self.redis.delete(key)
        self.redis.delete(self.prefix + b"lead")

    def bury(self) -> None:
        for link in self.links:
            link.buried = True

    def let_index_answer(self) -> bool:
        if not self.link.asked:
            return False
        while self.link.asked:
            pytest_twisted.blockon(deferLater(reactor, 0.0002))
        assert self.index.available
        return True


@pytest_twisted.ensureDeferred
async def test_every_promise_holds_with_redis(tmp_path) -> None:
    """Right bytes, exact totals, nothing left over, whoever dies and whatever Redis forgets."""
    server = RedisMachine.server = await RedisServer(tmp_path / "redis").start()
    told: Deferred[None] = Deferred()

    def tell() -> None:
        try:
            end: Failure | None = None
            run_state_machine_as_test(RedisMachine, settings=stories(90))
        except Exception:
            end = Failure()
        # Not from here: this greenlet has to come to its own end.
        reactor.callLater(0, told.callback, end)

    try:
        # Rules can't await; from a greenlet of their own they can let the reactor turn.
        running = greenlet(tell)
        running.switch()
        await told
    finally:
        server.kill()
