"""
Where a fetch may go: every URL of a redirect chain is checked here before a byte is sent (pure).

A redirect comes from outside, so it could name anything: this machine, its neighbours, a cloud's
metadata service. Allowed are https on the hosts of COVER_ART_ALLOWED_HOSTS, at public addresses.
An entry with a port ("127.0.0.1:8192") trusts just that host and port, by http too and whatever
its address; so does the base URL of hop 1, which the operator set.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urljoin, urlsplit

import attrs

from coverart.errors import BadUpstream
from coverart.model import Entity, ImageRef, Target

_PORTS = {"https": 443, "http": 80}
_URL_BYTES = re.compile(r"[!-~]+")
_LONGEST_URL = 2048
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]+\]")
_DOWNLOAD = re.compile(
    r"(?P<prefix>/(?:[^?#]*/)?)mbid-(?P<mbid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/"
    r"(?:(?P<listing>index\.json)"
    r"|mbid-(?P<again>[0-9a-f-]{36})-(?P<id>[1-9][0-9]{0,17})"
    r"\.(?P<ext>jpg|jpeg|png|gif|pdf))",
)


@attrs.frozen(kw_only=True)
class Hop:
    """One URL of a chain, checked and taken apart."""

    url: str
    host: str
    port: int
    origin: str
    """Host and port: the circuit breaker counts them as one host."""
    path: str
    """All that follows them in the URL, a query and a fragment too."""


@attrs.frozen
class Rules:
    """Which hosts may be asked. `hosts`: names, "*.name" patterns, or "host:port" entries."""

    hosts: tuple[str, ...]

    def trusts(self, host: str, port: int) -> bool:
        """Say whether this host and port are listed by name."""
        return f"{host}:{port}" in self.hosts

    def names(self, host: str, port: int) -> bool:
        """Say whether this host is listed in full, by a pattern for none."""
        return f"{host}:{port}" in self.hosts or host in self.hosts

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Say whether a connection to this host and port may be opened at all."""
        if f"{host}:{port}" in self.hosts:
            return scheme in _PORTS
        if scheme != "https" or port != _PORTS["https"]:
            return False
        return any(
            host.endswith(entry[1:]) if entry.startswith("*.") else host == entry
            for entry in self.hosts
        )

    def check(self, url: str) -> Hop:
        """
        Take a URL apart and accept it.

        :raises BadUpstream: it is malformed or leads where this proxy does not go. The message
            is for the log.
        """
        if len(url) > _LONGEST_URL or not _URL_BYTES.fullmatch(url) or "\\" in url:
            raise BadUpstream("a redirect has a malformed URL")
        try:
            parts = urlsplit(url)
            port = parts.port if parts.port is not None else _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise BadUpstream("a redirect has a malformed URL") from error
        host = (parts.hostname or "").lower()
        if ":" in host:
            host = f"[{host}]"
        if "@" in parts.netloc or not _HOST.fullmatch(host):
            raise BadUpstream("a redirect names a host in a way that is not accepted")
        if not self.allows(parts.scheme, host, port):
            raise BadUpstream(f"a redirect leads to {parts.scheme}://{host}:{port}, not allowed")
        # Hosts and schemes have no case (RFC 3986 section 6.2.2.1); what connects compares bytes.
        path = url[len(f"{parts.scheme}://{parts.netloc}") :]
        return Hop(
            url=f"{parts.scheme}://{parts.netloc.lower()}{path}",
            host=host,
            port=port,
            origin=f"{host}:{port}",
            path=path,
        )

    def follow(self, hop: Hop, location: bytes | None) -> Hop:
        """
        The next hop after a redirect (RFC 9110 section 10.2.2: Location may be relative).

        :raises BadUpstream: no Location, or it fails check().
        """
        if not location:
            raise BadUpstream("a redirect without Location")
        try:
            target = location.decode("ascii")
            joined = urljoin(hop.url, target) if _URL_BYTES.fullmatch(target) else ""
        except ValueError as error:
            raise BadUpstream("a redirect has a malformed URL") from error
        return self.check(joined)


def is_public(address: str) -> bool:
    """
    Say whether an IP address is one of the public internet, IPv4 mapped or behind NAT64 included.

    Source: the IANA special-purpose address registries, as Python's ipaddress has them, and of
    IPv6 only what IANA gives out as global unicast, without 6to4 (RFC 7526 ended it).
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _MAPPED or ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL_UNICAST or ip.sixtofour:
            return False
    return ip.is_global and not ip.is_multicast


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


@attrs.frozen(kw_only=True)
class ArchiveFile:
    """A file of an archive item, from its URL: what hop 1 points at."""

    base: str
    """URL up to and including the folder that holds the items: `https://archive.org/download/`."""
    mbid: str
    target: Target | None
    """The image; None for index.json."""


def archive_file(hop: Hop, owner: Entity) -> ArchiveFile:
    """
    Read `…/mbid-{M}/mbid-{M}-{id}.ext` or `…/mbid-{M}/index.json`, in whatever folder.

    A thumbnail is refused: hop 1 is asked without a size, and only an original's URL tells the
    original's extension.

    :raises BadUpstream: the URL is of another form, so it can't be trusted to be a cover.
    """
    match = _DOWNLOAD.fullmatch(hop.path)
    if match is None or match["again"] not in (None, match["mbid"]):
        raise BadUpstream("hop 1 leads to something that is no file of a cover art item")
    target = None
    if match["listing"] is None:
        ref = ImageRef(owner=owner, mbid=match["mbid"], image_id=int(match["id"]))
        extension = "jpg" if match["ext"] == "jpeg" else match["ext"]
        target = Target(ref=ref, extension=extension)
    base = hop.url.removesuffix(hop.path) + match["prefix"]
    return ArchiveFile(base=base, mbid=match["mbid"], target=target)


def file_name(ref: ImageRef, size: int, extension: str | None) -> str:
    """
    The name of an image's file within its archive item.

    :raises ValueError: an original whose extension is not known.
    """
    if size:
        return f"mbid-{ref.mbid}-{ref.image_id}_thumb{size}.jpg"
    if extension is None:
        raise ValueError("an original needs its extension")
    return f"mbid-{ref.mbid}-{ref.image_id}.{extension}"
