"""docker/authority.sh: what it makes, for whom, and what it leaves alone when it is run again."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.certificates import Signed, signed
from tests.support.programs import run_command
from tests.support.running import ROOT

NAMES = ["coverartarchive.org", "eventartarchive.org"]
CERTIFICATE = f"nginx/{NAMES[0]}.crt"
KEY = f"nginx/{NAMES[0]}.key"


def run(folder: Path) -> str:
    """Run it, with the tests' own group for the key."""
    done = subprocess.run(
        [str(ROOT / "docker" / "authority.sh"), str(folder)],
        env={"PATH": os.environ["PATH"], "AUTHORITY_GROUP": str(os.getegid())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(path: Path) -> x509.Certificate:
    """The first certificate of a file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def days_left(certificate: x509.Certificate) -> int:
    return (certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)).days


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "authority"
    run(made)
    return made


def test_certificate_is_for_the_archives_names(folder: Path) -> None:
    """For 90 days, for both names and for servers, with its key and with the signer behind it."""
    certificate = read(folder / CERTIFICATE)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == NAMES
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert 88 <= days_left(certificate) <= 90
    key = load_pem_private_key((folder / KEY).read_bytes(), None)
    assert key.public_key() == certificate.public_key()
    assert (folder / CERTIFICATE).read_text().endswith((folder / "signer.pem").read_text())
    # As nginx reads it.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / CERTIFICATE, folder / KEY)


@pytest.mark.parametrize(("name", "further"), [("authority.pem", 1), ("signer.pem", 0)])
def test_constraints(folder: Path, name: str, further: int) -> None:
    """What clients trust, and what signs, is bound to the names; a client that can't tell must refuse."""
    extensions = read(folder / name).extensions
    found = extensions.get_extension_for_class(x509.NameConstraints)
    assert found.critical
    permitted, excluded = found.value.permitted_subtrees, found.value.excluded_subtrees
    assert permitted is not None
    assert excluded is not None
    assert [each.value for each in permitted] == NAMES
    assert [each.value for each in excluded] == [
        ipaddress.ip_network("0.0.0.0/0"),
        ipaddress.ip_network("::/0"),
    ]
    limits = extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, further)


def test_signs_for_no_other_name(folder: Path, tmp_path: Path) -> None:
    """OpenSSL refuses what the signer's key signs for another name, and takes the archive's."""
    signer = read(folder / "signer.pem")
    key = load_pem_private_key((folder / "signer.key").read_bytes(), None)
    by = Signed(signer, key)  # type: ignore[arg-type]
    for name, good in (("example.org", False), (NAMES[1], True)):
        path = tmp_path / name
        path.write_bytes(signed(name, by).pem)
        done = subprocess.run(
            [
                *("openssl", "verify", "-CAfile", str(folder / "authority.pem")),
                *("-untrusted", str(folder / "signer.pem"), str(path)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is good, done.stdout + done.stderr
        assert good or "permitted subtree violation" in done.stderr


def test_who_reads_the_keys(folder: Path) -> None:
    """There are two: the signer's is its owner's alone, the certificate's is nginx's group's too."""
    keys = [name for name, body in state(folder).items() if b"PRIVATE KEY" in body]
    assert sorted(keys) == [KEY, "signer.key"]
    modes = {name: (folder / name).stat().st_mode & 0o777 for name in (*keys, "nginx")}
    assert modes == {KEY: 0o640, "signer.key": 0o600, "nginx": 0o750}
    for name in ("authority.pem", CERTIFICATE):
        assert (folder / name).stat().st_mode & 0o777 == 0o644


def test_run_again(folder: Path) -> None:
    """What is good stays as it is, and nothing is left behind."""
    before = state(folder)
    assert run(folder) == ""
    assert state(folder) == before
    assert sorted(os.listdir(folder)) == ["authority.pem", "nginx", "signer.key", "signer.pem"]


@pytest.mark.parametrize(("days", "renewed"), [(29, True), (31, False)])
def test_renewal(folder: Path, tmp_path: Path, days: int, renewed: bool) -> None:
    """In the last 30 days there is a new certificate with a new key; the authority stays."""
    request = tmp_path / "request"
    run_command(
        *("openssl", "req", "-new", "-subj", "/CN=old", "-key", str(folder / KEY)),
        *("-out", str(request)),
    )
    run_command(
        *("openssl", "x509", "-req", "-in", str(request), "-days", str(days), "-set_serial", "1"),
        *("-CA", str(folder / "signer.pem"), "-CAkey", str(folder / "signer.key")),
        *("-out", str(folder / CERTIFICATE)),
    )
    before = state(folder)
    said = run(folder)
    after = state(folder)
    assert {name for name in before if before[name] != after[name]} == (
        {CERTIFICATE, KEY} if renewed else set()
    )
    assert ("new certificate" in said) is renewed
    common = read(folder / CERTIFICATE).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common[0].value == (NAMES[0] if renewed else "old")


def test_new_authority(folder: Path) -> None:
    """Where authority.pem was deleted, all is made anew, the certificate too."""
    before = state(folder)
    (folder / "authority.pem").unlink()
    assert "new authority" in run(folder)
    after = state(folder)
    assert all(before[name] != after[name] for name in before)
    test_signs_for_no_other_name(folder, folder)
