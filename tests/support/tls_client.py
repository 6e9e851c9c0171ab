"""Asking over TLS: by a name that is no name of this machine's, of an authority that the tests made."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.threads import deferToThread
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from tests.support.certificates import Signed, authority, signed
from tests.support.running import free_port
from tests.support.talk import LOCAL, SAFETY_S, Answer, Wire, ask


def write_pair(folder: Path, name: str, pair: Signed | None = None) -> Signed:
    """Put NAME.crt and NAME.key there, signed by the tests' authority; the key is there last."""
    pair = signed(name, authority()) if pair is None else pair
    (folder / f"{name}.crt").write_bytes(pair.pem)
    key = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.key").write_bytes(key)
    return pair


def variables(certificates: Path) -> dict[str, str]:
    """What nginx/start.sh is told to speak TLS on a port of its own."""
    listen = f"{LOCAL}:{free_port()}"
    return {"NGINX_TLS_CERTIFICATES": str(certificates), "NGINX_TLS_LISTEN": listen}


@implementer(IAgentEndpointFactory)
class TlsClient:
    """Connections to one local port, whatever name is asked for."""

    def __init__(self, told: dict[str, str]) -> None:
        """:param told: the variables of the nginx."""
        self.port = int(told["NGINX_TLS_LISTEN"].rpartition(":")[2])
        self._roots = trustRootFromCertificates([Certificate.loadPEM(authority().pem)])

    def endpointForURI(self, uri: Any) -> Any:
        return self._endpoint(uri.host.decode(), b"http/1.1")

    def _endpoint(self, name: str, *protocols: bytes) -> Any:
        options = optionsForClientTLS(
            name, trustRoot=self._roots, acceptableProtocols=list(protocols)
        )
        return wrapClientTLS(options, HostnameEndpoint(reactor, LOCAL.encode(), self.port))

    async def ask(self, url: str, method: str = "GET", **headers: str) -> Answer:
        """One request on a connection of its own. :raises: whatever OpenSSL has against the certificate."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return await ask(url, method, named, self.agent)

    @property
    def agent(self) -> Agent:
        """What keeps no connection."""
        pool = HTTPConnectionPool(reactor, persistent=False)
        made: Agent = Agent.usingEndpointFactory(reactor, self, pool)
        return made

    async def connect(self, name: str, *protocols: bytes) -> Wire:
        """A connection on which what the server showed can be looked at."""
        wire = Wire()
        await connectProtocol(self._endpoint(name, *protocols), wire)
        return wire

    async def shown(self, name: str) -> x509.Certificate:
        """The certificate that the server shows for a name, good or not."""
        return await deferToThread(self._shown, name)

    def _shown(self, name: str) -> x509.Certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection((LOCAL, self.port), timeout=SAFETY_S) as plain,
            context.wrap_socket(plain, server_hostname=name) as spoken,
        ):
            return x509.load_der_x509_certificate(spoken.getpeercert(binary_form=True) or b"")
