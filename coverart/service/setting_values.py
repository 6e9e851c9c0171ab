"""
What the text of a setting means; docs/settings.md tells each to operators.

Every function here raises ValueError for what it does not take; config.py says which setting it
was and what is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import urlsplit


def number(least: float, most: float) -> Callable[[str], float]:
    """A decimal number within these bounds."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text, re.ASCII):
            raise ValueError(text)
        value = float(text)
        if not least <= value <= most:
            raise ValueError(text)
        return value

    return parse


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number within these bounds."""
    bounded = number(least, most)

    def parse(text: str) -> int:
        if "." in text:
            raise ValueError(text)
        return int(bounded(text))

    return parse


def one_of(*allowed: str) -> Callable[[str], str]:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return parse


def base_url(text: str) -> str:
    """An http or https URL to which paths are added; without the slash at its end."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError(text)
    if parts.query or parts.fragment or not re.fullmatch("[!-~]+", text):
        raise ValueError(text)
    _ = parts.port  # ValueError if it is no port
    return text.rstrip("/")


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


def endpoints(text: str) -> tuple[str, ...]:
    """Twisted endpoint strings."""
    strings = tuple(text.split())
    if not strings or not all(re.match("[a-z0-9]+:", each) for each in strings):
        raise ValueError(text)
    for each in strings:
        # Twisted passes on any number, with which binding ends in a traceback.
        port = re.match(r"(?:tcp6?|ssl):(?:port=)?(-?[0-9]+)", each)
        if port is not None and not 0 <= int(port[1]) <= 65535:
            raise ValueError(text)
    return strings


def prefix(text: str) -> str:
    """The path of a location, with a slash at both ends."""
    if not re.fullmatch(r"/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/", text):
        raise ValueError(text)
    return text


def contact(text: str) -> str:
    """What may stand in the comment of a User-Agent (RFC 9110 section 5.6.5)."""
    if not text.isprintable() or not text.isascii() or "(" in text or ")" in text:
        raise ValueError(text)
    return text


def name(text: str) -> str:
    """A part of a Redis key."""
    if not re.fullmatch("[A-Za-z0-9._-]{1,64}", text):
        raise ValueError(text)
    return text


def processes(text: str) -> int:
    """How many; `auto` is one for each core this process may use."""
    if text == "auto":
        # Where the system tells: a container may have fewer than the machine.
        usable = getattr(os, "sched_getaffinity", None)
        return (len(usable(0)) if usable else os.cpu_count()) or 1
    return whole(1, 256)(text)


def secret(text: str) -> str:
    """Any text."""
    return text
