"""One measurement of a cache directory, in a process of its own: prints seconds as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from coverart.coordination.leader import Alone
from coverart.index.memory import MemoryIndex
from coverart.maintenance.scan import Scanner
from coverart.maintenance.sweep import Bounds, Cleanup
from coverart.service.disk_threads import DiskThreads
from coverart.store.image_store import ImageStore


def bare(root: str) -> int:
    """os.scandir with stat and nothing else. :returns: how many files and symlinks there are."""
    count = 0
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as rows:
            for row in rows:
                if row.is_dir(follow_symlinks=False):
                    folders.append(row.path)
                else:
                    row.stat(follow_symlinks=False)
                    count += 1
    return count


async def _ours(what: str, root: Path, threads: DiskThreads, reactor: Any) -> None:
    store = ImageStore(root)
    if what == "rebuild":
        cleanup = Cleanup(
            index=MemoryIndex(),
            store=store,
            in_thread=threads,
            leadership=Alone(),
            bounds=Bounds(max_bytes=1 << 50, clean_to_bytes=1 << 50, alias_ttl_s=1e9),
            clock=reactor,
            now=time.time,
        )
        await cleanup.sweep(slices=0)
    else:
        await Scanner(index=None, store=store, in_thread=threads, clock=reactor).run()


async def _measured(what: str, root: Path, reactor: Any) -> None:
    threads = DiskThreads(reactor)
    threads.start()
    began, cpu_began_s = time.monotonic(), time.process_time()
    try:
        await _ours(what, root, threads, reactor)
    finally:
        threads.stop()
    _tell(time.monotonic() - began, time.process_time() - cpu_began_s)


def _tell(seconds: float, cpu_s: float) -> None:
    json.dump({"seconds": seconds, "cpu_s": cpu_s}, sys.stdout)


def main() -> None:
    """Read what to measure from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("bare", "rebuild", "scan"))
    parser.add_argument("root", type=Path)
    args = parser.parse_args()
    if args.what == "bare":
        began, cpu_began_s = time.monotonic(), time.process_time()
        bare(str(args.root))
        _tell(time.monotonic() - began, time.process_time() - cpu_began_s)
        return
    react(lambda reactor: Deferred.fromCoroutine(_measured(args.what, args.root, reactor)))


if __name__ == "__main__":
    main()
