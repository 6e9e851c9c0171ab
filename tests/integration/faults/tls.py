"""TLS towards the archive: a front with certificates made for the occasion."""

from __future__ import annotations

import datetime
import functools
import os
from pathlib import Path
from urllib.parse import urlsplit

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.internet import reactor
from twisted.internet.defer import DeferredLock
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair
from twisted.protocols.portforward import ProxyFactory

from tests.integration.faults.archive import TIMEOUT, TIMEOUT_S
from tests.integration.faults.matrix import Row
from tests.integration.faults.names import NAME, Nameserver
from tests.integration.faults.stage import Seen, Stage, Thing
from tests.integration.talk import LOCAL, start, until, within

TRUSTED = "SSL_CERT_FILE"
"""OpenSSL's own variable: the file of authorities, in place of the system's."""
DAY = datetime.timedelta(days=1)

_variable = DeferredLock()
"""Rows set one variable of the process: one at a time."""


@attrs.frozen
class Signed:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def options(self) -> CertificateOptions:
        """For a server."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return CertificateOptions(
            privateKey=KeyPair.load(key, 1).original,
            certificate=Certificate.loadPEM(self.pem).original,
        )


def signed(name: str, by: Signed | None, *, days: int = 1) -> Signed:
    """
    A certificate for a name.

    :param by: the authority; None signs it with its own key.
    :param days: until it expires; below zero it has.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    authority = by is None and name.startswith("CA")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    return Signed(builder.sign((by or Signed(None, key)).key, hashes.SHA256()), key)  # type: ignore[arg-type]


@functools.cache
def authority() -> Signed:
    return signed("CA of the tests", None)


class Front:
    """TLS in front of a hop of the archive."""

    def __init__(self, stage: Stage, hop: str, options: CertificateOptions | None) -> None:
        target = ProxyFactory(LOCAL, stage.sim.ports[hop])
        target.noisy = False
        if options is None:
            self._port = reactor.listenTCP(0, _Silent(), interface=LOCAL)  # type: ignore[attr-defined]
        else:
            self._port = reactor.listenSSL(0, target, options, interface=LOCAL)  # type: ignore[attr-defined]
        stage.at_the_end(self._port.stopListening)

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self._port.getHost().port}"


class _Silent(Factory):
    """Takes connections and says nothing."""

    protocol = Protocol
    noisy = False


async def _ask(stage: Stage, options: CertificateOptions | None, thing: Thing) -> tuple[str, Seen]:
    """Ask a proxy whose hop 1 is behind TLS; the host's name and port, and the answer."""
    Nameserver(stage)
    front = Front(stage, "release", options)
    trusted = stage.folder / "authorities.pem"
    trusted.write_bytes(authority().pem)
    proxy = await stage.proxy(COVER_ART_UPSTREAM=front.url)
    async with _variable:
        before = os.environ.get(TRUSTED)
        os.environ[TRUSTED] = os.fspath(trusted)
        try:
            asking = start(stage.ask(proxy.port, thing.path))
            if options is None:
                await until(lambda: stage.machine.waits > 0, "it asks")
                await stage.machine.wait_for(lambda: asking.called, TIMEOUT_S)
            seen = await within(asking)
        finally:
            os.environ.pop(TRUSTED)
            if before is not None:
                os.environ[TRUSTED] = before
    await proxy.settled()
    return urlsplit(front.url).netloc, seen
