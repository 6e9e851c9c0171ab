"""The base URL of a client's requests: what of a Host header is taken, and what is refused."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.test.requesthelper import DummyChannel

from coverart.errors import Refused
from coverart.web.public_url import REDIRECT, SERVE, public_url, split_prefix
from tests.support.strategies import examples

SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.:[]")
"""Nothing else of a Host header comes into a listing."""


def base(*hosts: bytes, setting: str = "auto", scheme: str = "http") -> str | None:
    """The base URL of a request with these Host headers."""
    request = Request(cast("Any", DummyChannel()))
    request.requestHeaders = Headers({b"host": hosts} if hosts else {})
    return public_url(setting, lambda _: scheme)(request)


class AutoTests(SynchronousTestCase):
    """COVER_ART_PUBLIC_URL=auto."""

    def test_valid(self) -> None:
        """A name or an address, in lower case, with the port if there is one."""
        for host, expected in {
            b"covers.example": "covers.example",
            b"Covers.Example:8080": "covers.example:8080",
            b"covers.example.": "covers.example.",
            b"nas": "nas",
            b"nas:80": "nas:80",
            b"nas:": "nas",
            b"my_nas.lan": "my_nas.lan",
            b"xn--bcher-kva.example": "xn--bcher-kva.example",
            b"192.0.2.7:8080": "192.0.2.7:8080",
            b"[::1]": "[::1]",
            b"[2001:DB8::7]:8443": "[2001:db8::7]:8443",
            b"[::ffff:192.0.2.7]": "[::ffff:192.0.2.7]",
            b"a" * 63 + b".example:65535": "a" * 63 + ".example:65535",
        }.items():
            with self.subTest(host=host):
                self.assertEqual(base(host), f"http://{expected}")

    def test_scheme(self) -> None:
        """It is the one that the client asked by."""
        self.assertEqual(base(b"nas", scheme="https"), "https://nas")

    def test_none(self) -> None:
        """Without a Host nothing is known."""
        self.assertIsNone(base())
        self.assertIsNone(base(b""))

    def test_invalid(self) -> None:
        """What is no name and no address, or has more with it, is malformed, as are two headers."""
        for host in (
            *(
                b"user@x",
                b"user:password@x",
                b"x:1@y",
                b"x/y",
                b"x?y",
                b"x#y",
                b"x\\y",
                b"http://x",
            ),
            *(b"x y", b"x, y", b"x\ty", b"x%2ey", b"x%00", b"x\x00", b'x"', b"x'", b"<x>", b"{x}"),
            *(
                b"x:0",
                b"x:65536",
                b"x:123456",
                b"x:-1",
                b"x:+1",
                b"x:8o",
                b"x::80",
                b":80",
                b"x:80:80",
            ),
            *(
                b"..",
                b"a..b",
                b".a",
                b"a..",
                b"::1",
                b"[::1",
                b"::1]",
                b"[]",
                b"[:]",
                b"[x]",
                b"[1.2.3.4]",
            ),
            *(
                b"[::1]x",
                b"[::1%25eth0]",
                b"[::1%eth0]",
                b"[v1.x]",
                b"[::1]:x",
                b"[1:2:3:4:5:6:7:8:9]",
            ),
            *(
                "b\u00fccher.example".encode(),
                "\u0661".encode(),
                "\u212a".encode(),
                b"\xb2",
                b"x;y",
                b"x+y",
            ),
            *(
                b"a" * 64,
                b"a." * 127 + b"aa",
                b"a" * 10_000,
                b"x" + b":" * 10_000,
                b"*.x",
                b"x=y",
                b"x\r\nA: b",
            ),
        ):
            with self.subTest(host=host[:40]):
                self.assertEqual(self.assertRaises(Refused, base, host).status, 400)
        for several in ((b"a", b"b"), (b"a", b"a"), (b"", b"a"), (b"a", b""), (b"", b"")):
            self.assertEqual(self.assertRaises(Refused, base, *several).status, 400)

    @examples(300)
    @given(st.one_of(st.binary(max_size=40), st.text("ab.:[]0189-%@", max_size=20).map(str.encode)))
    def test_anything(self, host: bytes) -> None:
        """Whatever is sent, what is made of it stands in a JSON string and in a header as it is."""
        try:
            found = base(host)
        except Refused:
            return
        if found is not None:
            self.assertEqual(set(found.removeprefix("http://")) - SAFE, set())
            self.assertEqual(base(found.removeprefix("http://").encode()), found)


class FixedTests(SynchronousTestCase):
    """COVER_ART_PUBLIC_URL=off, or a URL."""

    def test_whatever_the_host(self) -> None:
        """No Host header counts, valid or not."""
        for hosts in ((), (b"evil.example",), (b"x y",), (b"a", b"b")):
            self.assertIsNone(base(*hosts, setting="off"))
            self.assertEqual(base(*hosts, setting="https://x/art"), "https://x/art")


class PrefixTests(SynchronousTestCase):
    """What stands before the archive's path."""

    def test_split(self) -> None:
        """The two prefixes are cut off once, spelled exactly; the rest is as it came."""
        for path, expected in {
            b"/serve/release/x": (SERVE, b"/release/x"),
            b"/redirect/release/x/": (REDIRECT, b"/release/x/"),
            b"/serve//release/x": (SERVE, b"//release/x"),
            b"/serve/": (SERVE, b"/"),
            b"/serve/redirect/release": (SERVE, b"/redirect/release"),
            b"/serve/serve/release": (SERVE, b"/serve/release"),
            b"/serve/../metrics": (SERVE, b"/../metrics"),
        }.items():
            self.assertEqual(split_prefix(path), expected)
        for path in (
            *(b"/serve", b"/served/x", b"//serve/x", b"/%73erve/x", b"/Serve/x", b"/./serve/x"),
            *(
                b"/redirect",
                b"/release/serve/x",
                b"serve/x",
                b"",
                b"/",
                b"/serve%2fx",
                b"/x/../serve/x",
            ),
        ):
            self.assertEqual(split_prefix(path), ("", path))
