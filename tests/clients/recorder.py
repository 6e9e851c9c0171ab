"""Passes requests on to a proxy byte by byte, and notes what was asked and what came."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import attrs

from tests.support.talk import LOCAL

PATIENCE_S = 60.0


@attrs.frozen(kw_only=True)
class Exchange:
    """One request and its answer."""

    scheme: str
    method: str
    target: str
    host: str
    status: int
    location: str
    content_type: str
    length: int

    def at(self, base: str) -> bool:
        """Whether the host of a base URL was asked."""
        return self.host.partition(":")[0] == urlsplit(base).hostname

    def __str__(self) -> str:
        came = f"{self.status} {self.content_type}".strip()
        if self.location:
            came += f" Location: {self.location}"
        elif self.length:
            came += f", {self.length} bytes"
        return f"{self.method} {self.scheme}://{self.host}{self.target} -> {came}"


@attrs.frozen
class Ports:
    """Where a proxy listens."""

    http: int
    https: int


class Recorder:
    """
    Listens where clients look for the archive; `target` is the proxy that gets the requests.

    What comes by TLS goes on by TLS: a proxy writes the scheme it was asked by into its URLs.
    """

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.target = Ports(0, 0)
        self._trusting = ssl.create_default_context()
        self._trusting.check_hostname = False
        self._trusting.verify_mode = ssl.CERT_NONE

    def listen(self, port: int, certificate: Path | None = None) -> None:
        """:param certificate: a file with a certificate and its key, for TLS."""
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        listener = socket.create_server((LOCAL, port), backlog=64)
        threading.Thread(target=self._accept, args=(listener, context), daemon=True).start()

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=self._serve, args=(client, context), daemon=True).start()

    def _serve(self, client: socket.socket, context: ssl.SSLContext | None) -> None:
        port = self.target.http if context is None else self.target.https
        scheme = "http" if context is None else "https"
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_:
            client.settimeout(PATIENCE_S)
            open_.callback(client.close)
            if context is not None:
                client = context.wrap_socket(client, server_side=True)
                open_.callback(client.close)
            proxy = socket.create_connection((LOCAL, port), PATIENCE_S)
            open_.callback(proxy.close)
            if context is not None:
                proxy = self._trusting.wrap_socket(proxy)
                open_.callback(proxy.close)
            asked, answers = client.makefile("rb"), proxy.makefile("rb")
            while self._pass_one(scheme, client, proxy, asked, answers):
                pass

    def _pass_one(
        self,
        scheme: str,
        client: socket.socket,
        proxy: socket.socket,
        asked: BinaryIO,
        answers: BinaryIO,
    ) -> bool:
        """:returns: whether another request may follow on the connection."""
        request, raw = _head(asked)
        if not request:
            return False
        method, target = request[""].split(" ")[:2]
        proxy.sendall(raw)
        answer, raw = _head(answers)
        if not answer:
            return False
        status = int(answer[""].split(" ")[1])
        length = 0 if method == "HEAD" or status in {204, 304} else _length(answer)
        # Noted before the client has all of it: what it does next is seen in its order.
        self.exchanges.append(
            Exchange(
                scheme=scheme,
                method=method,
                target=target,
                host=request.get("host", ""),
                status=status,
                location=answer.get("location", ""),
                content_type=answer.get("content-type", ""),
                length=max(length, 0),
            )
        )
        client.sendall(raw)
        if length < 0:
            while chunk := answers.read1(65536):  # type: ignore[attr-defined]
                client.sendall(chunk)
            return False
        while length:
            chunk = answers.read(min(length, 65536))
            if not chunk:
                return False
            client.sendall(chunk)
            length -= len(chunk)
        return "close" not in answer.get("connection", "").lower()


def _head(file: BinaryIO) -> tuple[dict[str, str], bytes]:
    """Read a head: its fields, the first line under "", and its bytes; nothing at the end."""
    raw = b""
    fields: dict[str, str] = {}
    while (line := file.readline()) not in {b"", b"\r\n"}:
        text = line.decode("latin-1").rstrip("\r\n")
        if not raw:
            fields[""] = text
        else:
            name, _, value = text.partition(":")
            fields[name.lower()] = value.strip()
        raw += line
    return fields, raw + b"\r\n"


def _length(answer: dict[str, str]) -> int:
    """Bytes of a body; -1 means all until the connection ends, or chunks, which this does not read."""
    return int(answer.get("content-length", -1))
