"""Where a redirect may not lead, nothing is sent: the whole way, from a client to the sockets."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.support.contents import nothing_kept
from tests.support.raw_archive import ALIAS, HOPS, JPEG, KINDS, LISTING, MBID, ok, redirect
from tests.support.talk import LOCAL

NOT_ALLOWED = "not allowed"
MALFORMED = "malformed URL"
ODD_HOST = "names a host in a way"

# name: what Location holds, and what the operator reads. {t} is the trap's port, {a} the
# archive's, {p} the path that would be right.
ASTRAY: dict[str, tuple[str, str]] = {
    "this machine": ("http://127.0.0.1:{t}{p}", NOT_ALLOWED),
    "this machine by https": ("https://127.0.0.1:{t}{p}", NOT_ALLOWED),
    "this machine by name": ("http://localhost:{t}{p}", NOT_ALLOWED),
    "cloud metadata": ("http://169.254.169.254/latest/meta-data/", NOT_ALLOWED),
    "cloud metadata by https": ("https://169.254.169.254{p}", NOT_ALLOWED),
    "a neighbour": ("http://10.0.0.1{p}", NOT_ALLOWED),
    "a neighbour by https": ("https://10.0.0.1{p}", NOT_ALLOWED),
    "ipv6 loopback": ("http://[::1]:{t}{p}", NOT_ALLOWED),
    "ipv4 in ipv6": ("http://[::ffff:127.0.0.1]:{t}{p}", NOT_ALLOWED),
    "ipv6 with a zone": ("http://[fe80::1%25lo]:{t}{p}", ODD_HOST),
    "any address": ("http://0.0.0.0:{t}{p}", NOT_ALLOWED),
    "any ipv6 address": ("http://[::]:{t}{p}", NOT_ALLOWED),
    "a number": ("http://2130706433:{t}{p}", NOT_ALLOWED),
    "a hexadecimal number": ("http://0x7f000001:{t}{p}", NOT_ALLOWED),
    "octal": ("http://0177.0.0.1:{t}{p}", NOT_ALLOWED),
    "short": ("http://127.1:{t}{p}", NOT_ALLOWED),
    "the archive's own port by another spelling": ("http://127.1:{a}{p}", NOT_ALLOWED),
    "the archive's own port by name": ("http://localhost:{a}{p}", NOT_ALLOWED),
    "file": ("file:///etc/passwd", ODD_HOST),
    "file with a host": ("file://127.0.0.1{p}", NOT_ALLOWED),
    "ftp": ("ftp://archive.org{p}", NOT_ALLOWED),
    "gopher": ("gopher://127.0.0.1:{t}/x", NOT_ALLOWED),
    "javascript": ("javascript:alert(1)", ""),
    "data": ("data:image/jpeg;base64,/9j/", ""),
    "downgrade": ("http://archive.org{p}", NOT_ALLOWED),
    "another port": ("https://archive.org:8443{p}", NOT_ALLOWED),
    "port 80 by https": ("https://archive.org:80{p}", NOT_ALLOWED),
    "port too large": ("https://archive.org:99999{p}", MALFORMED),
    "port in letters": ("https://archive.org:http{p}", MALFORMED),
    "archive.org as a prefix": ("https://archive.org.evil{p}", NOT_ALLOWED),
    "archive.org as a user": ("https://archive.org@evil{p}", ODD_HOST),
    "archive.org as user and password": ("https://archive.org:443@evil{p}", ODD_HOST),
    "a user before the archive": ("http://user@127.0.0.1:{a}{p}", ODD_HOST),
    "the archive's port as a user": ("http://127.0.0.1:{a}@127.0.0.1:{t}{p}", ODD_HOST),
    "archive.org as a suffix": ("https://evilarchive.org{p}", NOT_ALLOWED),
    "a trailing dot": ("https://archive.org.{p}", ODD_HOST),
    "two trailing dots": ("https://archive.org..{p}", ODD_HOST),
    "a leading dot": ("https://.archive.org{p}", ODD_HOST),
    "upper case": ("HTTPS://ARCHIVE.ORG.EVIL{p}", NOT_ALLOWED),
    "punycode": ("https://xn--rchive-4fe.org{p}", NOT_ALLOWED),
    "a look-alike": ("https://\u0430rchive.org{p}", MALFORMED),
    "a full-width dot": ("https://archive\uff0eorg{p}", MALFORMED),
    "percent in the host": ("https://archive%2eorg{p}", ODD_HOST),
    "backslashes": ("\\\\evil\\x", MALFORMED),
    "a backslash for a slash": ("https:\\\\evil{p}", MALFORMED),
    "a backslash before the user": ("https://archive.org\\@evil{p}", MALFORMED),
    "a slash and a backslash": ("/\\evil{p}", MALFORMED),
    "a tab": ("https://archive.org\t.evil{p}", MALFORMED),
    "a tab in the scheme": ("ht\ttp://127.0.0.1:{t}{p}", MALFORMED),
    "a space": ("http://127.0.0.1:{a} @127.0.0.1:{t}{p}", MALFORMED),
    "NUL": ("http://127.0.0.1:{t}\0{p}", MALFORMED),
    "a fold": ("http://127.0.0.1:{a}\r\n @127.0.0.1:{t}{p}", MALFORMED),
    "relative to another host": ("//127.0.0.1:{t}{p}", NOT_ALLOWED),
    "empty": ("", "without Location"),
    "a fragment alone": ("#", ""),
    "too long": ("http://127.0.0.1:{a}/" + "x" * 3000, MALFORMED),
}


def target(raw: Any, hop: str, kind: str) -> str:
    """The path that this hop would have sent to."""
    path = KINDS[kind]
    if hop == "1":
        right = raw.location("1", path.rstrip("/"))
    else:
        right = raw.location("2", f"/download/mbid-{MBID}/x")
    return str(right).removeprefix(raw.url)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hop", HOPS)
@pytest_twisted.ensureDeferred
async def test_astray(raw, trap, watch, run, lines, hop, kind) -> None:
    """Wherever a redirect leads astray: 502, no connection, no name looked up, nothing kept."""
    proxy = await run(**raw.environment("archive.org", "*.archive.org"))
    right = target(raw, hop, kind)
    # The whole table for what has an own way through the code; for the others, samples.
    table = ASTRAY if kind in ("thumbnail", "listing") else dict(list(ASTRAY.items())[::6])
    for name, (form, reason) in table.items():
        location = form.replace("{t}", str(trap.port)).replace("{a}", str(raw.port))
        raw.does = {hop: redirect(location.replace("{p}", right).encode())}
        raw.asked.clear()
        lines.clear()
        answer = await proxy.get(KINDS[kind])
        assert answer.status == 502, name
        # Where it leads is not told to the client; who sent there is.
        assert answer.json["host"] == f"{LOCAL}:{raw.port}", name
        assert str(trap.port) not in answer["Proxy-Status"] + answer.body.decode(), name
        assert answer["Cache-Control"] == "no-store"
        assert len(raw.asked) <= 4, (name, raw.asked)
        told = [line for line in lines if "could not be fetched" in line]
        assert len(told) == 1, (name, lines)
        assert reason in told[0], (name, told)
        assert "\n" not in told[0], name
    assert trap.connections == 0
    assert watch.tried == []
    assert watch.names == []
    await nothing_kept(proxy)
    if hop == "1":
        # What hop 1 said is worth keeping where another hop was at fault.
        assert not any((await proxy.cache.index.totals()).aliases.values())
    raw.does = {}
    answer = await proxy.get(KINDS[kind])
    assert (answer.status, answer.body) == (200, LISTING if kind == "listing" else JPEG)


@pytest.mark.parametrize("hop", HOPS)
@pytest_twisted.ensureDeferred
async def test_two_locations(raw, trap, watch, run, lines, hop) -> None:
    """Two Location headers that differ are believed neither; the same one twice is one."""
    proxy = await run(**raw.environment())
    right = target(raw, hop, "thumbnail").encode()
    evil = b"http://127.0.0.1:%d%s" % (trap.port, right)
    for pair in ((right, evil), (evil, right), (right, b""), (right, right + b"?x")):
        raw.does = {hop: redirect(*pair)}
        lines.clear()
        assert (await proxy.get(ALIAS)).status == 502, pair
        assert any("more than one Location" in line for line in lines), lines
    assert (trap.connections, watch.tried) == (0, [])
    await nothing_kept(proxy)


@pytest.mark.parametrize("hop", HOPS)
@pytest_twisted.ensureDeferred
async def test_split_answer(raw, trap, watch, run, hop) -> None:
    """What follows CR LF in a Location is another header, or the body, and leads nowhere."""
    proxy = await run(**raw.environment())
    right = raw.url.encode() + target(raw, hop, "thumbnail").encode()
    evil = b"http://127.0.0.1:%d%s" % (trap.port, right)
    for tail in (b"\r\nLocation: " + evil, b"\rLocation: " + evil, b"\nLocation: " + evil):
        raw.does = {hop: redirect(right + tail)}
        assert (await proxy.get(ALIAS)).status == 502, tail
    assert (trap.connections, watch.tried) == (0, [])
    await nothing_kept(proxy)


@pytest.mark.parametrize("hangs_up", [True, False])
@pytest.mark.parametrize("hop", HOPS)
@pytest_twisted.ensureDeferred
async def test_answer_too_many(raw, trap, watch, run, hop, hangs_up) -> None:
    """A second answer behind the first is nobody's: not the next request's on that connection."""
    proxy = await run(**raw.environment())
    raw.hangs_up = hangs_up
    evil = b"http://127.0.0.1:%d%s" % (trap.port, target(raw, hop, "thumbnail").encode())
    right = raw.url.encode() + target(raw, hop, "thumbnail").encode()
    first = ok(JPEG) if hop == "node" else redirect(right)
    for second in (redirect(evil), ok(JPEG + b"of another")):
        raw.does = {hop: first + second}
        for path in (ALIAS, f"/release/{MBID}/back-500", f"/release/{MBID}/8-1200"):
            answer = await proxy.get(path)
            assert answer.status in (200, 502)
            assert answer.status == 502 or answer.body == JPEG, path
    assert (trap.connections, watch.tried) == (0, [])


RIGHT = {
    "absolute": "{u}{p}",
    "upper-case scheme": "HTTP://127.0.0.1:{a}{p}",
    "relative": "{p}",
    "relative to the scheme": "//127.0.0.1:{a}{p}",
    "dots": "/x/./../{p1}",
    "spaces around": "  {p}\t",
}


@pytest.mark.parametrize("hop", ["1", "2"])
@pytest_twisted.ensureDeferred
async def test_right_in_other_words(raw, run, hop) -> None:
    """Every spelling of the right place is followed (RFC 3986 section 5)."""
    for number, (name, form) in enumerate(RIGHT.items()):
        proxy = await run(f"cache-{number}", **raw.environment())

        def answer(path: str, form: str = form) -> bytes:
            right = raw.location(hop, path).removeprefix(raw.url)
            location = form.replace("{u}", raw.url).replace("{a}", str(raw.port))
            location = location.replace("{p1}", right[1:]).replace("{p}", right)
            return redirect(location.encode())

        raw.does = {hop: answer}
        got = await proxy.get(ALIAS)
        assert (got.status, got.body) == (200, JPEG), name


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_without_end(raw, run, lines, kind) -> None:
    """A loop, by itself or over two hops, and a chain of always new URLs end after four requests."""
    proxy = await run(**raw.environment())
    right = f"/download/mbid-{MBID}/x"
    node = f"/0/items/mbid-{MBID}/x"
    chains: dict[str, dict[str, Any]] = {
        "hop 1 to itself": {"1": lambda path: redirect(path.encode())},
        "hop 2 to itself": {"2": lambda path: redirect(path.encode())},
        "the node to itself": {"node": lambda path: redirect(path.encode())},
        "the node back to hop 2": {"node": redirect(right.encode())},
        "the node back to hop 1": {"node": redirect(KINDS[kind].encode())},
        "always further": {"node": lambda path: redirect(f"/0{path}".encode())},
        "always further from hop 2": {"2": lambda path: redirect(f"{node}{len(path)}".encode())}
        | {"node": lambda path: redirect(f"{path}1".encode())},
    }
    for name, does in chains.items():
        raw.does = does
        raw.asked.clear()
        assert (await proxy.get(KINDS[kind])).status == 502, name
        assert 1 <= len(raw.asked) <= 4, (name, raw.asked)
    assert any("without end" in line for line in lines)
    await nothing_kept(proxy)


# Names that resolve to what they should not. By https, as it is where the archive is real.

NAME = "ia801.us.archive.org"
PUBLIC = "93.184.216.34"
PRIVATE: dict[str, list[str]] = {
    "loopback": ["127.0.0.1"],
    "private": ["10.0.0.1", "192.168.1.1", "172.16.0.1"],
    "metadata": ["169.254.169.254"],
    "shared": ["100.64.0.1"],
    "any": ["0.0.0.0"],
    "multicast": ["224.0.0.1"],
    "ipv6 loopback": ["::1"],
    "unique local": ["fd00::1"],
    "link local": ["fe80::1"],
    "ipv4 in ipv6": ["::ffff:127.0.0.1"],
    "ipv4 behind NAT64": ["64:ff9b::7f00:1"],
}


@pytest.mark.parametrize("hop", HOPS)
@pytest_twisted.ensureDeferred
async def test_name_of_a_private_address(raw, trap, watch, run, lines, hop) -> None:
    """A name that is allowed but resolves to a private address is not connected to."""
    # Named in full, since hop 1 may lead to no other.
    proxy = await run(**raw.environment("archive.org", NAME))
    right = target(raw, hop, "thumbnail")
    for kind, addresses in PRIVATE.items():
        for spelling in (NAME, NAME.upper()):
            watch.addresses[NAME] = [addresses]
            raw.does = {hop: redirect(f"https://{spelling}{right}".encode())}
            lines.clear()
            answer = await proxy.get(ALIAS)
            assert answer.status == 502, kind
            told = [line for line in lines if "could not be fetched" in line]
            assert f"{NAME}:443: {addresses[-1]} is no public address" in told[0], (kind, told)
    assert (trap.connections, watch.tried) == (0, [])
    assert set(watch.names) == {NAME}
    await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_name_of_both(raw, watch, run) -> None:
    """Of a name's addresses only the public ones are connected to, whatever their order."""
    for number, addresses in enumerate(
        (["10.0.0.1", PUBLIC], [PUBLIC, "::1"], ["fd00::1", PUBLIC])
    ):
        proxy = await run(f"cache-{number}", **raw.environment("*.archive.org"))
        watch.addresses[NAME] = [addresses]
        watch.tried.clear()
        raw.does = {"2": redirect(f"https://{NAME}/0/items/mbid-{MBID}/x".encode())}
        assert (await proxy.get(ALIAS)).status == 502
        assert set(watch.tried) == {(PUBLIC, 443)}
        await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_rebinding(raw, watch, run, lines) -> None:
    """A name that is public when first looked up and private the next time leads nowhere then."""
    proxy = await run(**raw.environment("*.archive.org"))
    watch.addresses[NAME] = [[PUBLIC], ["127.0.0.1"]]
    raw.does = {"2": redirect(f"https://{NAME}/0/items/mbid-{MBID}/x".encode())}
    assert (await proxy.get(ALIAS)).status == 502
    # The first connection was hung up on, so the chain was tried once more.
    assert watch.names == [NAME, NAME]
    assert watch.tried == [(PUBLIC, 443)]
    assert any(f"{NAME}:443: 127.0.0.1 is no public address" in line for line in lines)
    await nothing_kept(proxy)


@pytest_twisted.ensureDeferred
async def test_private_name_harms_no_other(raw, watch, run) -> None:
    """That a name has no public address opens no breaker: once it is mended it is asked again."""
    proxy = await run(**raw.environment("*.archive.org"))
    watch.addresses[NAME] = [["10.0.0.1"]]
    raw.does = {"2": redirect(f"https://{NAME}/0/items/mbid-{MBID}/x".encode())}
    for _ in range(3):
        assert (await proxy.get(ALIAS)).status == 502
    watch.addresses[NAME] = [[PUBLIC]]
    assert (await proxy.get(ALIAS)).status == 502
    assert watch.tried[0] == (PUBLIC, 443)


@pytest_twisted.ensureDeferred
async def test_folder_of_items(raw, run) -> None:
    """Hop 1 names an item and a file: a folder that it makes up is gone to for no item at all."""
    proxy = await run(**raw.environment())
    others = [f"/release/{n}{MBID[1:]}" for n in range(6)]
    for path in others:
        # So that what each of them leads to is known, as on any day but the first.
        raw.does = {"1": redirect(f"/download/mbid-{path[9:]}/mbid-{path[9:]}-7.jpg".encode())}
        assert (await proxy.get(f"{path}/front-250")).status == 200
    await proxy.restart()
    made_up = f"/download/evil/mbid-{MBID}/mbid-{MBID}-7.jpg"
    raw.does = {"1": redirect(made_up.encode())}
    answer = await proxy.get(ALIAS)
    raw.does = {}
    raw.asked.clear()
    assert [(await proxy.get(f"{path}/front-500")).status for path in others] == [200] * 6
    assert not [path for _, path in raw.asked if "evil" in path]
    assert answer.status == 502


@pytest_twisted.ensureDeferred
async def test_mirror_after_a_restart(raw, watch, run) -> None:
    """A mirror of one's own is not passed by: whatever it led to before, archive.org is not asked."""
    settings = {**raw.environment(), "COVER_ART_ALLOWED_HOSTS": ""}
    proxy = await run(**settings)
    assert (await proxy.get(ALIAS)).status == 200
    await proxy.restart()
    answer = await proxy.get(f"/release/{MBID}/front-500")
    assert watch.names == []
    assert (answer.status, answer.body) == (200, JPEG)
