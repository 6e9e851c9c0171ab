"""Looking up the archive's names: by the system, or by name servers of the operator's choice."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.logger import Logger
from twisted.names import dns
from twisted.names.client import Resolver
from zope.interface import implementer

QUERY_S = (1, 2, 4)
"""Seconds until all name servers are asked again, and at last given up."""


def addresses_of(resolver: IHostnameResolver, host: str) -> Deferred[list[str]]:
    """The addresses of a name, in the resolver's order; none where it is unknown."""
    receiver = _Receiver()
    resolver.resolveHostName(receiver, host)
    return receiver.done


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects what is found."""

    def __init__(self) -> None:
        self._found: list[str] = []
        # Twisted's own resolution can't be cancelled.
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """Nothing to do."""

    def addressResolved(self, address: Any) -> None:
        self._found.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.done.called:
            self.done.callback(self._found)


@implementer(IHostResolution)
@attrs.frozen
class _Resolution:
    name: str

    def cancel(self) -> None:
        """It ends by itself, within the seconds of QUERY_S."""


@implementer(IHostnameResolver)
class NameServers:
    """
    Asks these name servers, and nobody else: neither /etc/hosts nor what the system asks.

    So the archive is found where the network's own name server says that it is here.
    """

    log = Logger()

    def __init__(self, reactor: Any, servers: Sequence[tuple[str, int]]) -> None:
        """:param servers: address and port of each; the next is asked when one does not answer."""
        self._told = ", ".join(host for host, _ in servers)
        self._resolver = Resolver(servers=list(servers), timeout=QUERY_S, reactor=reactor)

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: object = None,  # noqa: ARG002
        transportSemantics: str = "TCP",  # noqa: ARG002
    ) -> IHostResolution:
        """See IHostnameResolver. Addresses that this machine has a way to come first."""
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        try:
            ipaddress.ip_address(hostName)
        except ValueError:
            asked = [
                self._resolver.lookupIPV6Address(hostName),
                self._resolver.lookupAddress(hostName),
            ]
            both: Deferred[Any] = DeferredList(asked, consumeErrors=True)
            both.addCallback(self._tell, resolutionReceiver, hostName, portNumber)
        else:
            _give(resolutionReceiver, [hostName], portNumber)
        return resolution

    def _tell(self, answers: Any, receiver: IResolutionReceiver, name: str, port: int) -> None:
        found = []
        for went_well, answer in answers:
            for record in answer[0] if went_well else ():
                match record.payload:
                    case dns.Record_A():
                        found.append(record.payload.dottedQuad())
                    case dns.Record_AAAA():
                        found.append(str(ipaddress.IPv6Address(record.payload.address)))
        if not found:
            why = [str(answer.value) for went_well, answer in answers if not went_well]
            self.log.warn(
                "{name}: the name servers {servers} (COVER_ART_RESOLVER) gave no address: {why}",
                name=name,
                servers=self._told,
                why="; ".join(sorted(set(filter(None, why)))) or "there is none",
            )
        _give(receiver, sorted(found, key=_no_way), port)


def _give(receiver: IResolutionReceiver, addresses: list[str], port: int) -> None:
    for address in addresses:
        kind = IPv6Address if ":" in address else IPv4Address
        receiver.addressResolved(kind("TCP", address, port))
    receiver.resolutionComplete()


def _no_way(address: str) -> bool:
    """Whether this machine has no route to an address. Nothing is sent (RFC 6724, rule 1)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 443))
        return False
    return True
