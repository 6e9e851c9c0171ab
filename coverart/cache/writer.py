"""
Gives files their names on the disk, in threads: small ones in batches, large ones apart.

A batch is written, made durable and only then renamed and linked: a name never leads to bytes that
a power cut takes back. What waits meanwhile goes in the next batch, so a slow disk costs the files
of one moment one hand-over to a thread. Large files have threads of their own, so that neither
holds up the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from coverart.archive.paths import spell
from coverart.errors import BadUpstream
from coverart.model import Alias, FileKey, ImageRequest, MediaType
from coverart.store.atomic_files import Temporary
from coverart.store.image_store import ImageStore

BATCHES_AT_ONCE = 3
LARGE_AT_ONCE = 3
"""Both together leave threads (disk_threads.py has eight) to those who look for a file or remove one."""
MOST_IN_A_BATCH = 32


class InThread(Protocol):
    """Runs a blocking call off the reactor thread."""

    def __call__(self, call: Callable[..., Any], /, *args: Any) -> Deferred[Any]: ...


@attrs.frozen
class Link:
    """A name to be made a symlink to the file that its alias leads to."""

    request: ImageRequest
    alias: Alias
    outdated: bool = False
    """Whether old links to other images may exist."""
    renewed: bool = False
    """Whether the links of the name's other sizes, if they lead to the same image, are confirmed."""


@attrs.frozen(kw_only=True, eq=False)
class NewFile:
    """
    What is to be written.

    :ivar body: all bytes, or what is still left of those of `temporary`.
    :ivar latest: a file in its place that is stamped later stays.
    :ivar check: called in the thread before anything is written; what it raises ends the commit.
    """

    key: FileKey
    media: MediaType | None
    body: bytes
    stored_at: float
    temporary: Temporary | None = None
    latest: bool = False
    link: Link | None = None
    check: Callable[[], object] | None = None


@attrs.frozen
class Written:
    """A file on the disk, open; `named` unless a later file was first."""

    temporary: Temporary
    named: bool


class Writer:
    """Writes the files of one process."""

    log = Logger()

    def __init__(self, store: ImageStore, in_thread: InThread) -> None:
        self._store = store
        self._in_thread = in_thread
        self._waiting: list[tuple[NewFile, Deferred[Written]]] = []
        self._batches = 0
        self._large = DeferredSemaphore(LARGE_AT_ONCE)

    def commit(self, file: NewFile) -> Deferred[Written]:
        """
        Give a file its name. Close the descriptor when nobody reads from it any more.

        The Deferred fails with an OSError where the disk does not take it; a temporary file that
        came with it is then still there. What check() raised comes as it is.
        """
        if file.temporary is not None:
            return self._large.run(self._commit_large, file)
        d: Deferred[Written] = Deferred()
        self._waiting.append((file, d))
        self._next_batch()
        return d

    def append(self, temporary: Temporary | None, data: bytes) -> Deferred[Temporary]:
        """Write a piece of a large file, which begins with the first. Fails with an OSError."""
        return self._large.run(self._in_thread, self._append, temporary, data)

    def _next_batch(self) -> None:
        while self._waiting and self._batches < BATCHES_AT_ONCE:
            batch = self._waiting[:MOST_IN_A_BATCH]
            del self._waiting[:MOST_IN_A_BATCH]
            self._batches += 1
            d = self._in_thread(self._commit_all, [file for file, _ in batch])
            d.addBoth(self._batch_ended, [each for _, each in batch])

    def _batch_ended(
        self, results: list[Written | Exception] | Failure, waiting: list[Deferred[Written]]
    ) -> None:
        self._batches -= 1
        self._next_batch()
        if isinstance(results, Failure):
            for d in waiting:
                d.errback(Failure(results.value))
            return
        for d, result in zip(waiting, results, strict=True):
            if isinstance(result, Written):
                d.callback(result)
            else:
                d.errback(Failure(result))

    async def _commit_large(self, file: NewFile) -> Written:
        (result,) = await self._in_thread(self._commit_all, [file])
        if isinstance(result, Exception):
            raise result
        written: Written = result
        return written

    # In a thread

    def _append(self, temporary: Temporary | None, data: bytes) -> Temporary:
        begun = temporary or self._store.begin()
        try:
            self._store.append(begun, data)
        except OSError:
            if temporary is None:
                self._store.abandon(begun)
            raise
        return begun

    def _commit_all(self, files: Sequence[NewFile]) -> list[Written | Exception]:
        """Each step with all files, the errors of each its own."""
        results: list[Any] = [None] * len(files)
        for step in (self._write, self._make_durable, self._name):
            for number, file in enumerate(files):
                written = results[number]
                if isinstance(written, Exception):
                    continue
                try:
                    results[number] = step(file, written)
                except (OSError, BadUpstream) as error:
                    if file.temporary is None and written is not None:
                        self._store.abandon(written.temporary)
                    results[number] = error
        return results

    def _write(self, file: NewFile, _: None) -> Written:
        if file.check is not None:
            file.check()
        return Written(self._append(file.temporary, file.body), named=False)

    def _make_durable(self, file: NewFile, written: Written) -> Written:
        self._store.make_durable(written.temporary, file.stored_at)
        return written

    def _name(self, file: NewFile, written: Written) -> Written:
        temporary, path = written.temporary, self._store.path_of(file.key, file.media)
        if file.latest:
            named = self._store.put_latest(temporary.path, path, file.stored_at)
            return attrs.evolve(written, named=named)
        self._store.put_in_place(temporary.path, path)
        if file.link is not None:
            self.link(file.link, file.media)
        return attrs.evolve(written, named=True)

    def link(self, link: Link, media: MediaType | None) -> None:
        """
        Make a symlink, and see to those of the name's other sizes.

        :param media: the type of the file; None makes none and only sees to the others.
        """
        alias, request, links = link.alias, link.request, self._store.links
        try:
            if link.renewed:
                links.confirm(request.alias, alias)
            elif link.outdated:
                links.remove_outdated(request.alias, alias)
            if media is not None:
                links.make(request, alias.target.ref.at(request.size), media, alias.checked_at)
        except OSError as error:
            # The image is held and the index knows the way; only nginx's short cut is missing.
            self.log.warn(
                "can't link {name}, nginx asks the app for it: {reason}",
                name=spell(request),
                reason=error.strerror,
            )
