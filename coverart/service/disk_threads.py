"""Threads for work on the disk, apart from the reactor's own, which resolves names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

MOST_THREADS = 8


class DiskThreads:
    """Runs blocking calls off the reactor thread."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(minthreads=0, maxthreads=MOST_THREADS, name="coverart-disk")

    def __call__(self, call: Callable[..., Any], /, *args: Any) -> Deferred[Any]:
        """Run a call in one of the threads. Fires with what it returns."""
        return deferToThreadPool(self._reactor, self._pool, call, *args)

    def start(self) -> None:
        self._pool.start()

    def stop(self) -> None:
        """Returns when the calls under way have ended."""
        self._pool.stop()
