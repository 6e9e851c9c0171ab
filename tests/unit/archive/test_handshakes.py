"""What is said to proxies, to the byte, however their answers are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.archive.handshakes import (
    LARGEST_HEAD_BYTES,
    Handshake,
    Unopened,
    http_connect,
    socks5,
)
from coverart.archive.proxies import Login
from tests.support.strategies import examples

LOGIN = Login(user=b"me", password=b"pass:word")
IPV4, NAMED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38", b"\x05\x00\x00\x03\x03abc\x04\x38"
IPV6 = b"\x05\x00\x00\x04" + bytes(16) + b"\x04\x38"


def play(steps: Handshake, *pieces: bytes) -> list[bytes]:
    """What is sent while these pieces come; the last opens the way, and none before it."""
    sent = [next(steps)]
    for number, piece in enumerate(pieces):
        try:
            sent.append(steps.send(piece))
        except StopIteration:
            assert number == len(pieces) - 1, f"open before {pieces[number + 1]!r}"
            return [each for each in sent if each]
    raise AssertionError("not open")


def bytewise(*pieces: bytes) -> list[bytes]:
    return [bytes([each]) for piece in pieces for each in piece]


class ConnectTests(SynchronousTestCase):
    """CONNECT."""

    def test_request(self) -> None:
        """Host and port, an IPv6 address in brackets, the login where there is one."""
        ok = b"HTTP/1.1 200 OK\r\n\r\n"
        asked = b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n"
        self.assertEqual(
            play(http_connect("archive.org", 443, None), ok),
            [b"CONNECT archive.org:443 HTTP/1.1\r\nHost: archive.org:443\r\n\r\n"],
        )
        self.assertEqual(
            play(http_connect("2001:db8::1", 8443, LOGIN), ok),
            [asked + b"Proxy-Authorization: Basic bWU6cGFzczp3b3Jk\r\n\r\n"],
        )

    def test_accepted(self) -> None:
        """Every 2xx, by either version, whatever its headers, however it is cut."""
        for head in (
            b"HTTP/1.0 200 Connection established\r\n\r\n",
            b"HTTP/1.1 200\r\n\r\n",
            b"HTTP/1.1 204 \r\nVia: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 7\r\n\r\n",
            b"HTTP/1.1 200 OK\n\n",
            b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ):
            play(http_connect("a", 443, None), head)
            play(http_connect("a", 443, None), *bytewise(head))

    def test_refused(self) -> None:
        """What it said, in a few words."""
        for answer, told in {
            b"HTTP/1.1 407 Login\r\n\r\n": "said '407 Login' (it wants another login)",
            b"HTTP/1.1 503 " + b"x" * 1000 + b"\r\n\r\n": "said '503 " + "x" * 96 + "'",
            b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n": "said '302 Found'",
            b"HTTP/1.1 20 OK\r\n\r\n": "answered 'HTTP/1.1 20 OK', which is no HTTP",
            b"SSH-2.0-x": "answered 'SSH-2.0-x', which is no HTTP",
            b"HTTP/1.1 200 OK\r\n\r\n!": "sent '!' before anything was asked",
            b"HTTP/1.1 200 "
            + b"x" * LARGEST_HEAD_BYTES: "answered with a head of more than 16384 bytes",
        }.items():
            steps = http_connect("a", 443, LOGIN)
            next(steps)
            with self.assertRaises(Unopened) as caught:
                steps.send(answer)
            self.assertEqual(str(caught.exception), told)


class SocksTests(SynchronousTestCase):
    """SOCKS 5, by RFC 1928 and RFC 1929."""

    def test_without_login(self) -> None:
        """A name is sent as it is, an address in its bytes."""
        for host, packed in {
            "archive.org": b"\x03\x0barchive.org",
            "93.184.216.34": b"\x01\x5d\xb8\xd8\x22",
            "2001:db8::1": b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01",
        }.items():
            for bound in (IPV4, NAMED, IPV6):
                expected = [b"\x05\x01\x00", b"\x05\x01\x00" + packed + b"\x01\xbb"]
                self.assertEqual(play(socks5(host, 443, None), b"\x05\x00", bound), expected)
                pieces = bytewise(b"\x05\x00", bound)
                self.assertEqual(play(socks5(host, 443, None), *pieces), expected)

    def test_with_login(self) -> None:
        """It is offered, and sent where it is wanted."""
        asked = b"\x05\x01\x00\x03\x01a\x00\x50"
        for pieces, login in (
            ([b"\x05\x02", b"\x01\x00", IPV4], [b"\x01\x02me\x09pass:word"]),
            ([b"\x05\x00", IPV4], []),
        ):
            expected = [b"\x05\x02\x00\x02", *login, asked]
            self.assertEqual(play(socks5("a", 80, LOGIN), *pieces), expected)
            self.assertEqual(play(socks5("a", 80, LOGIN), *bytewise(*pieces)), expected)

    def test_refused(self) -> None:
        """Each refusal in the words of its RFC."""
        for login, pieces, told in (
            (None, [b"\x05\xff"], "wants a login"),
            (LOGIN, [b"\x05\xff"], "takes no login by password"),
            (None, [b"\x05\x02"], "chose a way to log in that it was not offered (2)"),
            (LOGIN, [b"\x05\x02", b"\x01\x01"], "does not accept the login"),
            (None, [b"\x04\x00"], "answered '\\x04\\x00', which is no SOCKS 5"),
            (None, [b"\x05\x00\x05"], "sent '\\x05' before anything was asked"),
            (LOGIN, [b"\x05\x02\x01\x00"], "sent '\\x01\\x00' before anything was asked"),
            (None, [b"\x05\x00", b"\x05\x04"], "said: host unreachable (4)"),
            (None, [b"\x05\x00", b"\x05\x63"], "said: a refusal that is none (99)"),
            (None, [b"\x05\x00", b"\x01\x00"], "answered '\\x01\\x00', which is no SOCKS 5"),
            (
                None,
                [b"\x05\x00", b"\x05\x00\x00\x02\x00"],
                "answered with an address of no kind (2)",
            ),
            (None, [b"\x05\x00", IPV4 + b"x"], "sent 'x' before anything was asked"),
        ):
            steps = socks5("archive.org", 443, login)
            next(steps)
            with self.assertRaises(Unopened) as caught:
                for piece in pieces:
                    steps.send(piece)
            self.assertEqual(str(caught.exception), told)


class AnythingTests(SynchronousTestCase):
    """No answer breaks a handshake."""

    @given(st.lists(st.binary(min_size=1, max_size=30), max_size=8), st.booleans(), st.booleans())
    @examples(500)
    def test_anything(self, pieces: list[bytes], http: bool, login: bool) -> None:
        """Whatever comes: it waits for more, is open, or says why not in one short line."""
        steps = (http_connect if http else socks5)("archive.org", 443, LOGIN if login else None)
        next(steps)
        try:
            for piece in pieces:
                steps.send(piece)
        except StopIteration:
            return
        except Unopened as error:
            self.assertTrue(str(error).isprintable(), error)
            self.assertLess(len(str(error)), 600)

    @given(st.lists(st.integers(0, 60), max_size=6), st.booleans())
    @examples(200)
    def test_cut_anywhere(self, cuts: list[int], http: bool) -> None:
        """An answer means the same however it is cut."""
        if http:
            answers = [b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 Connection established\r\n\r\n"]
        else:
            answers = [b"\x05\x02", b"\x01\x00", NAMED]
        pieces = []
        for answer in answers:
            places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
            pieces += [answer[a:b] for a, b in itertools.pairwise(places)]
        whole = play((http_connect if http else socks5)("a", 443, LOGIN), *answers)
        self.assertEqual(play((http_connect if http else socks5)("a", 443, LOGIN), *pieces), whole)
