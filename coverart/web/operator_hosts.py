"""
By which names operators may ask.

A web page can give its own name the address of this machine (DNS rebinding): to its browser the
answers are then its own, to be read. What it can't change is the Host header, which has that name.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.web.http import Request

from coverart.errors import Refused
from coverart.web.headers import open_to_none

PRIVATE = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""
Names below these are not of the public DNS (RFC 6761, 6762 and 8375; ICANN for .internal); routers
use .lan, which nobody can register either.
"""


@attrs.frozen
class OwnNames:
    """The names that this proxy has by its operator's word, beside those that no page can have."""

    listed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, public_url: str, machine: str) -> OwnNames:
        """
        :param public_url: COVER_ART_PUBLIC_URL; what is no URL has no host.
        :param machine: its host name.
        """
        public = urlsplit(public_url).hostname
        return cls(frozenset(name.lower() for name in (public, machine) if name))

    def asked_by(self, request: Request) -> bool:
        """
        Say whether Host headers name an address, one of these, or what no public DNS has: a name
        without a dot, one below PRIVATE. Without the header no browser asked.

        Takes back that any web page may read the answer: one in an operator's browser asks from
        inside.
        """
        open_to_none(request)
        hosts = request.requestHeaders.getRawHeaders(b"host", [])
        return all(self._include(host.decode("latin-1")) for host in hosts)

    def check(self, request: Request) -> None:
        """The same. :raises Refused: it was asked for by a name that a web page may have."""
        if not self.asked_by(request):
            raise Refused(
                403,
                "not by this name: ask by an address, as localhost, or by the host of "
                "COVER_ART_PUBLIC_URL",
            )

    def _include(self, host: str) -> bool:
        if host.startswith("["):
            return isIPv6Address(host[1:].partition("]")[0])
        name = host.partition(":")[0].lower().removesuffix(".")
        return "." not in name or name.endswith(PRIVATE) or name in self.listed or isIPAddress(name)
