"""
Everything that can happen to a cache, at random, for as long as you like.

`python -m bench.machine --examples 5000` runs the state machine of tests/support/machine.py with chances
of its own each time; CI runs a short one that is the same every time. Prints a shortest story
of what went wrong, if anything did.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.machine import CacheMachine


def main(arguments: Sequence[str]) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.machine", description=__doc__)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=options.examples,
            stateful_step_count=options.steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{options.examples} stories in {time.monotonic() - began:.0f} s: every promise held")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
