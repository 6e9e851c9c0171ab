"""`python -m bench`: measure, print a table, say by the exit status whether all goals were reached."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import (
    rows_app,
    rows_beside,
    rows_front,
    rows_hit,
    rows_latency,
    rows_miss,
    rows_scan,
    rows_tls,
)
from bench.processes import Bench
from bench.table import CannotMeasureError, Result, Row, render

ROWS: tuple[Row, ...] = (
    *rows_front.ROWS,
    *rows_tls.ROWS,
    *rows_hit.ROWS,
    *rows_app.ROWS,
    *rows_miss.ROWS,
    *rows_beside.ROWS,
    *rows_latency.ROWS,
    *rows_scan.ROWS,
)


def _measured(row: Row, bench: Bench) -> Result:
    try:
        return Result(row=row, pairs=tuple(row.measure(bench)))
    except CannotMeasureError as error:
        return Result(row=row, why_not=f"needs {error}")
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        # One row that fails takes no other's figures along.
        print(f"{row.name}: {error}", file=sys.stderr)
        return Result(row=row, why_not="failed")


def main() -> int:
    """Run the rows that the command line names, all if none."""
    known = {row.name: row for row in ROWS}
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rows", default=",".join(known), help="names with commas between them")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements a row")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load a side and round")
    parser.add_argument("--files", type=int, default=1_000_000, help="of a large cache")
    parser.add_argument(
        "--workers",
        type=int,
        default=max(1, (os.cpu_count() or 1) - 1),
        help="of each server in the rows of nginx; unsaid, a processor is left to the load",
    )
    parser.add_argument("--json", action="store_true", help="every figure, as JSON")
    parser.add_argument("--directory", type=Path, help="on the disk that the cache would be on")
    args = parser.parse_args()
    names = [name for name in args.rows.split(",") if name]
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(known)}")
    if args.rounds < 1 or args.seconds <= 0 or args.files < 1 or args.workers < 1:
        parser.error("at least one round, file and worker, and more than no seconds")
    # Ended from outside, what it began ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    before = os.getloadavg()[0]
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="coverart-bench-", dir=args.directory) as directory,
        Bench(
            Path(directory),
            rounds=args.rounds,
            seconds=args.seconds,
            files=args.files,
            workers=args.workers,
        ) as bench,
    ):
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            results.append(_measured(known[name], bench))
    if args.json:
        print(json.dumps([result.as_json() for result in results], indent=2))
    else:
        print(render(results))
        print(
            f"{os.cpu_count()} processors, {args.workers} workers, {before:.1f} processes busy before the run"
        )
    missed = any(result.reached is False or result.why_not == "failed" for result in results)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
