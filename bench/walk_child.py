"""
The process that a walk looks into: twistd, or a command, with everything it calls recorded.

`python -m bench.walk` starts it and says over a socket when to record. It finds the package's modules
by where their files lie, and the index by its protocol, so that it needs no name of a part.
"""

from __future__ import annotations

import errno
import importlib.util
import inspect
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import attrs
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.python.threadpool import ThreadPool

from bench.walk_counts import (
    CALL,
    DEFERRED,
    HAND_OVER,
    LOOK_UP,
    RESUMED,
    SYMLINK,
    TIMER,
    Event,
)

PACKAGE = "coverart"
APART = "simulator"
"""A folder of the package that is no part of the proxy."""
FOUND = "Found"
"""What a method of the index says that looks something up, as its annotation calls it."""
MARK = "/bench/walk"
"""No such file is there: a look at it marks a place in what strace writes."""
_INLINED = frozenset({"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<module>"})
"""No functions that were written: some versions of Python call these and others do not."""


@attrs.frozen
class Own:
    """A function of the package."""

    module: str
    name: str


def _package() -> str:
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent) + os.sep


def look_ups(package: str = PACKAGE) -> tuple[Any, frozenset[str]]:
    """
    The protocol of the index among the loaded modules, and its methods that look something up.

    :raises LookupError: there is none; a walk would count nothing and say so of every request.
    """
    for name, module in sorted(sys.modules.items()):
        index = getattr(module, "Index", None)
        if name.startswith(f"{package}.") and getattr(index, "_is_protocol", False):
            methods = frozenset(
                each
                for each, method in vars(index).items()
                if not each.startswith("_")
                and inspect.isfunction(method)
                and FOUND in str(method.__annotations__.get("return"))
            )
            if methods:
                return index, methods
    raise LookupError(f"no protocol Index in {package} with a method that returns {FOUND}")


class Recorder:
    """Records what is called, in every thread, between begin() and end()."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        """When the last thing was recorded."""
        self._events: list[Event] = []
        self._on = False
        self._window = 0
        self.disturbed = False
        """Whether a timer that was set before did more than to look at something, since begin()."""
        self._aside = 0
        self._main = threading.get_ident()
        self._inside: dict[int, int] = {}
        self._package = _package()
        self._apart = self._package + APART + os.sep
        self._codes: dict[CodeType, Own | str | None] = {
            Deferred.__init__.__code__: DEFERRED,
            ThreadPool.callInThreadWithCallback.__code__: HAND_OVER,
        }
        self._looking: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())

    def install(self) -> None:
        """Look at this thread and all that are started from now on."""
        self._watch_timers()
        self._watch_symlinks()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def begin(self) -> None:
        """Record from now on. :raises LookupError: no index is loaded."""
        index, methods = look_ups()
        public = frozenset(
            name
            for name, method in vars(index).items()
            if not name.startswith("_") and inspect.isfunction(method)
        )
        self._looking = (methods, public)
        self._events = []
        self._window += 1
        self.disturbed = False
        self._inside = {}
        self.last = time.monotonic()
        self._on = True

    def end(self) -> list[Event]:
        """Record no more. :returns: what was recorded."""
        self._on = False
        return self._events

    def quiet_s(self) -> float:
        """For how long no code of the package ran; 0 while some does, as one that waits for the disk."""
        if any(depth > 0 for depth in self._inside.values()):
            return 0.0
        return time.monotonic() - self.last

    def _watch_timers(self) -> None:
        call_later = ReactorBase.callLater

        def counted(reactor: Any, delay: float, call: Callable[..., Any], *a: Any, **k: Any) -> Any:
            # Who sets a timer is in the reactor's thread, as is what is set aside.
            window = self._window if self._on and not self._aside else None
            if window is not None:
                self._record(TIMER)
            return call_later(reactor, delay, self._due, window, call, *a, **k)

        ReactorBase.callLater = counted  # type: ignore[method-assign, assignment]

    def _watch_symlinks(self) -> None:
        """Record readlink and lstat, but for those that find a file or a folder."""
        lstat, readlink = os.lstat, os.readlink

        def looked_at(path: Any, **options: Any) -> os.stat_result:
            try:
                status = lstat(path, **options)
            except OSError:
                self._saw_symlink()
                raise
            if stat.S_ISLNK(status.st_mode):
                self._saw_symlink()
            return status

        def read(path: Any, **options: Any) -> Any:
            try:
                text = readlink(path, **options)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    self._saw_symlink()
                raise
            self._saw_symlink()
            return text

        os.lstat, os.readlink = looked_at, read

    def _saw_symlink(self) -> None:
        if self._on and not (self._aside and threading.get_ident() == self._main):
            self._record(SYMLINK)

    def _due(self, window: int | None, call: Callable[..., Any], *a: Any, **k: Any) -> Any:
        """What a timer does that was set before this request came is no work of this request."""
        if window == self._window:
            return call(*a, **k)
        self._aside += 1
        try:
            return call(*a, **k)
        finally:
            self._aside -= 1

    def _record(self, kind: str, module: str = "", name: str = "") -> None:
        self._events.append((threading.get_ident(), kind, module, name))
        self.last = time.monotonic()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self._on:
            return
        if event not in {"call", "return"}:
            return
        code = frame.f_code
        try:
            known = self._codes[code]
        except KeyError:
            known = self._codes[code] = self._own(code)
        if known is None:
            return
        if self._aside and threading.get_ident() == self._main:
            # It goes on after the timer, as one who asks Redis does, and could be taken for the request.
            self.disturbed |= isinstance(known, Own) and bool(code.co_flags & inspect.CO_COROUTINE)
            return
        if isinstance(known, str):
            if event == "call":
                self._record(known)
            return
        thread = threading.get_ident()
        if event == "return":
            self._inside[thread] = max(0, self._inside.get(thread, 0) - 1)
            self.last = time.monotonic()
            # A plain method that gives nothing could not look.
            plain = not code.co_flags & inspect.CO_COROUTINE
            if plain and argument is not None and self._looks_up(frame):
                self._record(LOOK_UP, known.module, known.name)
            return
        self._inside[thread] = self._inside.get(thread, 0) + 1
        if _resumed(frame):
            self._record(RESUMED, known.module, known.name)
            return
        self._record(CALL, known.module, known.name)
        if code.co_flags & inspect.CO_COROUTINE and self._looks_up(frame):
            self._record(LOOK_UP, known.module, known.name)

    def _own(self, code: CodeType) -> Own | None:
        file = code.co_filename
        if not file.startswith(self._package) or file.startswith(self._apart):
            return None
        if code.co_name in _INLINED:
            return None
        module = file.removeprefix(self._package).removesuffix(".py").replace(os.sep, ".")
        return Own(module, code.co_qualname)

    def _looks_up(self, frame: FrameType) -> bool:
        """Whether this is a method of an index that looks something up, and none called it for that."""
        if not self._is_look_up(frame):
            return False
        caller = frame.f_back
        while caller is not None:
            if self._is_look_up(caller):
                return False
            caller = caller.f_back
        return True

    def _is_look_up(self, frame: FrameType) -> bool:
        methods, public = self._looking
        code = frame.f_code
        if code.co_name not in methods or not code.co_varnames:
            return False
        owner = type(frame.f_locals.get(code.co_varnames[0]))
        return all(hasattr(owner, name) for name in public)


def _resumed(frame: FrameType) -> bool:
    """Whether a generator or coroutine goes on here, in place of a function that begins."""
    # The argument of RESUME says it: 0 at the start of a function, more after a yield or an await.
    code, at = frame.f_code.co_code, frame.f_lasti
    return 0 <= at < len(code) - 1 and bool(code[at + 1] & 3)


def _obey(recorder: Recorder, control: socket.socket) -> None:
    """A line, an answer, until the other side is gone."""
    with control, control.makefile("rw") as lines:
        lines.write(f"{threading.get_native_id()}\n")
        lines.flush()
        for line in lines:
            word, _, mark = line.strip().partition(" ")
            answer: Any = None
            if word == "begin":
                try:
                    recorder.begin()
                except LookupError as error:
                    answer = str(error)
                os.path.exists(f"{MARK}/{mark}/begin")
            elif word == "quiet":
                answer = recorder.quiet_s()
            elif word == "end":
                os.path.exists(f"{MARK}/{mark}/end")
                events = recorder.end()
                answer = None if recorder.disturbed else events
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


def main(port: int, what: str, arguments: list[str]) -> None:
    """Run twistd or the command line as an operator would, under the eyes of the recorder."""
    control = socket.create_connection(("127.0.0.1", port))
    recorder = Recorder()
    obeying = threading.Thread(target=_obey, args=(recorder, control), daemon=True)
    if what == "twistd":
        obeying.start()
        from twisted.scripts import twistd

        sys.argv = ["twistd", *arguments]
        recorder.install()
        twistd.run()
        return
    from coverart.cli import main as cli

    recorder.install()
    recorder.begin()
    try:
        cli.main(arguments)
    finally:
        events = recorder.end()
        with control, control.makefile("w") as told:
            told.write(json.dumps(events) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
