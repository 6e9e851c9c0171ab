"""Several processes behind one port, as an operator starts them: one command, one address."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.web.client import ResponseNeverReceived

from coverart.simulator.faults import Rule, Stall
from coverart.tap import Options, makeService
from tests.support.redis_server import RedisServer
from tests.support.running import Child, ProxyChild, reached
from tests.support.talk import Wire, ask, becomes, connect, start, until, within

STOPPED = {0, -signal.SIGTERM}
MANY = 100
"""Requests enough for each of two processes to have some."""


class Port:
    """Two processes behind one port."""

    def __init__(self, child: ProxyChild) -> None:
        self.child = child

    def log(self) -> str:
        return self.child.log.read_text()

    def pids(self, number: int) -> list[int]:
        """The processes that filled a place so far, the last one last."""
        return [int(pid) for pid in re.findall(rf"process {number} runs as pid (\d+)", self.log())]

    async def metrics(self) -> dict[str, float]:
        """What a scrape tells, by series."""
        answer = await ask(f"{self.child.url}/metrics")
        assert answer.status == 200
        return series(answer.body)

    async def becomes(self, condition: Callable[[dict[str, float]], bool], what: str) -> None:
        """Scrape until something is so."""
        await becomes(self.metrics, condition, what)


def series(scraped: bytes) -> dict[str, float]:
    """The values of a scrape."""
    lines = [line for line in scraped.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def began(count: int) -> Callable[[dict[str, float]], bool]:
    """Whether so many processes have begun to serve."""
    return lambda told: told["coverart_process_starts_total"] == count


@pytest_twisted.async_yield_fixture
async def port(tmp_path: Path, monkeypatch, spawn, redis: RedisServer):
    """Two processes that both serve; temporary files lie apart, to see what stays of them."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    child = spawn(COVER_ART_PROCESSES="2", COVER_ART_REDIS_URL=redis.url)
    two = Port(child)
    await child.ready()
    await two.becomes(began(2), "both serve")
    yield two
    # The children of a killed parent end by themselves, a moment later.
    child.kill()
    await until(lambda: all(gone(pid) for number in (1, 2) for pid in two.pids(number)), "the end")


def gone(pid: int) -> bool:
    """Whether a process ended, whoever is to collect it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


@pytest_twisted.ensureDeferred
async def test_counted_together(sim, port) -> None:
    """Both answer on the one port; whichever is asked, it tells the sum of what both did."""
    paths = [f"/release/{sim.catalogue.release(i).mbid}/front-250" for i in range(1, 5)]
    for _ in range(10):
        for path in paths:
            assert (await ask(port.child.url + path)).status == 200
    size = 0
    for path in paths:
        size += len((await ask(port.child.url + path)).body)
    assert (await ask(f"{port.child.url}/nonsense")).status == 400
    scraped: list[dict[str, float]] = []

    def both_answered(told: dict[str, float]) -> bool:
        scraped.append(told)
        return all(own(told, number) > 5 for number in "12")

    await port.becomes(both_answered, "both answer")
    for told in scraped:
        assert told['coverart_answers_total{outcome="misses"}'] == 4
        assert told['coverart_answers_total{outcome="hits"}'] == 40
        assert told['coverart_answers_total{outcome="refused"}'] == 1
        assert told['coverart_request_seconds_count{outcome="hits"}'] == 40
        assert told['coverart_sent_bytes_total{outcome="hits"}'] == 10 * size
        assert told['coverart_upstream_requests_total{hop="1",status="307"}'] == 4
        assert told["coverart_cache_files"] == 4
        assert told["coverart_process_starts_total"] == 2
    every = {name for told in scraped for name in told}
    assert {f'coverart_start_time_seconds{{pid="{n}"}}' for n in "12"} <= every
    await becomes(
        lambda: counted(port), lambda told: told == (40, 4, 0), "all counted is told to the index"
    )
    await port.becomes(
        lambda told: sorted(told[f'coverart_leader{{pid="{n}"}}'] for n in "12") == [0, 1],
        "one of them leads",
    )


async def counted(port: Port) -> tuple[int, int, int]:
    """The hits, misses and errors of all processes, as whichever is asked tells them."""
    status = (await ask(f"{port.child.url}/cache-status")).json
    return status["hits"], status["misses"], status["errors"]


def own(told: dict[str, float], number: str) -> float:
    """How many answers a process gave."""
    return told.get(f'coverart_process_answers{{pid="{number}"}}', 0)


@pytest_twisted.ensureDeferred
async def test_one_is_killed(sim, port, redis) -> None:
    """A process that dies is started again, in words that tell why; nobody is refused meanwhile."""
    path = f"/release/{sim.catalogue.release(1).mbid}/front-250"
    assert (await ask(port.child.url + path)).status == 200
    # Until then the other process would count a miss that joined.
    client = redis.client()
    await until(lambda: client.hget("coverart:1:default:sum", "files") == b"1", "it is stored")
    (victim,) = port.pids(1)
    told = await port.metrics()
    asked = broken = 0
    os.kill(victim, signal.SIGKILL)
    serving = told
    while not began(3)(serving):
        try:
            assert (await ask(port.child.url + path)).status == 200
            asked += 1
            serving = await port.metrics()
        except ConnectError as error:
            raise AssertionError("refused") from error
        except ResponseNeverReceived:
            broken += 1  # It was with the one that was killed.
    assert asked > 0
    assert broken <= 1
    assert len(port.pids(1)) == 2
    assert "process 1: A process has ended with a probable error condition" in port.log()
    assert "process ended by signal 9" in port.log()
    after = await port.metrics()
    hits = 'coverart_answers_total{outcome="hits"}'
    # What it had counted is not lost, and not counted twice.
    assert after[hits] == told[hits] + asked
    assert after["coverart_process_starts_total"] == 3


@pytest_twisted.ensureDeferred
async def test_counts_outlive_a_killed_process(sim, port, redis) -> None:
    """What a killed process had told is told once; its successor counts on, and ends when told."""
    url = f"{port.child.url}/release/{sim.catalogue.release(1).mbid}/front-250"
    client = redis.client()

    def tallied() -> int:
        return sum(map(int, client.hgetall("coverart:1:default:tally").values()))

    # Until it is stored, the other process would wait for that, and count a miss that joined.
    assert (await ask(url)).status == 200
    await until(lambda: client.hget("coverart:1:default:sum", "files") == b"1", "it is stored")

    async def ask_often() -> None:
        for _ in range(MANY):
            assert (await ask(url)).status == 200
        assert own(await port.metrics(), "1") > 0

    await ask_often()
    await until(lambda: tallied() == MANY + 1, "all is told")
    os.kill(port.pids(1)[0], signal.SIGKILL)
    await port.becomes(began(3), "it is started again")
    await ask_often()
    await until(lambda: tallied() > 2 * MANY, "what followed is told")
    os.kill(port.pids(1)[1], signal.SIGTERM)
    await until(lambda: gone(port.pids(1)[1]), "it ends in order")
    await port.becomes(began(4), "it is started once more")
    status = (await ask(f"{port.child.url}/cache-status")).json
    assert (status["hits"], status["misses"], tallied()) == (2 * MANY, 1, 2 * MANY + 1)
    assert "Traceback" not in port.log()


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGKILL])
@pytest_twisted.ensureDeferred
async def test_parent_ends(sim, port, tmp_path, signal_) -> None:
    """
    The parent is told to end, or killed: who is being served gets all of it, then all are gone.

    Nothing stays, neither a process nor a file of theirs.
    """
    item = sim.catalogue.release(11)
    body = sim.studio.archive_bytes(item.front, None)
    sim.faults.add(Rule(hop="node", does=Stall(after_bytes=1_000_000, gate="rest")))
    asking = start(ask(f"{port.child.url}/release/{item.mbid}/front"))
    await reached(sim, "rest")
    pids = port.pids(1) + port.pids(2)
    port.child.process.send_signal(signal_)
    await becomes(lambda: listens(port.child.port), lambda told: not told, "nobody is let in")
    sim.faults.gates.open("rest")
    answer = await asking
    assert (answer.status, answer.body) == (200, body)
    await until(lambda: all(gone(pid) for pid in pids), "the children end")
    assert await port.child.exit_code() in STOPPED | {-signal_}
    await until(lambda: os.listdir(tmp_path / "temporary") == [], "nothing stays")
    assert "Traceback" not in port.log()


async def listens(port: int) -> bool:
    """Whether connections are accepted there now."""
    try:
        wire = await connect(port)
    except ConnectError:
        return False
    wire.leave()
    return True


@pytest_twisted.ensureDeferred
async def test_unix_socket(sim, tmp_path, children, redis) -> None:
    """
    They share a Unix socket as well, and it stays where it is when one of them ends.

    By option, with the log in a file: what the children say is in there.
    """
    path = f"{redis.socket}.http"
    child = Child(
        tmp_path / "cwd",
        "--logfile=twistd.log",
        "coverart",
        "--processes=2",
        f"--listen=unix:{path}",
        COVER_ART_CACHE_DIR=str(tmp_path / "cache"),
        COVER_ART_REDIS_URL=redis.url,
        **sim.environment(),
    )
    children.append(child)
    child.log = tmp_path / "cwd" / "twistd.log"

    async def metrics() -> dict[str, float]:
        wire = Wire()
        await connectProtocol(UNIXClientEndpoint(reactor, path), wire)
        wire.get("/metrics", "Connection: close")
        await wire.end()
        assert wire.status == 200
        return series(wire.body)

    await until(lambda: os.path.exists(path), "it listens")
    await becomes(metrics, began(2), "both serve")
    words = re.compile(r"process \d runs as pid (\d+)")
    first = int(words.findall(child.log.read_text())[0])
    os.kill(first, signal.SIGTERM)
    await until(lambda: gone(first), "one ends")
    await becomes(metrics, began(3), "it is started again")
    child.process.send_signal(signal.SIGTERM)
    assert await within(start(child.exit_code())) in STOPPED
    assert not os.path.exists(path)


WRONG = (
    ("COVER_ART_PROCESSES", "2", "COVER_ART_REDIS_URL"),
    ("COVER_ART_PROCESSES", "0", "a whole number from 1 to 256, or auto"),
    ("COVER_ART_PROCESSES", "all", "a whole number from 1 to 256, or auto"),
)


@pytest.mark.parametrize(("variable", "value", "allowed"), WRONG)
def test_refused(tmp_path, monkeypatch, variable, value, allowed) -> None:
    """Without a shared index, or in no sensible number: one line says what is missing."""
    monkeypatch.chdir(tmp_path)
    options = Options()
    options.parseOptions([f"--cache-dir={tmp_path / 'cache'}", f"--processes={value}"])
    with pytest.raises(SystemExit) as refused:
        makeService(options)
    said = str(refused.value)
    assert said.startswith(f"coverart: {variable}={value!r}: must be ")
    assert allowed in said
    assert len(said.splitlines()) == 1


def test_refused_endpoint(tmp_path, monkeypatch) -> None:
    """A socket that can't be shared as it is, TLS among them, is refused by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COVER_ART_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COVER_ART_REDIS_URL", "redis://localhost:6379/0")
    monkeypatch.setenv("COVER_ART_LISTEN", "tcp:8080 haproxy:tcp:8081")
    options = Options()
    options.parseOptions(["--processes=2"])
    with pytest.raises(SystemExit, match=r"COVER_ART_LISTEN='haproxy:tcp:8081'.*tcp.*unix"):
        makeService(options)
