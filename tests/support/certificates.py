"""Certificates made for the occasion, by an authority of the tests."""

from __future__ import annotations

import datetime as dt
import functools

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair

TRUSTED = "SSL_CERT_FILE"
"""OpenSSL's own variable: the file of authorities, in place of the system's."""
DAY = dt.timedelta(days=1)


@attrs.frozen
class Signed:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def options(self) -> CertificateOptions:
        """For a server."""
        return CertificateOptions(
            privateKey=KeyPair.load(self.key_pem, 1).original,
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
