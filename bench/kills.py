"""
Two processes, one cache, and a killer: is every body right, and are the totals exact at the end?

`python -m bench.kills` sends random requests for front-250 of many releases to two proxies that
share a directory and a Redis, kills either with SIGKILL every few seconds and starts it again,
compares each body with what the archive has, and at the end, after one sweep, the totals with
what lies on the disk. Exits 1 if anything is not as promised.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import random
import stat
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import attrs

from bench.million import start_redis
from bench.processes import LOCAL, VARIANTS, Bench, Child
from coverart.simulator.draw import Studio

CLIENTS = 12
SWEEP_S = 2.0
KILL_EVERY_S = 3.0


class Pair:
    """Two proxies, each at a port of its own, one of them killed now and then."""

    def __init__(self, bench: Bench, stack: contextlib.ExitStack, settings: dict[str, str]) -> None:
        self._bench = bench
        self._stack = stack
        self._settings = settings
        self._children = [self._start(place) for place in range(2)]
        self.ports = [child.port() for child in self._children]
        self.kills = 0

    def _start(self, place: int) -> Child:
        port = self.ports[place] if hasattr(self, "ports") else 0
        given = {**self._settings, "COVER_ART_LISTEN": f"tcp:{port}:interface={LOCAL}"}
        return self._stack.enter_context(self._bench.twistd("coverart", env=given))

    def kill(self, place: int) -> None:
        """End one as a power cut would, and start it again at the same port."""
        self._children[place].process.kill()
        self._children[place].process.wait()
        self.kills += 1
        self._children[place] = self._start(place)
        self._children[place].port()


def expected(bench: Bench, mbids: Sequence[str]) -> dict[str, str]:
    """The hash of each thumbnail as the archive sends it."""
    studio = Studio(variants=VARIANTS)
    catalogue = bench.archive().catalogue
    hashes = {}
    for mbid in mbids:
        item = catalogue.find("release", mbid)
        if item is None or item.front is None:
            raise RuntimeError("a release without a front")
        hashes[mbid] = hashlib.sha256(studio.archive_bytes(item.front, 250)).hexdigest()
    return hashes


def ask(pair: Pair, hashes: dict[str, str], requests: int, seed: int, seen: Counter[str]) -> None:
    """One client: random covers from a random process; a broken connection is tried again."""
    chance = random.Random(seed)
    mbids = list(hashes)
    for _ in range(requests):
        mbid = chance.choice(mbids)
        for _attempt in range(200):
            try:
                connection = http.client.HTTPConnection(
                    LOCAL, chance.choice(pair.ports), timeout=30
                )
                connection.request("GET", f"/release/{mbid}/front-250")
                answer = connection.getresponse()
                body = answer.read()
                connection.close()
            except (OSError, http.client.HTTPException):
                seen["broken connections"] += 1
                time.sleep(0.05)
                continue
            if answer.status == 200:
                right = hashlib.sha256(body).hexdigest() == hashes[mbid]
                seen["right bodies" if right else "WRONG BODIES"] += 1
                break
            seen[f"status {answer.status}"] += 1
            time.sleep(0.05)
        else:
            seen["GIVEN UP"] += 1


def on_disk(root: Path) -> tuple[int, int, int, int]:
    """Files, their bytes, links that lead nowhere, unfinished files."""
    files = size = dangling = unfinished = 0
    for path, status in seen_on_disk(root):
        if path.parent.name == ".incoming":
            unfinished += 1
        elif stat.S_ISLNK(status.st_mode):
            dangling += not path.exists()
        else:
            files += 1
            size += status.st_size
    return files, size, dangling, unfinished


def seen_on_disk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All that is no folder; a sweep may take some of it away meanwhile."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat()


@attrs.frozen(kw_only=True)
class Settled:
    """What is there when all is quiet: on the disk, and as one of the proxies tells it."""

    files: int
    size_bytes: int
    dangling: int
    unfinished: int
    status: dict[str, Any]

    @property
    def exact(self) -> bool:
        told = self.status["cached_files"], self.status["cache_size_bytes"]
        return told == (self.files, self.size_bytes) and not self.unfinished


def settled(root: Path, port: int, seconds: float) -> Settled:
    """What is there once disk and index agree, or after so many seconds."""
    # A killed leader's term (15 s) and the leases of what it fetched run out, then one sweep.
    deadline = time.monotonic() + seconds
    while True:
        time.sleep(SWEEP_S)
        files, size, dangling, unfinished = on_disk(root)
        status = json.load(urlopen(f"http://{LOCAL}:{port}/cache-status", timeout=30))
        found = Settled(
            files=files, size_bytes=size, dangling=dangling, unfinished=unfinished, status=status
        )
        if found.exact or time.monotonic() > deadline:
            return found


def run(bench: Bench, folder: Path, options: argparse.Namespace) -> bool:
    mbids = bench.archive().releases(options.covers)
    hashes = expected(bench, mbids)
    root = folder / "shared"
    process, address = start_redis(folder)
    settings = {
        **bench.archive().settings(),
        "COVER_ART_CACHE_DIR": str(root),
        "COVER_ART_CACHE_MAX_SIZE": "100000",
        "COVER_ART_CACHE_CLEANUP_INTERVAL": str(SWEEP_S),
        "COVER_ART_REDIS_URL": f"unix://{address.path}",
    }
    seen: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.terminate)
        pair = Pair(bench, stack, settings)
        began = time.monotonic()
        each = options.requests // CLIENTS
        clients = [
            threading.Thread(target=ask, args=(pair, hashes, each, seed, seen))
            for seed in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            time.sleep(KILL_EVERY_S)
            if any(client.is_alive() for client in clients):
                pair.kill(pair.kills % 2)
        elapsed_s = time.monotonic() - began
        found = settled(root, pair.ports[0], 60)
    files, status = found.files, found.status
    print(f"{pair.kills} kills in {elapsed_s:.0f} s; {dict(seen)}")
    print(
        f"on disk: {files} files, {found.size_bytes} bytes, {found.dangling} dangling, "
        f"{found.unfinished} unfinished"
    )
    print(f"in the index: {status['cached_files']} files, {status['cache_size_bytes']} bytes")
    good = found.exact and not seen["WRONG BODIES"] and not seen["GIVEN UP"]
    print("every promise held" if good else "NOT as promised")
    return good


def main(arguments: Sequence[str]) -> int:
    """Run it; everything it started is ended and removed."""
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--covers", type=int, default=2_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="coverart-kills-") as name:
        folder = Path(name)
        with Bench(folder, 1, 1) as bench:
            return 0 if run(bench, folder, options) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
