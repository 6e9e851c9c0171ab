"""Where connections may be opened, whatever was asked for."""

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import URI

from coverart.archive.safe_connect import CheckedEndpoints
from coverart.archive.url_policy import Rules
from coverart.errors import BadUpstream


class CheckedEndpointsTests(SynchronousTestCase):
    """The last look before a socket is opened."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        rules = Rules(("archive.org", "*.archive.org", "127.0.0.1:8192"))
        self.endpoints = CheckedEndpoints(reactor=self.reactor, rules=rules)

    def test_allowed(self) -> None:
        """An endpoint for what the rules allow; the same for the same."""
        for url in (b"https://archive.org/x", b"https://a.archive.org/", b"http://127.0.0.1:8192/"):
            made = self.endpoints.endpointForURI(URI.fromBytes(url))
            self.assertIs(self.endpoints.endpointForURI(URI.fromBytes(url)), made)

    def test_not_allowed(self) -> None:
        """None for anything else, though whoever asks should have looked before."""
        for url in (
            *(b"http://archive.org/", b"https://archive.org:8443/", b"https://evil.example/"),
            *(b"https://127.0.0.1/", b"http://127.0.0.1:8193/", b"https://[::1]/"),
            *(b"https://archive.org.evil.example/", b"https://evilarchive.org/"),
        ):
            with self.assertRaises(BadUpstream):
                self.endpoints.endpointForURI(URI.fromBytes(url))
        self.assertEqual(self.reactor.tcpClients, [])
