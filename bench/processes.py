"""The processes of a run: twistd children on free local ports, each ended by the one who began it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen

import attrs

from coverart.simulator.catalogue import Catalogue

ROOT = Path(__file__).parent.parent
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")
START_S = 60.0
STOP_S = 10.0
LOCAL = "127.0.0.1"

T = TypeVar("T")

RELEASES = 1_000_000
"""Far more than a run asks for, so that no two rounds meet the same release; they are derived."""
CAST = 50
"""The catalogue's first releases are special cases (no art, a PDF, …), of no use as load."""
VARIANTS = 8


@attrs.define(eq=False)
class Child:
    """A process that was started here."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def folder(self) -> Path:
        """Its own."""
        return self.log.parent

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """:raises RuntimeError: it is not running any more."""
        if self.process.poll() is not None:
            said = self.folder / "stderr"
            texts = [file.read_text(errors="replace") for file in (said, self.log) if file.exists()]
            raise RuntimeError(f"{self.name} ended:\n{''.join(texts)}")

    def port(self) -> int:
        """The port that its log says it listens on."""
        began = time.monotonic()
        while time.monotonic() - began < START_S:
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            if (match := re.search(r"starting on ([0-9]+)\s", text)) is not None:
                return int(match[1])
            self.check()
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} does not listen")

    def cpu_s(self) -> float | None:
        """Processor time that it and its children used so far; None on systems without /proc."""
        try:
            return sum(map(_ticks, _family(self.pid))) / os.sysconf("SC_CLK_TCK")
        except OSError:
            return None

    def answers(self, port: int) -> None:
        """Wait until something listens on a port. :raises RuntimeError: nothing ever does."""
        began = time.monotonic()
        while time.monotonic() - began < START_S:
            self.check()
            with contextlib.suppress(OSError), socket.create_connection((LOCAL, port), 1.0):
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} does not listen")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _family(pid: int) -> Iterator[int]:
    """A process, its children and theirs."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _family(int(child))


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@contextlib.contextmanager
def _held_to(processors: int | None) -> Iterator[None]:
    """What is started meanwhile inherits it."""
    if processors is None:
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(ours)[:processors])
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as found:
        found.bind((LOCAL, 0))
        port: int = found.getsockname()[1]
        return port


@attrs.define(eq=False)
class Archive:
    """The simulated archive, driven by its control port."""

    ports: Mapping[str, int]
    catalogue: Catalogue
    _next: int = CAST

    def settings(self) -> dict[str, str]:
        """What makes a proxy use this archive."""
        found: dict[str, str] = self._control("GET", "/health")["environment"]
        return found

    def rules(self, *rules: Mapping[str, Any]) -> None:
        """Let these rules stand, and no others."""
        self._control("DELETE", "/rules")
        if rules:
            self._control("POST", "/rules", list(rules))

    def held_at(self, gate: str) -> None:
        """Wait until a request is held at a gate."""
        self._control("GET", f"/gates/{gate}?waiting=1")

    def let_go(self, gate: str) -> None:
        """Let the request go on that was held first."""
        self._control("POST", f"/gates/{gate}/release?count=1")

    def releases(self, count: int) -> list[str]:
        """MBIDs with a front in all sizes, not handed out before: cold for every proxy of a run."""
        mbids: list[str] = []
        while len(mbids) < count:
            item = self.catalogue.release(self._next)
            self._next += 1
            if item.front is not None and not item.front.underived:
                mbids.append(item.mbid)
        return mbids

    def _control(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"http://{LOCAL}:{self.ports['control']}{path}"
        with urlopen(Request(url, data=data, method=method), timeout=START_S) as answer:
            return json.loads(answer.read())


@attrs.define(eq=False)
class Bench:
    """
    What rows measure with.

    :ivar seconds: how long one side is loaded in one round.
    :ivar files: how many a large cache has.
    :ivar workers: of each server that nginx is measured against, and of nginx.
    """

    directory: Path
    rounds: int
    seconds: float
    files: int = 1_000_000
    workers: int = 1
    _kept: dict[str, Any] = attrs.field(factory=dict)
    _archive: Archive | None = None
    _ending: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)
    _started: int = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def folder(self, name: str) -> Path:
        """A new folder under the run's own."""
        self._started += 1
        made = self.directory / f"{self._started:02d}-{name}"
        made.mkdir()
        return made

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """What several rows share: made when the first of them asks."""
        if name not in self._kept:
            self._kept[name] = make()
        made: T = self._kept[name]
        return made

    def archive(self) -> Archive:
        """The simulated archive, the same for all rows; each sets its own rules."""
        if self._archive is None:
            ports_file = self.directory / "ports.json"
            child = self._ending.enter_context(
                self.twistd(
                    "coverart-archive",
                    *("--base-port", "0", "--ports-file", str(ports_file)),
                    *("--seed", "0", "--releases", str(RELEASES), "--without-art", "0"),
                    *("--variants", str(VARIANTS)),
                )
            )
            began = time.monotonic()
            while not ports_file.exists():
                child.check()
                if time.monotonic() - began > START_S:
                    raise RuntimeError("the simulated archive does not start")
                time.sleep(0.02)
            self._archive = Archive(
                json.loads(ports_file.read_text()), Catalogue(0, RELEASES, without_art=0)
            )
        return self._archive

    @contextlib.contextmanager
    def proxy(self, **settings: str) -> Iterator[tuple[Child, int]]:
        """A proxy as it is shipped, with an empty cache. Gives the process and its port."""
        given = {
            **self.archive().settings(),
            "COVER_ART_LISTEN": f"tcp:0:interface={LOCAL}",
            "COVER_ART_CACHE_DIR": str(self.folder("cache")),
            "COVER_ART_CACHE_MAX_SIZE": "100000",
            **settings,
        }
        with self.twistd("coverart", env=given) as child:
            yield child, child.port()

    @contextlib.contextmanager
    def twistd(self, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Child]:
        """A twistd process with its log in a file."""
        folder = self.folder(args[0].strip("-"))
        log = folder / "twistd.log"
        words = [*TWISTD, "--logfile", str(log), *args]
        with self.program(
            args[0], words, folder, env={"PYTHONPATH": str(ROOT), **(env or {})}
        ) as child:
            yield child

    @contextlib.contextmanager
    def program(
        self,
        name: str,
        words: Sequence[str],
        folder: Path,
        env: Mapping[str, str] | None = None,
        *,
        processors: int | None = None,
    ) -> Iterator[Child]:
        """
        Any program, run in a folder of the run's own.

        :param processors: it gets so many and no others, however many threads it has.
        """
        # Nothing of the caller's own settings gets in, nor a .env file of the caller's folder.
        inherited = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("COVER_ART_", "NGINX_")) and not k.lower().endswith("_proxy")
        }
        with _held_to(processors):
            process = subprocess.Popen(
                words,
                cwd=folder,
                env={**inherited, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(folder / "stderr").open("wb"),
            )
        child = Child(name, process, folder / "twistd.log")
        try:
            yield child
        finally:
            child.stop()
