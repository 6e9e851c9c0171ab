"""What the integration tests stand on: a simulated archive, proxies in front of it, processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import formatEvent, globalLogPublisher

from coverart.simulator.catalogue import Catalogue
from coverart.simulator.gallery import Gallery
from coverart.simulator.service import Simulator
from tests.support.drawings import STUDIO
from tests.support.nginx_server import NginxServer
from tests.support.raw_archive import RawArchive, Trap, Watch
from tests.support.redis_server import RedisServer
from tests.support.running import AS_RECEIVED, Child, Proxy, ProxyChild
from tests.support.talk import LOCAL


@pytest_twisted.async_yield_fixture
async def sim():
    """A simulated archive of its own for each test."""
    archive = Simulator(reactor, Catalogue(seed=11, releases=60), variants=8)
    archive.studio = STUDIO
    archive.gallery = Gallery(reactor, STUDIO)
    await archive.start()
    yield archive
    await archive.stop()


@pytest_twisted.async_yield_fixture
async def run(sim: Simulator, tmp_path: Path):
    """
    Start a proxy with the settings given; await what it returns.

    Each call starts one more on the same directory, unless `root` names another. A machine, if
    given, is what it takes for the reactor.
    """
    running = []

    async def start(root: str = "cache", machine: Any = reactor, **settings: str) -> Proxy:
        proxy = Proxy(tmp_path / root, {**sim.environment(), **settings}, machine)
        running.append(proxy)
        return await proxy.start()

    yield start
    sim.faults.clear()
    for proxy in running:
        await proxy.stop()


@pytest_twisted.async_yield_fixture
async def proxy(run):
    """One proxy with default settings in front of the simulated archive."""
    yield await run()


@pytest_twisted.async_yield_fixture
async def nginx(tmp_path: Path):
    """
    Start the shipped nginx in front of a proxy; await what it returns.

    The proxy needs COVER_ART_ACCEL. Variables are those of nginx/start.sh.
    """
    running: list[NginxServer] = []

    async def start(proxy: Proxy | ProxyChild, **variables: str) -> NginxServer:
        folder = tmp_path / f"nginx{len(running)}"
        server = NginxServer(folder, proxy.root, f"{LOCAL}:{proxy.port}", **variables)
        running.append(server)
        return await server.start()

    yield start
    for server in running:
        server.kill()


@pytest_twisted.async_yield_fixture
async def raw():
    """An archive that answers with bytes as they are told."""
    archive = RawArchive()
    yield archive
    await archive.stop()


@pytest_twisted.async_yield_fixture
async def trap():
    """A place on this machine that must not be reached."""
    place = Trap()
    yield place
    await place.stop()


@pytest.fixture
def watch(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A watch over names looked up and addresses connected to."""
    watching = Watch(trap)
    watching.install(monkeypatch)
    yield watching
    watching.restore()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What goes to the log, event by event."""
    seen: list[str] = []

    def observe(event: Any) -> None:
        seen.append(formatEvent(event) + str(event.get("log_failure", "")))

    observer: Any = observe
    globalLogPublisher.addObserver(observer)
    yield seen
    globalLogPublisher.removeObserver(observer)


@pytest_twisted.async_yield_fixture
async def redis(tmp_path: Path):
    """An empty Redis-protocol server of its own for each test."""
    server = await RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[list[Child]]:
    """A list of processes that are gone after the test, whatever happens in it."""
    started: list[Child] = []
    yield started
    for child in started:
        child.kill()


@pytest.fixture
def spawn(sim: Simulator, children: list[Child], tmp_path: Path):
    """Start `twistd -n coverart` in front of the simulated archive."""

    def start(root: str = "cache", **settings: str) -> ProxyChild:
        told = {**sim.environment(), **AS_RECEIVED, **settings}
        child = ProxyChild(tmp_path / root, tmp_path / "cwd", **told)
        children.append(child)
        return child

    return start
