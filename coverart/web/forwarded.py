"""
Who a request comes from, and by which scheme it was asked, through proxies that are trusted.

Anybody can write X-Forwarded-For and X-Forwarded-Proto. They count only as far as a trusted proxy
wrote them: each proxy adds at the right end the address of who asked it, so the client is the
rightmost that is no trusted proxy. X-Forwarded-Host and Forwarded (RFC 7239) are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal, TypeAlias

from twisted.internet import address as peers
from twisted.web.http import Request

ClientAddress: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

MOST_PROXIES = 20
"""Addresses that are read at most of one X-Forwarded-For."""
_WITH_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](?::[0-9]{1,5})?|(?P<v4>[0-9.]+):[0-9]{1,5}")


class TrustedProxies:
    """The proxies whose word on their clients is taken. A peer on a Unix socket always is one."""

    def __init__(self, networks: Sequence[Network]) -> None:
        """:param networks: where they have their addresses."""
        self._networks = networks
        # The same few proxies ask again and again.
        self._read_host = lru_cache(maxsize=1024)(self._read)

    def client(self, request: Request) -> ClientAddress | None:
        """
        The address of who asks.

        An entry that is no address ends the search: the client then is the proxy that wrote it.

        :returns: None for a Unix socket's peer that names no client.
        """
        client, trusted = self._peer(request)
        if not trusted:
            return client
        for entry in reversed(_values(request, b"x-forwarded-for")):
            named = read_address(entry)
            if named is None:
                break
            client = named
            if not self._trusts(named):
                break
        return client

    def scheme(self, request: Request) -> Literal["http", "https"]:
        """The scheme by which the client asked; a trusted proxy's last word counts."""
        if self._peer(request)[1]:
            told = _values(request, b"x-forwarded-proto")[-1].lower()
            if told == "https":
                return "https"
            if told == "http":
                return "http"
        return "https" if request.isSecure() else "http"

    def trusts(self, request: Request) -> bool:
        """Say whether a trusted proxy is connected."""
        return self._peer(request)[1]

    def _peer(self, request: Request) -> tuple[ClientAddress | None, bool]:
        """The address of who is connected, and whether it is a trusted proxy."""
        peer = request.client
        if isinstance(peer, peers.UNIXAddress):
            return None, True
        return self._read_host(getattr(peer, "host", ""))

    def _read(self, host: str) -> tuple[ClientAddress | None, bool]:
        found = read_address(host)
        return found, found is not None and self._trusts(found)

    def _trusts(self, found: ClientAddress) -> bool:
        return any(found in network for network in self._networks)


def read_address(text: str) -> ClientAddress | None:
    """
    An address as proxies write it: bare, or with a port, in brackets for IPv6.

    :returns: without port and zone; IPv4 where that was written in IPv6 (RFC 4291 section 2.5.5.2);
        None if it is no address.
    """
    parts = _WITH_PORT.fullmatch(text)
    try:
        if parts is None:
            found = ip_address(text)
        elif parts["v4"] is None:
            found = IPv6Address(parts["v6"])
        else:
            found = IPv4Address(parts["v4"])
    except ValueError:
        return None
    if isinstance(found, IPv4Address):
        return found
    return found.ipv4_mapped or IPv6Address(int(found))


def _values(request: Request, name: bytes) -> list[str]:
    """The entries of a list header, the rightmost MOST_PROXIES of them, over all of its lines."""
    lines = b",".join(request.requestHeaders.getRawHeaders(name, []))
    return [entry.strip(" \t") for entry in lines.decode("latin-1").rsplit(",", MOST_PROXIES)]
