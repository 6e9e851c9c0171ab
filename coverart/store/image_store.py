"""What lies where in the cache directory: images, listings, and what a name alone says of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs

from coverart.archive import listings
from coverart.content import ENOUGH, sniff
from coverart.errors import BadUpstream
from coverart.model import (
    ORIGINAL,
    Alias,
    FileEntry,
    FileKey,
    ImageKey,
    ListingKey,
    MediaType,
    Target,
    Thing,
)
from coverart.store import layout
from coverart.store.atomic_files import FAULTS_OF_THE_FILE, AtomicFiles
from coverart.store.symlinks import Links

MTIME_SLACK_S = 1.0


@attrs.frozen(kw_only=True)
class OnDisk:
    """What the disk alone says of a request: the file, and the alias if it was a symlink."""

    key: FileKey
    entry: FileEntry
    alias: Alias | None = None


class ImageStore(AtomicFiles):
    """The cache directory, and what its files are."""

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        """As AtomicFiles's. :raises StoreFailed: as AtomicFiles does."""
        super().__init__(root, now)
        self.links = Links(self)

    def path_of(self, key: FileKey, media: MediaType | None) -> str:
        """Where the file of a key lies, relative to the root."""
        if isinstance(key, ListingKey):
            return layout.listing_path(key)
        if media is None:
            raise ValueError("an image has a media type")
        return layout.image_path(key, media)

    def remove_entry(self, key: FileKey, entry: FileEntry) -> None:
        """Remove the file of an entry, unless another was stored in its place since."""
        path = self.path_of(key, entry.media)
        status = self.stat(path)
        # The mtime is what was set, but a file system may keep it less precisely.
        if status is None or abs(status.st_mtime - entry.stored_at) <= MTIME_SLACK_S:
            self.remove(path)
        else:
            # Or it was cut short, and would be found on the disk and taken for whole.
            self.remove_spoilt(key, entry)

    def remove_spoilt(self, key: FileKey, entry: FileEntry) -> FileEntry | None:
        """
        Remove what lies in the place of an entry's file if it was cut short, written over or is
        none, but not what was stored anew: the same image whole, or any listing that parses.

        :returns: what was stored anew; None if nothing is left.
        :raises OSError: it can't be read now, and stays; or it can't be removed.
        """
        path = self.path_of(key, entry.media)
        found = self.examine(path)
        whole = isinstance(key, ListingKey) or (
            found is not None and found.entry.size_bytes == entry.size_bytes
        )
        if found is None or not whole:
            self.remove(path)
            return None
        return found.entry

    def remove_damaged(self, path: str) -> bool:
        """
        Remove a file that was seen to be empty, or to begin otherwise than its name says.

        It is looked at once more: a good one may have been stored there since.

        :returns: whether it is gone.
        :raises OSError: it can't be read now, and stays; or it can't be removed.
        """
        return self.examine(path) is None and self.remove(path)

    def has_name(self, thing: Thing) -> bool:
        """Say whether find() could find anything; quick enough for the reactor thread."""
        return any(os.path.lexists(self.absolute(path)) for path in _places(thing))

    def find(self, thing: Thing) -> OnDisk | None:
        """What the disk holds for a request, whatever the index says, as far as it can be read."""
        for path in _places(thing):
            with suppress(OSError):
                found = self.examine(path)
                if found is not None:
                    return found
        return None

    def examine(self, path: str) -> OnDisk | None:
        """
        What lies at one path; None if nothing, or nothing that may be served.

        A symlink must point at an image's own place, an image begin as its name says, a listing
        parse.

        :raises OSError: it can't be read now.
        """
        place = layout.identify(layout.unretired(path))
        if place is None:
            return None
        try:
            if os.path.islink(self.absolute(path)):
                return self._examine_link(path)
            # Only symlinks are ever retired.
            if place.file_key is None or path.endswith(layout.RETIRED):
                return None
            return OnDisk(key=place.file_key, entry=self._examine_file(path, place.media))
        except BadUpstream:
            return None
        except OSError as error:
            if error.errno not in FAULTS_OF_THE_FILE:
                raise
            return None

    def _examine_link(self, path: str) -> OnDisk | None:
        link = layout.read_link(layout.unretired(path), os.readlink(self.absolute(path)))
        if link is None:
            return None
        key, media, target_path = link
        checked_at = os.lstat(self.absolute(path)).st_mtime
        alias = Alias(target=link_target(key, media), checked_at=checked_at)
        return OnDisk(key=key, entry=self._examine_file(target_path, media), alias=alias)

    def _examine_file(self, path: str, media: MediaType | None) -> FileEntry:
        """:raises OSError, BadUpstream: it is gone, empty, or not what its name says."""
        with os.fdopen(self.open(path), "rb") as file:
            status = os.fstat(file.fileno())
            if media is None:
                listings.check(file.read(listings.LARGEST_BYTES + 1))
            elif sniff(file.read(ENOUGH)) is not media:
                raise BadUpstream(f"{path} does not begin as its name says")
        return FileEntry(size_bytes=status.st_size, stored_at=status.st_mtime, media=media)


def _places(thing: Thing) -> tuple[str, ...]:
    """Where the answer to a request can lie: a file, a symlink, one that is retired."""
    if isinstance(thing, ListingKey):
        return (layout.listing_path(thing),)
    paths = layout.candidates(thing)
    return (*paths, *(path + layout.RETIRED for path in paths))


def link_target(key: ImageKey, media: MediaType) -> Target:
    """What an alias read from a symlink says: the extension only where an original is held."""
    return Target(ref=key.ref, extension=media.extension if key.size == ORIGINAL else None)
