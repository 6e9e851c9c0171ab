"""
A crowd for one thing, in a process of its own: what measures must not wait for what loads.

Opens its connections and says so; asks on all of them at a line of its input and says so; says the
statuses of the answers once all are there, and begins again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from bench.overload import raise_limit
from bench.processes import LOCAL

ANSWER_S = 120.0


async def _answer(reader: asyncio.StreamReader) -> str:
    head = await reader.readuntil(b"\r\n\r\n")
    while await reader.read(1 << 16):
        pass
    return head.split(b" ", 2)[1].decode()


async def _crowd(port: int, count: int) -> bool:
    """One crowd. :returns: whether there was a path to ask for."""
    connections = [await asyncio.open_connection(LOCAL, port) for _ in range(count)]
    print("open", flush=True)
    path = (await asyncio.to_thread(sys.stdin.readline)).strip()
    if path:
        request = f"GET {path} HTTP/1.1\r\nHost: {LOCAL}\r\nConnection: close\r\n\r\n".encode()
        for _, writer in connections:
            writer.write(request)
        print("asked", flush=True)
        async with asyncio.timeout(ANSWER_S):
            statuses = Counter(await asyncio.gather(*(_answer(each) for each, _ in connections)))
        print(json.dumps(statuses), flush=True)
    for _, writer in connections:
        writer.transport.abort()
    return bool(path)


async def main(port: int, count: int) -> None:
    """One crowd after the other, until the input ends."""
    raise_limit()
    while await _crowd(port, count):
        pass


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
