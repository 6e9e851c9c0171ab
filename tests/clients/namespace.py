"""The network namespace: names, certificates and an overlay that end with the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.certificates import Signed, signed
from tests.support.programs import run_command

ARCHIVE_NAMES = ("coverartarchive.org", "eventartarchive.org")
PROXY = "covers.home.arpa"
"""The proxy's own name; graphbrainz takes none without a dot."""
MUSICBRAINZ, MUSICBRAINZ_ADDRESS = "musicbrainz.org", "127.0.0.2"
CERTIFICATES = Path("/etc/ssl/certs")
BUNDLE = CERTIFICATES / "ca-certificates.crt"
VARIABLE = "TESTS_CLIENTS_INSIDE"


def inside() -> bool:
    """Whether this process is in the namespace."""
    return VARIABLE in os.environ


def enter() -> None:
    """Start this command again in a namespace of its own. It does not return."""
    os.environ[VARIABLE] = "1"
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.execvp(command[0], [*command, sys.executable, "-m", "tests.clients", *sys.argv[1:]])


def certificate(name: str, authority: Signed, folder: Path) -> Path:
    """Write a certificate for a name and its key into one file."""
    made = signed(name, authority)
    path = folder / f"{name}.pem"
    key = folder / f"{name}.key"
    key.write_bytes(made.key_pem)
    path.write_bytes(made.pem + made.key_pem)
    return path


def furnish(folder: Path, authority: Signed) -> Path:
    """
    Lead the archive's names to this machine, and let the system trust the authority.

    :returns: the authority's certificate.
    """
    run_command("ip", "link", "set", "lo", "up")
    hosts = folder / "hosts"
    hosts.write_text(
        f"127.0.0.1 localhost {PROXY} {' '.join(ARCHIVE_NAMES)}\n{MUSICBRAINZ_ADDRESS} {MUSICBRAINZ}\n"
    )
    run_command("mount", "--bind", str(hosts), "/etc/hosts")
    # What `update-ca-certificates` does, on a copy that only this namespace sees.
    trusted = folder / "certs"
    shutil.copytree(CERTIFICATES, trusted)
    own = trusted / "coverart-clients.pem"
    own.write_bytes(authority.pem)
    with (trusted / BUNDLE.name).open("ab") as bundle:
        bundle.write(authority.pem)
    told = subprocess.run(
        ["openssl", "x509", "-noout", "-subject_hash", "-in", str(own)],
        capture_output=True,
        text=True,
        check=True,
    )
    (trusted / f"{told.stdout.strip()}.0").symlink_to(own.name)
    run_command("mount", "--bind", str(trusted), str(CERTIFICATES))
    return own


def enter_overlay(root: Path) -> None:
    """Show the namespace's names and certificates in an overlay that is mounted."""
    for path in ("/etc/hosts", str(CERTIFICATES), "/proc", "/dev"):
        run_command("mount", "--rbind", path, f"{root}{path}")
