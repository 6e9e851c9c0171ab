"""What a row is played on: an archive of its own, proxies, the log, a clock that can be moved."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import reactor
from twisted.internet.defer import DeferredSemaphore
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from coverart.simulator.catalogue import Catalogue
from coverart.simulator.draw import Studio
from coverart.simulator.gallery import Gallery
from coverart.simulator.service import Simulator
from tests.stories.faults.matrix import Claims
from tests.stories.faults.victim import Victim
from tests.support.redis_server import RedisServer
from tests.support.running import AS_RECEIVED, Machine, Proxy
from tests.support.talk import Wire, connect, until

SLACK_S = 5.0
"""Over a bound by a setting: rows are played side by side on machines that have more to do."""
QUICK_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Rows write and remove a lot; none is about the speed of the disk."""
LARGE = 11
"""The release whose front is a large original."""
_starts = DeferredSemaphore(2)
STUDIO = Studio(variants=8, max_bytes=192 * 2**20)


class Log:
    """What the proxies of all rows log; a row finds its lines by what only it can name."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str, object]] = []
        self.tracebacks: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        text = formatEvent(event)
        if event.get("log_failure") is not None:
            self.tracebacks.append(f"{text}\n{event['log_failure'].getTraceback()}")
        level = event.get("log_level")
        if level in (LogLevel.warn, LogLevel.error, LogLevel.critical, LogLevel.info):
            source = event.get("log_source")
            self._lines.append((event.get("log_namespace", ""), text, source))

    def start(self) -> Log:
        globalLogPublisher.addObserver(self)  # type: ignore[arg-type]
        return self

    def stop(self) -> None:
        globalLogPublisher.removeObserver(self)  # type: ignore[arg-type]

    def about(self, *marks: str) -> list[str]:
        """Lines that have one of these in them, without those of the access log."""
        return [
            text
            for namespace, text, _ in self._lines
            if not namespace.startswith("coverart.web.access_log")
            and any(mark in text for mark in marks)
        ]

    def by(self, source: object) -> list[str]:
        """Lines of one part of one proxy."""
        return [text for _, text, said_by in self._lines if said_by is source]


@attrs.frozen(kw_only=True)
class Seen:
    """One answer, seen to the byte."""

    status: int
    head: Callable[[str], str]
    body: bytes
    cut: bool
    elapsed_s: float
    """By the machine's clock."""

    @property
    def how(self) -> str:
        """Status and X-Cache-Status."""
        cache = self.head("X-Cache-Status")
        return f"{self.status} {cache}".strip() + (", cut short" if self.cut else "")


@attrs.frozen(kw_only=True)
class Thing:
    """Something to ask for: its path, and the bytes that the archive has."""

    name: str
    path: str
    body: bytes


class Stage:
    """Everything of one row; close() leaves nothing behind."""

    def __init__(self, log: Log, seed: int, hostname: str) -> None:
        self.log = log
        self.claims = Claims()
        # Open to other users: some rows are played as one.
        self.folder = Path(tempfile.mkdtemp(prefix="coverart-fault-", dir=QUICK_DISK))
        self.folder.chmod(0o755)
        catalogue = Catalogue(seed=seed, releases=60)
        self.sim = Simulator(reactor, catalogue, variants=8, hostname=hostname)
        self.sim.studio = STUDIO
        self.sim.gallery = Gallery(reactor, STUDIO)
        self.machine = Machine()
        self._proxies: list[Proxy] = []
        self._victims: list[Victim] = []
        self._servers: list[RedisServer] = []
        self._last: list[Callable[[], object]] = []

    async def open(self) -> Stage:
        await self.sim.start()
        return self

    async def close(self) -> None:
        """End all of it, whatever part of it does not end well; that part's error is raised last."""
        self.sim.faults.clear()
        async with contextlib.AsyncExitStack() as ends:
            ends.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for call in self._last:
                ends.callback(call)
            ends.push_async_callback(self.sim.stop)
            for server in self._servers:
                ends.callback(server.kill)
            for victim in self._victims:
                ends.callback(victim.kill)
            for proxy in self._proxies:
                ends.push_async_callback(proxy.stop)

    def at_the_end(self, call: Callable[[], object]) -> None:
        """Have something undone when the row is over."""
        self._last.append(call)

    # Who plays

    async def proxy(self, root: str = "cache", **settings: str) -> Proxy:
        """A proxy in this process; several on one root share a directory."""
        given = {**self.sim.environment(), **settings}
        proxy = Proxy(self.folder / root, given, self.machine)
        self._proxies.append(proxy)
        return await proxy.start()

    async def victim(
        self, fault: dict[str, Any] | None = None, *, root: str = "cache", **settings: str
    ) -> Victim:
        """A proxy that is a process, with a fault in it; see victim.py."""
        given = {**self.sim.environment(), **AS_RECEIVED, **settings}
        folder = self.folder / f"victim-{len(self._victims)}"
        # A start costs a second of a processor: more at once would only wait for each other.
        async with _starts:
            victim = Victim(self.folder / root, folder, fault or {}, **given)
            self._victims.append(victim)
            await victim.ready()
        return victim

    async def redis(self) -> RedisServer:
        """An empty server of the Redis protocol."""
        server = RedisServer(self.folder / f"redis-{len(self._servers)}")
        self._servers.append(server)
        return await server.start()

    # What is asked for

    def thumbnail(self, number: int = 0) -> Thing:
        item = self.sim.catalogue.release(number)
        assert item.front is not None
        body = STUDIO.archive_bytes(item.front, 250)
        return Thing(name="thumbnail", path=f"/release/{item.mbid}/front-250", body=body)

    def group(self) -> Thing:
        group, item = self.sim.catalogue.release_group(0), self.sim.catalogue.release(0)
        assert item.front is not None
        body = STUDIO.archive_bytes(item.front, 250)
        path = f"/release-group/{group.mbid}/front-250"
        return Thing(name="group's front", path=path, body=body)

    def large(self) -> Thing:
        item = self.sim.catalogue.release(LARGE)
        assert item.front is not None
        body = STUDIO.archive_bytes(item.front, None)
        return Thing(name="large original", path=f"/release/{item.mbid}/front", body=body)

    def listing(self, number: int = 1) -> Thing:
        from coverart.simulator.answers import listing

        item = self.sim.catalogue.release(number)
        return Thing(name="listing", path=f"/release/{item.mbid}/", body=listing(item))

    async def ask(self, port: int, path: str, wire: Wire | None = None) -> Seen:
        """Ask on a connection of its own, and see how it ends."""
        began = self.machine.seconds()
        wire = wire or await connect(port)
        wire.get(path, "Connection: close")
        await wire.end()
        elapsed_s = self.machine.seconds() - began
        if not wire.received:
            return Seen(status=0, head=wire.header, body=b"", cut=True, elapsed_s=elapsed_s)
        length = wire.header("Content-Length")
        cut = not length or len(wire.body) != int(length)
        return Seen(
            status=wire.status, head=wire.header, body=wire.body, cut=cut, elapsed_s=elapsed_s
        )

    # Claims that many rows make

    def claim(
        self, column: str, text: str, true: object, saw: object = "", *, of: str = ""
    ) -> None:
        """See Claims.claim()."""
        self.claims.claim(column, text, true, saw, of=of)

    def whole(self, seen: Seen, thing: Thing, how: str, column: str = "client", *, of: str) -> None:
        """Claim that an answer is 200, came about like that, and has the archive's bytes."""
        good = seen.status == 200 and seen.body == thing.body and not seen.cut
        right = "its bytes" if seen.body == thing.body else "OTHER BYTES"
        told = seen.head("X-Cache-Status") == how
        self.claim(column, f"200 {how}", good and told, f"{seen.how}, {right}", of=of)

    def unstored(self, seen: Seen, thing: Thing, why: str, *, of: str) -> None:
        """Claim that an answer is whole although it can't be stored, and tells why."""
        self.whole(seen, thing, "MISS", of=of)
        said, told = f"stored=?0; detail={why}", seen.head("Cache-Status")
        self.claim("client", said, told.endswith(said), told, of=of)

    def refused(self, seen: Seen, status: int, said: str, *, of: str) -> None:
        """Claim that an answer is an error of the contract. :param said: a pattern."""
        told = json.loads(seen.body or b"{}")
        expected = {"error"} if status < 500 else {"error", "cause", "request_id"}
        lasting = seen.head("Cache-Control") == (
            "public, max-age=60" if status == 404 else "no-store"
        )
        good = seen.status == status and lasting and not seen.cut
        good = good and expected <= told.keys() and re.fullmatch(said, told["error"]) is not None
        self.claim("client", f"{status} “{said}”", good, f"{seen.how} {seen.body[:99]!r}", of=of)

    def logged(self, pattern: str, *marks: str, text: str = "", of: str = "") -> None:
        """Claim that a line about one of `marks` matches a pattern, which the table shows."""
        lines = self.log.about(*marks)
        found = any(re.search(pattern, line) for line in lines)
        self.claim("log", text or pattern, found, f"these: {lines}", of=of)

    def at_once(self, seen: Seen, *, of: str = "") -> None:
        """Claim that an answer waited for nothing."""
        took = f"{seen.elapsed_s:.1f} s"
        self.claim("time", "at once", seen.elapsed_s <= SLACK_S, took, of=of)

    def bounded(self, seen: Seen, setting: str, bound_s: float, *, of: str = "") -> None:
        """Claim that an answer took no longer than a setting allows."""
        took = f"{seen.elapsed_s:.1f} s"
        self.claim("time", f"≤ {setting}", seen.elapsed_s <= bound_s + SLACK_S, took, of=of)

    async def nothing_kept(self, proxy: Proxy, *, of: str = "") -> None:
        """Claim that the disk holds nothing of what was asked for, finished or not."""
        await proxy.settled()
        await until(lambda: not proxy.unfinished(), "temporary files are removed")
        lies = [*proxy.files(), *proxy.links()]
        self.claim("disk", "nothing new", not lies, lies, of=of)

    async def exact(self, proxy: Proxy, column: str = "index", *, of: str = "") -> None:
        """Claim that the index counts the files and bytes that lie on the disk."""
        totals = await proxy.cache.index.totals()
        sizes = [(proxy.root / name).stat().st_size for name in proxy.files()]
        saw = (totals.files, totals.size_bytes)
        on_disk = (len(sizes), sum(sizes))
        self.claim(column, "totals exact", saw == on_disk, f"{saw}, on disk {on_disk}", of=of)
