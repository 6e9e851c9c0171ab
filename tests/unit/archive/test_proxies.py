"""Which proxy leads where, by variables that curl and requests read too."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive.proxies import BadProxy, Login, Proxies, Proxy, read_proxies
from tests.support.strategies import examples

A, B = "http://a.example:3128", "socks5h://b.example:1080"


def leading(proxies: Proxies, url: str) -> str:
    """The proxy for scheme://host:port, as text; empty if there is none."""
    scheme, _, place = url.partition("://")
    host, _, port = place.rpartition(":")
    return str(proxies.leading_to(scheme, host.strip("[]"), int(port)) or "")


class VariablesTests(SynchronousTestCase):
    """What each variable is about."""

    def test_by_scheme(self) -> None:
        """One for https, one for http, and one for what has none of its own."""
        for environment, https, http in (
            ({}, "", ""),
            ({"HTTPS_PROXY": A}, A, ""),
            ({"HTTP_PROXY": A}, "", A),
            ({"ALL_PROXY": B}, B, B),
            ({"ALL_PROXY": B, "HTTPS_PROXY": A}, A, B),
            ({"HTTPS_PROXY": A, "https_proxy": B}, B, ""),
            ({"HTTPS_PROXY": A, "https_proxy": " "}, A, ""),
            ({"all_proxy": B, "HTTPS_PROXY": A}, A, B),
        ):
            proxies = read_proxies(environment)
            self.assertEqual(leading(proxies, "https://archive.org:443"), https, environment)
            self.assertEqual(leading(proxies, "http://mirror:80"), http, environment)

    def test_not_needed_is_not_read(self) -> None:
        """A desktop sets all of them, and one of a kind that is not spoken here."""
        given = {"HTTPS_PROXY": A, "HTTP_PROXY": A, "ALL_PROXY": "socks://127.0.0.1:1080/"}
        self.assertEqual(str(read_proxies(given)), f"https by {A}, http by {A}")

    def test_urls(self) -> None:
        """With a login or not; what is percent-encoded in it is decoded."""
        for text, proxy in {
            "http://Proxy.Example:3128/": Proxy(scheme="http", host="proxy.example", port=3128),
            "proxy:3128": Proxy(scheme="http", host="proxy", port=3128),
            "socks5://[2001:db8::1]:1080": Proxy(scheme="socks5", host="2001:db8::1", port=1080),
            "http://me@10.0.0.1:80": Proxy(
                scheme="http", host="10.0.0.1", port=80, login=Login(user=b"me", password=b"")
            ),
            "socks5h://a%20b:%C3%A9%3A%2F@p:1": Proxy(
                scheme="socks5h", host="p", port=1, login=Login(user=b"a b", password=b"\xc3\xa9:/")
            ),
        }.items():
            self.assertEqual(read_proxies({"HTTPS_PROXY": text}).by_scheme["https"], proxy)

    def test_refused(self) -> None:
        """One line with the variable, its value without the login, and what is allowed."""
        for text in (
            *("ftp://p:1", "https://p:1", "socks4://p:1", "socks://p:1", "socks5h://p", "http://p"),
            *("http://p:0", "http://p:65536", "http://p:x", "http://:80", "http://p:1/path"),
            *("http://p:1?x", "http://p:1#x", "http://p q:1", "http://[::1:1", "p", "http://"),
            *("http://s3cret:pa@ss", "http://s3cret:%0d%0aX@p:1", "http://:s3cret@p:1"),
            *("http://%3A:s3cret@p:1", "socks5://s3cret@p:1", f"socks5://{'s3cret' * 43}:x@p:1"),
            *("s3cret:s3cret@p", "ftp://s3cret:s3cret/@p:1", "http://s3c\nret:x@p:1x"),
        ):
            with self.assertRaises(BadProxy) as caught:
                read_proxies({"all_proxy": text})
            told = str(caught.exception)
            self.assertTrue(told.startswith("all_proxy='"), told)
            self.assertIn(": must be http://, socks5:// or socks5h:// with", told)
            self.assertNotIn("s3c", told)
            self.assertNotIn("\n", told)

    def test_password_in_no_text(self) -> None:
        """What is written to a log has neither user nor password."""
        proxies = read_proxies({"ALL_PROXY": "http://us3r:s3cret@p:1"})
        for text in (str(proxies), repr(proxies), f"{proxies.by_scheme['http']}"):
            self.assertNotIn("s3cret", text)
            self.assertNotIn("us3r", text)

    @given(st.text(alphabet="htps5:/@.%[]0x1a \n", max_size=40))
    @examples(300)
    def test_anything(self, text: str) -> None:
        """Whatever the text: a proxy or one line."""
        try:
            read_proxies({"HTTP_PROXY": text})
        except BadProxy as error:
            self.assertNotIn("\n", str(error))


class WithoutTests(SynchronousTestCase):
    """NO_PROXY."""

    def test_entries(self) -> None:
        """Names with all below them, ports, addresses, networks, all."""
        for entries, url, direct in (
            ("", "https://archive.org:443", False),
            ("*", "https://archive.org:443", True),
            ("archive.org", "https://archive.org:443", True),
            ("archive.org", "https://ia8.us.archive.org:443", True),
            (".archive.org", "https://archive.org:443", True),
            ("*.archive.org", "https://ia8.us.archive.org:443", True),
            ("ARCHIVE.ORG.", "https://archive.org:443", True),
            ("archive.org", "https://coverartarchive.org:443", False),
            ("org", "https://archive.org:443", True),
            (".", "https://archive.org:443", False),
            ("a, archive.org b", "https://archive.org:443", True),
            ("a\tarchive.org", "https://archive.org:443", True),
            ("archive.org:443", "https://archive.org:443", True),
            ("archive.org:80", "https://archive.org:443", False),
            ("10.0.0.1", "https://10.0.0.1:443", True),
            ("10.0.0.0/8", "https://10.1.2.3:443", True),
            ("10.0.0.1/8", "https://10.1.2.3:443", True),
            ("10.0.0.0/8", "https://11.1.2.3:443", False),
            ("10.0.0.0/x", "https://10.1.2.3:443", False),
            ("10.0.0.0/8", "https://archive.org:443", False),
            ("0.0.1", "https://10.0.0.1:443", False),
            ("::1", "https://[::1]:443", True),
            ("[::1]", "https://[::1]:443", True),
            ("[::1]:80", "https://[::1]:443", False),
            ("fd00::/8", "https://[fd00::1]:443", True),
        ):
            proxies = read_proxies({"HTTPS_PROXY": A, "NO_PROXY": entries})
            self.assertEqual(leading(proxies, url), "" if direct else A, (entries, url))

    def test_lower_case_wins(self) -> None:
        """As with the others."""
        given = {"HTTPS_PROXY": A, "NO_PROXY": "*", "no_proxy": "x"}
        self.assertEqual(leading(read_proxies(given), "https://archive.org:443"), A)
