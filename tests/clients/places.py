"""Installs the clients: a virtual environment, a folder of npm, an overlay for Debian's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.programs import run_command

PYPI = {
    "musicbrainzngs": "0.7.1",
    "mbzero": "0.5",
    "beets": "2.14.1",
    "picard": "3.0.2",
    "coverart-cli": "0.7.5",
}
NPM = {
    "musicbrainz-api": "1.2.1",
    "graphbrainz": "9.0.0",
    "coverart": "0.0.1",
    "cover-art-archive": "1.0.0-2",
}
NPM_PEERS = {"request": "2.88.2", "graphql": "15.11.0"}
"""cover-art-archive leaves `request` to its user; graphbrainz breaks if npm picks two `graphql`."""
DEBIAN = (
    "quodlibet",
    "gir1.2-soup-2.4",
    "rhythmbox",
    "rhythmbox-plugins",
    "libcoverart1",
    "picard",
)
"""picard brings the libraries of the system that PyPI's needs, too."""


class Places:
    """Where the clients of a folder are; each is installed once and kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / "venv"
        self.npm = folder / "npm"
        self.debian = folder / "debian"
        self.root = self.debian / "root"
        """The overlay, once it is mounted: Debian's clients on top of this machine's files."""

    def install(self, kinds: set[str]) -> None:
        """Install what is not there yet. :param kinds: of "PyPI", "npm" and "Debian"."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if "PyPI" in kinds:
            self._once("PyPI", self._install_pypi)
        if "npm" in kinds:
            self._once("npm", self._install_npm)
        if "Debian" in kinds:
            self._once("Debian", self._install_debian)

    def _once(self, kind: str, install) -> None:
        wanted = repr((PYPI, NPM, NPM_PEERS, DEBIAN))
        done = self.folder / f"{kind}.done"
        if done.exists() and done.read_text() == wanted:
            return
        print(f"installs clients from {kind} ...", file=sys.stderr, flush=True)
        install()
        done.write_text(wanted)

    def _install_pypi(self) -> None:
        shutil.rmtree(self.venv, ignore_errors=True)
        run_command(sys.executable, "-m", "venv", str(self.venv))
        pinned = [f"{name}=={version}" for name, version in PYPI.items()]
        run_command(str(self.venv / "bin" / "python"), "-m", "pip", "install", "-q", *pinned)

    def _install_npm(self) -> None:
        shutil.rmtree(self.npm, ignore_errors=True)
        self.npm.mkdir()
        pinned = [f"{name}@{version}" for name, version in (NPM | NPM_PEERS).items()]
        run_command("npm", "install", "--prefix", str(self.npm), "--no-audit", "--no-fund", *pinned)

    def _install_debian(self) -> None:
        shutil.rmtree(self.debian, ignore_errors=True)
        script = (
            "set -e; mount --make-rprivate /; "
            f"{self._mount_command()}; cd {self.root}; mount --rbind /proc proc; mount --rbind /dev dev; "
            "printf '#!/bin/sh\\nexit 101\\n' > usr/sbin/policy-rc.d; chmod +x usr/sbin/policy-rc.d; "
            "export DEBIAN_FRONTEND=noninteractive; chroot . apt-get update -q; "
            f"chroot . apt-get install -q -y --no-install-recommends {' '.join(DEBIAN)}"
        )
        self._make_folders()
        run_command("unshare", "--mount", "sh", "-c", script)

    def _make_folders(self) -> None:
        for name in ("upper", "work", "root"):
            (self.debian / name).mkdir(parents=True, exist_ok=True)

    def _mount_command(self) -> str:
        layers = f"lowerdir=/,upperdir={self.debian}/upper,workdir={self.debian}/work"
        return f"mount -t overlay overlay -o {layers} {self.root}"

    def mount(self) -> None:
        """Mount the overlay, in the mount namespace of this process."""
        run_command("sh", "-c", self._mount_command())

    def debian_version(self, package: str) -> str:
        """The version of a package in the overlay."""
        command = ["chroot", str(self.root), "dpkg-query", "-W", "-f", "${Version}", package]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
