"""`python -m tests.stories.faults`: play the matrix, print it, exit 1 if a row is broken."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from tests.stories.faults.matrix import render
from tests.stories.faults.rows import GROUPS, ROWS, Playing


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stories.faults", description=__doc__)
    parser.add_argument("--rows", default="", help="a pattern; only rows whose name has it")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if re.search(options.rows, row.id)]
    began = time.monotonic()
    playing = Playing(rows)
    outcomes = []
    for row in rows:
        outcomes.append(await playing.outcome(row))
        print(f"{row.id}: {outcomes[-1].verdict}", file=sys.stderr, flush=True)
    await playing.end()
    played = {row.group for row in rows}
    groups = [group for group in GROUPS if group in played or not options.rows]
    print(render(groups, outcomes))
    print(f"in {time.monotonic() - began:.0f} s")
    for traceback in playing.log.tracebacks:
        print(f"TRACEBACK in the log: {traceback}")
    if playing.log.tracebacks or any(outcome.broken for outcome in outcomes):
        raise SystemExit(1)


def _begin(_reactor: Any, *arguments: str) -> Deferred[None]:
    return Deferred.fromCoroutine(main(list(arguments)))


if __name__ == "__main__":
    react(_begin, sys.argv[1:])
