"""The command `coverart`, run as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

from coverart.service.settings import PREFIX
from tests.support.running import ROOT
from tests.support.talk import SAFETY_S


@attrs.frozen
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one object and nothing else."""
        told = json.loads(self.out)
        assert isinstance(told, dict)
        return told


def run_coverart(folder: Path, *words: str, **settings: str) -> Said:
    """
    Run the command to its end.

    :param folder: where it is run.
    :param settings: environment; what begins with COVER_ART_ is not inherited.
    """
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, "-m", "coverart.cli", *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        text=True,
        timeout=SAFETY_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Said(done.returncode, done.stdout, done.stderr)
