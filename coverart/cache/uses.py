"""How often files were used, told to the index in batches: the order of eviction needs it."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from coverart.index.base import Index
from coverart.model import FileKey

USES_AT_ONCE = 250
"""An index in memory takes in these in a millisecond."""
MOST_USES_KEPT = 20_000
"""Limit of files whose uses are counted before they are told."""


async def tell_uses(index: Index, uses: Mapping[FileKey, int], clock: IReactorTime) -> None:
    """Tell the index how often files were used; other requests go on between two batches."""
    told = list(uses.items())
    for start in range(0, len(told), USES_AT_ONCE):
        if start:
            await deferLater(clock, 0)
        await index.use(told[start : start + USES_AT_ONCE])
