"""
What reads words from outside, under a fuzzer that is led by coverage.

`python -m bench.fuzz --seconds 60` gives each target of tests/support/targets.py its share of the time,
each in a process of its own (libFuzzer ends the process it runs in), and prints executions and
findings. What broke a promise is left as a file in the working directory for `--again FILE`.
Exits 1 if anything did. Needs atheris, which has wheels for Linux on x86-64 and Python up to 3.13.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SHARE = re.compile(r"stat::number_of_executed_units: *([0-9]+)")


def fuzz(name: str, flags: Sequence[str]) -> None:
    """Become libFuzzer on one target; does not return."""
    import atheris

    # Not its hook for patterns: json can't be imported under it.
    atheris.enabled_hooks.add("str")
    with atheris.instrument_imports(
        include=["coverart", "tests.support.targets", "urllib", "json"]
    ):
        from tests.support import targets

    atheris.Setup([sys.argv[0], *flags], targets.TARGETS[name])
    atheris.Fuzz()


def run(name: str, seconds: int) -> bool:
    """One target in a process of its own. :returns: whether it kept its promise."""
    from tests.support.targets import SEEDS

    with tempfile.TemporaryDirectory(prefix="coverart-fuzz-") as folder:
        for number, seed in enumerate(SEEDS[name]):
            Path(folder, f"seed{number}").write_bytes(seed)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "bench.fuzz", "--target", name, "--"),
                *(f"-max_total_time={seconds}", "-print_final_stats=1", "-max_len=600"),
                *(f"-artifact_prefix=fuzz-{name}-", folder),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        kept = len(list(Path(folder).iterdir()))
    executed = SHARE.search(done.stderr)
    good = done.returncode == 0 and executed is not None
    count = int(executed[1]) if executed is not None else 0
    print(f"{name:12} {count:>12,} executions, {kept:>5} inputs kept: {'ok' if good else 'FOUND'}")
    if not good:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
    return good


def main(arguments: Sequence[str]) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--again", type=Path, help="give --target what broke it once more")
    parser.add_argument("flags", nargs="*", help="for libFuzzer; --target becomes it")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print("needs atheris: pip install '.[bench]' (Linux on x86-64, Python up to 3.13)")
        return 2
    if options.flags:
        fuzz(options.target, options.flags)
    from tests.support.targets import TARGETS

    if options.again is not None:
        TARGETS[options.target](options.again.read_bytes())
        return 0
    names = list(TARGETS) if options.target is None else [options.target]
    kept = [run(name, max(1, options.seconds // len(names))) for name in names]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
