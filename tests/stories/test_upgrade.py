"""Upgrade and rollback: the version before and this one, one after the other and side by side."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from coverart.simulator.faults import Gate, Rule, Status
from coverart.simulator.service import Simulator
from tests.support.commands import run_coverart
from tests.support.previous import unpack_previous
from tests.support.redis_server import KEY, RedisServer
from tests.support.running import ROOT, Child, ProxyChild, reached
from tests.support.talk import Answer, ask, becomes, start, until, within

OLD, NEW = "the version before", "this version"
WORD = "for-a-test"
DAY_S = 86_400
KINDS = ("thumbnail", "pdf", "merged", "group", "event", "listing")
"""Of the simulated archive's examples; most become a file and a symlink."""
FILES = 5
"""Two of them lead to one image."""
ABSENT = "no_back"
FOLDER = {"event": "event/", "group": "release-group/"}
"""Where their symlinks lie."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@attrs.define
class Upgrade:
    """Both versions on one cache directory, in front of one archive."""

    sim: Simulator
    folder: Path
    sources: dict[str, Path]
    settings: dict[str, str]
    children: list[Child]
    redis: RedisServer | None = None
    bodies: dict[str, bytes] = attrs.field(factory=dict)
    """What each path was answered first, from the archive."""

    async def start(self, version: str) -> ProxyChild:
        """Start a process of a version; what it is was seen."""
        source = {"PYTHONPATH": str(self.sources[version])}
        child = ProxyChild(
            self.folder / "cache",
            self.folder / f"cwd{len(self.children)}",
            **{**self.settings, **source},
        )
        self.children.append(child)
        return await child.ready()

    async def stop(self, child: ProxyChild) -> None:
        """End it as `systemctl stop` does."""
        child.process.send_signal(signal.SIGTERM)
        assert await child.exit_code() in {0, -signal.SIGTERM}
        assert "Traceback" not in child.log.read_text(), child.log.read_text()

    def kill(self, child: ProxyChild) -> None:
        """End it at once; and its leases, as their time would."""
        child.kill()
        if self.redis is not None:
            client = self.redis.client()
            for key in (KEY + b"lead", *client.keys(KEY + b"get:*")):
                client.delete(key)

    async def get(self, child: ProxyChild, path: str, *told: str) -> Answer:
        """Ask; the answer is the archive's, come about in one of the ways told."""
        answer: Answer = await within(start(child.get(path)))
        assert answer["x-cache-status"] in told, (path, answer["x-cache-status"], answer.status)
        assert answer.status == (404 if path == self.sim.catalogue.examples()[ABSENT] else 200)
        if answer.status == 200:
            assert answer.body == self.bodies.setdefault(path, answer.body), path
        return answer

    async def fill(self, child: ProxyChild) -> list[str]:
        """Ask for one thing of each kind; they are on the disk afterwards."""
        paths = [self.sim.catalogue.examples()[kind] for kind in KINDS]
        for path in paths:
            await self.get(child, path, "MISS")
        await self.stored(child, FILES)
        return paths

    async def stored(self, child: ProxyChild, count: int) -> None:
        """Wait until so many files are in the index and on the disk."""

        async def look() -> tuple[int, int]:
            status = (await child.get("/cache-status")).json
            return status["cached_files"], len(child.files())

        await becomes(look, lambda told: told == (count, count), f"{count} files")

    async def nothing_wrong(self, files: int) -> None:
        """A scan by either version finds so many files, nothing to do, and no name it does not know."""
        scans = [
            deferToThread(
                run_coverart,
                self.folder / "cli",
                *("scan", "--dry-run", "--json"),
                COVER_ART_CACHE_DIR=str(self.folder / "cache"),
                **{**self.settings, "PYTHONPATH": str(source)},
            )
            for source in self.sources.values()
        ]
        for said in await gatherResults(scans):
            assert said.code == 0, said
            assert (said.json["files"], said.json["foreign_names"]) == (files, [])
            if self.redis is not None:
                assert (said.json["learnt"], said.json["forgotten"]) == (0, 0)

    async def purge(self, child: ProxyChild, path: str) -> None:
        """As an operator does it."""
        said = await ask(
            f"{child.url}/admin/purge{path}", "POST", {"Authorization": f"Bearer {WORD}"}
        )
        assert said.status == 200


@pytest.fixture
def upgrade(sim: Simulator, tmp_path: Path, children: list[Child]) -> Upgrade:
    """Both versions, in memory mode."""
    old = unpack_previous(tmp_path / "old")
    # It comes before the version that is installed.
    loaded = subprocess.run(
        [sys.executable, "-c", "import coverart; print(coverart.__file__)"],
        env={**os.environ, "PYTHONPATH": str(old)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert loaded.startswith(str(old)), loaded
    settings = {
        **sim.environment(),
        "COVER_ART_ADMIN_TOKEN": WORD,
        "COVER_ART_CACHE_CLEANUP_INTERVAL": "0.2",
        # Unset, the version before passes listings on as received.
        "COVER_ART_PUBLIC_URL": "https://covers.example",
    }
    return Upgrade(sim, tmp_path, {OLD: old, NEW: ROOT}, settings, children)


@pytest.fixture
def rolling(upgrade: Upgrade, redis: RedisServer) -> Upgrade:
    """Both versions, with one Redis."""
    upgrade.redis = redis
    upgrade.settings["COVER_ART_REDIS_URL"] = redis.url
    return upgrade


def age(root: Path, path: str) -> None:
    """Make a symlink so old that what it says is past its time."""
    stamp = (root / path).lstat().st_mtime - 2 * DAY_S
    os.utime(root / path, (stamp, stamp), follow_symlinks=False)


@pytest.fixture(params=["memory", "redis"])
def either(request, upgrade: Upgrade) -> Upgrade:
    """Both versions, with each kind of index."""
    if request.param == "redis":
        return request.getfixturevalue("rolling")  # type: ignore[no-any-return]
    return upgrade


@pytest_twisted.ensureDeferred
async def test_there_and_back(sim, either: Upgrade) -> None:
    """
    What one version leaves is the next one's: files, links, names past their time, a fetch cut off.

    So it is forward, back, and forward again; each adds a cover, and purges one.
    """
    examples = sim.catalogue.examples()
    others = [f"/release/{sim.catalogue.release(n).mbid}/front-500" for n in (20, 21, 22)]
    child = await either.start(OLD)
    held = FILES
    paths = await either.fill(child)
    await either.get(child, examples[ABSENT], "MISS")
    # Killed with one on its way.
    sim.faults.add(Rule(hop="node", times=1, does=Gate(name="hold")))
    cut_off = start(child.get(others[0]))
    cut_off.addErrback(lambda _: None)
    await reached(sim, "hold")
    either.kill(child)
    sim.faults.gates.release("hold")
    await within(cut_off)
    retired = ""
    for version, aged in ((NEW, "event"), (OLD, "group"), (NEW, "")):
        sim.counts.clear()
        # Redis knows better than the symlink's stamp, and sweeps come to each of 4,096 parts in turn.
        ages = aged if either.redis is None else ""
        links = [name for name in child.links() if ages and name.startswith(FOLDER[ages])]
        for link in links:
            age(child.root, link)
        child = await either.start(version)
        for link in links:
            await until((child.root / f"{link}.stale").is_symlink, "a sweep retires the name")
        for path in paths:
            if path != examples.get(ages):
                stale = path == examples.get(retired)
                await either.get(child, path, "STALE" if stale else "HIT")
        if either.redis is not None:
            await either.get(child, examples[ABSENT], "ABSENT")
        assert sim.counts.requests("node") == 0
        retired = ages
        await until(lambda: not child.unfinished(), "what was cut off is cleaned away")  # noqa: B023
        await either.purge(child, paths[0])
        await either.get(child, paths[0], "MISS")
        # A new one, which the other version will find.
        paths.append(others.pop(0))
        await either.get(child, paths[-1], "MISS")
        held += 1
        await either.stored(child, held)
        await either.nothing_wrong(held)
        await either.stop(child)


@pytest.mark.parametrize("first", [OLD, NEW])
@pytest_twisted.ensureDeferred
async def test_untold(sim, rolling: Upgrade, redis: RedisServer, first) -> None:
    """What one version stored while Redis did not answer, before it was killed, the other tells Redis."""
    child = await rolling.start(first)
    paths = await rolling.fill(child)
    redis.pause()
    paths.append(f"/release/{sim.catalogue.release(20).mbid}/front-500")
    await rolling.get(child, paths[-1], "MISS")
    await until(lambda: len(child.files()) == FILES + 1, "it is stored")
    redis.resume()
    rolling.kill(child)
    other = await rolling.start(NEW if first == OLD else OLD)
    await rolling.stored(other, FILES + 1)
    for path in paths:
        await rolling.get(other, path, "HIT")
    await rolling.nothing_wrong(FILES + 1)


@pytest_twisted.ensureDeferred
async def test_side_by_side(sim, rolling: Upgrade) -> None:
    """What one stores, purges or hears to be missing, the other knows, whichever it is."""
    examples = sim.catalogue.examples()
    old = await rolling.start(OLD)
    paths = await rolling.fill(old)
    await rolling.get(old, examples[ABSENT], "MISS")
    new = await rolling.start(NEW)
    sim.counts.clear()
    for path in paths:
        await rolling.get(new, path, "HIT")
    await rolling.get(new, examples[ABSENT], "ABSENT")
    assert sim.counts.requests() == 0
    for one, other in ((new, old), (old, new)):
        for path in paths:
            await rolling.purge(one, path)
            sim.counts.clear()
            await rolling.get(other, path, "MISS")
            await rolling.stored(other, FILES)
            sim.counts.clear()
            await rolling.get(one, path, "HIT")
            assert sim.counts.requests() == 0
        await rolling.purge(one, examples[ABSENT])
        await rolling.get(other, examples[ABSENT], "MISS")
        await rolling.get(one, examples[ABSENT], "ABSENT")
    await rolling.nothing_wrong(FILES)


@pytest.mark.parametrize("fails", [False, True], ids=["found", "failed"])
@pytest.mark.parametrize("first", [OLD, NEW])
@pytest_twisted.ensureDeferred
async def test_one_fetch_for_both(sim, rolling: Upgrade, redis, first, fails) -> None:
    """
    Both are asked at once for a cold cover: one fetch, by whichever was asked first.

    They tell each other of an error in different ways: where it fails, the other tries once too.
    """
    two = {version: await rolling.start(version) for version in (OLD, NEW)}
    second = NEW if first == OLD else OLD
    path = sim.catalogue.examples()["thumbnail"]
    bad = Status(code=503, retry_after="7")
    sim.faults.add(
        Rule(hop="release", does=(Gate(name="hold"), bad) if fails else Gate(name="hold"))
    )
    asked = [start(two[first].get(path)) for _ in range(5)]
    await reached(sim, "hold")
    claimed = claimed_by_another(redis)
    asked += [start(two[second].get(path)) for _ in range(5)]
    await within(claimed)
    assert sim.counts.requests("release") == 1
    sim.faults.gates.open("hold")
    answers = await within(gatherResults(asked))
    # Each version has its own words for an error, and this one an id for each request.
    assert fails or len({answer.body for answer in answers}) == 1
    assert {answer["Retry-After"] for answer in answers} == {"7" if fails else ""}
    assert {answer.status for answer in answers} == {503 if fails else 200}
    assert sim.counts.requests("release") == 1 or (fails and sim.counts.requests("release") == 2)
    if not fails:
        assert sim.counts.requests("archive") == 1
        assert sim.counts.requests("node") == 1
        await rolling.stored(two[second], 1)
        for version in (OLD, NEW):
            await rolling.get(two[version], path, "HIT")
        await rolling.nothing_wrong(1)


def claimed_by_another(redis: RedisServer) -> Deferred[None]:
    """Fires once another than who has it asks for the right to fetch the one thing that is fetched."""
    client = redis.client()
    (key,) = client.keys(KEY + b"get:*")
    owner = client.get(key).decode()
    monitor = client.monitor().__enter__()

    def watch() -> None:
        for each in monitor.listen():
            told = each["command"]
            if f"{KEY.decode()}get:" in told and owner not in told:
                break
        # Until then it must be referred to: its connections end with it.
        client.close()

    return deferToThread(watch)


@pytest_twisted.ensureDeferred
async def test_one_leader(sim, rolling: Upgrade, redis: RedisServer) -> None:
    """Of both versions one leads; where it ends the other takes over, and keeps the limit."""
    rolling.settings |= {"COVER_ART_CACHE_MAX_SIZE": "1", "COVER_ART_CACHE_CLEAN_TO": "0.8"}
    running = [await rolling.start(version) for version in (OLD, NEW)]
    for last in (OLD, NEW, OLD):
        leaders: list[set[str]] = []
        for number in range(4 * len(running)):
            item = sim.catalogue.release(number + 10)
            await within(start(running[number % 2].get(f"/release/{item.mbid}/front-1200")))
            leaders.append({(await child.get("/cache-status")).json["leader"] for child in running})
        assert leaders[-1] == {lead(redis)}
        assert all(len(each) == 1 for each in leaders), leaders
        await until(lambda: disk_bytes(running[0]) <= 1 << 20, "the one that leads evicts")
        leading = next(child for child in running if is_of(child, lead(redis)))
        running.remove(leading)
        before = lead(redis)
        await rolling.stop(leading)
        await until(led_by_another(redis, before), "the other takes over")
        running.append(await rolling.start(last))
    await rolling.nothing_wrong(len(running[0].files()))


def lead(redis: RedisServer) -> str:
    """Who leads, as Redis has it."""
    told = redis.client().get(KEY + b"lead")
    return "" if told is None else told.decode()


def led_by_another(redis: RedisServer, before: str) -> Callable[[], bool]:
    return lambda: lead(redis) not in {"", before}


def is_of(child: ProxyChild, token: str) -> bool:
    """Whether that is the process with this token."""
    return f"as {token}" in child.log.read_text()


def disk_bytes(child: ProxyChild) -> int:
    """What the files hold; some may go meanwhile."""
    held = 0
    for name in child.files():
        with contextlib.suppress(FileNotFoundError):
            held += (child.root / name).stat().st_size
    return held
