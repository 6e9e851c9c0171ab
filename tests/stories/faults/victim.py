"""
A proxy process that meets a fault inside: `python -m tests.stories.faults.victim`, then twistd's.

The faults are put around the proxy's parts from here, before twistd runs; the package itself has
no place for them. FAULT_OF_VICTIM says which, as JSON:

    die_at    a step of STEPS: SIGKILL when a fetch comes to it
    nofile    the limit of open files
    as_anybody
              give up root's leave to pass over permissions, if it is root
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.running import ProxyChild
from tests.support.talk import ask

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
VARIABLE = "FAULT_OF_VICTIM"

STEPS = {
    "the first byte is there": ("coverart.cache.download:Download.write", "before"),
    "the temporary file is made": ("coverart.store.atomic_files:AtomicFiles.begin", "after"),
    "half is written": ("coverart.store.atomic_files:AtomicFiles.append", "half"),
    "all is written, nothing synced": (
        "coverart.store.atomic_files:AtomicFiles.make_durable",
        "before",
    ),
    "it is synced, not renamed": ("coverart.store.atomic_files:AtomicFiles.put_in_place", "before"),
    "it has its name, the index does not know": (
        "coverart.store.atomic_files:AtomicFiles.put_in_place",
        "after",
    ),
    "the link is about to be made": ("coverart.store.symlinks:Links.make", "before"),
    "the link is made, not in its place": (
        "coverart.store.atomic_files:AtomicFiles.put_where_free",
        "before",
    ),
    "the link is in its place": ("coverart.store.symlinks:Links.make", "after"),
    "the index knows file and name": ("INDEX.store", "after"),
}
"""Of a fetch, in the order that a small image comes to them: what is called there, and when to die."""
INDEXES = ("coverart.index.memory:MemoryIndex", "coverart.index.redis:RedisIndex")


class Victim(ProxyChild):
    """The process, as a row sees it."""

    patience_s = 120.0
    """Rows are played side by side: a start waits for what the others do."""

    def __init__(self, root: Path, folder: Path, fault: dict[str, Any], **settings: str) -> None:
        super().__init__(root, folder, **{VARIABLE: json.dumps(fault)}, **settings)

    async def exact(self, claim: Callable[..., None]) -> None:
        """Claim that its index counts what lies on its disk."""
        status = (await ask(f"{self.url}/cache-status")).json
        sizes = [(self.root / name).stat().st_size for name in self.files()]
        saw = (status["cached_files"], status["cache_size_bytes"])
        claim("index", "totals exact", saw == (len(sizes), sum(sizes)), saw)

    def twistd(self) -> list[str]:
        return [sys.executable, "-m", "tests.stories.faults.victim"]


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
    from coverart.cache.image_fetch import Images
    from coverart.cache.listing_fetch import Listings

    def armed(call: Callable[..., Any]) -> Callable[..., Any]:
        def fetch(*args: Any, **kwargs: Any) -> Any:
            begun.append(True)
            return call(*args, **kwargs)

        return fetch

    for kind, name in ((Images, "get"), (Listings, "fetch")):
        setattr(kind, name, armed(getattr(kind, name)))
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


def heed_permissions() -> None:
    """Drop the capabilities that let root read and write whatever permissions say."""
    libc = ctypes.CDLL(None, use_errno=True)
    # capabilities(7): the header has a version and a pid, the data effective, permitted and
    # inheritable bits, twice 32 of each.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for words in (0, 1):
        data[words] &= ~((1 << CAP_DAC_OVERRIDE) | (1 << CAP_DAC_READ_SEARCH))
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def main() -> None:
    fault = json.loads(os.environ[VARIABLE])
    if "die_at" in fault:
        die_at(fault["die_at"])
    if "nofile" in fault:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fault["nofile"],) * 2)
    if "as_anybody" in fault:
        heed_permissions()
    from twisted.scripts.twistd import run

    run()


if __name__ == "__main__":
    main()
