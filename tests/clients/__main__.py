"""Run real clients against a real proxy, and print what each asked and got."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import attrs

from coverart.simulator.catalogue import Catalogue
from coverart.simulator.draw import Studio
from tests.clients import namespace
from tests.clients.musicbrainz_stub import RECORDING, MusicBrainz
from tests.clients.places import Places
from tests.clients.recorder import Exchange, Ports, Recorder
from tests.clients.rows import ROWS, Mode, Row
from tests.support.certificates import authority
from tests.support.running import Child
from tests.support.talk import LOCAL

FOLDER = Path(tempfile.gettempdir(), "coverart-clients")
PROGRAMS = Path(__file__).parent / "programs"
PATIENCE_S = 120
PORTS: dict[Mode, Ports] = {"serve": Ports(8080, 8443), "redirect": Ports(8081, 8444)}
ARCHIVE_PORT = 8190
SEED, RELEASES = 1, 60
JPEG, WITHOUT_ART = 0, 5
"""Releases of the simulated archive that have fixed parts to play."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of a row in one mode."""

    row: Row
    mode: Mode
    version: str
    worked: bool
    exchanges: list[Exchange]

    @property
    def expected(self) -> bool:
        return self.worked != (self.mode in self.row.fails_in)

    @property
    def verdict(self) -> str:
        if self.expected:
            return "works" if self.worked else "fails, as known"
        return "WORKS, was known to fail" if self.worked else "FAILS"


class Play:
    """The archive, the proxies and the recorder, for all rows."""

    def __init__(self, folder: Path, places: Places) -> None:
        self._folder = folder
        self._places = places
        self._children: list[Child] = []
        self._recorder = Recorder()
        self._catalogue = Catalogue(SEED, RELEASES)
        self._authority = folder / "authority.pem"

    def start(self) -> None:
        """Start everything; it ends with the namespace."""
        own = authority()
        self._authority = namespace.furnish(self._folder, own)
        archive_certificate = namespace.certificate(namespace.ARCHIVE_NAMES[0], own, self._folder)
        stub_certificate = namespace.certificate(namespace.MUSICBRAINZ, own, self._folder)
        simulator = Child(
            self._folder / "archive",
            "coverart-archive",
            f"--base-port={ARCHIVE_PORT}",
            f"--seed={SEED}",
            f"--releases={RELEASES}",
        )
        self._children.append(simulator)
        for mode, ports in PORTS.items():
            secure = f"ssl:{ports.https}:interface={LOCAL}:privateKey={archive_certificate}"
            proxy = Child(
                self._folder / f"proxy-{mode}",
                "coverart",
                COVER_ART_CACHE_DIR=str(self._folder / f"cache-{mode}"),
                COVER_ART_LISTEN=f"tcp:{ports.http}:interface={LOCAL} {secure}",
                COVER_ART_IMAGE_MODE=mode,
                COVER_ART_UPSTREAM=f"http://{LOCAL}:{ARCHIVE_PORT}",
                COVER_ART_EVENT_UPSTREAM=f"http://{LOCAL}:{ARCHIVE_PORT + 1}",
                COVER_ART_ALLOWED_HOSTS=",".join(
                    f"{LOCAL}:{ARCHIVE_PORT + place}" for place in (2, 3, 4)
                ),
            )
            self._children.append(proxy)
        for port in (PORTS["serve"].http, PORTS["redirect"].http):
            _wait_for(f"http://{LOCAL}:{port}/ready", self._children)
        self._recorder.listen(80)
        self._recorder.listen(8000)
        self._recorder.listen(443, archive_certificate)
        MusicBrainz(self._catalogue.release_group(0).mbid).listen(
            namespace.MUSICBRAINZ_ADDRESS, stub_certificate
        )

    def stop(self) -> None:
        for child in self._children:
            child.kill()

    def run(self, row: Row, mode: Mode) -> Outcome:
        """Run a client."""
        home = Path(tempfile.mkdtemp(prefix="client-", dir=self._folder))
        task = home / "task.json"
        task.write_text(json.dumps(self._task(row, home)))
        program = PROGRAMS / row.program
        if program.suffix == ".mjs":
            command = ["node", str(program)]
        elif row.brought == "PyPI":
            command = [str(self._places.venv / "bin" / "python"), str(program)]
        else:
            command = ["/usr/bin/python3", str(program)]
        if row.overlay:
            command = ["chroot", str(self._places.root), *command]
        exchanges: list[Exchange] = []
        self._recorder.exchanges = exchanges
        self._recorder.target = PORTS[mode]
        try:
            done = subprocess.run(
                [*command, *row.arguments],
                env=self._environment(row, home, task),
                cwd=home,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            said, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            said, code = f"{error.stdout!r}\nended after {PATIENCE_S} s", 1
        if code < 0:
            said += f"\nended by signal {-code}"
        if strays := [each for each in exchanges if not each.at(row.base)]:
            said += f"\nWRONG: {len(strays)} requests went past {row.base}"
            code = 1
        version = row.known_version() or self._places.debian_version(row.package or row.client)
        outcome = Outcome(
            row=row, mode=mode, version=version, worked=code == 0, exchanges=exchanges
        )
        print(f"## {row.client} {version}, by {row.led}, mode {mode}: {outcome.verdict}")
        for exchange in exchanges:
            print(f"  {exchange}")
        for line in said.strip().splitlines():
            print(f"  | {line}")
        print(flush=True)
        return outcome

    def _environment(self, row: Row, home: Path, task: Path) -> dict[str, str]:
        trusting = {
            # Node and Python's requests have authorities of their own, and look at these.
            "NODE_EXTRA_CA_CERTS": str(self._authority),
            "REQUESTS_CA_BUNDLE": str(namespace.BUNDLE),
        }
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "CLIENT_TASK": str(task),
            "QT_QPA_PLATFORM": "offscreen",
            "PYTHONDONTWRITEBYTECODE": "1",
            **trusting,
            **row.environment,
        }

    def _task(self, row: Row, home: Path) -> dict[str, Any]:
        release = self._catalogue.release(JPEG)
        assert release.front is not None
        studio = Studio()
        sizes = {"front": None, "front-250": 250, "front-500": 500, "front-1200": 1200}
        sha256 = {
            name: hashlib.sha256(studio.archive_bytes(release.front, size)).hexdigest()
            for name, size in sizes.items()
        }
        sha256 |= {name.replace("front", "group"): digest for name, digest in sha256.items()}
        return {
            "base": row.base,
            "folder": str(home),
            "npm": str(self._places.npm),
            "release": release.mbid,
            "group": self._catalogue.release_group(0).mbid,
            "absent": self._catalogue.release(WITHOUT_ART).mbid,
            "image": str(release.front.id),
            "recording": RECORDING,
            "sha256": sha256,
        }


def _wait_for(url: str, children: list[Child]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for child in children:
            if child.process.poll() is not None:
                raise SystemExit(child.log.read_text())
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def table(outcomes: list[Outcome]) -> str:
    """One line a client and way: what became of it in each mode."""
    lines = ["| client | version | from | led by | serve | redirect |", "|---|---|---|---|---|---|"]
    rows: dict[tuple[str, str], dict[Mode, Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault((outcome.row.client, outcome.row.led), {})[outcome.mode] = outcome
    for (client, led), by_mode in rows.items():
        one = next(iter(by_mode.values()))
        verdicts = [
            by_mode[mode].verdict if mode in by_mode else "not tried"
            for mode in ("serve", "redirect")
        ]
        cells = [client, one.version, one.row.brought, led, *verdicts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--clients", default="", help="a pattern; only clients whose name has it")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help=f"where clients are installed ({FOLDER})"
    )
    options = parser.parse_args()
    rows = [row for row in ROWS if re.search(options.clients, row.client)]
    if not rows:
        parser.error(f"no client's name has {options.clients!r}")
    if os.geteuid() != 0:
        parser.error("needs root, for a network namespace")
    places = Places(options.folder)
    if not namespace.inside():
        places.install({kind for row in rows for kind in row.kinds})
        namespace.enter()
    folder = Path(tempfile.mkdtemp(prefix="coverart-clients-play-"))
    play = Play(folder, places)
    try:
        if any(row.overlay for row in rows):
            places.mount()
        play.start()
        if any(row.overlay for row in rows):
            namespace.enter_overlay(places.root)
        outcomes = [play.run(row, mode) for row in rows for mode in row.modes]
    finally:
        play.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(table(outcomes))
    failed = sum(not outcome.expected for outcome in outcomes)
    print(f"{len(outcomes) - failed} as expected, {failed} not")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
