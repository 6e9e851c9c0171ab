"""The disk stays within its limit whatever else is wrong: told from outside, with real processes."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from coverart.model import Entity, ImageRef, MediaType
from coverart.store import layout
from coverart.store.image_store import ImageStore
from tests.support.disk import put_file
from tests.support.redis_server import RedisServer
from tests.support.running import ROOT, ProxyChild, UnprivilegedChild
from tests.support.talk import SAFETY_S, ask, until

MEGABYTE = 2**20


async def fill(sim, child: ProxyChild, first: int, count: int) -> list[str]:
    """Ask for so many thumbnails of about 300 kB, one after the other; give their paths."""
    paths: list[str] = []
    for number in range(first, first + 50):
        path = f"/release/{sim.catalogue.release(number).mbid}/front-1200"
        if (await ask(child.url + path)).status == 200:
            paths.append(path)
        if len(paths) == count:
            return paths
    raise AssertionError("the catalogue is too small")


def size(child: ProxyChild) -> int:
    """The bytes of what clients can be served."""
    found = 0
    for name in child.files():
        try:
            found += (child.root / name).stat().st_size
        except FileNotFoundError:
            continue
    return found


SLOW = """
import os, pathlib, time
def slow(name):
    real = getattr(os, name)
    def call(*args, **named):
        if isinstance(args[0], int) or os.environ["COVER_ART_CACHE_DIR"] in str(args[0]):
            pathlib.Path(os.environ["SLOW_BEGAN"]).touch()
            time.sleep(0.02)
        return real(*args, **named)
    setattr(os, name, call)
slow(os.environ["SLOW_CALL"])
"""
"""A disk on which one call takes 20 ms: Python runs this before anything else."""


def thousand(root: Path) -> None:
    """A thousand images of 2 kB in as many folders."""
    store = ImageStore(root)
    for number in range(1000):
        mbid = f"{number:03x}00000-0000-4000-8000-000000000000"
        key = ImageRef(owner=Entity.RELEASE, mbid=mbid, image_id=7).at(250)
        path = layout.image_path(key, MediaType.JPEG)
        put_file(store, path, b"\xff\xd8\xff\xe0" + bytes(2000), 1_600_000_000.0 + number)


async def sweeps(child: ProxyChild) -> int:
    """How many sweeps it has done."""
    text = (await ask(f"{child.url}/metrics")).body.decode()
    (count,) = re.findall(r"^coverart_sweep_seconds_count (\d+)", text, re.MULTILINE)
    return int(count)


async def swept(child: ProxyChild) -> None:
    """Wait for one sweep that begins after this call, from its begin to its end."""
    before = await sweeps(child)
    deadline = reactor.seconds() + SAFETY_S
    while await sweeps(child) < before + 2:
        assert reactor.seconds() < deadline, "it does not sweep"
        await deferLater(reactor, 0.02)


@pytest_twisted.ensureDeferred
async def test_file_that_cannot_be_removed(sim, tmp_path: Path, children) -> None:
    """
    The oldest file lies in a folder that takes no changes: the next ones go in its place.

    It stays known and is served; the operator is told once, however many sweeps try; once the
    folder takes changes again the file goes.
    """
    child = UnprivilegedChild(
        tmp_path / "cache",
        tmp_path / "cwd",
        **sim.environment(),
        COVER_ART_CACHE_MAX_SIZE="1",
        COVER_ART_CACHE_CLEAN_TO="0.8",
        COVER_ART_CACHE_CLEANUP_INTERVAL="0.2",
    )
    children.append(child)
    await child.ready()
    (oldest,) = await fill(sim, child, 0, 1)
    await until(lambda: len(child.files()) == 1, "it is stored")
    (kept,) = child.files()
    folder = (child.root / kept).parent
    folder.chmod(0o555)
    try:
        for round_ in range(3):
            await fill(sim, child, 3 + 8 * round_, 5)
            await until(lambda: size(child) <= MEGABYTE, "the next ones are evicted")
        await swept(child)
        assert kept in child.files()
        assert (await ask(child.url + oldest))["x-cache-status"] == "HIT"
        status = (await ask(f"{child.url}/cache-status")).json
        assert (status["cached_files"], status["cache_size_bytes"]) == (
            len(child.files()),
            size(child),
        )
        assert len(re.findall("can't be read, removed", child.log.read_text())) == 1
    finally:
        folder.chmod(0o755)
    await fill(sim, child, 30, 5)
    await until(lambda: kept not in child.files(), "it goes")


@pytest.mark.parametrize("call", ["unlink", "scandir"])
@pytest_twisted.ensureDeferred
async def test_stops_in_the_middle_of_a_sweep(
    sim, tmp_path: Path, children, redis: RedisServer, call
) -> None:
    """
    SIGTERM while a sweep is evicting, or reads the disk, on a slow disk: the end comes at once.

    Both would go on for 20 s. The lead is handed over, and the next process ends the work.
    """
    thousand(tmp_path / "cache")
    began = tmp_path / "began"
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    settings = {
        **sim.environment(),
        "COVER_ART_REDIS_URL": redis.url,
        "COVER_ART_CACHE_MAX_SIZE": "1",
        "COVER_ART_CACHE_CLEAN_TO": "0.01",
    }
    child = ProxyChild(
        tmp_path / "cache",
        tmp_path / "cwd",
        **settings,
        PYTHONPATH=f"{tmp_path / 'slow'}{os.pathsep}{ROOT}",
        SLOW_CALL=call,
        SLOW_BEGAN=str(began),
    )
    children.append(child)
    if call == "unlink":
        await until(lambda: len(child.files()) < 1000, "it is evicting")
    await until(began.exists, "it is at it")
    told = time.monotonic()
    child.process.send_signal(signal.SIGTERM)
    assert await child.exit_code() in {0, -signal.SIGTERM}
    assert time.monotonic() - told < 3.0
    assert len(child.files()) > 500
    assert redis.client().get(b"coverart:1:default:lead") is None
    after = ProxyChild(tmp_path / "cache", tmp_path / "cwd", **settings)
    children.append(after)
    await after.ready()
    status = (await ask(f"{after.url}/cache-status")).json
    assert size(after) <= MEGABYTE
    assert (status["cached_files"], status["cache_size_bytes"]) == (
        len(after.files()),
        size(after),
    )


@pytest_twisted.ensureDeferred
async def test_redis_away(sim, tmp_path: Path, children, redis: RedisServer) -> None:
    """
    Redis does not answer: the disk stays within its limit and old links go, by one of the processes.

    Once it answers again it knows what is left, no more and no less.
    """
    settings = {
        **sim.environment(),
        "COVER_ART_REDIS_URL": redis.url,
        "COVER_ART_CACHE_MAX_SIZE": "1",
        "COVER_ART_CACHE_CLEAN_TO": "0.6",
        "COVER_ART_CACHE_CLEANUP_INTERVAL": "0.5",
        "COVER_ART_ALIAS_TTL": "2",
    }
    two = []
    for number in range(2):
        child = ProxyChild(tmp_path / "cache", tmp_path / f"cwd{number}", **settings)
        children.append(child)
        two.append(await child.ready())
    one, other = two
    await fill(sim, one, 0, 2)
    await until(lambda: len(one.files()) == 2, "both are stored")
    (oldest, _) = sorted(one.files(), key=lambda name: (one.root / name).stat().st_mtime)
    redis.pause()
    asked = [*await fill(sim, one, 5, 4), *await fill(sim, other, 25, 4)]
    # A sweep comes at once past the limit, so more may be stored since.
    await until(
        lambda: size(one) <= MEGABYTE and oldest not in one.files(), "the oldest are evicted"
    )
    await until(
        lambda: all(name.endswith(layout.RETIRED) for name in one.links()),
        "nginx sees no alias past its time",
    )
    left = one.files()
    redis.resume()
    deadline = reactor.seconds() + 60
    while True:
        status = (await ask(f"{one.url}/cache-status")).json
        if (status["cached_files"], status["cache_size_bytes"]) == (len(left), size(one)):
            break
        assert reactor.seconds() < deadline, (status, left)
        await deferLater(reactor, 0.1)
    assert one.files() == left
    assert (await ask(one.url + asked[-1]))["x-cache-status"] in {"HIT", "STALE"}
