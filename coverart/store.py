"""
The files of the cache: where they lie, how they come and go without ever being seen half.

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
from collections.abc import Iterable
from pathlib import Path

import attrs

from coverart import layout, listing
from coverart.content import ENOUGH, sniff
from coverart.errors import BadUpstream, StoreFailed
from coverart.layout import INCOMING
from coverart.model import (
    ORIGINAL,
    Alias,
    AliasKey,
    FileEntry,
    FileKey,
    ImageKey,
    ImageRequest,
    ListingKey,
    MediaType,
    Target,
)

SYMLINK_AGE_S = 60
MTIME_SLACK_S = 1.0

_TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@attrs.frozen(kw_only=True)
class OnDisk:
    """What the disk alone says of a request: the file, and the alias if it was a symlink."""

    key: FileKey
    entry: FileEntry
    alias: Alias | None = None


@attrs.frozen(kw_only=True)
class Temporary:
    """A file being written. Its writer holds a lock on it for as long as the writer lives."""

    path: str
    fd: int


class ImageStore:
    """The cache directory."""

    def __init__(self, root: Path) -> None:
        """
        Use a directory, making it if need be.

        :raises StoreFailed: it can't be made or does not take files.
        """
        self.root = root
        self._root = os.fspath(root)
        self._held: int | None = None
        try:
            (root / INCOMING).mkdir(parents=True, exist_ok=True)
            temporary = self.begin()
        except OSError as error:
            raise StoreFailed(f"{root}: {error.strerror}") from error
        self.abandon(temporary)

    def path_of(self, key: FileKey, media: MediaType | None) -> str:
        """Where the file of a key lies, relative to the root."""
        if isinstance(key, ListingKey):
            return layout.listing_path(key)
        if media is None:
            raise ValueError("an image has a media type")
        return layout.image_path(key, media)

    def absolute(self, path: str) -> str:
        return f"{self._root}/{path}"

    def hold(self) -> None:
        """
        Let other processes see, for as long as this one lives, that the directory is served.

        A file system without locks shows nothing.
        """
        if self._held is None:
            with contextlib.suppress(OSError):
                self._held = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._held, fcntl.LOCK_SH)

    def release(self) -> None:
        """No longer."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def served(self) -> bool:
        """Say whether a process holds the directory."""
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(fd)
        return False

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
            found = os.lstat(self.absolute(path))
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
        fd = os.open(self.absolute(path), _TO_READ)
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
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while True:
            path = self._temporary_name()
            try:
                fd = os.open(path, flags, 0o644)
            except FileNotFoundError:
                # Somebody emptied the cache directory while we run.
                os.makedirs(f"{self._root}/{INCOMING}", exist_ok=True)
                continue
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A sweep can have taken the file for an orphan before we held the lock.
            if os.fstat(fd).st_nlink:
                return Temporary(path=path, fd=fd)
            os.close(fd)

    def append(self, temporary: Temporary, data: bytes) -> None:
        """Write all of `data` at the end."""
        view = memoryview(data)
        while view:
            view = view[os.write(temporary.fd, view) :]

    def commit(self, temporary: Temporary, path: str, stored_at: float) -> None:
        """
        Make a whole file visible at `path`, in place of what was there.

        The data is on the disk before the name is: after a power cut there may be no file, but
        never an empty one. The folder itself is not fsynced: a name lost with the power is a
        cover to fetch again, nothing worse. Leaves the file descriptor open.
        """
        os.utime(temporary.fd, (stored_at, stored_at))
        os.fsync(temporary.fd)
        self._replace(temporary.path, path)

    def write(self, path: str, body: bytes, stored_at: float) -> None:
        """Make a small file visible at `path`, whole."""
        temporary = self.begin()
        try:
            self.append(temporary, body)
            self.commit(temporary, path, stored_at)
        except OSError:
            self.abandon(temporary)
            raise
        os.close(temporary.fd)

    def abandon(self, temporary: Temporary) -> None:
        """Throw a temporary file away."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary.path)
        os.close(temporary.fd)

    def link(self, request: ImageRequest, key: ImageKey, media: MediaType, at: float) -> None:
        """Make an alias servable: a symlink, in place of one of the same name."""
        link = layout.alias_path(request, media)
        temporary = self._temporary_name()
        text = layout.link_text(link, layout.image_path(key, media))
        try:
            os.symlink(text, temporary)
        except FileNotFoundError:
            os.makedirs(f"{self._root}/{INCOMING}", exist_ok=True)
            os.symlink(text, temporary)
        os.utime(temporary, (at, at), follow_symlinks=False)
        self._replace(temporary, link)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.absolute(link) + layout.RETIRED)

    def retire_aliases(self, keys: Iterable[AliasKey], before: float) -> None:
        """
        Take symlinks last confirmed before that time out of nginx's sight.

        They stay under another name, so that after a restart the old answer is still known.
        """
        for key in keys:
            for path in layout.alias_paths(key):
                self.retire(path, before)

    def retire(self, path: str, before: float) -> None:
        """The same for one symlink."""
        with contextlib.suppress(FileNotFoundError):
            link = self.absolute(path)
            status = os.lstat(link)
            if stat.S_ISLNK(status.st_mode) and status.st_mtime < before:
                os.replace(link, link + layout.RETIRED)

    def touch_links(self, key: AliasKey, alias: Alias) -> None:
        """
        Mark every symlink of an alias as confirmed; retired ones serve again.

        One that leads to another image was out of the index's sight when the alias moved: it goes.
        """
        self.unlink_outdated(key, alias)
        at = alias.checked_at
        for path in layout.alias_paths(key):
            link = self.absolute(path)
            with contextlib.suppress(FileNotFoundError):
                os.replace(link + layout.RETIRED, link)
            with contextlib.suppress(FileNotFoundError):
                if os.path.islink(link):
                    os.utime(link, (at, at), follow_symlinks=False)

    def unlink_outdated(self, key: AliasKey, alias: Alias) -> None:
        """Remove the symlinks of an alias that lead elsewhere, if they are older than it."""
        for path in layout.alias_paths(key):
            for link in (path, path + layout.RETIRED):
                self.unlink_if_outdated(link, alias)

    def unlink_if_outdated(self, path: str, alias: Alias) -> bool:
        """The same for one symlink. :returns: whether it was one."""
        link = self.absolute(path)
        try:
            leads_to = layout.read_link(layout.unretired(path), os.readlink(link))
            if leads_to is None or leads_to[0].ref == alias.target.ref:
                return False
            if os.lstat(link).st_mtime >= alias.checked_at:
                return False
            os.unlink(link)
        except OSError:
            # There is none, or a file, or somebody else was first.
            return False
        return True

    def has_alias(self, key: AliasKey) -> bool:
        """Say whether unlink_alias() would find any; quick enough for the reactor thread."""
        paths = [self.absolute(path) for path in layout.alias_paths(key)]
        return any(os.path.islink(p) or os.path.islink(p + layout.RETIRED) for p in paths)

    def unlink_alias(self, key: AliasKey) -> None:
        """Remove every symlink of an alias; never a regular file."""
        for path in layout.alias_paths(key):
            for link in (self.absolute(path), self.absolute(path) + layout.RETIRED):
                with contextlib.suppress(FileNotFoundError):
                    if os.path.islink(link):
                        os.unlink(link)

    def remove_dangling(self, path: str) -> bool:
        """Remove a symlink whose file is gone. :returns: whether it was one."""
        link = self.absolute(path)
        if os.path.islink(link) and not os.path.exists(link):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)
            return True
        return False

    def touch(self, path: str, at: float) -> None:
        """Mark a listing as confirmed at `at`."""
        os.utime(self.absolute(path), (at, at))

    def remove(self, path: str) -> bool:
        """Remove a file; a folder in its place stays. :returns: whether it was there."""
        try:
            os.unlink(self.absolute(path))
        except (FileNotFoundError, IsADirectoryError):
            return False
        return True

    def remove_entry(self, key: FileKey, entry: FileEntry) -> bool:
        """
        Remove the file of an entry, unless another was stored in its place since.

        :returns: whether it is gone.
        """
        path = self.path_of(key, entry.media)
        status = self.stat(path)
        # The mtime is what was set, but a file system may keep it less precisely.
        if status is not None and abs(status.st_mtime - entry.stored_at) > MTIME_SLACK_S:
            # Or it was cut short, and would be found on the disk and taken for whole.
            self.remove_spoilt(key, entry)
            return self.stat(path) is None
        return self.remove(path) or status is None

    def remove_spoilt(self, key: FileKey, entry: FileEntry) -> None:
        """
        Remove what lies in the place of an entry's file if it was cut short, written over or is
        none, but not what was stored anew: the same image whole, or any listing that parses.
        """
        path = self.path_of(key, entry.media)
        if isinstance(key, ListingKey):
            stored = self.find(key) is not None
        else:
            found = self.examine(path)
            stored = found is not None and found.entry.size_bytes == entry.size_bytes
        if not stored:
            self.remove(path)

    def _temporary_name(self) -> str:
        return f"{self._root}/{INCOMING}/{secrets.token_hex(12)}"

    def _replace(self, temporary: str, path: str) -> None:
        final = self.absolute(path)
        try:
            os.replace(temporary, final)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(final), exist_ok=True)
            os.replace(temporary, final)
        except IsADirectoryError:
            # An empty folder is in nobody's way but ours; of any other the operator is told.
            os.rmdir(final)
            os.replace(temporary, final)

    # Reading what is there

    def has_name(self, thing: ImageRequest | ListingKey) -> bool:
        """Say whether find() could find anything; quick enough for the reactor thread."""
        if isinstance(thing, ListingKey):
            return os.path.lexists(self.absolute(layout.listing_path(thing)))
        paths = [self.absolute(path) for path in layout.candidates(thing)]
        return any(os.path.lexists(p) or os.path.lexists(p + layout.RETIRED) for p in paths)

    def find(self, thing: ImageRequest | ListingKey) -> OnDisk | None:
        """What the disk holds for a request, whatever the index says."""
        if isinstance(thing, ListingKey):
            path = layout.listing_path(thing)
            listed = self.examine(path)
            return listed if listed is not None and self._is_listing(path) else None
        paths = layout.candidates(thing)
        for path in (*paths, *(path + layout.RETIRED for path in paths)):
            found = self.examine(path)
            if found is not None:
                return found
        return None

    def _is_listing(self, path: str) -> bool:
        try:
            listing.check(self.read(path))
        except (OSError, BadUpstream):
            return False
        return True

    def examine(self, path: str) -> OnDisk | None:
        """
        What lies at one path; None if nothing, or nothing that may be served.

        A symlink must point at an image's own place, and an image must begin as its name says.
        """
        place = layout.identify(layout.unretired(path))
        if place is None:
            return None
        try:
            text = os.readlink(self.absolute(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:
                return None
        else:
            return self._examine_link(path, text)
        # EINVAL: not a symlink, and only symlinks are ever retired.
        if path.endswith(layout.RETIRED):
            return None
        entry = None if place.file_key is None else self._examine_file(path, place.media)
        if place.file_key is None or entry is None:
            return None
        return OnDisk(key=place.file_key, entry=entry)

    def _examine_link(self, path: str, text: str) -> OnDisk | None:
        link = layout.read_link(layout.unretired(path), text)
        if link is None:
            return None
        key, media, target_path = link
        try:
            checked_at = os.lstat(self.absolute(path)).st_mtime
        except OSError:
            return None
        entry = self._examine_file(target_path, media)
        if entry is None:
            return None
        alias = Alias(target=link_target(key, media), checked_at=checked_at)
        return OnDisk(key=key, entry=entry, alias=alias)

    def _examine_file(self, path: str, media: MediaType | None) -> FileEntry | None:
        try:
            fd = self.open(path)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if media is not None and sniff(os.pread(fd, ENOUGH, 0)) is not media:
                return None
        except OSError:
            return None
        finally:
            os.close(fd)
        if status.st_size == 0 or not stat.S_ISREG(status.st_mode):
            return None
        return FileEntry(size_bytes=status.st_size, stored_at=status.st_mtime, media=media)

    def read(self, path: str) -> bytes:
        """All of a small file. :raises FileNotFoundError: it is gone."""
        fd = self.open(path)
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def unfinished(self) -> int:
        """How many temporary files there are, those that are being written among them."""
        try:
            return len(os.listdir(f"{self._root}/{INCOMING}"))
        except OSError:
            return 0

    def remove_orphans(self, now: float) -> int:
        """
        Remove temporary files whose writer is gone. :returns: how many.

        Symlinks can't be locked; they are temporary for less than a millisecond, so those of the
        last minute are left alone.
        """
        removed = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(f"{self._root}/{INCOMING}") as rows:
            for row in rows:
                with contextlib.suppress(OSError):
                    if row.is_symlink():
                        if now - row.stat(follow_symlinks=False).st_mtime > SYMLINK_AGE_S:
                            os.unlink(row.path)
                            removed += 1
                    elif _remove_unlocked(row.path):
                        removed += 1
        return removed


def link_target(key: ImageKey, media: MediaType) -> Target:
    """What an alias read from a symlink says: the extension only where an original is held."""
    return Target(ref=key.ref, extension=media.extension if key.size == ORIGINAL else None)


def _remove_unlocked(path: str) -> bool:
    # A pipe or a device that somebody put there must not keep a thread for ever.
    fd = os.open(path, _TO_READ)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)
