"""
By which names operators may ask (pure).

A web page can give its own name the address of this machine (DNS rebinding): to its browser the
answers are then its own, to be read. What it can't change is the Host header, which has that name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

import attrs

PRIVATE = ("localhost", "local", "internal", "lan", "home.arpa")
"""
Names below these are not of the public DNS (RFC 6761, 6762 and 8375; ICANN for .internal); routers
use .lan, which nobody can register either.
"""


@attrs.frozen
class OwnNames:
    """The names that this proxy has by its operator's word, beside those that no page can have."""

    listed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, public_url: str | None, machine: str) -> OwnNames:
        """:param machine: its host name."""
        public = None if public_url is None else urlsplit(public_url).hostname
        return cls(frozenset(name.lower() for name in (public, machine) if name))

    def include_all(self, hosts: Iterable[str]) -> bool:
        """
        Say whether Host headers name an address, one of these, or what no public DNS has: a name
        without a dot, one below PRIVATE. Without the header no browser asked.
        """
        return all(map(self._include, hosts))

    def _include(self, host: str) -> bool:
        if host.startswith("["):
            return _is_address(host[1:].partition("]")[0])
        name = host.partition(":")[0].lower().removesuffix(".")
        if name in self.listed or _is_address(name):
            return True
        plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        return plain or name == "" or name.endswith(tuple(f".{end}" for end in PRIVATE))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
