"""
The whole stack for as long as you like: nginx, three apps, Redis, an archive, and everything goes wrong.

`python -m bench.soak --minutes 30` asks for random covers, sizes, listings and ranges through the
shipped nginx, while the cache is far too small, the archive fails in every way it knows, and apps,
Redis and nginx are killed, stopped and started. Every body's hash is compared with what the archive
has. At the end, when all is well again and one sweep has passed, what lies on the disk is compared
with the index and, file by file, with the archive. Exits 1 if anything is not as promised.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import random
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from bench.fronts import shipped
from bench.kills import seen_on_disk, settled
from bench.million import start_redis
from bench.processes import LOCAL, VARIANTS, Bench, Child, free_port
from coverart.model import ORIGINAL, SIZES, ImageRequest
from coverart.simulator.draw import Studio
from coverart.store.layout import identify

APPS = 3
CLIENTS = 8
SWEEP_S = 5.0
TROUBLE_EVERY_S = 8.0
MOST_GROWTH = 1.5
"""Of memory, since a minute after the start: what is remembered of thousands of paths takes some."""
ALLOWED = {200, 206, 502, 503, 504}
"""What a client may be told: nothing here is absent or malformed."""

FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "latency", "seconds": 0.3},
    {"kind": "refuse"},
    {"kind": "reset"},
    {"kind": "reset", "after_bytes": 1000},
    {"kind": "status", "code": 500},
    {"kind": "status", "code": 503, "retry_after": "1"},
    {"kind": "status", "code": 429, "retry_after": "1"},
    {"kind": "cut", "after_bytes": 1000},
    {"kind": "wrong_length", "by": 100},
    {"kind": "stall", "after_bytes": 1000},
    {"kind": "drip", "bytes_per_s": 50_000},
    {"kind": "html"},
    {"kind": "redirect_loop"},
)
HOPS = ("release", "archive", "node", "*")


def rss_bytes(child: Child) -> int:
    for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@attrs.define(eq=False)
class Stack:
    """What runs, and what can be done to it."""

    bench: Bench
    ending: contextlib.ExitStack
    folder: Path
    settings: dict[str, str]
    ports: list[int]
    redis: subprocess.Popen[bytes]
    apps: list[Child] = attrs.field(factory=list)
    nginx: Child | None = None
    did: Counter[str] = attrs.field(factory=Counter)

    def start_app(self, place: int) -> Child:
        settings = {
            **self.settings,
            "COVER_ART_LISTEN": f"tcp:{self.ports[place]}:interface={LOCAL}",
        }
        child = self.ending.enter_context(self.bench.twistd("coverart", env=settings))
        child.port()
        return child

    def end_redis(self) -> None:
        self.redis.kill()
        self.redis.wait()

    # Trouble: each leaves the stack whole again, or will with the next call.

    def kill_app(self, chance: random.Random) -> None:
        # The first is never killed: its memory is watched.
        place = chance.randrange(1, APPS)
        self.apps[place].process.kill()
        self.apps[place].process.wait()
        self.apps[place] = self.start_app(place)

    def stop_app(self, chance: random.Random) -> None:
        place = chance.randrange(1, APPS)
        self.apps[place].process.terminate()
        self.apps[place].process.wait()
        self.apps[place] = self.start_app(place)

    def pause_app(self, chance: random.Random) -> None:
        """Longer than the lead lasts."""
        process = self.apps[chance.randrange(1, APPS)].process
        process.send_signal(signal.SIGSTOP)
        time.sleep(chance.choice((1.0, 17.0)))
        process.send_signal(signal.SIGCONT)

    def kill_redis(self, chance: random.Random) -> None:
        """It comes back empty."""
        self.end_redis()
        time.sleep(chance.uniform(0, 3))
        (self.folder / "redis.sock").unlink(missing_ok=True)
        self.redis, _ = start_redis(self.folder)

    def pause_redis(self, chance: random.Random) -> None:
        self.redis.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(0.2, 4))
        self.redis.send_signal(signal.SIGCONT)

    def reload_nginx(self, _: random.Random) -> None:
        if self.nginx is not None:
            self.nginx.process.send_signal(signal.SIGHUP)

    def archive_fails(self, chance: random.Random) -> None:
        fault = chance.choice(FAULTS)
        rule = {"hop": chance.choice(HOPS), "does": [fault]}
        if fault["kind"] == "refuse":
            rule["hop"] = chance.choice(HOPS[:2])
        self.bench.archive().rules(rule)
        time.sleep(chance.uniform(1, 6))
        self.bench.archive().rules()
        self.did[f"archive: {fault['kind']}"] += 1

    def trouble(self, chance: random.Random) -> None:
        """One thing goes wrong."""
        kinds: list[Callable[[random.Random], None]] = [
            *(self.kill_app, self.stop_app, self.pause_app, self.kill_redis, self.pause_redis),
            *(self.reload_nginx, *[self.archive_fails] * 6),
        ]
        kind = chance.choice(kinds)
        kind(chance)
        self.did[kind.__name__.replace("_", " ")] += 1


@attrs.frozen
class Expected:
    """What the archive has of a release."""

    image_id: int
    bodies: dict[int, bytes]


def expect(bench: Bench, mbids: Sequence[str]) -> dict[str, Expected]:
    studio = Studio(variants=VARIANTS, max_bytes=512 * 2**20)
    catalogue = bench.archive().catalogue
    found = {}
    for mbid in mbids:
        item = catalogue.find("release", mbid)
        if item is None or item.front is None:
            raise RuntimeError("a release without a front")
        bodies = {size: studio.archive_bytes(item.front, size or None) for size in (0, *SIZES)}
        found[mbid] = Expected(
            item.front.id, {size: hashlib.sha256(body).digest() for size, body in bodies.items()}
        )
    return found


def ask(
    port: int, expected: dict[str, Expected], seed: int, until: float, seen: Counter[str]
) -> None:
    """One client: whatever it likes, again and again, on a connection that it keeps."""
    chance = random.Random(seed)
    mbids = list(expected)
    connection = http.client.HTTPConnection(LOCAL, port, timeout=60)
    while time.monotonic() < until:
        # Some are asked for much more often than others.
        mbid = mbids[int(len(mbids) * chance.random() ** 3)]
        size = chance.choice((*SIZES, *SIZES, *SIZES, 0))
        suffix = f"-{size}" if size else ""
        name = chance.choice(("front", "front", expected[mbid].image_id))
        path = f"/release/{mbid}/{name}{suffix}"
        if chance.random() < 0.05:
            path = f"/release/{mbid}/"
        headers = {"Range": "bytes=0-99"} if chance.random() < 0.05 else {}
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            # Cut short: it is plain to the client that this is not the whole.
            seen["broken connections"] += 1
            connection.close()
            continue
        seen["requests"] += 1
        seen[f"status {answer.status}"] += 1
        seen[f"{answer.getheader('X-Cache-Status')} by {answer.getheader('X-Served-By')}"] += 1
        if answer.status not in ALLOWED:
            seen["STATUS NOT ALLOWED"] += 1
        elif answer.status == 200 and path.endswith("/"):
            seen["right bodies" if json.loads(body)["images"] else "WRONG BODIES"] += 1
        elif answer.status == 200:
            right = hashlib.sha256(body).digest() == expected[mbid].bodies[size]
            seen["right bodies" if right else "WRONG BODIES"] += 1


def wrong_files(root: Path, expected: dict[str, Expected]) -> Iterator[str]:
    """Files whose bytes are not the archive's."""
    for path, status in seen_on_disk(root):
        link = stat.S_ISLNK(status.st_mode)
        if link or path.suffix == ".json" or path.parent.name == ".incoming":
            continue
        place = identify(str(path.relative_to(root)))
        thing = None if place is None else place.thing
        if not isinstance(thing, ImageRequest):
            yield str(path)
            continue
        size = 0 if thing.size == ORIGINAL else thing.size
        bodies = expected[thing.alias.mbid].bodies
        try:
            right = hashlib.sha256(path.read_bytes()).digest() == bodies[size]
        except FileNotFoundError:
            continue  # Evicted since it was seen.
        if not right:
            yield str(path)


def run(bench: Bench, folder: Path, options: argparse.Namespace) -> bool:
    expected = expect(bench, bench.archive().releases(options.covers))
    root = folder / "shared"
    redis, address = start_redis(folder)
    seen: Counter[str] = Counter()
    with contextlib.ExitStack() as ending:
        ports = [free_port() for _ in range(APPS)]
        stack = Stack(bench, ending, folder, {}, ports, redis)
        ending.callback(stack.end_redis)
        hit_log = folder / "hits.log"
        stack.settings = {
            **bench.archive().settings(),
            "COVER_ART_CACHE_DIR": str(root),
            "COVER_ART_CACHE_MAX_SIZE": str(options.limit_mb),
            "COVER_ART_CACHE_CLEANUP_INTERVAL": str(SWEEP_S),
            "COVER_ART_CACHE_EVICTION": "least-useful",
            "COVER_ART_REDIS_URL": f"unix://{address.path}",
            "COVER_ART_ACCEL": "/cache-files/",
            "COVER_ART_HIT_LOG": str(hit_log),
            "COVER_ART_ALIAS_TTL": "60",
            "COVER_ART_UPSTREAM_TIMEOUT": "10",
        }
        stack.apps = [stack.start_app(place) for place in range(APPS)]
        stack.nginx, port = ending.enter_context(shipped(bench, root, *ports, hit_log=hit_log))
        began = time.monotonic()
        until = began + options.minutes * 60
        clients = [
            threading.Thread(target=ask, args=(port, expected, seed, until, seen), daemon=True)
            for seed in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        chance = random.Random(options.seed)
        watched = [(0.0, rss_bytes(stack.apps[0]))]
        while time.monotonic() < until:
            time.sleep(TROUBLE_EVERY_S)
            stack.trouble(chance)
            watched.append((time.monotonic() - began, rss_bytes(stack.apps[0])))
        for client in clients:
            client.join(120)
        bench.archive().rules()
        found = settled(root, stack.ports[0], 90)
        wrong = list(wrong_files(root, expected))
        last = rss_bytes(stack.apps[0])
    warm = next((bytes_ for at, bytes_ in watched if at >= 60), watched[-1][1])
    good = found.exact and not wrong and not seen["WRONG BODIES"]
    good = good and not seen["STATUS NOT ALLOWED"] and seen["right bodies"] > 0
    good = good and last <= MOST_GROWTH * warm
    files, status = found.files, found.status
    for name, count in sorted(seen.items()):
        print(f"{name:40} {count:>10,}")
    for name, count in sorted(stack.did.items()):
        print(f"{name:40} {count:>10,}")
    print(f"{'wrong bodies':40} {seen['WRONG BODIES']:>10,}")
    print(f"{'files with wrong bytes at the end':40} {len(wrong):>10,}")
    print(
        f"{'files that the index does not know':40} {max(0, files - status['cached_files']):>10,}"
    )
    print(f"{'entries without a file':40} {max(0, status['cached_files'] - files):>10,}")
    print(f"{'unfinished files left':40} {found.unfinished:>10,}")
    print(f"{'evicted (as counted since Redis last lost it)':40} {status['evicted']:>10,}")
    tenths = [watched[(len(watched) - 1) * part // 10][1] >> 20 for part in range(11)]
    print(
        f"memory of the app that was never killed: {tenths[0]} MB at the start, "
        f"{warm >> 20} MB after a minute, {max(b for _, b in watched) >> 20} MB at most, "
        f"{last >> 20} MB at the end; after each tenth {', '.join(map(str, tenths[1:]))}"
    )
    print("every promise held" if good else "NOT as promised")
    return good


def main(arguments: Sequence[str]) -> int:
    """Run it; everything it started is ended and removed."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--covers", type=int, default=1_500)
    parser.add_argument("--limit-mb", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="coverart-soak-") as name:
        folder = Path(name)
        with Bench(folder, 1, 1) as bench:
            return 0 if run(bench, folder, options) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
