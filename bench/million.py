"""
A million images: what the index weighs, and whether a large sweep lets requests through.

`python -m bench.million --index redis` makes as many small files as asked for, fills the index
from them, evicts a tenth and prints what design section 6 sets goals for. It takes minutes.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, react

from coverart.coordination.leader import Alone
from coverart.coordination.redis_client import RedisLink
from coverart.coordination.redis_url import Address
from coverart.coordination.untold_mark import Mark
from coverart.index.base import Index
from coverart.index.codec import pack_seen
from coverart.index.memory import MemoryIndex
from coverart.index.redis import RedisIndex
from coverart.maintenance.sweep import Bounds, Cleanup
from coverart.model import (
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    ImageKey,
    ImageRef,
    MediaType,
    Target,
)
from coverart.service.disk_threads import DiskThreads
from coverart.store.image_store import ImageStore
from coverart.store.layout import image_path
from tests.support.programs import find_redis

BODY = b"\xff\xd8\xff\xe0" + bytes(16)
LEARN = 500
TURN_GOAL_S = 0.02
RSS_GOAL_MB = 10
BYTES_GOAL = {"redis": 200, "memory": 310}


def images(count: int) -> Iterator[tuple[ImageKey, FileEntry]]:
    """So many thumbnails, four to a release, a second apart."""
    start = time.time() - count
    for i in range(count):
        digest = hashlib.blake2b((i // 4).to_bytes(8, "big"), digest_size=16).hexdigest()
        mbid = f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}"
        ref = ImageRef(owner=Entity.RELEASE, mbid=mbid, image_id=10_000_000_000 + i // 4)
        size = (0, 250, 500, 1200)[i % 4]
        entry = FileEntry(
            size_bytes=len(BODY), stored_at=float(int(start + i)), media=MediaType.JPEG
        )
        yield ref.at(size), entry


def fronts(count: int) -> Iterator[tuple[AliasKey, Alias]]:
    """So many fronts: those of releases, then of groups."""
    for i, (key, entry) in enumerate(images(count * 4)):
        if i % 4 == 0:
            name = AliasKey(entity=Entity.RELEASE, mbid=key.ref.mbid, name="front")
            yield (
                name,
                Alias(target=Target(ref=key.ref, extension="jpg"), checked_at=entry.stored_at),
            )


def make_files(root: Path, count: int) -> None:
    """The files of images(), each with its time of download."""
    made: set[str] = set()
    for key, entry in images(count):
        path = f"{root}/{image_path(key, MediaType.JPEG)}"
        folder = os.path.dirname(path)
        if folder not in made:
            os.makedirs(folder, exist_ok=True)
            made.add(folder)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, BODY)
        os.utime(fd, (entry.stored_at, entry.stored_at))
        os.close(fd)


class Watchdog:
    """The longest time the reactor took for one turn."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last = time.monotonic()
        self._loop = LoopingCall(self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now

    def start(self) -> None:
        self._last = time.monotonic()
        self._loop.start(0.001)

    def stop(self) -> float:
        self._loop.stop()
        return self.longest_s


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def start_redis(folder: Path) -> tuple[subprocess.Popen[bytes], Address]:
    """A server of its own."""
    socket = str(folder / "redis.sock")
    words = [find_redis(), "--port", "0", "--unixsocket", socket, "--save", ""]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=folder)
    deadline = time.monotonic() + 10
    while not os.path.exists(socket) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, Address(path=socket)


async def used_bytes(link: RedisLink) -> int:
    memory = (await link.command("INFO", "memory")).decode()
    return int(memory.split("used_memory:")[1].split()[0])


async def measure(reactor: Any, options: argparse.Namespace, folder: Path) -> None:
    count, evict = options.files, options.files // 10
    root = folder / "cache"
    began = time.monotonic()
    make_files(root, count)
    say(f"{count:,} files made", f"{time.monotonic() - began:.0f} s")
    threads = DiskThreads(reactor)
    threads.start()
    process = None
    link = None
    index: Index
    if options.index == "redis":
        process, address = start_redis(folder)
        link = RedisLink(address, reactor, reactor)
        link.connect()
        index = RedisIndex(link, "bench", Mark(root))
        empty = await used_bytes(link)
    else:
        index = MemoryIndex()
        empty = int(rss_mb() * 2**20)
    try:
        await fill(index, images(count))
        await fill(index, fronts(count // 2))
        full = await used_bytes(link) if link else int(rss_mb() * 2**20)
        each = (full - empty) / (count + count / 4)
        most = BYTES_GOAL[options.index]
        verdict = goal(each <= most, str(most))
        say(f"{options.index}: bytes an image, an alias as half", f"{each:.0f}", verdict)
        say(f"{options.index}: bytes in all", f"{full - empty:,}")
        await sweep(reactor, index, ImageStore(root), threads, count, evict)
    finally:
        if link is not None:
            await link.close()
        if process is not None:
            process.terminate()
            process.wait()
        threads.stop()


async def fill(index: Index, things: Iterator[Any]) -> None:
    batch: list[Any] = []
    for thing in things:
        batch.append(pack_seen(thing))
        if len(batch) == LEARN:
            await index.learn_packed(batch)
            batch = []
    await index.learn_packed(batch)


async def sweep(
    reactor: Any, index: Index, store: ImageStore, threads: DiskThreads, count: int, evict: int
) -> None:
    size = len(BODY)
    cleanup = Cleanup(
        index=index,
        store=store,
        in_thread=threads,
        leadership=Alone(),
        bounds=Bounds(
            max_bytes=count * size - 1, clean_to_bytes=(count - evict) * size, alias_ttl_s=1e9
        ),
        clock=reactor,
        now=time.time,
    )
    await index.fill()
    await index.set_whole()
    gc.freeze()  # as the service does once its index is filled
    before = rss_mb()
    dog = Watchdog()
    dog.start()
    done = await cleanup.sweep()
    longest_s = dog.stop()
    if done is None:
        raise SystemExit("the sweep was not done")
    grown = rss_mb() - before
    say("evicted", f"{done.evicted:,}", f"in {done.elapsed_s:.1f} s")
    say(
        "longest turn of the reactor",
        f"{longest_s * 1000:.1f} ms",
        goal(longest_s <= TURN_GOAL_S, f"{TURN_GOAL_S * 1000:g} ms"),
    )
    say("memory grown", f"{grown:.1f} MB", goal(grown <= RSS_GOAL_MB, f"{RSS_GOAL_MB} MB"))
    took = []
    for _ in range(100):
        began = time.perf_counter()
        await index.totals()
        took.append(time.perf_counter() - began)
    say("totals, as /cache-status asks for them", f"{sorted(took)[50] * 1000:.2f} ms")


def goal(reached: bool, text: str) -> str:
    return f"goal {text}: {'reached' if reached else 'MISSED'}"


def say(what: str, value: str, note: str = "") -> None:
    print(f"{what:<48} {value:>16}  {note}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Run it; the files go when it ends."""
    parser = argparse.ArgumentParser(prog="python -m bench.million", description=__doc__)
    parser.add_argument("--index", choices=("memory", "redis"), default="redis")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument(
        "--directory", help="where to make the files; default: the system's temporary one"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="coverart-million-", dir=options.directory))

    def run(reactor: Any) -> Deferred[None]:
        work: Coroutine[Any, Any, None] = measure(reactor, options, folder)
        return Deferred.fromCoroutine(work)

    try:
        react(run)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
