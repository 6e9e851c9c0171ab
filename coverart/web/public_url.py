"""
The base URL of a client's requests: what listings and redirects lead to.

It is made of the Host header, so that whoever reaches the proxy by some name is led back to that
name, or fixed by the operator. A prefix behind it chooses how images are answered. Clients can't
lead each other: nothing that is stored has a base URL in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import TypeAlias

from twisted.web.http import Request

from coverart.errors import Refused

AUTO = "auto"
OFF = "off"

SERVE = "/serve"
"""Images themselves are sent below this, whatever COVER_ART_IMAGE_MODE says."""
REDIRECT = "/redirect"
"""Every image is answered by a redirect to its URL below SERVE."""
_PREFIXES = (f"{SERVE}/".encode(), f"{REDIRECT}/".encode())

PublicUrl: TypeAlias = Callable[[Request], "str | None"]
"""
Says by which URL the client of a request reaches this proxy, without a slash at the end.

None: it is not to be told, or the client does not say. Raises Refused: its Host is not valid.
"""

_HOST = re.compile(
    r"(?:(?P<name>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*)\.?|\[(?P<ipv6>[0-9a-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{0,5}))?"
)
_LONGEST_NAME = 253
"""RFC 1035 section 2.3.4, without the length octets and the root."""
_LONGEST = _LONGEST_NAME + len(".:65535")


def public_url(setting: str, scheme: Callable[[Request], str]) -> PublicUrl:
    """
    Read the setting COVER_ART_PUBLIC_URL.

    :param setting: AUTO, OFF or a URL.
    :param scheme: says of a request whether its client used http or https.
    """

    def by_host(request: Request) -> str | None:
        hosts = request.requestHeaders.getRawHeaders(b"host", [b""])
        # HTTP/1.0 needs none, and an empty one is for URLs that have no host.
        if hosts == [b""]:
            return None
        host = _valid(hosts[0]) if len(hosts) == 1 and len(hosts[0]) <= _LONGEST else None
        if host is None:
            raise Refused(400, "malformed Host header: it is a name or an address, and a port")
        return f"{scheme(request)}://{host}"

    if setting == AUTO:
        return by_host
    fixed = None if setting == OFF else setting
    return lambda _: fixed


@lru_cache(maxsize=1024)
def _valid(host: bytes) -> str | None:
    """
    A Host header in lower case; None if it is not valid (RFC 9110 section 7.2).

    Narrower than RFC 3986 section 3.2.2, which lets registries have names of other characters: a
    name is one of the DNS. Percent-encoding, a user, and addresses of kinds yet to come are refused.
    """
    match = _HOST.fullmatch(host.decode("latin-1").lower())
    if match is None or len(match["name"] or "") > _LONGEST_NAME:
        return None
    port = match["port"] or ""
    if port and not 1 <= int(port) <= 65535:
        return None
    if match["ipv6"] is not None:
        try:
            IPv6Address(match["ipv6"])
        except ValueError:
            return None
    return match[0] if port else match[0].removesuffix(":")


def split_prefix(path: bytes) -> tuple[str, bytes]:
    """Cut a path into SERVE, REDIRECT or nothing, and the path of the archive behind it."""
    if not path.startswith(_PREFIXES):
        return "", path
    prefix, _, rest = path[1:].partition(b"/")
    return f"/{prefix.decode()}", b"/" + rest
