"""TLS towards the archive: a front with certificates made for the occasion."""

from __future__ import annotations

import datetime as dt
import functools
import os
from collections.abc import Callable
from typing import Any

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

from tests.stories.faults.archive import TIMEOUT, TIMEOUT_S
from tests.stories.faults.matrix import Row
from tests.stories.faults.names import NAME, Nameserver
from tests.stories.faults.stage import Stage
from tests.support.running import free_port
from tests.support.talk import LOCAL, start, until, within

TRUSTED = "SSL_CERT_FILE"
"""OpenSSL's own variable: the file of authorities, in place of the system's."""
DAY = dt.timedelta(days=1)

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
    now = dt.datetime.now(dt.UTC)
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
    return Signed(builder.sign(key if by is None else by.key, hashes.SHA256()), key)


@functools.cache
def authority() -> Signed:
    return signed("CA of the tests", None)


class Tls:
    """A proxy whose hop 1 is behind a front that can be exchanged, at one port."""

    def __init__(self, stage: Stage) -> None:
        Nameserver(stage)
        self._stage = stage
        self.port = free_port()
        self._listening: Any = None

    @property
    def netloc(self) -> str:
        return f"{NAME}:{self.port}"

    async def show(self, factory: Factory, options: CertificateOptions | None) -> None:
        """Listen with this certificate; None: without TLS."""
        listen: Any = reactor
        await self.end()
        if options is None:
            self._listening = listen.listenTCP(self.port, factory, interface=LOCAL)
        else:
            self._listening = listen.listenSSL(self.port, factory, options, interface=LOCAL)

    async def end(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()


def _archive(stage: Stage) -> Any:
    factory = ProxyFactory(LOCAL, stage.sim.ports["release"])
    factory.noisy = False
    return factory


async def play(stage: Stage, *, front: Callable[[], Signed] | Factory, log: str) -> None:
    """
    Ask through a front, and again through a good one.

    :param front: makes its certificate; or a factory of another protocol.
    :param log: what the log says, as a pattern; empty where nothing is wrong.
    """
    async with _variable:
        before = os.environ.get(TRUSTED)
        (stage.folder / "authorities.pem").write_bytes(authority().pem)
        os.environ[TRUSTED] = os.fspath(stage.folder / "authorities.pem")
        tls = Tls(stage)
        try:
            await _play(stage, tls, front, log)
        finally:
            await tls.end()
            os.environ.pop(TRUSTED)
            if before is not None:
                os.environ[TRUSTED] = before


async def _play(stage: Stage, tls: Tls, front: Callable[[], Signed] | Factory, log: str) -> None:
    if isinstance(front, Factory):
        await tls.show(front, None)
    else:
        await tls.show(_archive(stage), front().options())
    proxy = await stage.proxy(COVER_ART_UPSTREAM=f"https://{tls.netloc}")
    thing = stage.thumbnail()
    asking = start(stage.ask(proxy.port, thing.path))
    if isinstance(front, _Silent):
        await until(lambda: front.taken, "it is connected to")
        await stage.machine.wait_for(lambda: asking.called, TIMEOUT_S)
    seen = await within(asking)
    await proxy.settled()
    if not log:
        stage.whole(seen, thing, "MISS", of="")
        stage.claim("disk", "the whole file", len(proxy.files()) == 1, proxy.files())
        lines = [line for line in stage.log.about(thing.path) if "could not" in line]
        stage.claim("log", "nothing", not lines, lines)
    else:
        if isinstance(front, _Silent):
            stage.refused(seen, 504, "the archive is too slow", of="")
        else:
            stage.refused(seen, 502, "the archive gave no usable answer", of="")
        asked = stage.sim.counts.requests("release")
        # Nothing is told to a host that did not prove who it is.
        stage.claim("client", "no request sent", asked == 0, asked)
        await stage.nothing_kept(proxy)
        pattern = f"could not be fetched: {tls.netloc}.*{log}"
        stage.logged(pattern, thing.path, text=f"HOST:PORT … {log.replace(chr(92), '')}")
    await stage.exact(proxy)
    if isinstance(front, _Silent):
        stage.bounded(seen, TIMEOUT, TIMEOUT_S)
    else:
        stage.at_once(seen)
    await tls.show(_archive(stage), signed(NAME, authority()).options())
    again = await stage.ask(proxy.port, thing.path)
    stage.whole(again, thing, "MISS" if log else "HIT", "after", of="")


class _Silent(Factory):
    """Takes connections and says nothing."""

    protocol = Protocol
    noisy = False

    def __init__(self) -> None:
        self.taken = 0

    def buildProtocol(self, addr: Any) -> Any:
        self.taken += 1
        return super().buildProtocol(addr)


class _Plain(Factory):
    """Speaks HTTP where TLS is expected."""

    noisy = False

    class protocol(Protocol):  # noqa: N801 - Twisted's name for it
        """Says no at once."""

        def dataReceived(self, data: bytes) -> None:
            transport: Any = self.transport
            transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            transport.loseConnection()


FRONTS: tuple[tuple[str, Any, str], ...] = (
    ("a good certificate", lambda: signed(NAME, authority()), ""),
    (
        "of another name",
        lambda: signed("other.test", authority()),
        "its certificate is for another name",
    ),
    ("expired", lambda: signed(NAME, authority(), days=-1), "its certificate has expired, "),
    ("self-signed", lambda: signed(NAME, None), "is self-signed, "),
    (
        "of an unknown authority",
        lambda: signed(NAME, signed("CA unknown", None)),
        "is of an authority unknown here",
    ),
    ("no TLS at all", _Plain(), "TLS: .*"),
    ("a silent handshake", _Silent(), "in time|not done"),
)
ROWS = tuple(
    Row(
        group="TLS",
        name=name,
        play=functools.partial(play, front=front, log=log),
        hostname=NAME,
    )
    for name, front, log in FRONTS
)
