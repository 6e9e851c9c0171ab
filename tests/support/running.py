"""The proxy running: inside the test's process, or as twistd would run it for an operator."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from zope.interface import directlyProvides, implementer, providedBy

from coverart.archive.proxies import VARIABLES as PROXY_VARIABLES
from coverart.cache.lookup import CoverCache
from coverart.coordination import untold_mark
from coverart.coordination.leader import Leadership
from coverart.maintenance.sweep import Cleanup
from coverart.metrics import Metrics
from coverart.service.lifecycle import CoverService, Parts
from coverart.service.listening import listening_at
from coverart.service.settings import PREFIX, load
from coverart.service.upkeep import Upkeep
from coverart.service.wiring import assemble
from coverart.simulator.service import Simulator
from coverart.web.site import CoverSite
from tests.support.talk import LOCAL, SAFETY_S, Answer, Wire, ask, connect, until, within

ROOT = Path(__file__).parent.parent.parent
STEP_S = 5.0
AS_RECEIVED = {"COVER_ART_PUBLIC_URL": "off"}
"""Most tests compare listings with the archive's; test_bases.py says where they lead by default."""
PORTS = range(20_000, 30_000)
_HELD: list[int] = []
"""Locks of the ports that this process was given."""


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HAS_IPV6 = _has_ipv6()
"""Whether this machine has a loopback address of IPv6."""


class Now:
    """The time of day as the cache sees it, moved by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s

    def advance(self, seconds: float) -> None:
        self.ahead_s += seconds


class Machine:
    """
    The reactor, with a clock that can be set ahead and a name resolver of the row's own.

    A wait of a minute is then over when the row says so, and no row is late because others are.
    """

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._calls: list[Any] = []
        self.nameResolver: Any = reactor.nameResolver  # type: ignore[attr-defined]
        directlyProvides(self, providedBy(reactor))

    def seconds(self) -> float:
        return float(reactor.seconds()) + self.ahead_s

    def callLater(self, delay_s: float, call: Any, *args: Any, **kwargs: Any) -> Any:
        later = reactor.callLater(delay_s, call, *args, **kwargs)
        self._calls = [each for each in self._calls if each.active()]
        self._calls.append(later)
        return later

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def advance(self, seconds: float) -> None:
        """Let so much time pass at once, for all that waits for it."""
        self.ahead_s += seconds
        for call in self._calls:
            if call.active():
                left_s = call.getTime() - float(reactor.seconds())
                call.reset(max(0.0, left_s - seconds))

    async def wait_for(self, done: Callable[[], bool], most_s: float) -> None:
        """Let time pass, a step at a time, until something is so; it may take so long."""
        passed_s = 0.0
        while not done() and passed_s < most_s:
            self.advance(STEP_S)
            passed_s += STEP_S
            for _ in range(10):
                await deferLater(reactor, 0.005)
        await until(done, "what was to take no longer than that")


class WallClock:
    """The time of day of child processes, and of theirs, which a test sets."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._ahead = folder / "ahead_s"
        (folder / "sitecustomize.py").write_text(
            "import time\n"
            "true = time.time\n"
            "def shifted():\n"
            "    try:\n"
            f"        with open({str(self._ahead)!r}) as file:\n"
            "            return true() + float(file.read())\n"
            "    except OSError:\n"
            "        return true()\n"
            "time.time = shifted\n"
        )
        # Python imports that module, if there is one, before anything else.
        self.environment = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}

    def set_ahead(self, seconds: float) -> None:
        """Set it so far ahead of what is right, or back."""
        fresh = self._ahead.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._ahead)


class Files:
    """What lies in a cache directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self) -> list[str]:
        """Regular files that clients can be served, relative to the directory."""
        return self._names(symlinks=False)

    def links(self) -> list[str]:
        """Symlinks, relative to the directory."""
        return self._names(symlinks=True)

    def unfinished(self) -> list[str]:
        """Temporary files."""
        folder = self.root / ".incoming"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def _names(self, *, symlinks: bool) -> list[str]:
        found = []
        for folder, _, names in os.walk(self.root):
            if os.path.basename(folder) == ".incoming":
                continue
            for name in names:
                if name == untold_mark.NAME:
                    continue
                path = Path(folder, name)
                if path.is_symlink() == symlinks:
                    found.append(str(path.relative_to(self.root)))
        return sorted(found)


class Served:
    """Something that serves HTTP on a local port."""

    port: int

    @property
    def url(self) -> str:
        return f"http://{LOCAL}:{self.port}"

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask for a path; if_none_match= becomes If-None-Match."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await ask(self.url + path, method, sent)

    async def wire(self, path: str = "", *headers: str) -> Wire:
        """Open a connection and ask for a path."""
        wire = await connect(self.port)
        if path:
            wire.get(path, *headers)
        return wire


class Proxy(Files, Served):
    """The proxy as tap.py assembles it, on a free local port of the test's own process."""

    def __init__(self, root: Path, settings: dict[str, str], machine: Any = reactor) -> None:
        """:param machine: stands in for the reactor, for all that the proxy asks of it."""
        super().__init__(root)
        self._machine = machine
        self.now = Now()
        self.port = 0
        self.catalogue: Any = None
        self._settings = {
            "COVER_ART_CACHE_DIR": str(root),
            "COVER_ART_LISTEN": f"tcp:0:interface={LOCAL}",
            **AS_RECEIVED,
            **settings,
        }
        self._service: Any = None
        self._places: list[Place] = []

    async def start(self) -> Proxy:
        """Start it, or start it again on what it left on the disk."""
        settings = load(self._settings)
        self._places = [Place(each) for each in listening_at(settings, self._machine)]
        self._service = assemble(settings, self._machine, now=self.now, endpoints=self._places)
        self._service.startService()
        self.port = self._places[0].port
        await until(lambda: not self.upkeep.rebuilding, "the index is read from the disk")
        return self

    async def stop(self) -> None:
        if self._service is not None:
            service, self._service = self._service, None
            await within(service.stopService())

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    @property
    def parts(self) -> Parts:
        (service,) = [each for each in self._service if isinstance(each, CoverService)]
        return service.parts

    @property
    def cache(self) -> CoverCache:
        return self.parts.cache

    @property
    def metrics(self) -> Metrics:
        return self.parts.opened.metrics

    @property
    def upkeep(self) -> Upkeep:
        return self.parts.upkeep

    @property
    def site(self) -> CoverSite:
        site: CoverSite = self._places[0].factory
        return site

    @property
    def cleanup(self) -> Cleanup:
        return self.upkeep.cleanup

    @property
    def leadership(self) -> Leadership:
        return self.parts.opened.leadership

    async def forget_connections(self) -> None:
        """Close the idle connections to the archive, as it does itself after a while."""
        await within(self.parts.pool.closeCachedConnections())

    async def stored(self, path: str, **headers: str) -> Answer:
        """Ask for a path, and wait until what came of it is on the disk and in the index."""
        answer = await self.get(path, **headers)
        await self.settled()
        return answer

    def waiting(self) -> int:
        """How many clients wait for something that is being fetched."""
        return self.cache.waiting

    async def settled(self) -> None:
        """Returns when nothing is fetched for anybody, nor refreshed in the background."""
        await until(lambda: self.cache.idle, "nothing is fetched")


@implementer(IStreamServerEndpoint)
class Place:
    """An endpoint that tells which port it got and what listens there."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint
        self.port = 0
        self.factory: Any = None

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        self.factory = protocolFactory
        return self._endpoint.listen(protocolFactory).addCallback(self._got)

    def _got(self, port: Any) -> Any:
        self.port = getattr(port.getHost(), "port", 0)
        return port


def free_port() -> int:
    """
    A port for a program that can't be asked which one it got; this process's until it ends.

    Below the ports that the system hands out by itself, and held by a lock on a file, so that
    neither a connection nor another test process takes it before that program listens.
    """
    folder = Path(tempfile.gettempdir(), f"coverart-ports-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for port in random.sample(PORTS, len(PORTS)):
        lock = os.open(folder / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind((LOCAL, port))
        except OSError:
            os.close(lock)
            continue
        _HELD.append(lock)
        return port
    raise AssertionError(f"no port is free from {PORTS.start} to {PORTS.stop - 1}")


def reached(sim: Simulator, gate: str, count: int = 1) -> Deferred[int]:
    """Fires once so many requests are held at a gate of the archive."""
    return within(sim.faults.gates.reached(gate, count))  # type: ignore[no-any-return]


class Child:
    """A twistd process, started as an operator starts it: from anywhere, by its plugin's name."""

    patience_s = SAFETY_S
    """So long a start may take."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        """:param settings: environment; no settings are inherited, nor proxies."""
        folder.mkdir(exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not (name.startswith(PREFIX) or name.upper() in PROXY_VARIABLES)
        }
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.twistd(), "-n", "--pidfile=", *arguments],
                cwd=folder,
                env={**kept, "PYTHONPATH": str(ROOT), **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def twistd(self) -> list[str]:
        """What is started."""
        return [str(Path(sys.executable).with_name("twistd"))]

    def kill(self) -> None:
        """End it at once, as a power cut would; nothing to do if it ended before."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    async def exit_code(self) -> int:
        """Wait for its end."""
        code: int = await deferToThread(self.process.wait, SAFETY_S)
        return code

    async def serves(self, url: str) -> None:
        """Wait until it answers there."""
        deadline = time.monotonic() + self.patience_s
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                answer = await ask(url)
            except ConnectError:
                await deferToThread(time.sleep, 0.05)
                continue
            if answer.status == 200 and not answer.json.get("rebuilding"):
                return


class ProxyChild(Child, Files, Served):
    """`twistd -n coverart` on a cache directory."""

    def __init__(self, root: Path, folder: Path, **settings: str) -> None:
        self.port = free_port()
        self.root = root
        super().__init__(
            folder,
            "coverart",
            COVER_ART_CACHE_DIR=str(root),
            COVER_ART_LISTEN=f"tcp:{self.port}:interface={LOCAL}",
            **settings,
        )

    async def ready(self) -> ProxyChild:
        """Wait until it serves and knows what is on its disk."""
        await self.serves(f"{self.url}/ready")
        return self


class UnprivilegedChild(ProxyChild):
    """The same without root's right to pass over what a file's owner allows."""

    def twistd(self) -> list[str]:
        if os.geteuid():
            return super().twistd()
        return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *super().twistd()]
