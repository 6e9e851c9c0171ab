"""
Asks for held covers on one connection until its input ends; prints the seconds each answer took.

A process of its own for `python -m bench.overload`: what measures must not wait for what loads.
"""

from __future__ import annotations

import http.client
import select
import sys
import time

from bench.processes import LOCAL


def main(port: int, every_s: float, paths: list[str]) -> None:
    """Ask every so often, which is more than an answer takes."""
    connection = http.client.HTTPConnection(LOCAL, port, timeout=60)
    took: list[float] = []
    while not select.select([sys.stdin], [], [], every_s)[0]:
        began = time.perf_counter()
        connection.request("GET", paths[len(took) % len(paths)])
        answer = connection.getresponse()
        answer.read()
        if answer.headers["X-Cache-Status"] != "HIT":
            raise RuntimeError(f"{answer.status} where there should be a hit")
        took.append(time.perf_counter() - began)
    print(*took)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
