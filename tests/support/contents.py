"""What proxies hold, on the disk and in their index: filled, swept, and compared by the tests."""

from __future__ import annotations

from twisted.internet.defer import gatherResults

from tests.support.running import Proxy
from tests.support.talk import becomes, start, until


async def fill(proxy: Proxy, count: int) -> list[str]:
    """Fetch so many thumbnails of about 300 kB, the first a minute before the second."""
    paths = []
    for i in range(60):
        mbid = proxy.catalogue.release(i).mbid
        answer = await proxy.get(f"/release/{mbid}/front-1200")
        if answer.status == 200:
            paths.append(f"/release/{mbid}/front-1200")
            proxy.now.advance(60)
        if len(paths) == count:
            # The last of them is answered before it is stored.
            await proxy.settled()
            return paths
    raise AssertionError("the catalogue is too small")


def disk_bytes(proxy: Proxy) -> int:
    """What regular files hold, as `du --apparent-size` counts them."""
    return sum((proxy.root / name).stat().st_size for name in proxy.files())


async def nothing_kept(proxy: Proxy) -> None:
    """No file, no link, nothing unfinished, no image in the index."""
    await proxy.settled()
    await until(lambda: not proxy.unfinished(), "temporary files are removed")
    assert proxy.files() == []
    assert proxy.links() == []
    totals = await proxy.cache.index.totals()
    assert (totals.files, totals.size_bytes) == (0, 0)


async def holds_what_the_disk_holds(proxy: Proxy) -> None:
    """Totals are exact."""
    totals = await proxy.cache.index.totals()
    assert (totals.files, totals.size_bytes) == (len(proxy.files()), disk_bytes(proxy))


async def sweep(pair: tuple[Proxy, ...], slices: int = 64) -> None:
    """One sweep by whichever leads."""
    done = [await proxy.cleanup.sweep(slices=slices) for proxy in pair]
    assert sum(each is not None for each in done) == 1


async def until_available(pair: tuple[Proxy, ...]) -> None:
    """Ask until both processes have Redis back, and one leads."""
    indexes = [proxy.cache.index for proxy in pair]
    await becomes(
        lambda: gatherResults([start(index.totals()) for index in indexes]),
        lambda _: all(index.available for index in indexes),
        "Redis is back",
    )
    await becomes(
        lambda: gatherResults([start(proxy.leadership.stand()) for proxy in pair]),
        lambda _: any(proxy.leadership.token for proxy in pair),
        "one leads",
    )
