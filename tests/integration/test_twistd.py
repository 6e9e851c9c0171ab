"""The proxy as a process: twistd's plugins, its refusals, its sudden and its orderly ends."""

from __future__ import annotations

import json
import signal
import socket
import threading

import pytest
import pytest_twisted
from twisted.internet.error import ConnectError

from coverart.simulator.faults import Gate, Rule, Stall
from coverart.tap import Options, makeService
from tests.support.running import HAS_IPV6, Child, Files, ProxyChild, free_port, reached
from tests.support.talk import LOCAL, ask, connect, start, until

STOPPED = {0, -signal.SIGTERM}
"""twistd ends by the signal that told it to, once all is stopped."""


async def listens(port: int) -> bool:
    """Whether connections are accepted there now."""
    try:
        wire = await connect(port)
    except ConnectError:
        return False
    wire.leave()
    return True


async def stops_listening(port: int) -> None:
    """Wait until a process no longer accepts connections."""
    for _ in range(100_000):
        if not await listens(port):
            return
    raise AssertionError("it goes on listening")


@pytest_twisted.ensureDeferred
async def test_plugins(tmp_path, children) -> None:
    """`twistd --help` lists the proxy and the simulated archive."""
    child = Child(tmp_path / "cwd", "--help")
    children.append(child)
    assert await child.exit_code() == 0
    words = child.log.read_text().split()
    assert "coverart" in words
    assert "coverart-archive" in words


def test_help_names_settings() -> None:
    """`twistd coverart --help` has an option for each setting."""
    said = str(Options())
    for option in ("--cache-dir", "--cache-max-size", "--listen", "--upstream-timeout"):
        assert f"{option}=" in said


WRONG = (
    ("COVER_ART_CACHE_MAX_SIZE", "-5", "a whole number of MB from 1 up"),
    ("COVER_ART_CACHE_MAX_SIZE", "ten", "a whole number of MB from 1 up"),
    ("COVER_ART_CACHE_CLEAN_TO", "101", "COVER_ART_CACHE_MAX_SIZE"),
    ("COVER_ART_CACHE_CLEANUP_INTERVAL", "0", "a number of seconds from 0.1 up"),
    ("COVER_ART_CACHE_EVICTION", "newest", "oldest"),
    ("COVER_ART_IMAGE_MODE", "proxy", "serve or redirect"),
    ("COVER_ART_UPSTREAM", "coverartarchive.org", "an http or https URL"),
    ("COVER_ART_EVENT_UPSTREAM", "ftp://x", "an http or https URL"),
    ("COVER_ART_PUBLIC_URL", "covers.example", "an http or https URL"),
    ("COVER_ART_ALLOWED_HOSTS", "http://archive.org/", "host:port"),
    ("COVER_ART_ACCEL", "cache-files", "a path that starts and ends with /"),
    ("COVER_ART_LISTEN", "8080", "endpoint"),
    ("COVER_ART_LISTEN", "tcp:notaport", ""),
    ("COVER_ART_ALIAS_TTL", "1d", "a number of seconds"),
    ("COVER_ART_MAX_IMAGE_SIZE", "0", "a whole number of MB from 1 to 4095"),
    ("COVER_ART_UPSTREAM_CONCURRENCY", "many", "a whole number from 1 to 1000"),
    ("COVER_ART_UPSTREAM_TIMEOUT", "inf", "a number of seconds from 0.1 to 3600"),
    ("COVER_ART_CONTACT", "a\nb", "one line"),
    ("COVER_ART_CACHE_DIR", "/dev/null/cache", ""),
)


@pytest.mark.parametrize(("variable", "value", "allowed"), WRONG)
def test_wrong_setting(tmp_path, monkeypatch, variable, value, allowed) -> None:
    """A wrong value ends the start with one line: the variable, the value, what is allowed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COVER_ART_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(variable, value)
    options = Options()
    options.parseOptions([])
    with pytest.raises(SystemExit) as refused:
        makeService(options)
    said = str(refused.value)
    assert variable in said
    assert repr(value)[1:-1] in said
    assert allowed in said
    assert len(said.splitlines()) == 1


def test_wrong_option(tmp_path, monkeypatch) -> None:
    """An option is checked as its variable is, and wins over it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COVER_ART_CACHE_MAX_SIZE", "50")
    options = Options()
    options.parseOptions(["--cache-max-size=0"])
    with pytest.raises(SystemExit, match="COVER_ART_CACHE_MAX_SIZE='0'"):
        makeService(options)


@pytest.fixture(params=["1", "2"], ids=["one process", "two"])
def refusal(request, tmp_path, children, redis):
    """Start on addresses that can't be listened on; await the last line of the log."""

    async def start(listen: str) -> str:
        child = Child(
            tmp_path / "cwd",
            "coverart",
            COVER_ART_CACHE_DIR=str(tmp_path / "cache"),
            COVER_ART_LISTEN=listen,
            COVER_ART_PROCESSES=request.param,
            COVER_ART_REDIS_URL=redis.url,
        )
        children.append(child)
        assert await child.exit_code() == 1
        said = child.log.read_text()
        assert "Traceback" not in said
        return said.splitlines()[-1]

    return start


@pytest_twisted.ensureDeferred
async def test_port_taken(refusal) -> None:
    """A port that is taken ends the start with one line that says so and names the setting."""
    with socket.create_server((LOCAL, 0)) as taken:
        port = taken.getsockname()[1]
        last = await refusal(f"tcp:{port}")
    assert f"coverart: Couldn't listen on any:{port}: [Errno 98] Address already in use" in last
    assert "COVER_ART_LISTEN" in last


@pytest.mark.parametrize("listen", ["tcp6:65536", "tcp:70000", "tcp:-1"])
@pytest_twisted.ensureDeferred
async def test_no_such_port(refusal, listen) -> None:
    """So does a number that is no port."""
    last = await refusal(listen)
    assert "port must be 0-65535" in last
    assert "COVER_ART_LISTEN" in last


@pytest_twisted.ensureDeferred
async def test_no_folder_for_a_socket(tmp_path, refusal) -> None:
    """So does a Unix socket whose folder is not there; the line names the path as it was set."""
    path = tmp_path / "missing" / "x.sock"
    last = await refusal(f"unix:{path}")
    assert "coverart: [Errno 2] No such file or directory: " in last
    assert str(path) in last
    assert "COVER_ART_LISTEN" in last


@pytest_twisted.ensureDeferred
async def test_port_of_the_simulator_taken(tmp_path, children) -> None:
    """So it is with the simulated archive, whose ports are set by --base-port."""
    with socket.create_server((LOCAL, 0)) as taken:
        port = taken.getsockname()[1]
        child = Child(tmp_path / "cwd", "coverart-archive", f"--base-port={port}")
        children.append(child)
        assert await child.exit_code() == 1
    said = child.log.read_text()
    assert f"coverart-archive: can't listen on port {port}: Address already in use" in said
    assert "--base-port" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest_twisted.ensureDeferred
async def test_both_kinds_of_addresses(tmp_path, children, redis, processes) -> None:
    """A port alone is listened on in IPv4 and, where there is IPv6, in IPv6."""
    port = free_port()
    child = Child(
        tmp_path / "cwd",
        "coverart",
        COVER_ART_CACHE_DIR=str(tmp_path / "cache"),
        COVER_ART_LISTEN=f"tcp:{port}",
        COVER_ART_PROCESSES=processes,
        COVER_ART_REDIS_URL=redis.url,
    )
    children.append(child)
    for host in (LOCAL, *(["[::1]"] if HAS_IPV6 else [])):
        await child.serves(f"http://{host}:{port}/ready")
    assert "limit 100 MB (COVER_ART_CACHE_MAX_SIZE)" in child.log.read_text()


@pytest_twisted.ensureDeferred
async def test_wrong_setting_ends_twistd(tmp_path, children) -> None:
    """The process then ends with that line alone, and a code that says so."""
    cache = str(tmp_path / "cache")
    child = Child(
        tmp_path / "cwd", "coverart", COVER_ART_CACHE_DIR=cache, COVER_ART_LISTEN="tcp:notaport"
    )
    children.append(child)
    assert await child.exit_code() == 1
    (line,) = child.log.read_text().splitlines()
    assert line.startswith("coverart: COVER_ART_LISTEN='tcp:notaport': ")


@pytest_twisted.ensureDeferred
async def test_both_plugins_together(tmp_path, children) -> None:
    """The simulated archive and the proxy, each a process, as the README shows them."""
    ports_file = tmp_path / "ports.json"
    archive = Child(
        tmp_path / "archive",
        "coverart-archive",
        "--base-port=0",
        f"--ports-file={ports_file}",
        "--releases=30",
        "--variants=2",
    )
    children.append(archive)
    await until(lambda: ports_file.exists() or archive.process.poll() is not None, "it listens")
    ports = json.loads(ports_file.read_text())
    control = f"http://{LOCAL}:{ports['control']}"
    health = (await ask(f"{control}/health")).json
    proxy = ProxyChild(tmp_path / "cache", tmp_path / "proxy", **health["environment"])
    children.append(proxy)
    await proxy.ready()
    path = (await ask(f"{control}/examples")).json["thumbnail"]
    expected = (await ask(f"{control}/expected?path={path}")).json
    for status in ("MISS", "HIT"):
        answer = await ask(proxy.url + path)
        assert (answer.status, answer["X-Cache-Status"]) == (200, status)
        assert len(answer.body) == expected["length"]
    counts = (await ask(f"{control}/counts")).json
    assert sum(counts["requests"].values()) == 3
    archive.process.send_signal(signal.SIGTERM)
    await archive.exit_code()
    assert (await ask(proxy.url + path))["X-Cache-Status"] == "HIT"
    assert (await ask(proxy.url + path.replace("-250", "-500"))).status in {502, 503, 504}
    said = proxy.log.read_text()
    assert str(tmp_path / "cache") in said
    assert "index in memory" in said
    assert f"GET {path} 200 MISS" in said


@pytest_twisted.ensureDeferred
async def test_killed_in_the_middle(sim, spawn) -> None:
    """
    After kill -9 during a download no partial file is seen, and the next request has it whole.

    Everything that was held before is a HIT, with no request at all.
    """
    catalogue = sim.catalogue
    held = (
        catalogue.examples()["thumbnail"],
        catalogue.examples()["pdf"],
        catalogue.examples()["merged"],
        catalogue.examples()["event"],
        catalogue.examples()["group"] + "-500",
        catalogue.examples()["listing"],
    )
    item = catalogue.release(11)
    path = f"/release/{item.mbid}/front"
    body = sim.studio.archive_bytes(item.front, None)
    child = await spawn().ready()
    bodies = {each: (await ask(child.url + each)).body for each in held}
    await until(lambda: len(child.links()) == 5, "names are linked")
    files = child.files()
    sim.faults.add(Rule(hop="node", times=1, does=Stall(after_bytes=1_000_000, gate="rest")))
    wire = await connect(child.port)
    wire.get(path)
    await reached(sim, "rest")
    await wire.got(900_000)
    assert len(child.unfinished()) == 1
    child.kill()
    await wire.end()
    assert 0 < len(wire.body) < len(body)
    assert child.files() == files
    sim.counts.clear()
    again = await spawn().ready()
    await until(lambda: again.unfinished() == [], "the orphan is removed")
    assert again.files() == files
    for each in held:
        answer = await ask(again.url + each)
        assert (answer.status, answer["X-Cache-Status"]) == (200, "HIT"), each
        assert answer.body == bodies[each]
    assert sim.counts.requests() == 0
    answer = await ask(again.url + path)
    assert (answer.status, answer["X-Cache-Status"]) == (200, "MISS")
    assert answer.body == body
    await until(lambda: len(again.links()) == 6, "it is stored and linked")
    assert (await ask(again.url + path))["X-Cache-Status"] == "HIT"


@pytest_twisted.ensureDeferred
async def test_stops_cleanly(sim, spawn) -> None:
    """SIGTERM: no new clients, those who wait or are being served get their image whole, the end."""
    item = sim.catalogue.release(11)
    base = f"/release/{item.mbid}/front"
    bodies = [sim.studio.archive_bytes(item.front, size) for size in (250, None)]
    sim.faults.add(Rule(hop="node", path="*_thumb250.jpg", does=Gate(name="small")))
    stall = Stall(after_bytes=1_000_000, gate="large")
    sim.faults.add(Rule(hop="node", path="*[0-9].jpg", does=stall))
    child = await spawn().ready()
    asking = [start(ask(child.url + path)) for path in (f"{base}-250", base)]
    await reached(sim, "small")
    await reached(sim, "large")
    child.process.send_signal(signal.SIGTERM)
    await stops_listening(child.port)
    assert child.process.poll() is None
    sim.faults.gates.open("small")
    sim.faults.gates.open("large")
    for each, body in zip(asking, bodies, strict=True):
        answer = await each
        assert answer.status == 200
        assert answer.body == body
    assert await child.exit_code() in STOPPED
    held = Files(child.root)
    assert held.unfinished() == []
    assert len(held.files()) == 2
    assert "Traceback" not in child.log.read_text()


@pytest_twisted.ensureDeferred
async def test_stops_at_once_when_idle(tmp_path, spawn) -> None:
    """
    Without anything to finish, SIGTERM ends it at once, clients' idle connections or not.

    Before that: a .env file in the working directory was read, and the environment won over it.
    """
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / ".env").write_text(
        f"COVER_ART_CACHE_MAX_SIZE=7\nCOVER_ART_CACHE_DIR={tmp_path / 'elsewhere'}\n"
    )
    child = await spawn().ready()
    status = (await ask(f"{child.url}/cache-status")).json
    assert status["cache_limit_mb"] == 7
    assert status["cache_dir"] == str(tmp_path / "cache")
    wire = await connect(child.port)
    wire.get("/health")
    await wire.got(10)
    child.process.send_signal(signal.SIGTERM)
    assert await child.exit_code() in STOPPED
    assert "Traceback" not in child.log.read_text()


@pytest_twisted.ensureDeferred
async def test_slow_reader_gets_the_rest(sim, spawn) -> None:
    """SIGTERM while a client is still reading a held image: it gets the last byte, then the end."""
    path = sim.catalogue.examples()["large_original"]
    child = await spawn().ready()
    body = (await ask(child.url + path)).body
    wire = await connect(child.port)
    wire.get(path)
    await wire.got(1000)
    wire.transport.pauseProducing()
    child.process.send_signal(signal.SIGTERM)
    await stops_listening(child.port)
    wire.transport.resumeProducing()
    await wire.end()
    assert len(wire.body) == len(body)
    assert wire.body == body
    assert await child.exit_code() in STOPPED


@pytest_twisted.ensureDeferred
async def test_a_step_of_the_stop_fails(sim, run, monkeypatch, lines) -> None:
    """Whatever goes wrong while it stops, the rest is done: no thread keeps the process alive."""
    proxy = await run()
    assert (await proxy.get(f"/release/{sim.catalogue.release(1).mbid}/front-250")).status == 200

    async def broken(_: object) -> None:
        raise ValueError("counters can only go up")

    monkeypatch.setattr(proxy.cache.index, "tally", broken)
    await proxy.stop()
    assert [line for line in lines if "the stop goes on" in line and "only go up" in line]
    assert not [each for each in threading.enumerate() if each.name.startswith("coverart-disk")]
