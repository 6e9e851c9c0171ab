"""A lock on a folder, by which processes that use one cache directory see each other."""

from __future__ import annotations

import fcntl
import os


def lock_folder(folder: str, how: int) -> int:
    """
    A descriptor that holds a lock (flock(2)) until it is closed or the process ends, however it ends.

    A file system without locks gives it to everybody.

    :raises BlockingIOError: it is held by another, and `how` does not wait.
    :raises OSError: the folder is gone.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:
        pass  # There are no locks here.
    return fd


class DirectoryLock:
    """A lock held until release() or the end of the process."""

    def __init__(self, folder: str, *, shared: bool) -> None:
        """:param shared: whether any number of processes may hold it; else one alone."""
        self._folder = folder
        # The exclusive lock is a brief probe, so shared takers wait.
        self._how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB
        self._fd: int | None = None

    def take(self) -> bool:
        """:returns: whether this process has it now; not if the folder is gone."""
        if self._fd is None:
            try:
                self._fd = lock_folder(self._folder, self._how)
            except OSError:
                return False
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
