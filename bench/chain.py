"""A client that follows redirects as curl does: a new connection a hop, plain sockets."""

from __future__ import annotations

import socket
import time
from urllib.parse import urljoin, urlsplit

MOST_REDIRECTS = 5
TIMEOUT_S = 30.0


def first_byte_s(url: str) -> float:
    """
    Seconds until the first byte of the body is there, redirects followed; then it leaves.

    :raises RuntimeError: it ends in anything but a 200 with a body.
    """
    began = time.perf_counter()
    for _ in range(MOST_REDIRECTS):
        with _connected(url) as connection:
            head, body = _head(connection)
            status = head.split(b" ", 2)[1]
            if status == b"200":
                if not (body or connection.recv(1)):
                    raise RuntimeError(f"no body from {url}")
                return time.perf_counter() - began
            location = _header(head, b"location")
            if not status.startswith(b"3") or not location:
                raise RuntimeError(f"{url}: {head.decode('latin-1')}")
            url = urljoin(url, location)
    raise RuntimeError(f"too many redirects, the last to {url}")


def whole(url: str, *, status: int = 200) -> tuple[bytes, bytes]:
    """Head and body of one answer, no redirects followed. :raises RuntimeError: another status."""
    with _connected(url, close=True) as connection:
        head, body = _head(connection)
        while piece := connection.recv(1 << 16):
            body += piece
    if int(head.split(b" ", 2)[1]) != status:
        raise RuntimeError(f"{url}: {head.decode('latin-1')}")
    return head, body


def _connected(url: str, *, close: bool = False) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT_S)
    ending = "Connection: close\r\n" if close else ""
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{ending}\r\n"
    connection.sendall(request.encode())
    return connection


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece:
            raise RuntimeError("the connection was closed before an answer")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip().decode("latin-1")
    return ""
