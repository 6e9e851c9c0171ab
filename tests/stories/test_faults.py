"""The fault matrix as tests; `python -m tests.stories.faults` prints it as a table."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.stories.faults.rows import ROWS, Playing


@pytest_twisted.async_yield_fixture(scope="module")
async def playing(request):
    """The rows that were chosen, all on their way side by side."""
    chosen = [item for item in request.session.items if "row" in getattr(item, "fixturenames", ())]
    playing = Playing([item.callspec.params["row"] for item in chosen])
    yield playing
    await playing.end()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
@pytest_twisted.ensureDeferred
async def test_row(playing, row) -> None:
    """Under this fault the proxy does what the row claims, and mends when it is over."""
    outcome = await playing.outcome(row)
    if outcome.not_here:
        pytest.skip(outcome.verdict)
    assert not outcome.broken, outcome.verdict


@pytest_twisted.ensureDeferred
async def test_no_traceback(playing) -> None:
    """No fault from outside is logged as a mistake of ours."""
    await playing.end()
    assert playing.log.tracebacks == []
