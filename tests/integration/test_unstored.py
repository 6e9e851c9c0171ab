"""A disk that takes no more: clients get their covers all the same, and the disk stays in bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_twisted

from coverart.cache import size_limits
from coverart.index.base import Totals
from coverart.simulator.answers import listing
from coverart.simulator.faults import Gate, Rule, Status
from coverart.simulator.service import Simulator
from tests.support.disk import fill_up
from tests.support.drawings import STUDIO
from tests.support.programs import NotHere, run_command
from tests.support.running import Proxy, reached
from tests.support.talk import Answer, ask, start, until, within

MEGABYTE = 1 << 20
LARGE = 11
WORD = "for-a-test"
FULL = "coverart; fwd=uri-miss; stored=?0; detail=disk-full"


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 4 MB where the cache will be; gone after the test."""
    root = tmp_path / "cache"
    root.mkdir()
    try:
        run_command("mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", os.fspath(root))
    except NotHere as error:
        pytest.skip(str(error))
    yield root
    run_command("umount", "-l", os.fspath(root))


def wanted(sim: Simulator) -> list[tuple[str, bytes]]:
    """A thumbnail, a large original and a listing: their paths and their bytes."""
    small, large = sim.catalogue.release(0), sim.catalogue.release(LARGE)
    assert small.front is not None
    assert large.front is not None
    return [
        (f"/release/{small.mbid}/front-250", STUDIO.archive_bytes(small.front, 250)),
        (f"/release/{large.mbid}/front", STUDIO.archive_bytes(large.front, None)),
        (f"/release/{large.mbid}/", listing(large)),
    ]


def lies(root: Path) -> int:
    """The bytes of all files below a folder, unfinished ones too."""
    found = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                found += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return found


@pytest_twisted.ensureDeferred
async def test_full_disk(sim, run, small_disk, lines) -> None:
    """
    A crowd for each thing gets it, from one fetch; the operator reads it once.

    With room again the next fetch is stored.
    """
    proxy = await run()
    filler = fill_up(small_disk)
    for path, body in wanted(sim):
        before = sim.counts.requests("node")
        sim.faults.add(Rule(hop="node", times=1, does=Gate(name="hold")))
        crowd = [start(proxy.get(path)) for _ in range(20)]
        await reached(sim, "hold")
        await until(lambda: proxy.waiting() == 20, "all wait")
        sim.faults.gates.release("hold")
        answers: list[Answer] = [await within(each) for each in crowd]
        assert {(each.status, each["x-cache-status"]) for each in answers} == {(200, "MISS")}
        assert all(each.body == body for each in answers)
        assert [each["cache-status"] for each in answers].count(FULL) == 1
        assert all(each["cache-status"].endswith(FULL[-28:]) for each in answers)
        assert sim.counts.requests("node") == before + 1
    assert len([line for line in lines if "are not stored" in line]) == 1
    assert [name for name in proxy.files() if name != "filler"] == proxy.unfinished() == []
    filler.unlink()
    for path, body in wanted(sim):
        answer = await proxy.get(path)
        assert (answer.body, "stored=?0" in answer["cache-status"]) == (body, False)
        await proxy.settled()
        assert (await proxy.get(path))["x-cache-status"] == "HIT"


@pytest_twisted.ensureDeferred
async def test_full_disk_behind_nginx(sim, run, nginx, small_disk, lines) -> None:
    """Nginx passes on what can't be stored, whatever its size, range or method; hits are its own."""
    proxy = await run(COVER_ART_ACCEL="/cache-files/")
    front = await nginx(proxy)
    held = f"/release/{sim.catalogue.release(3).mbid}/front-250"
    await front.get(held)
    await proxy.settled()
    fill_up(small_disk)
    for path, body in wanted(sim):
        for _ in range(2):
            answer = await front.get(path)
            assert (answer.status, answer["x-cache-status"]) == (200, "MISS")
            assert (answer["cache-status"], answer.body) == (FULL, body)
        ranged = await front.get(path, range="bytes=5-14")
        assert (ranged.status, ranged.body) == (206, body[5:15])
        head = await front.get(path, "HEAD")
        assert (head.status, head["content-length"]) == (200, str(len(body)))
    assert (await front.get(held))["x-served-by"] == "nginx-cache"
    await proxy.settled()
    assert not any("could not be fetched" in line for line in lines)


@pytest_twisted.ensureDeferred
async def test_memory_for_slow_clients(sim, run, small_disk, monkeypatch) -> None:
    """With far less memory than one original takes, it flows to its clients, and again after them."""
    proxy = await run()
    fill_up(small_disk)
    monkeypatch.setattr(size_limits, "MOST_IN_MEMORY_BYTES", 100_000)
    path, body = wanted(sim)[1]
    assert len(body) > 500_000
    for _ in range(2):
        sim.faults.add(Rule(hop="node", times=1, does=Gate(name="hold")))
        crowd = [start(proxy.get(path)) for _ in range(5)]
        await reached(sim, "hold")
        await until(lambda: proxy.waiting() == 5, "all wait")
        sim.faults.gates.release("hold")
        for each in crowd:
            assert (await within(each)).body == body
    await proxy.settled()
    assert proxy.unfinished() == []


@pytest_twisted.ensureDeferred
async def test_other_process_fetches_too(sim, run, redis, small_disk) -> None:
    """Who waited in another process, which gets nothing from the disk, fetches for itself."""
    proxies = [await run(COVER_ART_REDIS_URL=redis.url) for _ in range(2)]
    fill_up(small_disk)
    for path, body in wanted(sim):
        sim.faults.add(Rule(hop="node", times=1, does=Gate(name="hold")))
        asking = [start(each.get(path)) for each in proxies]
        await reached(sim, "hold")
        sim.faults.gates.release("hold")
        for each in asking:
            answer = await within(each)
            assert (answer.status, answer.body) == (200, body)


@pytest_twisted.ensureDeferred
async def test_refresh_without_room(sim, run, small_disk, lines) -> None:
    """What is stale and can't be replaced goes on being served, and is taken for no fault of the archive."""
    proxy = await run(COVER_ART_ALIAS_TTL="100", COVER_ART_LISTING_TTL="100")
    (thumbnail, _), _, (listed, _) = wanted(sim)
    for path in (thumbnail, listed):
        await proxy.get(path)
    await proxy.settled()
    fill_up(small_disk)
    proxy.now.advance(200)
    # An image that is held and still the right one needs no room.
    for path, told in ((thumbnail, "STALE"), (thumbnail, "HIT"), (listed, "STALE")) * 2:
        answer = await proxy.get(path)
        assert (answer.status, answer["x-cache-status"]) == (200, told)
        await proxy.settled()
        proxy.now.advance(200 if told == "HIT" else 0)
    assert any("can't be stored (disk-full)" in line for line in lines)
    assert not any("Traceback" in line for line in lines)


@pytest_twisted.ensureDeferred
async def test_gone_from_archive_while_read_only(sim, run, small_disk, lines) -> None:
    """On a disk that was remounted read-only a name that is no more is a 404, and can be purged."""
    proxy = await run(COVER_ART_ALIAS_TTL="100", COVER_ART_ADMIN_TOKEN=WORD)
    (path, _), *_ = wanted(sim)
    await proxy.get(path)
    await proxy.settled()
    run_command("mount", "-o", "remount,ro", os.fspath(small_disk))
    sim.faults.add(Rule(hop="release", does=Status(code=404)))
    proxy.now.advance(200)
    for status, told in ((200, "STALE"), (404, "ABSENT")):
        answer = await proxy.get(path)
        assert (answer.status, answer["x-cache-status"]) == (status, told)
        await proxy.settled()
    purged = await ask(
        f"{proxy.url}/admin/purge{path}", "POST", {"Authorization": f"Bearer {WORD}"}
    )
    assert purged.status == 200
    assert any("Read-only file system" in line for line in lines)
    assert not any("Traceback" in line for line in lines)
    run_command("mount", "-o", "remount,rw", os.fspath(small_disk))


# More than may be held


async def ask_for_all(sim: Simulator, proxies: list[Proxy], root: Path) -> tuple[list[str], int]:
    """Ask for 40 covers of about 300 kB at once: how each was told to be kept; most bytes that lay there."""
    paths = [f"/release/{sim.catalogue.release(n).mbid}/front-1200" for n in range(55)]
    asking = [start(proxies[n % len(proxies)].get(path)) for n, path in enumerate(paths)]
    told, most = [], 0
    for each in asking:
        answer = await within(each)
        assert answer.status in (200, 404), answer.status
        if answer.status == 200:
            told.append(answer["cache-status"])
        most = max(most, lies(root))
    assert len(told) > 30
    return told, most


@pytest_twisted.ensureDeferred
async def test_bound_between_sweeps(sim, run, monkeypatch) -> None:
    """Past the maximum a sweep starts at once; past the slack, too, nothing more is stored."""
    monkeypatch.setattr(size_limits, "SLACK_BYTES", 2 * MEGABYTE)
    proxy = await run(COVER_ART_CACHE_MAX_SIZE="1")
    told, most = await ask_for_all(sim, [proxy], proxy.root)
    assert most <= 3 * MEGABYTE
    assert any(each.endswith("stored=?0; detail=cache-full") for each in told)
    await until(lambda: lies(proxy.root) <= MEGABYTE, "a sweep, long before the next is due")
    path = f"/release/{sim.catalogue.release(58).mbid}/front-250"
    assert "stored=?0" not in (await proxy.get(path))["cache-status"]


@pytest_twisted.ensureDeferred
async def test_bound_after_an_error(sim, run, redis, monkeypatch) -> None:
    """A look at the size that fails for a reason nobody thought of is not the last one."""
    monkeypatch.setattr(size_limits, "SLACK_BYTES", 2 * MEGABYTE)
    proxy = await run(COVER_ART_CACHE_MAX_SIZE="1", COVER_ART_REDIS_URL=redis.url)
    failed: list[Exception] = []

    async def totals() -> Totals:
        failed.append(RuntimeError("nobody thought of this"))
        raise failed[-1]

    with monkeypatch.context() as patch:
        patch.setattr(proxy.cache.index, "totals", totals)
        await until(lambda: failed, "a look")
    await ask_for_all(sim, [proxy], proxy.root)
    await until(lambda: lies(proxy.root) <= MEGABYTE, "a sweep, long before the next is due")


@pytest_twisted.ensureDeferred
async def test_bound_of_several(sim, run, redis, monkeypatch) -> None:
    """Processes hear from Redis what the others stored; whoever leads sweeps for all."""
    monkeypatch.setattr(size_limits, "SLACK_BYTES", 2 * MEGABYTE)
    settings = {"COVER_ART_CACHE_MAX_SIZE": "1", "COVER_ART_REDIS_URL": redis.url}
    proxies = [await run(**settings) for _ in range(3)]
    _, most = await ask_for_all(sim, proxies, proxies[0].root)
    # Each may store as much as it could alone before it hears of the others.
    assert most <= 3 * 3 * MEGABYTE
    await until(lambda: lies(proxies[0].root) <= MEGABYTE, "a sweep, long before the next is due")


@pytest_twisted.ensureDeferred
async def test_bound_without_redis(sim, run, redis, monkeypatch) -> None:
    """While Redis is away a process goes by what it stored itself, and by what it sees in a sweep."""
    monkeypatch.setattr(size_limits, "SLACK_BYTES", 2 * MEGABYTE)
    proxy = await run(COVER_ART_CACHE_MAX_SIZE="1", COVER_ART_REDIS_URL=redis.url)
    redis.kill()
    told, most = await ask_for_all(sim, [proxy], proxy.root)
    assert most <= 3 * MEGABYTE
    assert any(each.endswith("stored=?0; detail=cache-full") for each in told)
    await until(lambda: lies(proxy.root) <= MEGABYTE, "a sweep, long before the next is due")
    path = f"/release/{sim.catalogue.release(58).mbid}/front-250"
    assert "stored=?0" not in (await proxy.get(path))["cache-status"]
