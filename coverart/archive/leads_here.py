"""
Notices when the archive's name leads to this proxy itself, as where DNS sends clients here by it.

It is noticed before anything is asked, by the addresses of the name; and where those do not tell,
by a request of ours that comes back (CDN-Loop, RFC 8586).
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from twisted.internet.interfaces import IHostnameResolver, IReactorTime
from twisted.logger import Logger

from coverart.archive.name_lookup import addresses_of
from coverart.archive.url_policy import is_public

LOOK_S = 300.0
"""Seconds between two looks at the names' addresses."""
REMEMBERED_S = 600.0
"""So long a request that came back is told of."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class LeadsHere:
    """Whether the archive's names lead here, for the log and for /ready."""

    log = Logger()

    def __init__(
        self,
        mark: str,
        clock: IReactorTime,
        names: Sequence[str] = (),
        resolver: IHostnameResolver | None = None,
    ) -> None:
        """
        :param mark: goes with each request to the archive; see mark_of().
        :param names: hosts that are looked up here, and have public addresses.
        :param resolver: what looks them up.
        """
        self.mark = mark
        self._clock = clock
        self._names = names
        self._resolver = resolver
        self._astray: dict[str, str] = {}
        self._came_back_at = float("-inf")

    @property
    def told(self) -> str | None:
        """What /ready says of it; None if all is well. Anybody may read it: no address is told."""
        if self._clock.seconds() - self._came_back_at < REMEMBERED_S:
            return "requests to the archive come back to this proxy: set COVER_ART_RESOLVER"
        if self._astray:
            names = ", ".join(sorted(self._astray))
            return f"{names}: leads to this proxy or its own network: set COVER_ART_RESOLVER"
        return None

    async def look(self) -> None:
        """Look the names up, and log what changed."""
        for name in self._names:
            addresses = [] if self._resolver is None else await addresses_of(self._resolver, name)
            why = _astray(addresses)
            if why is None:
                if self._astray.pop(name, None) is not None:
                    self.log.info("{name} leads to the archive again", name=name)
            elif self._astray.get(name) != why:
                self._astray[name] = why
                self.log.error(
                    "{name} leads to {why}, as a rule to this proxy itself by an override in DNS: nothing "
                    "can be fetched until COVER_ART_RESOLVER names servers that know the archive's address",
                    name=name,
                    why=why,
                )

    def came_back(self, sent: str) -> bool:
        """Say whether a request is our own. :param sent: its CDN-Loop."""
        if self.mark not in (each.partition(";")[0].strip() for each in sent.split(",")):
            return False
        now = self._clock.seconds()
        if now - self._came_back_at >= REMEMBERED_S:
            self.log.error(
                "a request to the archive came back to this proxy: the archive's name, or "
                "COVER_ART_UPSTREAM, leads here. Nothing can be fetched until it leads to the archive, "
                "by COVER_ART_RESOLVER or otherwise"
            )
        self._came_back_at = now
        return True


def mark_of(directory: Path) -> str:
    """
    A name for all processes of this machine that share a cache directory.

    Another machine's is another: one proxy may well be the archive of another one.
    """
    status = os.stat(directory)
    machine = socket.gethostname()
    with suppress(OSError):
        # The same in every container, where names differ.
        machine = _BOOT.read_text()
    which = f"{machine} {status.st_dev} {status.st_ino}"
    return f"coverart-{hashlib.sha256(which.encode()).hexdigest()[:16]}"


def _astray(addresses: Sequence[str]) -> str | None:
    """Where addresses lead that are none of the archive's; None if they may be."""
    for address in addresses:
        if _of_this_machine(address):
            return f"{address}, this machine"
    if addresses and not any(map(is_public, addresses)):
        return f"{addresses[0]}, which is no public address"
    return None


def _of_this_machine(address: str) -> bool:
    """Only to its own addresses a machine sends from the same address; nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 443))
        return str(probe.getsockname()[0]) == address
    return False
