"""A size is missing: the archive has not made it yet, and makes it while it is sent in another."""

from __future__ import annotations

import functools

from coverart.simulator.faults import Rule, Status
from tests.stories.faults.matrix import Row
from tests.stories.faults.stage import LARGE, Seen, Stage, Thing
from tests.support.drawings import STUDIO
from tests.support.running import Proxy

THUMB_TTL_S = 300.0
"""The default of COVER_ART_ABSENT_THUMB_TTL."""
ALL = (250, 500, 1200)


async def not_made(stage: Stage, *, missing: tuple[int, ...], sent: str, number: int = 0) -> None:
    """Asked for by its front and by its id, before and after it is made."""
    proxy = await stage.proxy()
    thing = stage.thumbnail(number)
    item = stage.sim.catalogue.release(number)
    assert item.front is not None
    by_id = Thing(name="by id", path=f"/release/{item.mbid}/{item.front.id}-250", body=thing.body)
    stood_in = STUDIO.archive_bytes(item.front, int(sent) if sent.isdigit() else None)
    rules = [
        stage.sim.faults.add(Rule(hop="node", path=f"*_thumb{each}.jpg", does=Status(code=404)))
        for each in missing
    ]
    for asked, how in ((thing, "MISS"), (by_id, "HIT"), (thing, "HIT")):
        seen = await stage.ask(proxy.port, asked.path)
        await proxy.settled()
        _told(stage, seen, stood_in, sent, how)
        stage.at_once(seen)
    lies = [name for name in (*proxy.files(), *proxy.links()) if "_250" in name]
    stage.claim("disk", "nothing by the missing size's name", not lies, lies)
    await stage.exact(proxy)
    lines = [line for line in stage.log.about(item.mbid) if "could not" in line]
    stage.claim("log", "nothing", not lines, lines)
    await _made(stage, proxy, thing, by_id, rules, stood_in, sent)


def _told(stage: Stage, seen: Seen, body: bytes, sent: str, how: str) -> None:
    if not sent:
        told = "404 MISS" if how == "MISS" else "404 ABSENT"
        stage.claim("client", "404", seen.how == told, seen.how)
        return
    mark, life = seen.head("X-Cover-Art-Substitute"), seen.head("Cache-Control")
    good = seen.how == f"200 {how}" and seen.body == body
    stage.claim("client", f"the {sent}, marked", good and mark == sent, f"{seen.how} {mark}")
    stage.claim("client", "for five minutes", life == "public, max-age=300", life)


async def _made(
    stage: Stage,
    proxy: Proxy,
    thing: Thing,
    by_id: Thing,
    rules: list[int],
    body: bytes,
    sent: str,
) -> None:
    for rule in rules:
        stage.sim.faults.remove(rule)
    proxy.now.advance(THUMB_TTL_S + 1)
    seen = await stage.ask(proxy.port, thing.path)
    if sent:
        good = seen.how == "200 STALE" and seen.body == body
        stage.claim("after", "once more while it is asked for", good, seen.how)
    else:
        stage.claim("after", "404 while it is asked for", seen.how == "404 ABSENT", seen.how)
    await proxy.settled()
    for asked in (thing, by_id):
        seen = await stage.ask(proxy.port, asked.path)
        await proxy.settled()
        stage.whole(seen, asked, "HIT", "after", of="")
        mark = seen.head("X-Cover-Art-Substitute")
        stage.claim("after", "unmarked", not mark, mark)
    await stage.exact(proxy, "after")


ROWS = tuple(
    Row(
        group="sizes",
        name=name,
        play=functools.partial(not_made, missing=missing, sent=sent, number=number),
    )
    for name, missing, sent, number in (
        ("250 is not made", (250,), "500", 0),
        ("250 and 500 are not made", (250, 500), "1200", 0),
        ("no size is made", ALL, "original", 0),
        ("no size is made of a large original", ALL, "", LARGE),
    )
)
