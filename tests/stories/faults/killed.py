"""SIGKILL at each step between the first byte and the end of a fetch, and what the next process finds."""

from __future__ import annotations

import functools
import os
import re
import signal

from tests.stories.faults.matrix import Row
from tests.stories.faults.stage import Stage, Thing
from tests.stories.faults.victim import STEPS
from tests.support.redis_server import KEY
from tests.support.running import Proxy
from tests.support.talk import until

NAMED = list(STEPS).index("it has its name, the index does not know")
"""From this step on the file has its place."""
SYMLINK_AGE_S = 61.0
UNFINISHED = (
    "the temporary file is made",
    "half is written",
    "all is written, nothing synced",
    "it is synced, not renamed",
    "the link is made, not in its place",
)
"""Steps that leave something in the folder of what is on its way."""


def _swept(stage: Stage, proxy: Proxy) -> list[str]:
    return [line for line in stage.log.by(proxy.cleanup) if line.startswith("cleanup: ")]


async def play(stage: Stage, *, step: str, kind: str, shared: bool) -> None:
    """
    A process is killed at a step of its first fetch; another goes on with its directory.

    :param shared: the index is in Redis and outlives the process.
    """
    thing: Thing = getattr(stage, kind)()
    settings = {}
    if shared:
        server = await stage.redis()
        settings = {"COVER_ART_REDIS_URL": server.url}
    victim = await stage.victim({"die_at": step}, **settings)
    seen = await stage.ask(victim.port, thing.path)
    await until(lambda: victim.process.poll() is not None, "it dies")
    died = victim.process.returncode
    # What is small is sent from memory while the disk takes it.
    cut, whole_answer = seen.cut and seen.body != thing.body, seen.body == thing.body
    if kind == "listing" or step == "the first byte is there":
        stage.claim("client", "the connection is cut", cut, seen.how)
    else:
        stage.claim("client", "cut, or the whole image", cut or whole_answer, seen.how)
    assert died == -signal.SIGKILL, victim.log.read_text()
    named = list(STEPS).index(step) >= NAMED
    files = victim.files()
    whole = [(victim.root / name).read_bytes() == thing.body for name in files]
    stage.claim("disk", "the whole file" if named else "no file", whole == [True] * named, files)
    if shared:
        # As if the dead one's leases had run out: 15 s as leader, 10 s for a fetch.
        for key in (KEY + b"lead", *server.client().keys(KEY + b"get:*")):
            server.client().delete(key)
    stage.sim.counts.clear()
    proxy = await stage.proxy(**settings)
    proxy.now.advance(SYMLINK_AGE_S)
    await proxy.cleanup.sweep()
    stage.claim("disk", "nothing unfinished after a sweep", not proxy.unfinished())
    await stage.exact(proxy)
    told = [re.findall(r"(\d+) unfinished files removed", line) for line in _swept(stage, proxy)]
    removed = sum(int(number) for numbers in told for number in numbers)
    left = 1 if step in UNFINISHED else 0
    stage.claim("log", f"cleanup: {left} unfinished files removed", removed == left, told)
    seen = await stage.ask(proxy.port, thing.path)
    await proxy.settled()
    # The alias may not have been told to anybody: then hop 1 is asked, and nothing else.
    asked = stage.sim.counts.requests("node")
    stage.claim("after", "no download again" if named else "fetched", asked == (not named), asked)
    right = seen.status == 200 and seen.body == thing.body and not seen.cut
    stage.claim("after", "200, its bytes", right, seen.how)
    stage.at_once(seen)
    await proxy.cleanup.sweep()
    await stage.exact(proxy, "after")
    links = [name for name in proxy.links() if os.path.exists(proxy.root / name)]
    stage.claim("after", "every link leads to a file", links == proxy.links(), proxy.links())


ROWS = tuple(
    Row(
        group="killed",
        name=f"when {step}; {kind}, index in {'Redis' if shared else 'memory'}",
        play=functools.partial(play, step=step, kind=kind, shared=shared),
    )
    for step in STEPS
    for kind, shared in (
        ("thumbnail", True),
        # An index in memory is gone with the process: what it knew makes no difference.
        *((("thumbnail", False),) if "the index" not in step and "link" not in step else ()),
        *((("large", False),) if "half" in step else ()),
        *((("listing", True),) if "its name" in step or "renamed" in step else ()),
    )
)
