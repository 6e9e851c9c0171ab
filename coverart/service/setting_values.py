"""
What the text of a setting means; the table in docs/settings.md tells each to operators.

Every function here raises ValueError for what it does not take; settings.py says which setting it
was and what is allowed.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeVar
from urllib.parse import urlsplit

from coverart.web.public_url import AUTO, OFF

N = TypeVar("N", int, float)

DECIMAL = r"[0-9]{1,15}(\.[0-9]{1,9})?"
WHOLE = r"[0-9]{1,15}"


def matching(pattern: str) -> Callable[[str], str]:
    """Text that a regular expression describes in full."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return parse


def number(least: float, most: float) -> Callable[[str], float]:
    """A decimal number within these bounds."""
    return lambda text: _within(float(matching(DECIMAL)(text)), least, most)


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number within these bounds."""
    return lambda text: _within(int(matching(WHOLE)(text)), least, most)


def _within(value: N, least: float, most: float) -> N:
    if not least <= value <= most:
        raise ValueError(value)
    return value


def base_url(text: str) -> str:
    """An http or https URL to which paths are added; without the slash at its end."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError(text)
    if parts.query or parts.fragment or not re.fullmatch(r"[!#-;=?-\[\]_a-z~]+", text):
        raise ValueError(text)
    _ = parts.port  # ValueError if it is no port
    return text.rstrip("/")


def public_url(text: str) -> str:
    """`auto`, `off` or a base URL."""
    return text if text in (AUTO, OFF) else base_url(text)


def hosts(text: str) -> tuple[str, ...]:
    """Host names, `*.` in front for all below, a port behind where it is not that of the scheme."""
    entries = tuple(entry.lower() for entry in re.split(r"[,\s]+", text) if entry)
    label = "[a-z0-9_-]+"
    entry = (
        rf"(\*\.)?{label}(\.{label})*|({label}(\.{label})*|\[[0-9a-f:.]+\]):(?P<port>[0-9]{{1,5}})"
    )
    if not text.isascii() or not entries:
        raise ValueError(text)
    for each in entries:
        match = re.fullmatch(entry, each)
        if match is None or not 1 <= int(match["port"] or 1) <= 65535:
            raise ValueError(text)
    return entries


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Addresses and networks with commas or spaces between them."""
    entries = [entry for entry in re.split(r"[,\s]+", text) if entry]
    if not entries:
        raise ValueError(text)
    return tuple(ip_network(entry) for entry in entries)


def name_servers(text: str) -> tuple[tuple[str, int], ...]:
    """Addresses of name servers with their ports, `[address]:port` or `address`; port 53 unless told."""
    servers = []
    for entry in re.split(r"[,\s]+", text):
        match = re.fullmatch(
            r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?|([0-9a-fA-F:.]+)", entry
        )
        if match is None:
            raise ValueError(text)
        address = ipaddress.ip_address(match[1] or match[2] or match[4])
        servers.append((str(address), _within(int(match[3] or 53), 1, 65535)))
    return tuple(servers)


def processes(text: str) -> int:
    """How many; `auto` is one for each core this process may use."""
    if text == "auto":
        # Where the system tells: a container may have fewer than the machine.
        usable = getattr(os, "sched_getaffinity", None)
        return (len(usable(0)) if usable else os.cpu_count()) or 1
    return whole(1, 256)(text)
