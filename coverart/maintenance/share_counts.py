"""What all processes that share a cache did, together: each adds what it counted to the index."""

from __future__ import annotations

from coverart.index.base import Index, IndexAway
from coverart.metrics import Metrics


async def tell_counts(metrics: Metrics, index: Index) -> None:
    """
    Add what this process counted since the last time; while the index is away it is kept.

    One call at a time. A process that is killed, or a reply that is lost, after the index heard
    of it and before that was noted leads to its being told twice.
    """
    counts = {name: times for name, times in metrics.own_untold().items() if times}
    if counts:
        try:
            await index.tally(counts)
        except IndexAway:
            return
        metrics.note_told(counts)
