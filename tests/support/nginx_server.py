"""A real nginx, started by the tests with the configuration that is shipped: from PATH, or the wheel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from twisted.internet.error import ConnectError

from tests.support.programs import find_nginx
from tests.support.running import ROOT, Served, free_port
from tests.support.talk import LOCAL, connect, pause, until

START = ROOT / "nginx" / "start.sh"
ACCEL = {"COVER_ART_ACCEL": "/cache-files/"}
"""The setting that lets the nginx in front of a proxy send the files."""


class NginxServer(Served):
    """nginx/start.sh with everything on free local ports and in a folder of its own."""

    def __init__(self, folder: Path, cache_dir: Path, app: str, **variables: str) -> None:
        """
        :param app: host:port of the app.
        :param variables: those of start.sh; ULIMIT_N is how many descriptors it is started with.
        """
        self.folder = folder
        listen = variables.pop("NGINX_LISTEN", "")
        self.port = int(listen) if listen else free_port()
        files = variables.pop("ULIMIT_N", "")
        self._command = [str(START)]
        if files:
            self._command = ["/bin/sh", "-c", f'ulimit -n {files} && exec "$0"', str(START)]
        self.hit_log = folder / "hits.log"
        self.access_log = folder / "access.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "NGINX_BIN": find_nginx(),
            "NGINX_APP": app,
            "NGINX_CACHE_DIR": str(cache_dir),
            "NGINX_LISTEN": listen or f"{LOCAL}:{self.port}",
            "NGINX_RUN_DIR": str(folder),
            "NGINX_HIT_LOG": str(self.hit_log),
            "NGINX_ACCESS_LOG": str(self.access_log),
            # Tests' folders are their user's alone.
            "NGINX_USER": "root" if os.geteuid() == 0 else "",
            **variables,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "log").read_text()

    def render(self) -> Path:
        """Write the configuration as it would be run, have nginx look at it, give its place."""
        self.folder.mkdir(exist_ok=True)
        subprocess.run([str(START), "-t"], env=self._environment, check=True)
        return self.folder / "nginx.conf"

    async def start(self) -> NginxServer:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        while not await self._accepts():
            assert self._process.poll() is None, self.log
            await pause()
        return self

    async def _accepts(self) -> bool:
        try:
            (await connect(self.port)).leave()
        except ConnectError:
            return False
        return True

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it, after what it is sending is sent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End it with its workers."""
        if self._process is not None:
            # SIGTERM: a master that is killed leaves its workers behind.
            self._process.terminate()
            self._process.wait()
            self._process = None

    async def hits(self, count: int) -> list[str]:
        """The lines of the hit log, once there are so many."""
        await until(lambda: len(self._hits()) >= count, f"{count} lines in the hit log")
        return self._hits()

    def _hits(self) -> list[str]:
        return self.hit_log.read_text().splitlines() if self.hit_log.exists() else []


def access(nginx: NginxServer) -> list[dict[str, object]]:
    """The lines of the access log."""
    if not nginx.access_log.exists():
        return []
    return [json.loads(line) for line in nginx.access_log.read_text(errors="replace").splitlines()]
