"""What all processes that share a cache did, together: each adds what it counted to the index."""

from __future__ import annotations

from coverart.index.base import Index, IndexAway
from coverart.metrics import Metrics


class SharedCounts:
    """
    Adds what this process counted to the tally of all.

    What a process counted since it last told is not in the tally if it is killed, and is told
    twice if the index's reply is lost. /metrics is right all the same.
    """

    def __init__(self, metrics: Metrics, index: Index) -> None:
        self._metrics = metrics
        self._index = index
        self._told = metrics.tallied()

    async def tell(self) -> None:
        """Tell what was counted since the last time; while the index is away it is kept."""
        counts = self._metrics.tallied() - self._told
        # Before the index is asked: what another call finds meanwhile came after this.
        self._told += counts
        try:
            if counts:
                await self._index.tally(counts)
        except IndexAway:
            self._told -= counts
