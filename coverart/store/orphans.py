"""Temporary files whose writer is gone: a killed process leaves them behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable

from coverart.freshness import counted
from coverart.store.atomic_files import TO_READ
from coverart.store.layout import INCOMING

AGE_S = 60.0
"""
Seconds without a write until what can't be locked counts as without a writer: a symlink, which is
temporary for less than a millisecond, and files where there are no locks.
"""

_TEMPORARY = re.compile("[0-9a-f]{24}").fullmatch


def unfinished(root: str) -> list[str]:
    """
    The names in the folder of temporary files, those that are being written among them.

    A symlink in its place is not followed: whoever may write to the cache directory must not choose
    what root's `coverart clean` removes.
    """
    folder = f"{root}/{INCOMING}"
    with contextlib.suppress(OSError):
        if not os.path.islink(folder):
            return os.listdir(folder)
    return []


def remove_orphans(root: str, now: float, check: Callable[[], object]) -> int:
    """
    Remove temporary files whose writer is gone, if they have names of ours. :returns: how many.

    :param check: called before each; what it raises ends the work.
    """
    removed = 0
    for name in filter(_TEMPORARY, unfinished(root)):
        check()
        with contextlib.suppress(OSError):
            removed += _remove_orphan(f"{root}/{INCOMING}/{name}", now)
    return removed


def _remove_orphan(path: str, now: float) -> bool:
    age_s = now - counted(os.lstat(path).st_mtime, now)
    try:
        # A pipe or a device that somebody put there must not keep a thread for ever.
        fd = os.open(path, TO_READ)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
    except BlockingIOError:
        # Its writer lives.
        return False
    except OSError:
        if age_s <= AGE_S:
            return False
    os.unlink(path)
    return True
