"""A lock on a folder, by which processes that use one cache directory see each other."""

from __future__ import annotations

import fcntl
import os


class DirectoryLock:
    """
    A lock held until release() or the end of the process, however it ends.

    A file system without locks gives it to everybody.
    """

    def __init__(self, folder: str, *, shared: bool) -> None:
        """:param shared: whether any number of processes may hold it; else one alone."""
        self._folder = folder
        # The exclusive lock is a brief probe, so shared takers wait.
        self._how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB
        self._fd: int | None = None

    def take(self) -> bool:
        """:returns: whether this process has it now; not if the folder is gone or a symlink."""
        if self._fd is None:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                fd = os.open(self._folder, flags)
            except OSError:
                return False
            try:
                fcntl.flock(fd, self._how)
            except BlockingIOError:
                os.close(fd)
                return False
            except OSError:
                pass  # There are no locks here.
            self._fd = fd
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
