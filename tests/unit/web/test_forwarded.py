"""Who a request comes from, by what proxies say and how far they are believed."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.address import IPv6Address as IPv6Peer
from twisted.trial.unittest import SynchronousTestCase

from coverart.web.forwarded import MOST_PROXIES, TrustedProxies, read_address
from tests.support.requests import request
from tests.support.strategies import examples

PROXIES = TrustedProxies([ip_network(each) for each in ("127.0.0.0/8", "::1", "10.0.0.0/8")])
NGINX = IPv4Address("TCP", "127.0.0.1", 1)
STRANGER = IPv4Address("TCP", "198.51.100.1", 1)
UNIX = UNIXAddress(None)


def asked(peer: Any, *lines: bytes, name: bytes = b"X-Forwarded-For") -> Any:
    """A request of this peer with these lines of one header."""
    made = request()
    made.client = peer
    for line in lines:
        made.requestHeaders.addRawHeader(name, line)
    return made


def client(peer: Any, *lines: bytes) -> str:
    """Who it comes from, as text."""
    return str(PROXIES.client(asked(peer, *lines)))


class ClientTests(SynchronousTestCase):
    """The client's address."""

    def test_strangers_say_nothing(self) -> None:
        """What a peer says who is no trusted proxy is not looked at."""
        self.assertEqual(client(STRANGER), "198.51.100.1")
        self.assertEqual(client(STRANGER, b"127.0.0.1"), "198.51.100.1")
        self.assertEqual(client(STRANGER, b"10.0.0.1, 192.0.2.1", b"::1"), "198.51.100.1")

    def test_rightmost_untrusted(self) -> None:
        """What a trusted proxy added counts; what stands left of the client is the client's own word."""
        for lines, expected in (
            ([], "127.0.0.1"),
            ([b""], "127.0.0.1"),
            ([b"192.0.2.1"], "192.0.2.1"),
            ([b"10.9.9.9, 192.0.2.1"], "192.0.2.1"),
            ([b"127.0.0.1", b"192.0.2.1"], "192.0.2.1"),
            ([b"192.0.2.1", b"198.51.100.7"], "198.51.100.7"),
            ([b"192.0.2.1, 198.51.100.7, 10.0.0.2", b"127.0.0.9"], "198.51.100.7"),
            ([b"10.0.0.1,10.0.0.2,\t10.0.0.3"], "10.0.0.1"),
            ([b"2001:db8::1"], "2001:db8::1"),
        ):
            self.assertEqual(client(NGINX, *lines), expected, lines)

    def test_rubbish_ends_the_search(self) -> None:
        """What is no address is passed over with all that stands left of it."""
        for rubbish in (
            *(b"unknown", b"_hidden", b"192.0.2", b"192.0.2.256", b"192.0.2.01", b"0x7f.1"),
            *(b'"192.0.2.1"', b"192.0.2.1:x", b"192.0.2.1:123456", b"[192.0.2.1]", b"[::1", b"[]"),
            *(
                b"192.0.2.1 192.0.2.2",
                b"192.0.2.1%0",
                b"::1::",
                b"\xff\xfe",
                b"192.0.2.1/8",
                b"unix:",
            ),
            *(b"\xd9\xa1.\xd9\xa1.\xd9\xa1.\xd9\xa1", b"9" * 8000),
        ):
            self.assertEqual(client(NGINX, rubbish), "127.0.0.1", rubbish)
            self.assertEqual(client(NGINX, b"192.0.2.1, " + rubbish), "127.0.0.1", rubbish)
            self.assertEqual(client(NGINX, rubbish + b", 192.0.2.1"), "192.0.2.1", rubbish)
            self.assertEqual(client(NGINX, rubbish, b"192.0.2.1, 10.0.0.1"), "192.0.2.1", rubbish)

    def test_spellings(self) -> None:
        """A port, brackets and a zone change nothing; IPv4 written in IPv6 is that IPv4 address."""
        for told, expected in (
            (b"192.0.2.1:443", "192.0.2.1"),
            (b"[2001:db8::1]:443", "2001:db8::1"),
            (b"[2001:DB8:0::1]", "2001:db8::1"),
            (b"fe80::1%eth0", "fe80::1"),
            (b"::ffff:192.0.2.1", "192.0.2.1"),
            (b"[::ffff:c000:201]:1", "192.0.2.1"),
            (b"192.0.2.7, ::ffff:10.0.0.1", "192.0.2.7"),
        ):
            self.assertEqual(client(NGINX, told), expected, told)

    def test_peers(self) -> None:
        """Of IPv6 and on Unix sockets; a peer in IPv4 written in IPv6 is trusted as itself."""
        for peer, expected in (
            (IPv6Peer("TCP", "::1", 1), "192.0.2.1"),
            (IPv6Peer("TCP", "::ffff:127.0.0.1", 1), "192.0.2.1"),
            (IPv6Peer("TCP", "fe80::1%eth0", 1), "fe80::1"),
            (IPv6Peer("TCP", "2001:db8::9", 1), "2001:db8::9"),
            (UNIX, "192.0.2.1"),
        ):
            self.assertEqual(client(peer, b"192.0.2.1"), expected, peer)
        self.assertEqual(client(UNIX), "None")
        self.assertEqual(client(UNIX, b"unix:"), "None")

    def test_bounded(self) -> None:
        """Of a header of thousands of addresses the last twenty are read."""
        trusted = [b"10.0.0.1"] * MOST_PROXIES
        self.assertEqual(client(NGINX, b",".join([b"192.0.2.1", *trusted[1:]])), "192.0.2.1")
        self.assertEqual(client(NGINX, b",".join([b"192.0.2.1"] * 2000 + trusted)), "10.0.0.1")

    @examples(200)
    @given(
        st.lists(st.binary(max_size=40), max_size=4), st.sampled_from(["192.0.2.1", "2001:db8::7"])
    )
    def test_unspoofable(self, said: list[bytes], true: str) -> None:
        """Whatever a client said, the address that the proxy added behind it is the client's."""
        lines = [each.replace(b"\n", b"").replace(b"\r", b"") for each in said]
        self.assertEqual(client(NGINX, *lines, true.encode()), true)
        self.assertEqual(client(NGINX, b",".join([*lines, true.encode()])), true)


class AddressTests(SynchronousTestCase):
    """Addresses as proxies write them."""

    @examples(200)
    @given(st.ip_addresses(), st.integers(0, 65535))
    def test_every_address(self, address: Any, port: int) -> None:
        """Each address is read, with and without a port."""
        expected = getattr(address, "ipv4_mapped", None) or address
        self.assertEqual(read_address(str(address)), expected)
        bracketed = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        self.assertEqual(read_address(f"{bracketed}:{port}"), expected)

    @examples(300)
    @given(st.text(max_size=50))
    def test_any_text(self, text: str) -> None:
        """No text breaks it, and what comes of it is an address without a zone."""
        found = read_address(text)
        if found is not None:
            self.assertEqual(ip_address(str(found)), found)
            self.assertNotIn("%", str(found))


class SchemeTests(SynchronousTestCase):
    """The scheme by which a client asked."""

    def test_scheme(self) -> None:
        """The last word of a trusted proxy counts, if it is a scheme; else the connection's own."""
        for peer, lines, expected in (
            (NGINX, [], "http"),
            (NGINX, [b"https"], "https"),
            (NGINX, [b"HTTPS"], "https"),
            (UNIX, [b"https"], "https"),
            (NGINX, [b"http, https"], "https"),
            (NGINX, [b"https,http"], "http"),
            (NGINX, [b"https", b"http"], "http"),
            (NGINX, [b"https, javascript"], "http"),
            (NGINX, [b"https\xff"], "http"),
            (NGINX, [b'"https"'], "http"),
            (NGINX, [b"https,"], "http"),
            (STRANGER, [b"https"], "http"),
        ):
            made = asked(peer, *lines, name=b"X-Forwarded-Proto")
            self.assertEqual(PROXIES.scheme(made), expected, lines)

    def test_tls_of_its_own(self) -> None:
        """Where this process speaks TLS itself, only a trusted proxy can say that it was http."""
        for peer, lines, expected in (
            (STRANGER, [], "https"),
            (STRANGER, [b"http"], "https"),
            (NGINX, [b"http"], "http"),
        ):
            made = asked(peer, *lines, name=b"X-Forwarded-Proto")
            made.isSecure = lambda: True
            self.assertEqual(PROXIES.scheme(made), expected, lines)
