"""
Follows the archive's redirects, hop by hop: each address is checked before it is asked.

Nobody else follows any; treq is told not to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from coverart.archive.archive_client import ArchiveClient
from coverart.archive.source import FetchDeadline, Sink
from coverart.archive.url_policy import Hop, Rules
from coverart.errors import BadUpstream, PassingTrouble

MOST_REQUESTS = 3
"""Requests allowed behind hop 1: archive.org, the node, one spare."""
RETRY_PAUSE_S = 0.25

T = TypeVar("T")


class Redirects:
    """Asks hop 1 and follows redirects to files."""

    log = Logger()

    def __init__(
        self,
        client: ArchiveClient,
        rules: Rules,
        clock: IReactorTime,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.rules = rules
        self._client = client
        self._clock = clock
        self._jitter = jitter

    async def first(self, hop: Hop, deadline: FetchDeadline) -> Hop:
        """
        Ask hop 1, which was checked. :returns: where it sends, checked and not asked yet.

        :raises NotInArchive: it knows no such art.
        :raises CoverError: it can't be asked, or sends nowhere or astray.
        """
        location = await self._again_once(self._client.get, hop, "1", deadline, None)
        return self.rules.follow(hop, location)

    async def to_file(self, url: str, sink: Sink, deadline: FetchDeadline) -> Hop:
        """
        Fetch a file from archive.org or wherever it sends. :returns: the hop that had it.

        :raises FileNotInArchive: it is not there.
        :raises CoverError: it could not be had whole, or a redirect leads astray.
        """
        return await self._again_once(self._follow, self.rules.check(url), "2", deadline, sink)

    async def from_node(self, url: str, sink: Sink, deadline: FetchDeadline) -> Hop:
        """The same from a storage node that had another file of the item, without a second try."""
        return await self._follow(self.rules.check(url), "node", deadline, sink)

    async def _follow(self, hop: Hop, label: str, deadline: FetchDeadline, sink: Sink) -> Hop:
        for _ in range(MOST_REQUESTS):
            location = await self._client.get(hop, label, deadline, sink)
            if location is None:
                return hop
            hop, label = self.rules.follow(hop, location), "node"
        raise BadUpstream("the archive redirects without end")

    async def _again_once(
        self, attempt: Callable[..., Coroutine[Deferred[Any], Any, T]], *arguments: Any
    ) -> T:
        """Try a second time where the trouble may pass; a GET is safe to repeat."""
        try:
            return await attempt(*arguments)
        except PassingTrouble as error:
            self.log.debug(
                "{hop} is asked once more: {why}", hop=arguments[0].url, why=error.detail
            )
        await deferLater(self._clock, RETRY_PAUSE_S * (1 + self._jitter()))
        return await attempt(*arguments)
