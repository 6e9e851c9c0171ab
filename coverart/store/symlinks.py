"""
The symlinks by which nginx finds an image under its other names: `front`, `back`, merged ids.

Their mtime says when the archive was last asked about the name. One that was not confirmed for
long, or is stamped ahead of the clock, is retired: out of nginx's sight, and still known after a
restart. What was asked for earlier never takes the place of what was asked for later.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator

from coverart.freshness import counted
from coverart.model import Alias, AliasKey, ImageKey, ImageRequest, MediaType
from coverart.store import layout
from coverart.store.atomic_files import AtomicFiles, is_gone


class Links:
    """The symlinks of one cache directory."""

    def __init__(self, directory: AtomicFiles) -> None:
        self._directory = directory

    def make(self, request: ImageRequest, key: ImageKey, media: MediaType, at: float) -> None:
        """Make an alias servable: a symlink, in place of one of the same name that is no later."""
        link = layout.alias_path(request, media)
        temporary = self._directory.temporary_name()
        os.symlink(layout.link_text(link, layout.image_path(key, media)), temporary)
        os.utime(temporary, (at, at), follow_symlinks=False)
        # Where there is none yet, there is nothing to compare.
        free = self._directory.put_where_free(temporary, link)
        if free or self._directory.put_latest(temporary, link, at):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory.absolute(link) + layout.RETIRED)

    def retire(self, path: str, before: float) -> None:
        """
        Take a symlink last confirmed before that time out of nginx's sight.

        It stays under another name, so that after a restart the old answer is still known.
        """
        self._act(
            path, lambda at: at < before, lambda link: os.replace(link, link + layout.RETIRED)
        )

    def confirm(self, key: AliasKey, alias: Alias) -> None:
        """
        Mark every symlink of an alias as confirmed; retired ones serve again.

        Those that lead to the alias's previous image are removed.
        """
        self.remove_outdated(key, alias)
        at = alias.checked_at
        paths = layout.alias_paths(key)
        # All lie in one folder.
        with self._directory.alone(paths[0]):
            for path in paths:
                link = self._directory.absolute(path)
                with contextlib.suppress(FileNotFoundError):
                    if not os.path.lexists(link):
                        os.replace(link + layout.RETIRED, link)
                    if os.path.islink(link) and self._directory.stamp(path) < at:
                        os.utime(link, (at, at), follow_symlinks=False)

    def remove_outdated(self, key: AliasKey, alias: Alias) -> None:
        """Remove the symlinks of an alias that lead elsewhere, if they are older than it."""
        for path in _paths(key):
            self.remove_if_outdated(path, alias)

    def remove_if_outdated(self, path: str, alias: Alias) -> bool:
        """The same for one symlink. :returns: whether it was one."""
        with contextlib.suppress(OSError):
            text = os.readlink(self._directory.absolute(path))
            leads_to = layout.read_link(layout.unretired(path), text)
            if leads_to is not None and leads_to[0].ref != alias.target.ref:
                before = counted(alias.checked_at, self._directory.now())
                return self._act(path, lambda at: at < before, os.unlink)
        # There is none, or a file, or somebody else was first.
        return False

    def exist(self, key: AliasKey) -> bool:
        """Say whether remove() would find any; quick enough for the reactor thread."""
        return any(os.path.islink(self._directory.absolute(path)) for path in _paths(key))

    def remove(self, key: AliasKey, until: float = math.inf) -> None:
        """
        Remove every symlink of an alias; never a regular file.

        :param until: those that are stamped later stay.
        """
        for path in _paths(key):
            self._act(path, lambda at: at <= until, os.unlink)

    def _act(self, path: str, judge: Callable[[float], bool], act: Callable[[str], object]) -> bool:
        """
        Do something to a symlink, never to a file. :returns: whether it was done.

        :param judge: says by its stamp whether to: it may have been made anew meanwhile.
        """
        link = self._directory.absolute(path)
        if os.path.islink(link):
            with self._directory.alone(path), contextlib.suppress(FileNotFoundError):
                if judge(self._directory.stamp(path)):
                    act(link)
                    return True
        return False

    def remove_dangling(self, path: str) -> bool:
        """Remove a symlink whose file is gone. :returns: whether it was one."""
        link = self._directory.absolute(path)
        if os.path.islink(link) and leads_nowhere(link):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)
            return True
        return False


def leads_nowhere(link: str) -> bool:
    """Say whether nothing is where a symlink leads, as far as it can be told."""
    try:
        os.stat(link)
    except OSError as error:
        return is_gone(error)
    return False


def _paths(key: AliasKey) -> Iterator[str]:
    """Where the symlinks of an alias may lie, those that serve and those that are retired."""
    for path in layout.alias_paths(key):
        yield path
        yield path + layout.RETIRED
