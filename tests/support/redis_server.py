"""A real server of the Redis protocol, started by the tests: from PATH, or from the wheel."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import valkey

from tests.support.programs import find_redis
from tests.support.talk import until

KEY = b"coverart:1:default:"
"""How a proxy's keys begin, where no setting gives its cache another name."""


class RedisServer:
    """One server on a Unix socket of its own, without persistence."""

    def __init__(self, folder: Path) -> None:
        # Socket paths have about a hundred characters; tests' folders can be longer.
        self.folder = folder
        self.socket = f"/tmp/coverart-{os.getpid()}-{abs(hash(str(folder))) % 10**8}.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    async def start(self, *options: str) -> RedisServer:
        """Start, empty; after stop() or kill() again."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    find_redis(),
                    *("--port", "0", "--unixsocket", self.socket, "--save", ""),
                    *("--dir", str(self.folder), "--maxmemory-policy", "noeviction"),
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        await until(self._answers, "the server answers")
        return self

    def _answers(self) -> bool:
        try:
            return bool(self.client().ping())
        except valkey.ConnectionError:
            return False

    def client(self) -> Any:
        """A client of another make, to look at what is there."""
        return valkey.Valkey(unix_socket_path=self.socket, socket_timeout=5)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self.resume()
            self._process.kill()
            self._process.wait()
            self._process = None
            Path(self.socket).unlink(missing_ok=True)

    def pause(self) -> None:
        """Let it accept connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
