"""Threads for work on the disk, apart from the reactor's own, which resolves names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

MOST_THREADS = 8


class DiskThreads(ThreadPool):
    """Runs blocking calls off the reactor thread, from start() to stop(), which waits for them."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(minthreads=0, maxthreads=MOST_THREADS, name="coverart-disk")
        self._reactor = reactor

    def __call__(self, call: Callable[..., Any], /, *args: Any) -> Deferred[Any]:
        """Run a call in one of the threads. Fires with what it returns."""
        return deferToThreadPool(self._reactor, self, call, *args)
