"""Whether the archive's name leads to the proxy itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from coverart.archive.leads_here import REMEMBERED_S, LeadsHere, mark_of

NAME = "coverartarchive.org"


@implementer(IHostnameResolver)
class Told:
    """A resolver that knows what it was told."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def resolveHostName(self, resolutionReceiver: Any, hostName: str, *_: Any, **__: Any) -> Any:
        resolutionReceiver.resolutionBegan(self)
        for address in self.addresses:
            resolutionReceiver.addressResolved(IPv4Address("TCP", address, 0))
        resolutionReceiver.resolutionComplete()
        return self


class LeadsHereTests(SynchronousTestCase):
    """What is told, and when no more."""

    def setUp(self) -> None:
        self.clock, self.resolver = Clock(), Told()
        self.leads = LeadsHere("coverart-1", self.clock, [NAME], self.resolver)
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def look(self, *addresses: str) -> str | None:
        self.resolver.addresses = list(addresses)
        self.successResultOf(Deferred.fromCoroutine(self.leads.look()))
        return self.leads.told

    def reasons(self) -> list[str]:
        return [event["why"] for event in self.events if event.get("why")]

    def test_addresses(self) -> None:
        """Private ones alone, and this machine's own, are told of; the archive's are not."""
        for addresses, why in (
            (["192.168.1.5"], "192.168.1.5, which is no public address"),
            (["127.0.0.1"], "127.0.0.1, this machine"),
            (["93.184.216.34", "127.0.0.1"], "127.0.0.1, this machine"),
            (["::1"], "::1, this machine"),
            (["fd00::5"], "fd00::5, which is no public address"),
        ):
            self.assertIsNone(self.look("93.184.216.34"))
            self.events.clear()
            told = self.look(*addresses)
            self.assertEqual(
                told, f"{NAME}: leads to this proxy or its own network: set COVER_ART_RESOLVER"
            )
            self.assertEqual(self.reasons(), [why])
        for addresses in (["93.184.216.34", "192.168.1.5"], ["2606:2800::1"], []):
            self.assertIsNone(self.look(*addresses), addresses)

    def test_told_once(self) -> None:
        """The log has what changed, not what is as it was."""
        for _ in range(3):
            self.look("192.168.1.5")
        self.assertEqual(len(self.reasons()), 1)
        self.look("192.168.1.6")
        self.assertEqual(len(self.reasons()), 2)
        self.look("93.184.216.34")
        self.assertEqual(self.events[-1]["log_format"], "{name} leads to the archive again")

    def test_came_back(self) -> None:
        """A request with our own mark, among whatever others; told of for a while, logged once."""
        for sent in ("", "cloudflare", "coverart-12", "x-coverart-1", "coverart-2, fastly"):
            self.assertFalse(self.leads.came_back(sent))
        self.assertIsNone(self.leads.told)
        self.events.clear()
        for sent in ("coverart-1", "cloudflare; x=1, coverart-1;y", " fastly,coverart-1 "):
            self.assertTrue(self.leads.came_back(sent))
        self.assertEqual(len(self.events), 1)
        self.assertIn("come back to this proxy", str(self.leads.told))
        self.clock.advance(REMEMBERED_S)
        self.assertIsNone(self.leads.told)

    def test_mark(self) -> None:
        """The same for a directory whoever asks, another for another; a token of RFC 9110."""
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            self.assertEqual(mark_of(Path(one)), mark_of(Path(one, ".")))
            self.assertNotEqual(mark_of(Path(one)), mark_of(Path(other)))
            self.assertRegex(mark_of(Path(one)), "^coverart-[0-9a-f]{16}$")
