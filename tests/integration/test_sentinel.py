"""Redis behind Sentinel: the proxy asks it for the master, and again after a failover."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import pytest_twisted
import valkey
from twisted.internet import reactor

from coverart.coordination.redis_client import RedisLink
from coverart.coordination.redis_url import parse_address
from coverart.coordination.untold_mark import Mark
from coverart.index.base import IndexAway
from coverart.index.redis import RedisIndex
from coverart.model import Entity, FileEntry, Found, ListingKey
from tests.support.programs import find_redis
from tests.support.running import free_port
from tests.support.talk import becomes, until

LISTING = ListingKey(entity=Entity.RELEASE, mbid="353710ec-1509-4df9-8ce2-9bd5011e3b80")
PASSWORD = "a secret"  # noqa: S105 - of this test's own servers


class Server:
    """One server at a local port, with a password, as Sentinel needs it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        folder.mkdir()
        words = [find_redis(), "--port", str(self.port), "--dir", str(folder), "--save", ""]
        secret = ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
        self.process = subprocess.Popen(
            [*words, *secret, *options], stdout=subprocess.DEVNULL, cwd=folder
        )

    def client(self) -> Any:
        return valkey.Valkey(port=self.port, password=PASSWORD, socket_timeout=5)

    def answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except valkey.ConnectionError:
            return False


@pytest_twisted.ensureDeferred
async def test_follows_the_master(tmp_path: Path) -> None:
    """What is told goes to the master; when another server becomes it, there."""
    first = Server(tmp_path / "first")
    second = Server(tmp_path / "second", "--replicaof", f"127.0.0.1 {first.port}")
    started = [first.process, second.process]
    sentinel_port = free_port()
    folder = tmp_path / "sentinel"
    folder.mkdir()
    (folder / "sentinel.conf").write_text(
        f"port {sentinel_port}\nsentinel monitor covers 127.0.0.1 {first.port} 1\n"
        f'sentinel auth-pass covers "{PASSWORD}"\nsentinel down-after-milliseconds covers 500\n'
        "sentinel failover-timeout covers 2000\n"
    )
    try:
        await until(lambda: first.answers() and second.answers(), "both servers answer")
        command = [find_redis(), str(folder / "sentinel.conf"), "--sentinel"]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder))
        sentinel = valkey.Valkey(port=sentinel_port, socket_timeout=5)
        await until(lambda: _knows_replica(sentinel), "Sentinel knows both")
        url = f"redis+sentinel://:a%20secret@127.0.0.1:{sentinel_port}/covers/0"
        link = RedisLink(parse_address(url), reactor, reactor)
        link.connect()
        index = RedisIndex(link, "test", Mark(tmp_path))
        await _put(index)
        assert first.client().hget("coverart:1:test:sum", "files") == b"1"
        first.process.kill()
        first.process.wait()
        await until(lambda: _master(sentinel) == second.port, "a new master")
        second.client().flushall()
        await _put(index)
        assert second.client().hget("coverart:1:test:sum", "files") == b"1"
        await link.close()
    finally:
        for process in started:
            process.kill()
            process.wait()


async def _put(index: RedisIndex) -> None:
    """Tell the index of a file until it knows it; what was not told it is filled with, as by a cleanup."""

    async def attempt() -> Found:
        with contextlib.suppress(IndexAway):
            if not await index.whole():
                await index.fill()
                await index.set_whole()
        await index.put_file(LISTING, FileEntry(size_bytes=3, stored_at=1.0))
        return await index.find_listing(LISTING)

    await becomes(attempt, lambda found: found.entry is not None, "it is told")


def _knows_replica(sentinel: Any) -> bool:
    try:
        (state,) = sentinel.sentinel_masters().values()
    except (valkey.ConnectionError, ValueError):
        return False
    return int(state["num-slaves"]) == 1


def _master(sentinel: Any) -> int:
    return int(sentinel.sentinel_get_master_addr_by_name("covers")[1])
