"""All rows, and how they are played: side by side, each on a stage of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from twisted.internet.defer import DeferredSemaphore

from tests.stories.faults import archive, clocks, disk, killed, names, redis, sizes, tls
from tests.stories.faults.matrix import Broken, Outcome, Row
from tests.stories.faults.stage import Log, Stage
from tests.support.programs import NotHere
from tests.support.talk import start

ROWS: tuple[Row, ...] = (
    *archive.ROWS,
    *sizes.ROWS,
    *names.ROWS,
    *tls.ROWS,
    *disk.ROWS,
    *redis.ROWS,
    *killed.ROWS,
    *clocks.ROWS,
)
GROUPS = (*dict.fromkeys(row.group for row in ROWS), "nginx")
"""In the table's order. The rows of nginx in front have a place and are yet to come."""
AT_ONCE = 6
"""Rows beside each other: enough to wait for all their timeouts at a time."""
FIRST_SEED = 1000


async def play(row: Row, log: Log, seed: int) -> Outcome:
    """Play a row on a stage of its own."""
    stage = Stage(log, seed, row.hostname)
    broken = not_here = ""
    try:
        await stage.open()
        await row.play(stage)
        stage.claims.check_full()
    except NotHere as error:
        not_here = str(error)
    except Broken as error:
        broken = str(error)
    except Exception as error:
        broken = f"{type(error).__name__}: {error}"
    try:
        await stage.close()
    except Exception as error:
        broken = broken or f"it does not end: {type(error).__name__}: {error}"
    return Outcome(row=row, claims=stage.claims, broken=broken, not_here=not_here)


class Playing:
    """Rows being played; each outcome comes when it is there."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.log = Log().start()
        self._places = DeferredSemaphore(AT_ONCE)
        seeds = itertools.count(FIRST_SEED)
        self._outcomes = {row: start(self._play(row, next(seeds))) for row in rows}

    async def outcome(self, row: Row) -> Outcome:
        """Wait for a row; to be called once for each."""
        outcome: Outcome = await self._outcomes[row]
        return outcome

    async def end(self) -> None:
        """Wait for all that was not waited for, and listen to the log no more."""
        for outcome in self._outcomes.values():
            await outcome
        self.log.stop()

    async def _play(self, row: Row, seed: int) -> Outcome:
        place = await self._places.acquire()
        try:
            return await play(row, self.log, seed)
        finally:
            place.release()
