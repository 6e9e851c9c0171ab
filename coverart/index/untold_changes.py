"""
Changes that Redis was not told because it was away: kept in memory, and told when it is back.

Until then the disk decides about what they are of. Since this process can be killed before that, a
mark in the cache directory says that something is missing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from coverart.coordination.redis_client import RedisAway, RedisGarbled
from coverart.coordination.untold_mark import Mark

MOST_UNTOLD = 1000
"""Limit of changes that are kept; beyond this, the mark forces a full comparison."""


@attrs.frozen(eq=False)
class Change:
    """A script and its arguments, and the packed keys of what it changes."""

    script: str
    subjects: Sequence[bytes]
    args: Sequence[bytes | str]


class UntoldChanges:
    """The changes by subject, the last of each; all are told one after the other."""

    log = Logger()

    def __init__(self, tell: Callable[[Change], Awaitable[Any]], mark: Mark) -> None:
        """:param tell: tells Redis of a change. :raises RedisAway: it can't be told now."""
        self._tell = tell
        self._mark = mark
        self._changes: OrderedDict[bytes, Change] = OrderedDict()
        self._telling = False

    def __len__(self) -> int:
        return len(self._changes)

    def __contains__(self, subject: bytes) -> bool:
        return subject in self._changes

    def keep(self, change: Change) -> None:
        """Tell a change later, after those before it."""
        self._mark.leave()
        for subject in change.subjects:
            self._changes.pop(subject, None)
            self._changes[subject] = change
        while len(self._changes) > MOST_UNTOLD:
            self._changes.popitem(last=False)
        self.start()

    def start(self) -> None:
        """Tell them in the background, as far as Redis hears."""
        if not self._telling:
            Deferred.fromCoroutine(self.tell_all()).addErrback(
                lambda failure: self.log.failure(
                    "telling Redis what it missed failed; the next cleanup compares everything",
                    failure,
                )
            )

    async def tell_all(self) -> None:
        """Tell them now, until none is left or Redis is away."""
        self._telling = True
        try:
            while self._changes:
                change = next(iter(self._changes.values()))
                # It may cross what other processes tell, or come after one of them compared all.
                self._mark.leave()
                with suppress(RedisGarbled):
                    await self._tell(change)
                for subject in change.subjects:
                    # Unless there is a later change of it by now.
                    if self._changes.get(subject) is change:
                        del self._changes[subject]
        except RedisAway:
            return
        finally:
            self._telling = False
