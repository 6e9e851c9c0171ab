"""Temporary files whose writer is gone: a killed process leaves them behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator

from coverart.freshness import counted
from coverart.store.atomic_files import TO_READ
from coverart.store.layout import INCOMING

SYMLINK_AGE_S = 60
UNLOCKED_AGE_S = 3600.0
"""Seconds without a write until a file counts as without a writer, where files can't be locked."""

_TEMPORARY = re.compile("[0-9a-f]{24}").fullmatch


def count_unfinished(root: str) -> int:
    """How many temporary files there are, those that are being written among them."""
    with contextlib.suppress(OSError), _incoming(root) as fd:
        return len(os.listdir(fd))
    return 0


def remove_orphans(root: str, now: float, check: Callable[[], object]) -> int:
    """
    Remove temporary files whose writer is gone. :returns: how many.

    Only files with names of ours, and only in a folder of ours: who runs this may be allowed to
    remove more than who made a symlink in its place.

    :param check: called before each; what it raises ends the work.
    """
    removed = 0
    with contextlib.suppress(OSError), _incoming(root) as fd:
        for name in os.listdir(fd):
            check()
            if _TEMPORARY(name):
                with contextlib.suppress(OSError):
                    removed += _remove_orphan(name, fd, now)
    return removed


@contextlib.contextmanager
def _incoming(root: str) -> Iterator[int]:
    """The folder of temporary files, opened. :raises OSError: it is none, or a symlink."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(f"{root}/{INCOMING}", flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove_orphan(name: str, folder: int, now: float) -> bool:
    status = os.lstat(name, dir_fd=folder)
    age_s = now - status.st_mtime
    if stat.S_ISLNK(status.st_mode):
        # It can't be locked, and is temporary for less than a millisecond.
        if now - counted(status.st_mtime, now) <= SYMLINK_AGE_S:
            return False
        os.unlink(name, dir_fd=folder)
        return True
    # A pipe or a device that somebody put there must not keep a thread for ever.
    fd = os.open(name, TO_READ, dir_fd=folder)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Its writer lives; or there are no locks here, and its age decides.
            if isinstance(error, BlockingIOError) or age_s <= UNLOCKED_AGE_S:
                return False
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(fd)
    return True
