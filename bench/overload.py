"""
Far more than the proxy can do at once: are hits still served, is everybody answered?

`python -m bench.overload` starts a proxy and the simulated archive as processes, opens thousands
of slow clients that take a large image a few kB at a time, asks for thousands of different cold
covers at the same moment, and meanwhile asks for held covers one after another. Prints memory,
answers by status and the hits' median latency before and during it. Exits 1 if a goal is missed:
every request answered, with 200 or with 503 and Retry-After; hits at most twice as slow; memory
within the stated bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

import attrs

from bench.processes import LOCAL, Bench, Child

HITS = 20
HIT_EVERY_S = 0.01
QUIET_S = 5.0
SLOW_BYTES = 4096
SLOW_EVERY_S = 1.0
GOAL_RATIO = 2.0
OWN_FILES = 200
ANSWER_S = 300.0

IDLE_MB = 100
KB_A_SLOW_CLIENT = 150
KB_A_CONNECTION = 20
MB_A_FETCH = 2
"""The memory that docs/operations.md states."""


@attrs.define
class Seen:
    """What clients saw."""

    statuses: Counter[str] = attrs.field(factory=Counter)
    hits_s: list[float] = attrs.field(factory=list)
    slow_bytes: int = 0
    slow_open: int = 0
    slow_begun: int = 0


def raise_limit() -> int:
    """As many descriptors as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def rss_mb(child: Child) -> float:
    """The memory of a process that is its own."""
    text = Path(f"/proc/{child.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+([0-9]+) kB", text)
    return int(match[1]) / 1024 if match else 0.0


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str
) -> tuple[int, bytes]:
    """One request on a connection; its status and head."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOCAL}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: ([0-9]+)", head)
    await reader.readexactly(int(length[1]) if length else 0)
    return int(head.split(b" ", 2)[1]), head


async def cold(port: int, path: str, seen: Seen) -> None:
    """One client for one cold cover, on a connection of its own."""
    writer = None
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(LOCAL, port)
            status, head = await ask(reader, writer, path)
        if status == 503 and b"\r\nretry-after: " not in head.lower():
            seen.statuses["503 without Retry-After"] += 1
        else:
            seen.statuses[str(status)] += 1
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        seen.statuses[type(error).__name__] += 1
    finally:
        if writer is not None:
            writer.close()


async def slow(port: int, path: str, seen: Seen, done: asyncio.Event) -> None:
    """One client that takes little at a time."""
    reader, writer = await asyncio.open_connection(LOCAL, port, limit=SLOW_BYTES)
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(6, 10, SLOW_BYTES)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOCAL}\r\n\r\n".encode())
    seen.slow_open += 1
    try:
        seen.slow_bytes += len(await reader.read(SLOW_BYTES))
        seen.slow_begun += 1
        while not done.is_set():
            seen.slow_bytes += len(await reader.read(SLOW_BYTES))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), SLOW_EVERY_S)
    except OSError:
        seen.slow_open -= 1
    finally:
        writer.transport.abort()


class Hits:
    """Asks for held covers, one after the other, in a thread of its own process's time."""

    def __init__(self, port: int, paths: Sequence[str]) -> None:
        self._command = [
            *(sys.executable, "-m", "bench.overload_hits", str(port), str(HIT_EVERY_S)),
            *paths,
        ]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )

    async def stop(self) -> list[float]:
        """End it; the seconds that each answer took."""
        assert self._process is not None
        said, _ = await self._process.communicate(b"")
        return [float(each) for each in said.split()]


async def flood(port: int, paths: list[str], seen: Seen) -> float:
    """All of them at once; the seconds until the last was answered."""
    began = time.monotonic()
    await asyncio.gather(*(cold(port, path, seen) for path in paths))
    return time.monotonic() - began


async def story(
    bench: Bench,
    child: Child,
    port: int,
    neighbour: int,
    options: argparse.Namespace,
    limit: int,
) -> bool:
    archive = bench.archive()
    mbids = archive.releases(HITS + 1 + options.covers)
    held = [f"/release/{mbid}/front-250" for mbid in mbids[:HITS]]
    large = f"/release/{mbids[HITS]}/front"
    for path in (*held, large):
        for each in (neighbour, port):
            with urlopen(f"http://{LOCAL}:{each}{path}") as answer:
                size = len(answer.read())
    first_mb = peak_mb = rss_mb(child)
    hits = Hits(port, held)
    await hits.start()
    await asyncio.sleep(QUIET_S)
    quiet_s = statistics.median(await hits.stop())

    seen, done = Seen(), asyncio.Event()
    clients = min(options.slow, limit - options.covers - OWN_FILES)
    slow_ones = []
    for _ in range(0, clients, 100):
        slow_ones += [asyncio.create_task(slow(port, large, seen, done)) for _ in range(100)]
        await asyncio.sleep(0.05)
    while seen.slow_begun < clients:
        await asyncio.sleep(0.1)
    slow_mb = rss_mb(child)
    hits = Hits(port, held)
    await hits.start()
    await asyncio.sleep(QUIET_S)
    slow_s = statistics.median(await hits.stop())

    hits, beside = Hits(port, held), Hits(neighbour, held)
    await hits.start()
    await beside.start()
    await asyncio.sleep(0.5)
    flooding = asyncio.create_task(
        flood(port, [f"/release/{mbid}/front-250" for mbid in mbids[HITS + 1 :]], seen)
    )
    while not flooding.done():
        peak_mb = max(peak_mb, rss_mb(child))
        await asyncio.sleep(0.1)
    took_s = await flooding
    latencies = await hits.stop()
    beside_s = statistics.median(await beside.stop())
    busy_s = statistics.median(latencies)
    still = seen.slow_open
    done.set()
    await asyncio.gather(*slow_ones, return_exceptions=True)

    bound_mb = (
        IDLE_MB
        + (KB_A_SLOW_CLIENT * clients + KB_A_CONNECTION * options.covers) / 1024
        + MB_A_FETCH * 2 * options.concurrency
    )
    print(f"slow clients: {clients} of a {size // 1024} kB image, {still} still there at the end")
    print(f"cold covers at once: {options.covers}, the last answered after {took_s:.1f} s")
    print(f"answers: {dict(sorted(seen.statuses.items()))}")
    print(
        f"RSS: {first_mb:.0f} MB at first, {slow_mb:.0f} MB with the slow clients, "
        f"{peak_mb:.0f} MB at the peak; stated bound {bound_mb:.0f} MB"
    )
    p99_s = statistics.quantiles(latencies, n=100)[98]
    print(
        f"hits' median: {quiet_s * 1000:.2f} ms quiet, {slow_s * 1000:.2f} ms beside the slow "
        f"clients, {busy_s * 1000:.2f} ms under the flood "
        f"({len(latencies)} hits, slowest hundredth over {p99_s * 1000:.0f} ms)"
    )
    ratio = busy_s / quiet_s
    print(f"ratio {ratio:.2f}, goal ≤ {GOAL_RATIO:g}")
    print(
        f"meanwhile the hits of another proxy that nobody floods took {beside_s * 1000:.2f} ms: "
        f"{beside_s / quiet_s:.2f} of the ratio is the machine's, which all of this shares"
    )
    metrics = urlopen(f"http://{LOCAL}:{port}/metrics").read().decode()
    for line in metrics.splitlines():
        if line.startswith(("coverart_overload_total", "coverart_connections ")):
            print(line)
    answered = set(seen.statuses) <= {"200", "503"}
    good = answered and ratio <= GOAL_RATIO and peak_mb <= bound_mb and still == clients
    print("every goal reached" if good else "NOT every goal reached")
    return good


def main(arguments: Sequence[str]) -> int:
    """Run it; everything it started is ended and removed."""
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--slow", type=int, default=5_000, help="slow clients")
    parser.add_argument("--covers", type=int, default=10_000, help="cold covers at once")
    parser.add_argument("--concurrency", type=int, default=16, help="requests to the archive")
    options = parser.parse_args(arguments)
    limit = raise_limit()
    settings = {"COVER_ART_UPSTREAM_CONCURRENCY": str(options.concurrency)}
    with (
        tempfile.TemporaryDirectory(prefix="coverart-overload-") as name,
        Bench(Path(name), 1, 1) as bench,
        bench.proxy(**settings) as (child, port),
        bench.proxy(**settings) as (_, neighbour),
    ):
        return 0 if asyncio.run(story(bench, child, port, neighbour, options, limit)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
