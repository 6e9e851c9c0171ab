"""
A proxy process that meets a fault inside: `python -m tests.integration.faults.victim`, then twistd's.

The faults are put around the proxy's parts from here, before twistd runs; the package itself has
no place for them. FAULT_OF_VICTIM says which, as JSON:

    die_at    a step of STEPS: SIGKILL when a fetch comes to it
    nofile    the limit of open files
    uid       the user to become, by number
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.running import ProxyChild

VARIABLE = "FAULT_OF_VICTIM"

STEPS = {
    "the first byte is there": ("coverart.incoming:Incoming.write", "before"),
    "the temporary file is made": ("coverart.store:ImageStore.begin", "after"),
    "half is written": ("coverart.store:ImageStore.append", "half"),
    "all is written, nothing synced": ("coverart.store:ImageStore.commit", "before"),
    "it is synced, not renamed": ("coverart.store:ImageStore._replace", "before"),
    "it has its name, the index does not know": ("coverart.store:ImageStore.commit", "after"),
    "the index knows the file": ("INDEX.put_file", "after"),
    "the index knows where the name points": ("INDEX.put_alias", "after"),
    "the link is about to be made": ("coverart.store:ImageStore.link", "before"),
    "the link is made": ("coverart.store:ImageStore.link", "after"),
}
"""Of a fetch, in the order that a small image comes to them: what is called there, and when to die."""
INDEXES = ("coverart.index_memory:MemoryIndex", "coverart.index_redis:RedisIndex")


class Victim(ProxyChild):
    """The process, as a row sees it."""

    def __init__(self, root: Path, folder: Path, fault: dict[str, Any], **settings: str) -> None:
        super().__init__(root, folder, **{VARIABLE: json.dumps(fault)}, **settings)

    def twistd(self) -> list[str]:
        return [sys.executable, "-m", "tests.integration.faults.victim"]


def die(*_: object) -> None:
    """As a power cut ends it: nothing more is done, not even by other threads."""
    os.kill(os.getpid(), signal.SIGKILL)


def _found(place: str) -> tuple[Any, str]:
    module, _, name = place.partition(":")
    owner, _, method = name.partition(".")
    __import__(module)
    return getattr(sys.modules[module], owner), method


def die_at(step: str) -> None:
    """Arrange for the end at a step; the start of the process passes through some, and survives."""
    place, when = STEPS[step]
    begun = []
    from coverart.fetch import Fetcher

    def armed(call: Callable[..., Any]) -> Callable[..., Any]:
        def fetch(*args: Any, **kwargs: Any) -> Any:
            begun.append(True)
            return call(*args, **kwargs)

        return fetch

    for name in ("image", "listing"):
        setattr(Fetcher, name, armed(getattr(Fetcher, name)))
    places = [place]
    if place.startswith("INDEX."):
        places = [index + place.removeprefix("INDEX") for index in INDEXES]
    for each in places:
        owner, method = _found(each)
        setattr(owner, method, _deadly(getattr(owner, method), when, begun))


def _deadly(call: Callable[..., Any], when: str, begun: list[bool]) -> Callable[..., Any]:
    def around(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not begun:
            return call(self, *args, **kwargs)
        if when == "before":
            die()
        if when == "half":
            temporary, data = args
            call(self, temporary, data[: len(data) // 2])
            die()
        result = call(self, *args, **kwargs)
        if hasattr(result, "__await__"):
            return _then_die(result)
        die()
        return result

    return around


async def _then_die(awaited: Any) -> None:
    await awaited
    die()


def main() -> None:
    fault = json.loads(os.environ[VARIABLE])
    if "die_at" in fault:
        die_at(fault["die_at"])
    if "nofile" in fault:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fault["nofile"],) * 2)
    if "uid" in fault:
        os.setgroups([])
        os.setgid(fault["uid"])
        os.setuid(fault["uid"])
    from twisted.scripts.twistd import run

    run()


if __name__ == "__main__":
    main()
