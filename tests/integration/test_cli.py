"""The `coverart` command as a process, beside a running service, with Redis and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from coverart.simulator.catalogue import Catalogue
from tests.support.commands import Said, run_coverart
from tests.support.redis_server import KEY, RedisServer
from tests.support.running import Proxy
from tests.support.talk import LOCAL, until


@pytest.fixture
def coverart(tmp_path: Path):
    """Run a command on the cache directory of the test."""
    (tmp_path / "cli").mkdir()

    async def command(*words: str, **settings: str) -> Said:
        given = {"COVER_ART_CACHE_DIR": str(tmp_path / "cache"), **settings}
        said: Said = await deferToThread(run_coverart, tmp_path / "cli", *words, **given)
        return said

    return command


async def fill(proxy: Proxy, catalogue: Catalogue) -> None:
    """Six files and five links."""
    examples = catalogue.examples()
    for name in ("thumbnail", "pdf", "merged", "event", "group", "listing"):
        assert (await proxy.get(examples[name])).status == 200
    await proxy.settled()
    await until(lambda: len(proxy.links()) == 5, "names are linked")


def lines(text: str) -> list[str]:
    return text.splitlines()


@pytest_twisted.ensureDeferred
async def test_disk_alone(sim, run, coverart) -> None:
    """Without Redis a scan tells what the disk holds and whose the index is; exit code 0."""
    proxy = await run()
    await fill(proxy, sim.catalogue)
    (proxy.root / "notes.txt").write_text("mine")
    said = await coverart("scan", "--json")
    status = (await proxy.get("/cache-status")).json
    assert said.code == 0
    assert said.err == ""
    told = said.json
    assert (told["files"], told["size_bytes"]) == (
        status["cached_files"],
        status["cache_size_bytes"],
    )
    assert (told["links"], told["foreign_names"]) == (5, ["notes.txt"])
    assert told["index"] == "none"
    said = await coverart("scan")
    assert said.code == 0
    assert "index                none\n" in said.out


@pytest_twisted.ensureDeferred
async def test_both_directions(sim, run, redis: RedisServer, coverart) -> None:
    """
    With Redis a scan beside the running service mends both ways; a dry run says so beforehand.

    Then the service serves what was put there by hand, and totals are those of the disk.
    """
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    await fill(proxy, sim.catalogue)
    with_redis = {"COVER_ART_REDIS_URL": redis.url}
    fine = await coverart("scan", "--dry-run", "--json", **with_redis)
    assert (fine.code, fine.json["learnt"], fine.json["forgotten"]) == (0, 0, 0)
    first = next(name for name in proxy.files() if name.endswith("_250.jpg"))
    second = next(name for name in proxy.files() if name.endswith(".pdf"))
    folder, _, name = first.rpartition("/")
    new = proxy.root / folder / f"{name[:36]}_77_250.jpg"
    new.write_bytes((proxy.root / first).read_bytes() + b"more")
    (proxy.root / second).unlink()
    held = (await proxy.get("/cache-status")).json
    dry = await coverart("scan", "--dry-run", "--json", **with_redis)
    assert (dry.code, dry.json["learnt"], dry.json["forgotten"]) == (1, 1, 1)
    assert (await proxy.get("/cache-status")).json["cache_size_bytes"] == held["cache_size_bytes"]
    said = await coverart("scan", "--json", **with_redis)
    assert (said.code, said.json["learnt"], said.json["forgotten"]) == (0, 1, 1)
    status = (await proxy.get("/cache-status")).json
    sizes = [(proxy.root / name).stat().st_size for name in proxy.files()]
    assert (status["cached_files"], status["cache_size_bytes"]) == (len(sizes), sum(sizes))
    answer = await proxy.get(f"/release/{name[:36]}/77-250")
    assert (answer["X-Cache-Status"], answer.body) == ("HIT", new.read_bytes())
    again = await coverart("scan", "--dry-run", "--json", **with_redis)
    assert (again.code, again.json["learnt"], again.json["forgotten"]) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_flushed(sim, run, redis: RedisServer, coverart) -> None:
    """A Redis that was flushed is filled from the disk, and its totals are exact."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    await fill(proxy, sim.catalogue)
    status = (await proxy.get("/cache-status")).json
    redis.client().flushall()
    said = await coverart("scan", "--json", f"--redis-url={redis.url}")
    assert said.code == 0
    assert said.json["learnt"] == status["cached_files"] + status["aliases"]
    stats = (await coverart("stats", "--json", f"--redis-url={redis.url}")).json
    for name in ("cached_files", "cache_size_bytes", "release_files", "aliases"):
        assert stats[name] == status[name], name
    sim.counts.clear()
    for name in ("thumbnail", "pdf", "merged", "event", "group", "listing"):
        assert (await proxy.get(sim.catalogue.examples()[name]))["X-Cache-Status"] == "HIT"
    assert sim.counts.requests() == 0


@pytest_twisted.ensureDeferred
async def test_verify(sim, run, redis: RedisServer, coverart) -> None:
    """A file that is not what its name says is told, removed, and fetched again when asked for."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    path = sim.catalogue.examples()["thumbnail"]
    body = (await proxy.get(path)).body
    await proxy.settled()
    (name,) = proxy.files()
    file = proxy.root / name
    stored = file.stat()
    file.write_bytes(b"x" * len(body))
    # Else it is seen to have been written over since it was stored.
    os.utime(file, (stored.st_mtime, stored.st_mtime))
    assert (await coverart("scan", "--dry-run", COVER_ART_REDIS_URL=redis.url)).code == 0
    dry = await coverart("scan", "--verify", "--dry-run", "--json", COVER_ART_REDIS_URL=redis.url)
    assert (dry.code, dry.json["damaged_names"]) == (1, [name])
    assert file.exists()
    said = await coverart("scan", "--verify", "--json", COVER_ART_REDIS_URL=redis.url)
    assert (said.code, said.json["damaged"]) == (1, 1)
    assert not file.exists()
    answer = await proxy.get(path)
    assert (answer["X-Cache-Status"], answer.body) == ("MISS", body)
    await proxy.settled()
    assert (await proxy.get("/cache-status")).json["cached_files"] == 1


@pytest_twisted.ensureDeferred
async def test_stats(sim, run, coverart) -> None:
    """Without Redis the running service is asked, by the endpoint it listens on or by URL."""
    proxy = await run()
    await fill(proxy, sim.catalogue)
    status = (await proxy.get("/cache-status")).json
    by_url = await coverart("stats", "--json", "--url", proxy.url)
    listen = f"unix:/tmp/nowhere tcp:{proxy.port}:interface={LOCAL}"
    by_setting = await coverart("stats", "--json", COVER_ART_LISTEN=listen)
    for said in (by_url, by_setting):
        assert said.code == 0
        assert said.json["cached_files"] == status["cached_files"]
    table = await coverart("stats", f"--listen=tcp:port={proxy.port}")
    assert table.code == 0
    assert f"{status['cache_size_bytes']:,}" in table.out


@pytest_twisted.ensureDeferred
async def test_clean(sim, run, coverart) -> None:
    """
    Without Redis: refused while a service runs, unless forced; after it, the oldest files go.

    A dry run says before about what will go.
    """
    proxy = await run()
    await fill(proxy, sim.catalogue)
    held = (await coverart("scan", "--json")).json["size_bytes"]
    refused = await coverart("clean", "--to=0.01")
    assert (refused.code, refused.out) == (3, "")
    assert len(lines(refused.err)) == 1
    assert "--force" in refused.err
    await proxy.stop()
    dry = (await coverart("clean", "--to=0.01", "--dry-run", "--json")).json
    assert (await coverart("scan", "--json")).json["size_bytes"] == held
    said = await coverart("clean", "--to=0.01", "--json")
    assert said.code == 0
    told = said.json
    assert told["size_bytes"] <= 0.01 * 2**20
    assert 0 < dry["evicted_bytes"] <= told["evicted_bytes"]
    assert dry["files"] + dry["evicted"] == told["files"] + told["evicted"]
    left = (await coverart("scan", "--json")).json
    assert (left["files"], left["size_bytes"]) == (told["files"], told["size_bytes"])
    assert left["dangling"] == 0
    assert (await coverart("clean", "--json")).json["evicted"] == 0


@pytest_twisted.ensureDeferred
async def test_clean_follows_no_symlink(coverart, tmp_path) -> None:
    """
    A symlink in the place of the folder of unfinished files: what it leads to stays.

    Whoever may write to the cache directory must not choose what root's `coverart clean` removes.
    """
    precious = tmp_path / "elsewhere"
    precious.mkdir()
    for name in ("notes.txt", "0" * 24):
        (precious / name).write_text("precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".incoming").symlink_to(precious)
    said = await coverart("clean", "--json")
    assert (said.code, said.json["orphans"]) == (0, 0)
    assert sorted(path.name for path in precious.iterdir()) == ["0" * 24, "notes.txt"]


@pytest_twisted.ensureDeferred
async def test_clean_leads(sim, run, redis: RedisServer, coverart) -> None:
    """With Redis the command must lead: another leader is named, nobody's lead is taken."""
    proxy = await run(COVER_ART_REDIS_URL=redis.url)
    await fill(proxy, sim.catalogue)
    with_redis = {"COVER_ART_REDIS_URL": redis.url}
    refused = await coverart("clean", "--to=0", **with_redis)
    leader = (await proxy.get("/cache-status")).json["leader"]
    assert refused.code == 3
    assert leader.rpartition(":")[0] in refused.err
    dry = await coverart("clean", "--to=0", "--dry-run", "--json", **with_redis)
    assert (dry.code, dry.json["files"]) == (0, 0)
    assert proxy.files()
    await proxy.stop()
    redis.client().set(KEY + b"lead", b"ghost-1:abc")
    refused = await coverart("clean", "--to=0", **with_redis)
    assert (refused.code, "ghost-1 leads" in refused.err) == (3, True)
    redis.client().delete(KEY + b"lead")
    said = await coverart("clean", "--to=0", "--json", **with_redis)
    assert (said.code, said.json["files"]) == (0, 0)
    assert proxy.files() == []
    assert redis.client().get(KEY + b"lead") is None


@pytest_twisted.ensureDeferred
async def test_not_now(redis: RedisServer, coverart, tmp_path) -> None:
    """Redis away, or no service: exit code 3 and one line that says so."""
    (tmp_path / "cache").mkdir()
    redis.kill()
    for words in (("scan",), ("stats",), ("clean",), ("clean", "--dry-run")):
        said = await coverart(*words, COVER_ART_REDIS_URL=redis.url)
        assert (said.code, said.out) == (3, ""), words
        assert lines(said.err)[-1].startswith("coverart: ")
    for url in ("http://127.0.0.1:1", "localhost"):
        said = await coverart("stats", f"--url={url}")
        assert (said.code, len(lines(said.err))) == (3, 1)
    assert (await coverart("stats", COVER_ART_LISTEN="unix:/tmp/nowhere")).code == 3


@pytest_twisted.ensureDeferred
async def test_wrong_use(coverart, tmp_path) -> None:
    """Settings and options that can't be used: exit code 2 and a line that names them."""
    nowhere = str(tmp_path / "nowhere")
    for words, settings, named in (
        (("scan",), {"COVER_ART_CACHE_DIR": nowhere}, "COVER_ART_CACHE_DIR"),
        (("scan", "--cache-max-size=0"), {}, "COVER_ART_CACHE_MAX_SIZE='0'"),
        (("stats",), {"COVER_ART_REDIS_URL": "localhost"}, "COVER_ART_REDIS_URL"),
        (("clean", "--to=-1"), {}, "--to"),
        (("sweep",), {}, "sweep"),
    ):
        said = await coverart(*words, **settings)
        assert (said.code, said.out) == (2, ""), words
        assert named in said.err
    assert not Path(nowhere).exists()


@pytest_twisted.ensureDeferred
async def test_env_file(coverart, tmp_path) -> None:
    """A .env file in the working directory counts as it does for the service; an option wins."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "cli" / ".env").write_text(f"COVER_ART_CACHE_DIR={tmp_path / 'one'}\n")
    said = await coverart("scan", "--json", COVER_ART_CACHE_DIR="")
    assert said.json["cache_dir"] == str(tmp_path / "one")
    said = await coverart("scan", "--json", f"--cache-dir={tmp_path / 'two'}")
    assert said.json["cache_dir"] == str(tmp_path / "two")
