"""
The reference for misses: treq following the same redirects, reading the body, doing nothing with it.

Run as a process of its own; prints answers and seconds as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import treq
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from twisted.web.client import HTTPConnectionPool


async def _ask_in_turn(urls: Iterator[str], pool: HTTPConnectionPool, until: float) -> int:
    for answers, url in enumerate(urls):
        response = await treq.get(url, pool=pool)
        body = await response.content()
        if response.code != 200 or not body:
            raise RuntimeError(f"{url}: {response.code}")
        if time.monotonic() > until:
            return answers
    raise RuntimeError("more paths needed")


async def _all_at_once(
    urls: Iterator[str], pool: HTTPConnectionPool, in_flight: int, seconds: float
) -> int:
    until = time.monotonic() + seconds
    loops = [Deferred.fromCoroutine(_ask_in_turn(urls, pool, until)) for _ in range(in_flight)]
    return sum(await gatherResults(loops, consumeErrors=True))


async def _run(reactor: Any, urls: Iterator[str], in_flight: int, seconds: float) -> None:
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = in_flight
    # Connections are opened and code is warm before the clock starts.
    await _all_at_once(urls, pool, in_flight, 0.3)
    began, cpu_began_s = time.monotonic(), time.process_time()
    answers = await _all_at_once(urls, pool, in_flight, seconds)
    took_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_began_s
    json.dump({"answers": answers, "seconds": took_s, "cpu_s": cpu_s}, sys.stdout)
    await pool.closeCachedConnections()


def main() -> None:
    """Read what to ask for from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("urls", type=Path)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    urls = iter(args.urls.read_text().split())
    react(lambda reactor: Deferred.fromCoroutine(_run(reactor, urls, args.in_flight, args.seconds)))


if __name__ == "__main__":
    main()
