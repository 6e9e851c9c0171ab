"""Many requests at once: by wrk where it is installed, else by a client in plain Python."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from bench.processes import LOCAL, Child
from bench.table import CannotMeasureError, Figure

_SCRIPT = """
local requests, at = {}, 0
function init(args)
  for path in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("GET", path)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("bench %d %d %d %d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.timeout, e.status))
end
"""

_DRAWING = """
local files, head, at, tail, after
function init(args)
  files = tonumber(args[1])
  math.randomseed(tonumber(args[2]))
  head, at, tail = args[3]:match("^([^@]*)(@?)(.*)$")
  after = string.format("%s HTTP/1.1\\r\\nHost: %s:%s\\r\\n\\r\\n", args[4], wrk.host, wrk.port)
end
function request()
  local n = math.random(0, files - 1)
  local first = string.format("%08x", n * 2654435761 % 4294967296)
  local mbid = string.format("%s-0000-4000-8000-%012x", first, n)
  local folder = ""
  if at == "@" then
    folder = first:sub(1, 1) .. "/" .. first:sub(1, 2) .. "/" .. first:sub(1, 3)
  end
  return "GET " .. head .. folder .. tail .. mbid .. after
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("bench %d %d %d %d %d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


def drawn(number: int) -> str:
    """The MBID of a number, as the script of wrk makes it: evenly spread over the folders."""
    return f"{number * 2654435761 % 2**32:08x}-0000-4000-8000-{number:012x}"


@attrs.frozen(kw_only=True)
class Drawing:
    """
    Paths drawn at random, each of them equally likely.

    :ivar files: how many there are.
    :ivar before: of the path, what comes before the MBID; @ becomes the three folders of it.
    :ivar after: what comes after.
    """

    files: int
    before: str
    after: str

    def path(self, number: int) -> str:
        mbid = drawn(number)
        folder = f"{mbid[0]}/{mbid[:2]}/{mbid[:3]}"
        return self.before.replace("@", folder) + mbid + self.after


@attrs.frozen(kw_only=True)
class Load:
    """What came of a load: answers, those that were no 2xx or never came, and seconds it took."""

    answers: int
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def measure(
    child: Child,
    port: int,
    paths: Sequence[str],
    folder: Path,
    *,
    connections: int,
    seconds: float,
    once: bool = False,
    status: int = 200,
    scheme: str = "http",
    header: str = "",
) -> Figure:
    """
    Load a server with keep-alive connections that always ask for the next of `paths`.

    :param folder: for the files that wrk reads.
    :param once: each path may be asked only once; there must be enough of them.
    :param status: what every answer has to be; of wrk's no more is known than from 400 on or not.
    :param scheme: https is for wrk alone.
    :param header: one more, for wrk alone.
    :raises RuntimeError: an answer was an error, or paths ran out.
    """
    cpu_before_s = child.cpu_s()
    if shutil.which("wrk"):
        load = _by_wrk(port, paths, folder, connections, seconds, status, scheme, header)
    elif scheme == "http" and not header:
        load = asyncio.run(_ask_all(port, paths, connections, seconds, status))
    else:
        raise CannotMeasureError("wrk, not installed")
    cpu_after_s = child.cpu_s()
    if not load.answers:
        raise CannotMeasureError(f"an idler machine: {child.name} gave no answer in {seconds:g} s")
    if load.failed:
        raise RuntimeError(f"{child.name}: {load.failed} of {load.answers} answers were errors")
    if once and load.answers + connections > len(paths):
        raise CannotMeasureError(f"more than {len(paths)} paths for {seconds:g} s")
    cpu_s = None
    if cpu_before_s is not None and cpu_after_s is not None:
        cpu_s = (cpu_after_s - cpu_before_s) / load.answers
    return Figure(value=load.rate, cpu_s=cpu_s)


def measure_drawn(
    child: Child,
    port: int,
    drawing: Drawing,
    folder: Path,
    *,
    connections: int,
    seconds: float,
    seed: int,
) -> Figure:
    """
    Load a server with keep-alive connections and paths drawn at random, by wrk with one thread.

    :param seed: of the drawing; another each time, or the same few would be asked for first.
    :raises CannotMeasureError: there is no wrk; nothing else here is as fast as the servers.
    :raises RuntimeError: an answer was an error.
    """
    if shutil.which("wrk") is None:
        raise CannotMeasureError("wrk, not installed")
    script = folder / "drawing.lua"
    script.write_text(_DRAWING)
    # wrk takes whole seconds.
    options = ("-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency")
    url = f"http://{LOCAL}:{port}/"
    arguments = (str(drawing.files), str(seed), drawing.before, drawing.after)
    command = ["wrk", *options, "-s", str(script), url, "--", *arguments]
    cpu_before_s = child.cpu_s()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu_after_s = child.cpu_s()
    answers, micros, failed, p50_us, p99_us = _said(said, 5)
    if failed or not answers:
        raise RuntimeError(f"{child.name}: {failed} of {answers} answers were errors")
    cpu_s = None
    if cpu_before_s is not None and cpu_after_s is not None:
        cpu_s = (cpu_after_s - cpu_before_s) / answers
    return Figure(
        value=answers / (micros / 1e6), cpu_s=cpu_s, p50_ms=p50_us / 1e3, p99_ms=p99_us / 1e3
    )


def _said(text: str, numbers: int) -> list[int]:
    """What a script of wrk wrote in the end."""
    match = re.search(rf"^bench((?: [0-9]+){{{numbers}}})$", text, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"wrk said {text!r}")
    return list(map(int, match[1].split()))


def _by_wrk(
    port: int,
    paths: Sequence[str],
    folder: Path,
    connections: int,
    seconds: float,
    status: int,
    scheme: str,
    header: str,
) -> Load:
    script, listed = folder / "load.lua", folder / "paths"
    script.write_text(_SCRIPT)
    listed.write_text("".join(f"{path}\n" for path in paths))
    # By its name where TLS is: that of the certificate.
    url = f"{scheme}://{LOCAL if scheme == 'http' else 'localhost'}:{port}/"
    # wrk takes whole seconds.
    options = [f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    if header:
        options += ["-H", header]
    command = ["wrk", "-t1", *options, "-s", str(script), url, "--", str(listed)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return load_of(said, status)


def load_of(said: str, status: int) -> Load:
    """
    What came of a load, from what the script of wrk wrote in the end.

    :param status: what every answer had to be; from 400 on, an answer that is no refusal has failed.
    :raises RuntimeError: it wrote nothing that the script writes.
    """
    answers, micros, broken, refused = _said(said, 4)
    wrong = answers - refused if status >= 400 else refused
    return Load(answers=answers, failed=broken + wrong, seconds=micros / 1e6)


async def _ask_all(
    port: int, paths: Sequence[str], connections: int, seconds: float, status: int
) -> Load:
    following = itertools.cycle(paths)
    asking = [_Asking(following, status) for _ in range(connections)]
    loop = asyncio.get_running_loop()
    for each in asking:
        await loop.create_connection(lambda each=each: each, LOCAL, port)  # type: ignore[misc]
    began = time.monotonic()
    for each in asking:
        each.ask()
    await asyncio.sleep(seconds)
    took_s = time.monotonic() - began
    load = Load(
        answers=sum(each.answers for each in asking),
        failed=sum(each.failed for each in asking),
        seconds=took_s,
    )
    for each in asking:
        each.leave()
    return load


class _Asking(asyncio.Protocol):
    """One connection: asks, reads the answer's end off its head, asks again."""

    def __init__(self, paths: itertools.cycle[str], status: int) -> None:
        self.answers = self.failed = 0
        self._begins = f"HTTP/1.1 {status} ".encode()
        self._paths = paths
        self._data = b""
        self._left: int | None = None
        """Bytes of the body still to come; None while the head is read."""
        self._chunked = False
        self._leaving = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self) -> None:
        assert self._transport is not None
        path = next(self._paths)
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: {LOCAL}\r\n\r\n".encode())

    def leave(self) -> None:
        self._leaving = True
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._left is None and not self._chunked:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(self._begins):
                self.failed += 1
            lowered = head.lower()
            self._data = rest
            self._chunked = b"\r\ntransfer-encoding: chunked" in lowered
            if not self._chunked:
                length = lowered.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                self._left = int(length or 0)
        if self._chunked:
            # The files are images: none of them ends like this by chance and stops there.
            done = self._data.endswith(b"0\r\n\r\n")
        else:
            assert self._left is not None
            done = len(self._data) >= self._left
        if done:
            self.answers += 1
            self._data, self._left, self._chunked = b"", None, False
            if not self._leaving:
                self.ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self._leaving:
            self.failed += 1
