"""
The way of one request of each kind: through how many modules, with how many calls and commands.

`python -m bench.walk` starts the simulated archive and the proxy as processes, with the index in memory
and with a real server of the Redis protocol. It asks for one thing at a time on one connection, after
as many to warm up, and waits until the proxy has nothing more to do for it. Of the rounds the one
with the median of calls is printed; one in which the proxy did something by the clock is none.
System calls are counted where strace is on PATH and may look.
The budgets are those of the design's "straight way": `--check` makes one that is missed exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.million import start_redis
from bench.processes import CAST, LOCAL, ROOT, START_S, STOP_S, Archive, Bench, Child
from bench.walk_child import MARK
from bench.walk_counts import (
    CALL,
    LOOK_UP,
    Counts,
    Event,
    Walked,
    count,
    middle,
    redis_commands,
    system_calls,
    table,
)

TOKEN = "walk"  # noqa: S105 - of a proxy that lives for this
QUIET_S = 0.15
"""A proxy that did nothing for so long has done all that was asked of it."""
LONGEST_S = 30.0
LOOK_S = 0.01
WARM_UPS = 3
MOST_ROUNDS = 5
"""So many times as many rounds as are asked for; those that something disturbed are walked again."""
INDEXES = ("memory", "redis")

_MISS = {"calls": 250, "look_ups": 2, "timers": 6, "hand_overs": 1, "symlinks": 0}
_HIT = {"look_ups": 1, "symlinks": 0}

Ask = tuple[str, str, int, str]
"""Method, path, and the status and X-Cache-Status of the answer, which is "" where there is none."""


@attrs.frozen(kw_only=True)
class Kind:
    """
    A kind of request.

    :ivar walked: given a cover that nobody asked for yet, what is walked.
    :ivar before: what is asked for first.
    :ivar budget: by the names of Counts, and `redis` the one where the index is there.
    :ivar stale: of a proxy where names are stale at once.
    """

    name: str
    walked: Callable[[Cover], Ask]
    before: Callable[[Cover], Sequence[Ask]] = lambda _: ()
    budget: dict[str, int] = attrs.field(factory=dict)
    redis: int | None = None
    stale: bool = False

    def budget_with(self, index: str) -> dict[str, int]:
        if self.redis is None:
            return self.budget
        return {**self.budget, "redis": self.redis if index == "redis" else 0}


@attrs.frozen(kw_only=True)
class Cover:
    """A release and its front."""

    mbid: str
    image_id: int

    @property
    def front(self) -> str:
        return f"/release/{self.mbid}/front"

    @property
    def by_id(self) -> str:
        return f"/release/{self.mbid}/{self.image_id}"

    @property
    def no_art(self) -> str:
        """A release that the archive does not know."""
        return f"/release/{self.mbid[::-1][:8]}-0000-4000-8000-{self.mbid[-12:]}/front-250"


KINDS = (
    Kind(
        name="hit by name",
        before=lambda c: [("GET", c.front + "-250", 200, "MISS")],
        walked=lambda c: ("GET", c.front + "-250", 200, "HIT"),
        budget=_HIT,
        redis=1,
    ),
    Kind(
        name="hit by id",
        before=lambda c: [("GET", c.by_id + "-250", 200, "MISS")],
        walked=lambda c: ("GET", c.by_id + "-250", 200, "HIT"),
        budget=_HIT,
        redis=1,
    ),
    Kind(
        name="miss by id",
        walked=lambda c: ("GET", c.by_id + "-250", 200, "MISS"),
        budget=_MISS,
        redis=3,
    ),
    Kind(
        name="miss by name",
        walked=lambda c: ("GET", c.front + "-250", 200, "MISS"),
        budget=_MISS,
        redis=4,
    ),
    Kind(
        name="miss of a second size",
        before=lambda c: [("GET", c.front + "-250", 200, "MISS")],
        walked=lambda c: ("GET", c.front + "-500", 200, "MISS"),
    ),
    Kind(name="miss of an original", walked=lambda c: ("GET", c.front, 200, "MISS")),
    Kind(name="listing missed", walked=lambda c: ("GET", f"/release/{c.mbid}", 200, "MISS")),
    Kind(
        name="listing held",
        before=lambda c: [("GET", f"/release/{c.mbid}", 200, "MISS")],
        walked=lambda c: ("GET", f"/release/{c.mbid}", 200, "HIT"),
        budget={"look_ups": 1},
        redis=1,
    ),
    Kind(name="404 first", walked=lambda c: ("GET", c.no_art, 404, "MISS")),
    Kind(
        name="404 remembered",
        before=lambda c: [("GET", c.no_art, 404, "MISS")],
        walked=lambda c: ("GET", c.no_art, 404, "ABSENT"),
        budget=_HIT,
        redis=1,
    ),
    Kind(
        name="stale with its refresh",
        before=lambda c: [("GET", c.front + "-250", 200, "MISS")],
        walked=lambda c: ("GET", c.front + "-250", 200, "STALE"),
        stale=True,
    ),
    Kind(
        name="refresh by an operator",
        before=lambda c: [("GET", c.front + "-250", 200, "MISS")],
        walked=lambda c: ("POST", f"/admin/refresh{c.front}-250", 200, ""),
    ),
    Kind(
        name="purge",
        before=lambda c: [("GET", c.front + "-250", 200, "MISS")],
        walked=lambda c: ("POST", f"/admin/purge{c.front}-250", 200, ""),
    ),
)
SWEEP = "sweep by coverart clean"


def covers(archive: Archive) -> Iterator[Cover]:
    """Releases with a front in all sizes that nobody asked for yet."""
    items = {}
    position = CAST
    while True:
        (mbid,) = archive.releases(1)
        while mbid not in items:
            item = archive.catalogue.release(position)
            items = {item.mbid: item}
            position += 1
        front = items[mbid].front
        assert front is not None
        yield Cover(mbid=mbid, image_id=front.id)


class Monitor:
    """Everything that a server of the Redis protocol is asked."""

    def __init__(self, path: str) -> None:
        self._marks = 0
        self._asking = socket.socket(socket.AF_UNIX)
        self._asking.connect(path)
        seeing = socket.socket(socket.AF_UNIX)
        seeing.settimeout(LONGEST_S)
        seeing.connect(path)
        seeing.sendall(b"MONITOR\r\n")
        with seeing:
            self._lines = seeing.makefile("r", errors="replace")
        self._lines.readline()

    def since(self) -> list[str]:
        """The lines since the last call."""
        self._marks += 1
        mark = f"walk-{self._marks}-"
        self._asking.sendall(f"ECHO {mark}\r\n".encode())
        found: list[str] = []
        for line in self._lines:
            if mark in line:
                return found
            found.append(line)
        raise RuntimeError("the server of the Redis protocol ended")

    def close(self) -> None:
        self._lines.close()
        self._asking.close()


class Seen:
    """A proxy under the eyes of walk_child.py, and what it did."""

    def __init__(self, child: Child, control: socket.socket, traced: Path | None) -> None:
        self._child = child
        self._lines = control.makefile("rw")
        self._thread = int(self._lines.readline())
        self._traced = traced
        self._marks = 0
        self.port = child.port()
        self._http = http.client.HTTPConnection(LOCAL, self.port, timeout=LONGEST_S)

    def ask(self, ask: Ask) -> bytes:
        """:raises RuntimeError: the answer is another than it has to be."""
        method, path, status, cache_status = ask
        headers = {"Authorization": f"Bearer {TOKEN}"} if method == "POST" else {}
        self._http.request(method, path, headers=headers)
        answer = self._http.getresponse()
        body = answer.read()
        got = (answer.status, answer.headers.get("X-Cache-Status", ""))
        if got[0] != status or (cache_status and got[1] != cache_status):
            raise RuntimeError(f"{method} {path}: {got} where {ask[2:]} was expected")
        return body

    def settle(self) -> None:
        """Wait until it has done all it was asked."""
        until = time.monotonic() + LONGEST_S
        while self._say("quiet") < QUIET_S:
            if time.monotonic() > until:
                raise RuntimeError(f"{self._child.name} does not come to rest")
            time.sleep(LOOK_S)

    def walk(self, ask: Ask, monitor: Monitor | None) -> tuple[list[Event], Counts] | None:
        """Ask for one thing; all that it led to. None: the proxy did something by the clock too."""
        self._marks += 1
        if (refusal := self._say(f"begin {self._marks}")) is not None:
            raise RuntimeError(refusal)
        # What Redis was asked is read within what is recorded, so that no timer comes in between.
        if monitor is not None:
            monitor.since()
        self.ask(ask)
        self.settle()
        commands = [] if monitor is None else redis_commands(monitor.since())
        events = self._say(f"end {self._marks}")
        if events is None:
            return None
        return events, count(events, redis=len(commands), system_calls=self._system_calls())

    def warm_up(self, asks: Sequence[Ask]) -> None:
        """Ask for these and wait until they are done."""
        if not asks:
            return
        self._say("begin 0")
        for ask in asks:
            self.ask(ask)
        self.settle()
        self._say("end 0")

    def _system_calls(self) -> int | None:
        if self._traced is None:
            return None
        begin, end = (f'"{MARK}/{self._marks}/{word}"' for word in ("begin", "end"))
        until = time.monotonic() + LONGEST_S
        while time.monotonic() < until:
            with self._traced.open(errors="replace") as lines:
                if (found := system_calls(lines, begin, end, self._thread)) is not None:
                    return found
            time.sleep(LOOK_S)
        raise RuntimeError("strace does not say what was called")

    def _say(self, line: str) -> Any:
        self._lines.write(line + "\n")
        self._lines.flush()
        return json.loads(self._lines.readline())


@attrs.frozen
class Walk:
    """What all walks of a run share."""

    bench: Bench
    covers: Iterator[Cover]
    rounds: int
    strace: bool

    @contextlib.contextmanager
    def _child(
        self, name: str, what: str, arguments: Sequence[str], env: dict[str, str]
    ) -> Iterator[tuple[Child, socket.socket, Path | None]]:
        folder = self.bench.folder(name)
        # A command marks nothing, so what it calls can't be told from what Python's start calls.
        traced = folder / "strace" if self.strace and what == "twistd" else None
        with socket.create_server((LOCAL, 0)) as waiting:
            waiting.settimeout(START_S)
            port = str(waiting.getsockname()[1])
            words = [sys.executable, "-m", "bench.walk_child", port, what, *arguments]
            if traced is not None:
                words = ["strace", "-D", "-f", "-qq", "-o", str(traced), *words]
            given = {**self.bench.archive().settings(), "PYTHONPATH": str(ROOT), **env}
            with self.bench.program(name, words, folder, given) as child:
                try:
                    control, _ = waiting.accept()
                except TimeoutError:
                    child.check()
                    raise
                with control:
                    yield child, control, traced

    @contextlib.contextmanager
    def _proxy(self, cache_dir: Path, **settings: str) -> Iterator[Seen]:
        folder = self.bench.folder("log")
        log = folder / "twistd.log"
        arguments = ["-n", "--pidfile=", "--logfile", str(log), "coverart"]
        env = {
            "COVER_ART_CACHE_DIR": str(cache_dir),
            "COVER_ART_LISTEN": f"tcp:0:interface={LOCAL}",
            "COVER_ART_ADMIN_TOKEN": TOKEN,
            "COVER_ART_PUBLIC_URL": "https://covers.example.org",
            **settings,
        }
        with self._child("walked", "twistd", arguments, env) as (child, control, traced):
            seen = Seen(attrs.evolve(child, log=log), control, traced)
            until = time.monotonic() + START_S
            while json.loads(seen.ask(("GET", "/ready", 200, "")))["rebuilding"]:
                if time.monotonic() > until:
                    raise RuntimeError("the proxy does not get ready")
                time.sleep(LOOK_S)
            yield seen

    def kinds(
        self, index: str, kinds: Sequence[Kind], told: Callable[[Kind, list[Event]], None]
    ) -> Iterator[Walked]:
        """Walk each kind; `told` hears what one round was."""
        with contextlib.ExitStack() as stack:
            monitor, settings = stack.enter_context(self._index(index))
            for stale in (False, True):
                chosen = [kind for kind in kinds if kind.stale == stale]
                if not chosen:
                    continue
                more = {"COVER_ART_ALIAS_TTL": "0"} if stale else {}
                with self._proxy(self.bench.folder("cache"), **settings, **more) as seen:
                    for kind in chosen:
                        yield self._kind(kind, index, seen, monitor, told)

    def _kind(
        self,
        kind: Kind,
        index: str,
        seen: Seen,
        monitor: Monitor | None,
        told: Callable[[Kind, list[Event]], None],
    ) -> Walked:
        rounds: list[Counts] = []
        events: list[Event] = []
        for number in range(WARM_UPS + MOST_ROUNDS * self.rounds):
            cover = next(self.covers)
            seen.warm_up(kind.before(cover))
            if number < WARM_UPS:
                seen.warm_up([kind.walked(cover)])
                continue
            if (walked := seen.walk(kind.walked(cover), monitor)) is not None:
                events, counts = walked
                rounds.append(counts)
            if len(rounds) == self.rounds:
                break
        if not rounds:
            raise RuntimeError(f"{kind.name}: the proxy always does something else too")
        told(kind, events)
        return Walked(kind=kind.name, counts=middle(rounds), budget=kind.budget_with(index))

    def sweep(self, index: str) -> Walked:
        """
        `coverart clean` where one image and its name are held, and go.

        A process of its own, from its first call to its last: what a service does at its start is in it.
        """
        cache_dir = self.bench.folder("cache")
        with self._index(index) as (monitor, settings):
            with self._proxy(cache_dir, **settings) as seen:
                seen.warm_up([("GET", next(self.covers).front + "-250", 200, "MISS")])
            if monitor is not None:
                monitor.since()
            arguments = ["clean", "--to", "0"]
            env = {"COVER_ART_CACHE_DIR": str(cache_dir), **settings}
            with (
                self._child("clean", "cli", arguments, env) as (
                    _,
                    control,
                    _,
                ),
                control.makefile("r") as lines,
            ):
                events = json.loads(lines.readline())
            commands = [] if monitor is None else redis_commands(monitor.since())
            left = [path for path in cache_dir.rglob("*_250.*") if path.is_file()]
            if left:
                raise RuntimeError(f"coverart clean left {left[0].name} there")
        return Walked(
            kind=SWEEP, counts=count(events, redis=len(commands), system_calls=None), budget={}
        )

    @contextlib.contextmanager
    def _index(self, index: str) -> Iterator[tuple[Monitor | None, dict[str, str]]]:
        if index == "memory":
            yield None, {}
            return
        process, address = start_redis(self.bench.folder("redis"))
        try:
            assert address.path is not None
            with contextlib.closing(Monitor(address.path)) as monitor:
                yield monitor, {"COVER_ART_REDIS_URL": str(address)}
        finally:
            process.terminate()
            process.wait(STOP_S)


def _can_trace() -> bool:
    """Whether strace is there and allowed to look."""
    words = ["strace", "-D", "-f", "-qq", "-o", os.devnull, sys.executable, "-c", ""]
    return shutil.which("strace") is not None and not subprocess.run(words, check=False).returncode


def path_told(events: Sequence[Event]) -> str:
    """The calls of a round in their order, a line each."""
    lines = [
        f"{'  ask the index: ' if kind == LOOK_UP else ''}{module}: {name}"
        for _, kind, module, name in events
        if kind in (CALL, LOOK_UP)
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Walk; everything that was started is ended and removed."""
    names = [*(kind.name for kind in KINDS), SWEEP]
    parser = argparse.ArgumentParser(prog="python -m bench.walk", description=__doc__)
    parser.add_argument("--index", choices=INDEXES, help="only this one; else both")
    parser.add_argument("--kinds", help="only those with one of these in their names, as hit,purge")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind")
    parser.add_argument("--no-strace", action="store_true", help="count no system calls")
    parser.add_argument("--calls", action="store_true", help="print each call of a round too")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a budget is missed")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    options = parser.parse_args(arguments)
    asked = names if options.kinds is None else options.kinds.split(",")
    wanted = [name for name in names if any(part in name for part in asked)]
    if not wanted:
        parser.error(f"there are {', '.join(names)}")
    if options.rounds < 1:
        parser.error("at least one round")
    strace = not options.no_strace and _can_trace()
    results: dict[str, list[Walked]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="coverart-walk-") as folder,
        Bench(Path(folder), rounds=options.rounds, seconds=1) as bench,
    ):
        archive = bench.archive()
        walk = Walk(bench, covers(archive), options.rounds, strace)

        def told(kind: Kind, events: list[Event]) -> None:
            print(f"{kind.name} …", file=sys.stderr, flush=True)
            if options.calls:
                print(f"{kind.name}:\n{path_told(events)}\n")

        for index in [options.index] if options.index else INDEXES:
            kinds = [kind for kind in KINDS if kind.name in wanted]
            results[index] = list(walk.kinds(index, kinds, told)) if kinds else []
            if SWEEP in wanted:
                results[index].append(walk.sweep(index))
    if options.json:
        print(json.dumps(results, default=attrs.asdict, indent=2))
    else:
        for index, rows in results.items():
            print(f"index in {index}:\n{table(rows)}\n")
        if not strace:
            print("system calls: n/a without strace")
    missed = any(row.over for rows in results.values() for row in rows)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
