"""What reads words from outside, each with its promise: for hypothesis in CI, atheris at length."""

import contextlib
import json
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import attrs
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from coverart.archive.archive_client import retry_after_s
from coverart.archive.circuit_breaker import LONGEST_RETRY_AFTER_S, Breaker
from coverart.archive.handshakes import Unopened, handshake
from coverart.archive.listings import check, cut
from coverart.archive.paths import parse, spell
from coverart.archive.proxies import BadProxy, Proxy, read_proxies
from coverart.archive.url_policy import Rules, archive_file
from coverart.coordination.redis_url import parse_address
from coverart.errors import BadUpstream, Malformed, NotInArchive
from coverart.model import Entity, ImageRequest, ListingKey
from coverart.store import layout
from coverart.web.conditional import Validators, asked_span, condition

SIZE = 1000
VALIDATORS = Validators(size_bytes=SIZE, modified=1_700_000_000)
RULES = Rules(("archive.org", "*.archive.org", "127.0.0.1:8080"))
HOP = RULES.check("https://archive.org/download/x")
PUBLIC = "https://covers.example/art"


def path(data: bytes) -> None:
    """A path is malformed, or of a thing that spells back to itself and lies within the layout."""
    try:
        thing = parse(data)
    except (Malformed, NotInArchive):
        return
    assert parse(spell(thing).encode()) == thing
    names = (
        (layout.listing_path(thing),) if isinstance(thing, ListingKey) else layout.candidates(thing)
    )
    for name in names:
        place = layout.identify(name)
        assert place is not None
        assert place.thing == thing


def place(data: bytes) -> None:
    """The name of a file is not ours, or is the one name of its thing."""
    name = data.decode("utf-8", "surrogateescape")
    found = layout.identify(name)
    if found is None:
        return
    if isinstance(found.thing, ListingKey):
        assert layout.listing_path(found.thing) == name
    else:
        assert found.media is not None
        assert layout.alias_path(found.thing, found.media) == name


def link(data: bytes) -> None:
    """A symlink is not ours, or leads to the place of an image."""
    text = data.decode("utf-8", "surrogateescape")
    name = "release/3/35/353/353710ec-1509-4df9-8ce2-9bd5011e3b80_front_250.jpg"
    found = layout.read_link(name, text)
    if found is not None:
        key, media, target = found
        assert layout.image_path(key, media) == target
        assert layout.link_text(name, target) == text


def headers(data: bytes) -> None:
    """Whatever conditions and ranges say, it is decided, and what is sent is of the file."""
    texts = data.decode("latin-1").split("\n")
    names = ("range", "if-range", "if-match", "if-none-match", "if-modified-since")
    given = dict(zip(names, texts, strict=False)) | {"if-unmodified-since": texts[-1]}
    for asked in (given, {"range": texts[0]}):
        assert condition(asked.get, VALIDATORS) in {None, 304, 412}
        span = asked_span(asked.get, VALIDATORS)
        assert not span or 0 <= span.start < span.stop <= SIZE


class _Response:
    def __init__(self, data: bytes) -> None:
        self.headers = Headers({b"Retry-After": [data.replace(b"\n", b"")]})


def retry_after(data: bytes) -> None:
    """Whatever pause an archive asks for, it is one that ends."""
    now = 1000.0
    asked_s = retry_after_s(cast("IResponse", _Response(data)))
    breaker = Breaker()
    pause_s = breaker.overloaded(breaker.admit("host:443", now), now, asked_s)
    assert 1 <= pause_s <= LONGEST_RETRY_AFTER_S


def location(data: bytes) -> None:
    """A redirect leads to an allowed host that every reader of the URL sees, or nowhere."""
    try:
        hop = RULES.follow(HOP, data)
    except BadUpstream:
        return
    parts = urlsplit(hop.url)
    host = hop.host.strip("[]")
    assert parts.hostname == host
    assert parts.username is None
    if hop.origin not in RULES.hosts:
        assert parts.scheme == "https"
        assert host == "archive.org" or host.endswith(".archive.org")
        assert hop.port == 443
    with contextlib.suppress(BadUpstream):
        file = archive_file(hop, Entity.RELEASE)
        assert file.base.startswith(f"{parts.scheme}://")
        if file.target is not None:
            alias = file.target.ref.own_name
            assert parse(spell(ImageRequest(alias=alias, size=0)).encode())


def listing(data: bytes) -> None:
    """A listing is refused, or every URL that is left in it leads to this proxy."""
    try:
        check(data)
    except BadUpstream:
        return
    document = json.loads(PUBLIC.encode().join(cut(data)))
    for image in document["images"]:
        found: list[Any] = [image.get("image")]
        thumbnails = image.get("thumbnails")
        found += thumbnails.values() if isinstance(thumbnails, dict) else [thumbnails]
        for url in found:
            assert url is None or (isinstance(url, str) and url.startswith(PUBLIC)), url


def redis(data: bytes) -> None:
    """An address is refused, or leads somewhere, and is logged without its password."""
    text = data.decode("utf-8", "replace")
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert address.path or address.hosts
    assert all(host and 0 < port < 65536 for host, port in address.hosts)
    assert 0 <= address.database <= 9999
    if address.password is not None and len(address.password) > 8 and address.path is None:
        assert address.password not in str(address)


def proxy(data: bytes) -> None:
    """
    A proxy named in the environment is refused without its password, or leads somewhere.

    What it says opens a way or not, in one short line; the first line of the bytes is its URL.
    """
    url, _, said = data.partition(b"\n")
    refusal = ""
    try:
        found = read_proxies({"HTTPS_PROXY": url.decode("latin-1")}).by_scheme
    except BadProxy as error:
        found, refusal = {}, str(error)
    assert "\n" not in refusal
    told = ""
    for scheme in ("http", "socks5h"):
        default = Proxy(scheme="http", host="p", port=1)
        one = attrs.evolve(found.get("https", default), scheme=scheme)
        assert str(one).removeprefix(f"{scheme}://").strip("[]").startswith(one.host)
        steps = handshake(one, "archive.org", 443)
        next(steps)
        try:
            for piece in said.splitlines(keepends=True) or [b""]:
                steps.send(piece)
        except StopIteration:
            continue
        except Unopened as error:
            told += str(error)
    assert told == "" or told.isprintable()
    assert len(told) < 1200


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (path, place, link, headers, retry_after, location, listing, redis, proxy)
}

_MBID = b"353710ec-1509-4df9-8ce2-9bd5011e3b80"
SEEDS: dict[str, tuple[bytes, ...]] = {
    "path": (
        b"/release/" + _MBID + b"/front-250.jpg",
        b"/release-group/" + _MBID.upper() + b"/",
        b"/event/" + _MBID + b"/12",
        b"//%72elease/./" + _MBID + b"/007x-2500.webp/../x",
        b"/download/mbid-" + _MBID + b"/mbid-" + _MBID + b"-7_thumb250.jpg",
    ),
    "place": (
        b"release/3/35/353/" + _MBID + b"_7_250.jpg",
        b"release-group/3/35/353/" + _MBID + b"_front.png",
        b"event/3/35/353/" + _MBID + b".json",
    ),
    "link": (b"../../../../release/3/35/353/" + _MBID + b"_7_250.jpg",),
    "headers": (
        b'bytes=0-9, -5, 20-\n"6553f100-3e8"\n*\nW/"a", "b"\nTue, 14 Nov 2023 22:13:20 GMT',
    ),
    "retry_after": (
        b"120\n",
        b"Fri, 31 Dec 1999 23:59:59 GMT\nFri, 31 Dec 1999 23:58:59 GMT",
    ),
    "location": (
        b"https://ia801.us.archive.org/7/items/mbid-" + _MBID + b"/mbid-" + _MBID + b"-7.jpg",
        b"//user@archive.org:443/x",
        b"http://127.0.0.1:8080/download/mbid-" + _MBID + b"/index.json",
    ),
    "listing": (
        b'{"images": [{"image": "http://coverartarchive.org/release/' + _MBID + b'/7.jpg", '
        b'"id": 7, "thumbnails": {"250": "http://coverartarchive.org/release/'
        + _MBID
        + b'/7-250.jpg", "small": ""}}], "release": "x"}',
    ),
    "redis": (
        b"redis://user:password@host:6379/0",
        b"unix://:pass@/path?db=3",
        b"redis+sentinel://[::1]:26379,b/master/1",
    ),
    "proxy": (
        b"http://user:password@[2001:db8::1]:3128\nHTTP/1.1 200 OK\r\nVia: x\r\n\r\n",
        b"socks5h://user:pass%3Aword@proxy:1080\n\x05\x02\n\x01\x00\n\x05\x00\x00\x03\x01a\x01\xbb",
        b"p:1\nHTTP/1.0 407 Authentication Required\r\n\r\n",
    ),
}
