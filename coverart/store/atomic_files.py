"""
The cache directory: how files come and go without ever being seen half.

A file is written under a temporary name on the same file system, checked, fsynced and renamed,
so whatever is killed when, a reader sees the whole file or none. Methods named here do disk work
in the calling thread; the parts above call the slow ones through `in_thread`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from coverart.errors import StoreFailed
from coverart.freshness import counted
from coverart.store.directory_lock import DirectoryLock, lock_folder
from coverart.store.layout import INCOMING

TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""No symlink, and no waiting for the other end of a pipe."""

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
FAULTS_OF_THE_FILE = _GONE | {errno.EACCES, errno.EPERM, errno.ENXIO}
"""
Errors that a retry can't fix: nothing is there, or a symlink, a folder, a pipe, a file of somebody
else's. Any other error is of the disk or of this process, and says nothing of the file.
"""


def is_gone(error: OSError) -> bool:
    """Say whether an error means that nothing is there, not that it can't be read now."""
    return error.errno in _GONE


@attrs.frozen(kw_only=True)
class Temporary:
    """A file being written. Its writer holds a lock on it for as long as the writer lives."""

    path: str
    fd: int


class AtomicFiles:
    """Files below one root, named by paths relative to it, whatever they are."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        """
        Use a directory, making it if need be.

        :param now: the time of day, in seconds since the epoch.
        :raises StoreFailed: it can't be made or does not take files.
        """
        self.root = root
        self.now = now
        self._root = os.fspath(root)
        self.serving = DirectoryLock(f"{self._root}/.", shared=True)
        """Lets others see that the directory is served."""
        self.keeping = DirectoryLock(f"{self._root}/{INCOMING}", shared=False)
        """Held by the one process that cleans while there is no leader."""
        try:
            (root / INCOMING).mkdir(parents=True, exist_ok=True)
            temporary = self.begin()
        except OSError as error:
            raise StoreFailed(f"{root}: {error.strerror}") from error
        self.abandon(temporary)

    def absolute(self, path: str) -> str:
        return f"{self._root}/{path}"

    def is_served(self) -> bool:
        """Say whether a process has `serving`."""
        alone = DirectoryLock(f"{self._root}/.", shared=False)
        taken = alone.take()
        alone.release()
        return not taken

    def usable(self) -> bool:
        """Say whether the directory is there and takes files."""
        return os.access(f"{self._root}/{INCOMING}", os.W_OK | os.X_OK)

    def identity(self) -> tuple[int, int] | None:
        """
        Which directory lies at the root now: device and inode; None if none that takes files.

        It changes when a file system is mounted or unmounted there, or the directory replaced.
        """
        try:
            found = os.stat(self._root)
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if self.usable() else None

    def stat(self, path: str) -> os.stat_result | None:
        """
        The regular file at `path`, None if there is none (or the directory is gone).

        Quick enough for the reactor thread: an entry that was served before is in the kernel's
        cache, and serving the file from here costs the same look-up again.
        """
        try:
            found = os.lstat(f"{self._root}/{path}")
        except OSError:
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def open(self, path: str) -> int:
        """
        A file descriptor to read from.

        Folders may be symlinks, to spread a cache over disks: only a file of the right name can be
        reached through them. The file itself may not, and a pipe in its place never blocks.

        :raises FileNotFoundError: it is gone.
        :raises OSError: it is no regular file, or can't be read.
        """
        fd = os.open(f"{self._root}/{path}", TO_READ)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.ENXIO, "not a regular file", path)

    # Writing

    def begin(self) -> Temporary:
        """
        A new temporary file.

        The lock tells the file of a living writer from one that a killed process left behind:
        the kernel drops it with the process (flock(2)).
        """
        path = self.temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o644)
        except FileNotFoundError:
            # Somebody emptied the cache directory while we run.
            os.makedirs(f"{self._root}/{INCOMING}", exist_ok=True)
            fd = os.open(path, flags, 0o644)
        # A file system without locks leaves that to the file's age.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        return Temporary(path=path, fd=fd)

    def append(self, temporary: Temporary, data: bytes) -> None:
        """Write all of `data` at the end."""
        view = memoryview(data)
        while view:
            view = view[os.write(temporary.fd, view) :]

    def make_durable(self, temporary: Temporary, stored_at: float) -> None:
        """
        See to it that a power cut leaves all bytes of a file, before it is given its name.

        There may be no file then, but never an empty one. The folder itself is not fsynced: a name
        lost with the power is a cover to fetch again, nothing worse.

        :param stored_at: its mtime.
        """
        os.utime(temporary.fd, (stored_at, stored_at))
        os.fsync(temporary.fd)

    def abandon(self, temporary: Temporary) -> None:
        """Remove a temporary file; if that fails, a later sweep does."""
        with contextlib.suppress(OSError):
            os.unlink(temporary.path)
        os.close(temporary.fd)

    def put_in_place(self, temporary: str, path: str) -> None:
        """Give a temporary file its name, in place of what was there."""
        final = f"{self._root}/{path}"
        try:
            os.replace(temporary, final)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(final), exist_ok=True)
            os.replace(temporary, final)
        except IsADirectoryError:
            # An empty folder goes; any other stays, and the operator is told.
            os.rmdir(final)
            os.replace(temporary, final)

    def put_where_free(self, temporary: str, path: str) -> bool:
        """Give a temporary symlink its name if nothing has it. :returns: whether it was put."""
        try:
            os.link(temporary, f"{self._root}/{path}", follow_symlinks=False)
        except OSError:
            # Or there is no folder yet, or the file system has no second names.
            return False
        os.unlink(temporary)
        return True

    def put_latest(self, temporary: str, path: str, at: float) -> bool:
        """
        Give a temporary file or symlink its name, unless what lies there is stamped later than `at`.

        :returns: whether it was put; else the temporary one is gone.
        """
        with self.alone(path):
            if self.stamp(path) > counted(at, self.now()):
                os.unlink(temporary)
                return False
            self.put_in_place(temporary, path)
        return True

    def stamp(self, path: str) -> float:
        """The mtime of a file or symlink as far as it counts (freshness.py); 0 if there is none."""
        try:
            found = os.lstat(f"{self._root}/{path}")
        except OSError:
            return 0.0
        return 0.0 if stat.S_ISDIR(found.st_mode) else counted(found.st_mtime, self.now())

    @contextlib.contextmanager
    def alone(self, path: str) -> Iterator[None]:
        """
        Lock a folder while a stamp is compared and acted on: other threads and processes wait.

        A file system without locks leaves the two steps apart.
        """
        folder = os.path.dirname(f"{self._root}/{path}")
        os.makedirs(folder, exist_ok=True)
        fd = lock_folder(folder, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(fd)

    def temporary_name(self) -> str:
        """A path that nothing has, on the file system where files are put in place."""
        return f"{self._root}/{INCOMING}/{secrets.token_hex(12)}"

    # Removing

    def remove(self, path: str) -> bool:
        """Remove a file; a folder in its place stays. :returns: whether it was there."""
        try:
            os.unlink(f"{self._root}/{path}")
        except (FileNotFoundError, IsADirectoryError):
            return False
        return True
