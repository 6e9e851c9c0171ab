"""A mark in the cache directory: the index in Redis may not know all files that lie there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NAME = ".untold"


class Mark:
    """
    Says, also after this process is killed, that Redis may not know all that lies in a directory.

    Left before a file is stored or removed while Redis is away; cleared by the leader before it
    compares everything with the disk, so that a mark that is left meanwhile stays.
    """

    def __init__(self, root: Path) -> None:
        """:param root: the cache directory."""
        self._path = root / NAME

    def leave(self) -> None:
        """Leave the mark. Where the directory takes no files, none is stored or removed either."""
        with suppress(OSError):
            self._path.touch()

    def left(self) -> bool:
        """Say whether there is one."""
        return os.access(self._path, os.F_OK)

    def clear(self) -> None:
        """Take it away, if it can be."""
        with suppress(OSError):
            self._path.unlink()
