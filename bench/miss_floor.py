"""
The reference for the work of a miss: what every such server has to do, and nothing else.

`python -m bench.miss_floor HOP_1 CACHE_DIR PORT_FILE [--redis SOCKET]`. twisted.web; three hops by treq
under one deadline, redirects to this machine only; bytes that begin as a JPEG; those who ask
meanwhile join until the file is committed; one thread writes what has come, makes it durable by
one system call a batch, renames it and links the name to it; so many files may wait for that.
With Redis four scripts: what is known, a lease of the name, one of the image, the file and its name
learnt.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import re
import threading
from collections import deque
from pathlib import Path
from typing import Any

import attrs
import txredisapi
from treq.client import HTTPClient
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

reactor: Any = the_reactor

HOPS = 4
DEADLINE_S = 60.0
CONNECTIONS = 16
BATCH = 64
MOST_UNCOMMITTED = 64
AGENT = Headers({b"User-Agent": [b"floor/1"]})
ALLOWED = re.compile(r"http://127\.0\.0\.1:[0-9]+/")

KNOWN = "return redis.call('HMGET', KEYS[1], ARGV[1], ARGV[2])"
LEASE = (
    "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end "
    "return redis.call('SET', KEYS[1] .. ARGV[1], '1', 'NX', 'PX', 60000)"
)
LEARN = (
    "redis.call('HSET', KEYS[1], ARGV[1], ARGV[3], ARGV[2], ARGV[1]) "
    "redis.call('DEL', KEYS[1] .. ARGV[1], KEYS[1] .. ARGV[2]) "
    "return redis.call('PUBLISH', KEYS[1], ARGV[1])"
)


@attrs.define(eq=False)
class Job:
    """A file to be committed; `committed` fires in the reactor's thread."""

    name: str
    data: bytes
    committed: Deferred[None] = attrs.field(factory=Deferred)


class Writer(threading.Thread):
    """Commits files in batches."""

    def __init__(self, root: str) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._jobs: deque[Job] = deque()
        self._come = threading.Event()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def put(self, job: Job) -> None:
        self._jobs.append(job)
        self._come.set()

    def run(self) -> None:
        while True:
            self._come.wait()
            self._come.clear()
            while batch := [self._jobs.popleft() for _ in range(min(BATCH, len(self._jobs)))]:
                self._commit(batch)
                reactor.callFromThread(self._told, batch)

    @staticmethod
    def _told(batch: list[Job]) -> None:
        for job in batch:
            job.committed.callback(None)

    def _commit(self, batch: list[Job]) -> None:
        written = []
        for job in batch:
            temporary = f"{self._root}/.incoming/{id(job):x}"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.write(fd, job.data)
            written.append((job, temporary, fd))
        if len(written) > 1:
            self._libc.syncfs(written[0][2])
        else:
            os.fdatasync(written[0][2])
        for job, temporary, fd in written:
            os.close(fd)
            folder = f"{self._root}/{job.name[0]}/{job.name[:2]}/{job.name[:3]}"
            final = f"{folder}/{job.name}"
            try:
                os.replace(temporary, final)
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
                os.replace(temporary, final)
            os.symlink(job.name, f"{final}.link")


class Scripts:
    """The four scripts of a miss, by their hashes."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._hashes: dict[str, str] = {}

    async def load(self) -> None:
        for text in (KNOWN, LEASE, LEARN):
            self._hashes[text] = await self._connection.script_load(text)

    async def run(self, text: str, *arguments: str) -> Any:
        return await self._connection.evalsha(self._hashes[text], ["floor"], list(arguments))


@attrs.define(eq=False)
class Flight:
    """Who waits for a thing, and its bytes once they are there."""

    waiting: list[Request] = attrs.field(factory=list)
    data: bytes | None = None


class Root(Resource):
    """Each path is a miss, once."""

    isLeaf = True

    def __init__(self, base: str, root: str, scripts: Scripts | None) -> None:
        super().__init__()
        self._base = base
        self._scripts = scripts
        self._writer = Writer(root)
        self._writer.start()
        self._uncommitted = DeferredSemaphore(MOST_UNCOMMITTED)
        pool = HTTPConnectionPool(reactor, persistent=True)
        pool.maxPersistentPerHost = CONNECTIONS
        self._client = HTTPClient(Agent(reactor, pool=pool))
        self._flights: dict[str, Flight] = {}

    def render_GET(self, request: Request) -> bytes | int:
        path = request.path.decode()
        flight = self._flights.get(path)
        if flight is None:
            flight = self._flights[path] = Flight()
            Deferred.fromCoroutine(self._miss(path, flight)).addErrback(self._failed, path)
        if flight.data is not None:
            return self._headed(request, flight.data)
        flight.waiting.append(request)
        return NOT_DONE_YET

    @staticmethod
    def _headed(request: Request, data: bytes) -> bytes:
        request.setHeader(b"content-type", b"image/jpeg")
        request.setHeader(b"content-length", b"%d" % len(data))
        request.setHeader(b"x-cache-status", b"MISS")
        request.setHeader(b"cache-control", b"public, max-age=86400")
        request.setHeader(b"access-control-allow-origin", b"*")
        return data

    def _failed(self, failure: Any, path: str) -> None:
        failure.printTraceback()
        for request in self._flights.pop(path).waiting:
            request.setResponseCode(502)
            request.finish()

    async def _miss(self, path: str, flight: Flight) -> None:
        name = hashlib.md5(path.encode(), usedforsecurity=False).hexdigest()
        scripts = self._scripts
        if scripts is not None:
            await scripts.run(KNOWN, name, path)
            await scripts.run(LEASE, path)
        fetched: Deferred[bytes] = Deferred.fromCoroutine(self._fetch(path, name))
        data = await fetched.addTimeout(DEADLINE_S, reactor)
        place = await self._uncommitted.acquire()
        flight.data = data
        waiting, flight.waiting = flight.waiting, []
        for request in waiting:
            request.write(self._headed(request, data))
            request.finish()
        job = Job(name, data)
        self._writer.put(job)
        await job.committed
        if scripts is not None:
            await scripts.run(LEARN, name, path, str(len(data)))
        place.release()
        del self._flights[path]

    async def _fetch(self, path: str, name: str) -> bytes:
        url = self._base + path
        for hop in range(HOPS):
            response = await self._client.get(
                url, allow_redirects=False, headers=AGENT, unbuffered=True
            )
            data: bytes = await response.content()
            if response.code == 200 and data.startswith(b"\xff\xd8"):
                return data
            if response.code not in {302, 307}:
                raise RuntimeError(f"{url}: {response.code}")
            url = response.headers.getRawHeaders("location")[0]
            if not ALLOWED.match(url):
                raise RuntimeError(f"{url} is nowhere to go")
            if not hop and self._scripts is not None:
                await self._scripts.run(LEASE, name)
        raise RuntimeError(f"{url}: too many hops")


class SilentSite(Site):
    """A site without an access log."""

    def log(self, request: Any) -> None:
        """Say nothing."""


async def serve(hop_1: str, root: str, port_file: Path, redis: str | None) -> None:
    """Listen on a free local port, and say which in a file."""
    scripts = None
    if redis is not None:
        scripts = Scripts(await txredisapi.UnixConnection(redis))
        await scripts.load()
    os.makedirs(f"{root}/.incoming", exist_ok=True)
    site = SilentSite(Root(hop_1, root, scripts))
    port = reactor.listenTCP(0, site, interface="127.0.0.1", backlog=4096)
    whole = port_file.with_suffix(".new")
    whole.write_text(str(port.getHost().port))
    whole.rename(port_file)


def main() -> None:
    """Read where the archive is from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("hop_1")
    parser.add_argument("root")
    parser.add_argument("port_file", type=Path)
    parser.add_argument("--redis")
    options = parser.parse_args()
    serving = Deferred.fromCoroutine(
        serve(options.hop_1, options.root, options.port_file, options.redis)
    )
    serving.addErrback(lambda failure: (failure.printTraceback(), reactor.stop()))
    reactor.run()


if __name__ == "__main__":
    main()
