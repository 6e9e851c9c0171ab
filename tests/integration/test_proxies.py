"""Where only a proxy leads out: covers come by it, what goes wrong there is told in its name."""

from __future__ import annotations

import os
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor

from tests.support.certificates import TRUSTED, authority, signed
from tests.support.contents import nothing_kept
from tests.support.raw_archive import ALIAS, HOPS, JPEG, KINDS, LISTING, MBID, redirect
from tests.support.small_proxies import HttpProxy, SocksProxy
from tests.support.talk import LOCAL, until

reactor: Any = _reactor

NAME = "archive.test"
ADDRESS = "93.184.216.34"
OTHER = "93.184.216.35"
SECRET = "s3cr%t/word"  # noqa: S105
LOGIN = "a%20user:s3cr%25t%2Fword@"
KINDS_OF_PROXY = {"http": HttpProxy, "socks5h": SocksProxy, "socks5": SocksProxy}


@pytest_twisted.async_yield_fixture
async def tls(raw, watch, tmp_path, monkeypatch):
    """The archive by TLS, under a name that only leads to it by a proxy."""
    monkeypatch.setenv(TRUSTED, os.fspath(tmp_path / "authorities.pem"))
    (tmp_path / "authorities.pem").write_bytes(authority().pem)
    options = signed(NAME, authority()).options()
    listening = reactor.listenSSL(0, raw, options, interface=LOCAL)
    raw.url = f"https://{NAME}"
    raw.tls_port = listening.getHost().port
    yield raw
    await listening.stopListening()


@pytest_twisted.async_yield_fixture
async def proxies():
    """Make a proxy of a kind; it leads nowhere yet."""
    made = []

    def make(kind: str) -> Any:
        proxy = KINDS_OF_PROXY[kind]()
        made.append(proxy)
        return proxy

    yield make
    for each in made:
        await each.stop()


def by(proxy: Any, kind: str, raw: Any, login: str = "", **more: str) -> dict[str, str]:
    """The settings of a proxy of covers behind such a proxy."""
    for host in (NAME, ADDRESS):
        proxy.routes[host, 443] = raw.tls_port
    return {
        **raw.environment(NAME, "*.archive.test", "10.0.0.1"),
        "HTTPS_PROXY": proxy.url(login, kind),
        **more,
    }


@pytest.mark.parametrize("login", ["", LOGIN])
@pytest.mark.parametrize("kind", KINDS_OF_PROXY)
@pytest_twisted.ensureDeferred
async def test_covers_come_by_a_proxy(tls, proxies, watch, run, lines, kind, login) -> None:
    """All hops go by it, TLS to the archive inside; names are looked up there, or for socks5 here."""
    theirs = proxies(kind)
    theirs.login = ("a user", SECRET) if login else None
    watch.addresses[NAME] = [[ADDRESS]]
    proxy = await run(**by(theirs, kind, tls, login))
    for path, body in ((ALIAS, JPEG), (KINDS["original"], JPEG), (KINDS["listing"], LISTING)):
        answer = await proxy.get(path)
        assert (answer.status, answer.body) == (200, body), lines
    assert {hop for hop, _ in tls.asked} == set(HOPS)
    named = ADDRESS if kind == "socks5" else NAME
    assert set(theirs.asked) == {(named, 443)}
    assert set(watch.names) == ({NAME} if kind == "socks5" else set())
    assert watch.tried == []
    shown = f"through proxies: https by {kind}://{LOCAL}:{theirs.port}"
    assert any(line.endswith(shown) for line in lines)
    # A way is used again, as any connection is.
    assert len(theirs.asked) <= 3
    assert not any(SECRET in line or "s3cr" in line for line in lines)


@pytest.mark.parametrize("kind", KINDS_OF_PROXY)
@pytest_twisted.ensureDeferred
async def test_the_host_is_verified(tls, proxies, watch, run, lines, kind) -> None:
    """A proxy that leads elsewhere is found out: the certificate is of another name."""
    theirs = proxies(kind)
    watch.addresses["other.archive.test"] = [[OTHER]]
    settings = by(theirs, kind, tls, COVER_ART_UPSTREAM="https://other.archive.test")
    theirs.routes["other.archive.test", 443] = theirs.routes[OTHER, 443] = tls.tls_port
    proxy = await run(**settings)
    answer = await proxy.get(ALIAS)
    assert answer.status == 502
    assert tls.asked == []
    (told,) = [line for line in lines if "could not be fetched" in line]
    assert f"other.archive.test:443 (by proxy {kind}://{LOCAL}:{theirs.port}) broke off" in told
    assert "VerificationError" in told or "certificate" in told, told
    await nothing_kept(proxy)


@pytest.mark.parametrize("kind", KINDS_OF_PROXY)
@pytest_twisted.ensureDeferred
async def test_redirects_astray(tls, proxies, watch, run, lines, kind) -> None:
    """The rules for hosts hold by a proxy too, and a private address is not even asked for."""
    theirs = proxies(kind)
    watch.addresses[NAME] = [[ADDRESS]]
    proxy = await run(**by(theirs, kind, tls))
    path = f"/0/items/mbid-{MBID}/mbid-{MBID}-7_thumb250.jpg"
    for location, reason in {
        f"https://elsewhere.test{path}": "not allowed",
        f"http://{NAME}{path}": "not allowed",
        f"https://{NAME}:8443{path}": "not allowed",
        f"https://127.0.0.1{path}": "not allowed",
        f"https://[::1]{path}": "not allowed",
        f"https://[::ffff:10.0.0.1]{path}": "not allowed",
        # Allowed by name, which no list should do.
        f"https://10.0.0.1{path}": "10.0.0.1 is no public address",
    }.items():
        tls.does = {"2": redirect(location.encode())}
        theirs.asked.clear()
        lines.clear()
        assert (await proxy.get(ALIAS)).status == 502, location
        told = [line for line in lines if "could not be fetched" in line]
        assert reason in told[0], (location, told)
        assert {host for host, _ in theirs.asked} <= {NAME, ADDRESS}, location
    assert watch.tried == []
    await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_names_looked_up_here(tls, proxies, watch, run, lines) -> None:
    """By socks5 a name's private addresses are passed over; of the public ones all are tried."""
    theirs = proxies("socks5")
    watch.addresses[NAME] = [["10.0.0.1", OTHER, ADDRESS]]
    proxy = await run(**by(theirs, "socks5", tls))
    assert (await proxy.get(ALIAS)).body == JPEG
    assert theirs.asked == [(OTHER, 443), (ADDRESS, 443)]
    watch.addresses[NAME] = [["10.0.0.1", "fd00::1"]]
    other = await run("other", **by(theirs, "socks5", tls))
    assert (await other.get(ALIAS)).status == 502
    assert any("fd00::1 is no public address" in line for line in lines)
    watch.addresses[NAME] = [[]]
    third = await run("third", **by(theirs, "socks5", tls))
    assert (await third.get(ALIAS)).status == 503
    assert any("no address of archive.test" in line for line in lines)
    assert len(theirs.asked) == 2


@pytest.mark.parametrize("login", ["", LOGIN])
@pytest_twisted.ensureDeferred
async def test_plain_http(raw, proxies, run, login) -> None:
    """A mirror by http is asked through an HTTP proxy by whole URLs; NO_PROXY leaves it out."""
    theirs = proxies("http")
    theirs.login = ("a user", SECRET) if login else None
    theirs.routes["mirror.test", 80] = theirs.routes["mirror.test", 8080] = raw.port
    raw.url = "http://mirror.test:8080"
    settings = {
        **raw.environment("mirror.test:8080", NAME),
        "HTTP_PROXY": theirs.url(login),
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "NO_PROXY": "127.0.0.1,elsewhere.test",
    }
    proxy = await run(**settings)
    answer = await proxy.get(ALIAS)
    assert (answer.status, answer.body) == (200, JPEG)
    assert theirs.asked[0] == f"http://mirror.test:8080/release/{MBID}/front"
    assert len(theirs.asked) == 3
    theirs.asked.clear()
    raw.url = f"http://{LOCAL}:{raw.port}"
    direct = await run("direct", **{**settings, **raw.environment()})
    assert (await direct.get(ALIAS)).body == JPEG
    assert theirs.asked == []


HEAD = b"HTTP/1.1 200 Connection established\r\n"
LIES: dict[str, dict[str, tuple[bytes, bool, str]]] = {
    "http": {
        "rubbish": (b"\x00\xff\x17 no HTTP at all\r\n\r\n", False, "which is no HTTP"),
        "rubbish in the tunnel": (HEAD + b"\r\n\x00rubbish", False, "before anything was asked"),
        "a body": (HEAD + b"Content-Length: 3\r\n\r\nabc", False, "before anything was asked"),
        "an answer of the archive": (
            HEAD + b"\r\nHTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n",
            False,
            "before anything was asked",
        ),
        "an endless head": (HEAD + b"X: y\r\n" * 5000, False, "more than 16384 bytes"),
        "an endless line": (b"HTTP/1.1 200 " + b"x" * 30_000, False, "more than 16384 bytes"),
        "interim answers": (b"HTTP/1.1 100 Go on\r\n\r\n" * 2000, False, "more than 16384 bytes"),
        "a login": (
            b"HTTP/1.1 407 Authenticate\r\nProxy-Authenticate: Basic\r\n\r\n",
            True,
            "said '407 Authenticate' (it wants another login)",
        ),
        "a refusal": (
            b"HTTP/1.1 403 \x1b[31mNo\r\nContent-Length: 9\r\n\r\ngo away!\n",
            True,
            "said '403",
        ),
        "hangs up": (b"", True, "closed the connection"),
        "hangs up in the head": (HEAD, True, "closed the connection"),
        "another version": (b"HTTP/2 200\r\n\r\n", False, "which is no HTTP"),
        "no status": (b"HTTP/1.1 000 What\r\n\r\n", False, "which is no HTTP"),
        "socks": (b"\x05\x00", False, "which is no HTTP"),
    },
    "socks5h": {
        "rubbish": (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, "which is no SOCKS 5"),
        "another login": (b"\x05\x01", False, "not offered (1)"),
        "a login": (b"\x05\xff", True, "wants a login"),
        "more than asked": (b"\x05\x00\x05\x00\x00\x01", False, "before anything was asked"),
        "hangs up": (b"", True, "closed the connection"),
        "hangs up half-way": (b"\x05", True, "closed the connection"),
    },
}


@pytest.mark.parametrize(
    ("kind", "lie"), [(kind, lie) for kind, lies in LIES.items() for lie in lies]
)
@pytest_twisted.ensureDeferred
async def test_a_proxy_that_lies(tls, proxies, run, lines, kind, lie) -> None:
    """503 at once, which proxy and what it said in one short line; nothing kept, nothing sent on."""
    theirs = proxies(kind)
    proxy = await run(**by(theirs, kind, tls))
    theirs.says, theirs.hangs_up, told = LIES[kind][lie]
    answer = await proxy.get(ALIAS)
    assert answer.status == 503
    assert int(answer["Retry-After"]) >= 1
    (line,) = [each for each in lines if "could not be fetched" in each]
    assert f"{NAME}:443: proxy {kind}://{LOCAL}:{theirs.port} " in line
    assert told in line, line
    assert line.isprintable()
    assert len(line) < 500
    assert (tls.asked, theirs.asked) == ([], [])
    await until(lambda: not theirs.open, "the connection is given up")
    await nothing_kept(proxy)


@pytest.mark.parametrize("kind", ["http", "socks5h"])
@pytest_twisted.ensureDeferred
async def test_what_refuses(tls, proxies, run, lines, kind) -> None:
    """A host that the proxy does not reach, a wrong password, nobody who listens: each in its words."""
    theirs = proxies(kind)
    settings = by(theirs, kind, tls, LOGIN)
    theirs.routes.clear()
    shown = f"proxy {kind}://{LOCAL}:{theirs.port}"
    refused = {"http": "said '502 Bad Gateway'", "socks5h": "said: connection refused (5)"}
    assert (await (await run("a", **settings)).get(ALIAS)).status == 503
    assert any(f"{shown} {refused[kind]}" in line for line in lines), lines
    theirs.login = ("a user", "another")
    denied = {"http": "said '407 ", "socks5h": "does not accept the login"}
    assert (await (await run("b", **settings)).get(ALIAS)).status == 503
    assert any(f"{shown} {denied[kind]}" in line for line in lines), lines
    await theirs.stop()
    assert (await (await run("c", **settings)).get(ALIAS)).status == 503
    assert any(f"{shown} can't be reached: Connection was refused" in line for line in lines)
    assert not any("s3cr" in line for line in lines)


@pytest.mark.parametrize("kind", KINDS_OF_PROXY)
@pytest_twisted.ensureDeferred
async def test_a_slow_proxy(tls, proxies, watch, run, lines, kind) -> None:
    """A proxy that never opens the way is bounded by the deadline of the fetch, and named."""
    theirs = proxies(kind)
    watch.addresses[NAME] = [[ADDRESS]]
    theirs.says = b""
    proxy = await run(**by(theirs, kind, tls, COVER_ART_UPSTREAM_TIMEOUT="0.5"))
    assert (await proxy.get(ALIAS)).status == 504
    await until(lambda: not theirs.open, "the connection is given up")
    assert not any("Traceback" in line for line in lines), lines


@pytest_twisted.ensureDeferred
async def test_several_processes(sim, proxies, spawn, redis, tmp_path) -> None:
    """What a .env file says of proxies holds in every process."""
    theirs = proxies("http")
    theirs.routes = {(LOCAL, port): port for port in sim.ports.values()}
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / ".env").write_text(f"HTTP_PROXY={theirs.url()}\n")
    child = await spawn(COVER_ART_PROCESSES="2", COVER_ART_REDIS_URL=redis.url).ready()
    answer = await child.get(sim.catalogue.examples()["thumbnail"])
    assert answer.status == 200
    assert len(theirs.asked) >= 2
