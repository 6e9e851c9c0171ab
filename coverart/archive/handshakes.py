"""
What is said to a proxy until it lets bytes through to a host: CONNECT, and SOCKS 5 (no I/O).

Each handshake is a generator: it yields the bytes to send, is sent what came, and ends when the
way is open. What the proxy says is bounded, and quoted in a few words.

SOCKS is written here since no library that is kept has it for Twisted: txsocksx is of Python 2,
txtorcon brings a whole Tor controller, python-socks speaks by asyncio and keeps its protocol
private.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Generator

from coverart.archive.proxies import Login, Proxy

LARGEST_HEAD_BYTES = 16 * 1024
"""What a proxy may send before the way is open."""
_MOST_SAID = 100
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([^\r\n]*))?\r?(?:\n|$)")
_END = re.compile(rb"\r?\n\r?\n")

Handshake = Generator[bytes, bytes, None]


class Unopened(Exception):
    """A proxy opens no way; the message says what it did."""


def handshake(proxy: Proxy, host: str, port: int) -> Handshake:
    """
    What opens a way to a host through a proxy.

    :param host: a name or an address, without brackets.
    :raises Unopened: from the generator.
    """
    if proxy.scheme == "http":
        return http_connect(host, port, proxy.login)
    return socks5(host, port, proxy.login)


def basic(login: Login) -> bytes:
    """The value of Proxy-Authorization (RFC 7617)."""
    return b"Basic " + base64.b64encode(login.user + b":" + login.password)


def http_connect(host: str, port: int, login: Login | None) -> Handshake:
    """
    Ask an HTTP proxy for a tunnel.

    Source: RFC 9110 section 9.3.6: a 2xx has no body, whatever its headers say.
    """
    to = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [b"CONNECT %s HTTP/1.1" % to.encode(), b"Host: " + to.encode()]
    if login is not None:
        lines.append(b"Proxy-Authorization: " + basic(login))
    came = yield b"\r\n".join([*lines, b"", b""])
    heads = 0
    while True:
        while (end := _END.search(came)) is None:
            if came and not came.startswith(b"HTTP/1."[: len(came)]):
                raise Unopened(f"answered {_said(came)}, which is no HTTP")
            if heads + len(came) >= LARGEST_HEAD_BYTES:
                raise Unopened(f"answered with a head of more than {LARGEST_HEAD_BYTES} bytes")
            came += yield b""
        status = _STATUS.match(came)
        if status is None:
            raise Unopened(f"answered {_said(came)}, which is no HTTP")
        if not status[1].startswith(b"1"):
            break
        # An interim answer; the other follows.
        heads += end.end()
        came = came[end.end() :]
    if not status[1].startswith(b"2"):
        wants = " (it wants another login)" if status[1] == b"407" else ""
        raise Unopened(f"said {_said(status[1] + b' ' + (status[2] or b''))}{wants}")
    _nothing_more(came[end.end() :])


_REFUSALS = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}
_NO_LOGIN, _BY_PASSWORD, _NONE = 0, 2, 255
_IPV4, _NAME, _IPV6 = 1, 3, 4


def socks5(host: str, port: int, login: Login | None) -> Handshake:
    """Ask a SOCKS proxy for a connection. Source: RFC 1928, and RFC 1929 for the login."""
    methods = [_NO_LOGIN] if login is None else [_NO_LOGIN, _BY_PASSWORD]
    came = yield bytes([5, len(methods), *methods])
    came = yield from _read(came, 2)
    if came[0] != 5:
        raise Unopened(f"answered {_said(came)}, which is no SOCKS 5")
    method, came = came[1], came[2:]
    if method == _NONE:
        raise Unopened("wants a login" if login is None else "takes no login by password")
    if method not in methods:
        raise Unopened(f"chose a way to log in that it was not offered ({method})")
    if method == _BY_PASSWORD and login is not None:
        _nothing_more(came)
        user, password = login.user, login.password
        came = yield bytes([1, len(user)]) + user + bytes([len(password)]) + password
        came = yield from _read(came, 2)
        if came[1]:
            raise Unopened("does not accept the login")
        came = came[2:]
    _nothing_more(came)
    came = yield b"\x05\x01\x00" + _packed(host) + port.to_bytes(2, "big")
    came = yield from _read(came, 2)
    if came[0] != 5:
        raise Unopened(f"answered {_said(came)}, which is no SOCKS 5")
    if came[1]:
        why = _REFUSALS.get(came[1], "a refusal that is none")
        raise Unopened(f"said: {why} ({came[1]})")
    came = yield from _read(came, 5)
    # The address that it connects from, which nobody needs.
    length = {_IPV4: 4, _IPV6: 16, _NAME: 1 + came[4]}.get(came[3])
    if length is None:
        raise Unopened(f"answered with an address of no kind ({came[3]})")
    whole = 4 + length + 2
    came = yield from _read(came, whole)
    _nothing_more(came[whole:])


def _packed(host: str) -> bytes:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        return bytes([_NAME, len(name)]) + name
    return bytes([_IPV4 if ip.version == 4 else _IPV6]) + ip.packed


def _read(came: bytes, least: int) -> Generator[bytes, bytes, bytes]:
    """Wait until so many bytes came; there may be more."""
    while len(came) < least:
        came += yield b""
    return came


def _nothing_more(rest: bytes) -> None:
    """Whoever is asked over the way speaks second: what comes before that is the proxy's own."""
    if rest:
        raise Unopened(f"sent {_said(rest)} before anything was asked")


def _said(data: bytes) -> str:
    """A few words of it, in one line."""
    return repr(data[:_MOST_SAID].decode("latin-1").strip())
