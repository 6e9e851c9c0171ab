"""
`python -m tests.coverage [pytest's arguments]`: what the tests run of the package, and what not.

Lines and branches, those of child processes too: workers, the command. A process that a signal ends
tells nothing, and twistd lets SIGTERM end it; so what only its parent runs looks as if nobody ran it
(`service/processes.py`). Settings are in `pyproject.toml`. Exits as pytest does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "coverart"


def by_folder(files: dict[str, dict[str, dict[str, int]]]) -> dict[str, Counter[str]]:
    """Sum what coverage tells of files. :param files: by path, relative to the project."""
    told: dict[str, Counter[str]] = {}
    for path, figures in files.items():
        folder = Path(path).relative_to(PACKAGE.name).parent
        name = "(top)" if folder == Path() else f"{folder}/"
        for each in (name, "all"):
            told.setdefault(each, Counter()).update(figures["summary"])
    return told


def line(name: str, told: Counter[str]) -> str:
    """A line of the table."""
    every = told["num_statements"] + told["num_branches"]
    share = 100 * (told["covered_lines"] + told["covered_branches"]) / max(1, every)
    figures = told["num_statements"], told["missing_lines"], told["missing_branches"]
    return f"{name:<14}{figures[0]:>11}{figures[1]:>9}{figures[2]:>17}{share:>8.1f} %"


def main(arguments: list[str]) -> int:
    """:returns: pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="coverart-coverage-") as folder:

        def coverage(*words: str) -> int:
            command = [sys.executable, "-m", "coverage", *words]
            where = {**os.environ, "COVERAGE_FILE": f"{folder}/data"}
            return subprocess.run(command, cwd=ROOT, env=where, check=False).returncode

        code = coverage("run", "-m", "pytest", *arguments)
        coverage("combine", "--quiet")
        coverage("report")
        coverage("json", "--quiet", "-o", f"{folder}/told.json")
        told = by_folder(json.loads(Path(folder, "told.json").read_text())["files"])
    print(f"\n{'':<14}{'statements':>11}{'missed':>9}{'branches missed':>17}{'covered':>10}")
    for name in sorted(told, key=lambda name: (name == "all", name)):
        print(line(name, told[name]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["-n", "auto", "--dist", "loadfile"]))
