"""
Which proxy leads to a host: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY (pure).

Read as curl and requests read them: the lower-case name wins, ALL_PROXY is for a scheme without a
variable of its own, NO_PROXY lists hosts that are asked without a proxy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
ALLOWED = "http://, socks5:// or socks5h:// with [user:password@]host:port"
LARGEST_LOGIN_BYTES = 255
"""What SOCKS has room for (RFC 1929)."""
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class BadProxy(ValueError):
    """A variable that can't be used; the message is fit for the operator, without the password."""


@attrs.frozen(kw_only=True)
class Login:
    """What a proxy wants to know of who asks."""

    user: bytes = attrs.field(repr=False)
    password: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Proxy:
    """One proxy; as text it is its address without the login."""

    scheme: str
    """`http`: CONNECT, or the whole URL for plain http. `socks5`, `socks5h`: RFC 1928."""
    host: str
    port: int
    login: Login | None = None

    @property
    def resolves(self) -> bool:
        """Whether it is told names, not addresses."""
        return self.scheme != "socks5"

    def __str__(self) -> str:
        named = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{named}:{self.port}"


@attrs.frozen(kw_only=True)
class Proxies:
    """Which proxy leads where."""

    by_scheme: Mapping[str, Proxy] = attrs.field(factory=dict)
    """For `http` and `https`."""
    without: tuple[str, ...] = ()
    """The entries of NO_PROXY."""

    def leading_to(self, scheme: str, host: str, port: int) -> Proxy | None:
        """
        The proxy for a host; None: it is asked directly.

        :param host: in lower case, an IPv6 address without brackets.
        """
        proxy = self.by_scheme.get(scheme)
        if proxy is None or any(_matches(entry, host, port) for entry in self.without):
            return None
        return proxy

    def __str__(self) -> str:
        return ", ".join(f"{scheme} by {proxy}" for scheme, proxy in self.by_scheme.items())


def read_proxies(environment: Mapping[str, str]) -> Proxies:
    """
    What the variables say. One that is empty counts as unset, and one that is not needed is not read.

    :raises BadProxy: one can't be used.
    """
    by_scheme = {}
    for scheme in ("https", "http"):
        for name in (f"{scheme}_proxy", "all_proxy"):
            set_as = next((n for n in (name, name.upper()) if environment.get(n, "").strip()), None)
            if set_as is not None:
                by_scheme[scheme] = _proxy(set_as, environment[set_as].strip())
                break
    listed = environment.get("no_proxy", "").strip() or environment.get("NO_PROXY", "")
    return Proxies(by_scheme=by_scheme, without=tuple(re.split(r"[,\s]+", listed.strip().lower())))


def _proxy(variable: str, text: str) -> Proxy:
    try:
        # As curl takes it: an address alone is that of an HTTP proxy.
        return _parsed(urlsplit(text if "://" in text else f"http://{text}"))
    except ValueError:
        quoted = re.sub("(?s)^([A-Za-z0-9]*://)?.*@", r"\1…@", text)
        raise BadProxy(f"{variable}={quoted!r}: must be {ALLOWED}") from None


def _parsed(parts: SplitResult) -> Proxy:
    """:raises ValueError: this is not all that a proxy's URL has, or more."""
    host, port = (parts.hostname or "").lower(), parts.port
    if parts.scheme not in ("http", "socks5", "socks5h") or not port:
        raise ValueError(parts.scheme)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(parts.path)
    if not (_HOST.fullmatch(host) or _address(host)):
        raise ValueError(host)
    login = None
    if parts.username is not None:
        login = Login(user=_plain(parts.username), password=_plain(parts.password or ""))
        # A colon would end the name in Basic (RFC 7617); SOCKS has no empty ones (RFC 1929).
        if not login.user or b":" in login.user or not (login.password or parts.scheme == "http"):
            raise ValueError
    return Proxy(scheme=parts.scheme, host=host, port=port, login=login)


def _plain(text: str) -> bytes:
    """A user's name or a password. :raises ValueError: no proxy could be told it."""
    plain = unquote(text).encode()
    if re.search(rb"[\x00-\x1f\x7f]", plain) or len(plain) > LARGEST_LOGIN_BYTES:
        raise ValueError
    return plain


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _matches(entry: str, host: str, port: int) -> bool:
    """
    Say whether an entry of NO_PROXY is about a host.

    `*`; a name, with all below it; an address or a network; each but the first with a port or not.
    """
    if entry == "*":
        return True
    ip = _address(host)
    if "/" in entry:
        try:
            return ip is not None and ip in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    named = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::([0-9]+))?", entry)
    if named is not None:
        entry = named[1].strip("[]")
        if named[2] is not None and int(named[2]) != port:
            return False
    if ip is not None:
        return ip == _address(entry)
    name = entry.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))
