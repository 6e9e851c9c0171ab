"""Where Redis is, read from COVER_ART_REDIS_URL (pure)."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import attrs


@attrs.frozen(kw_only=True)
class Address:
    """Where Redis is: a host and port, a Unix socket, or the name of a master that Sentinels know."""

    hosts: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    service: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        """For the log: without the password."""
        if self.path is not None:
            return f"unix://{self.path}?db={self.database}"
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        if self.service is not None:
            return f"redis+sentinel://{hosts}/{self.service}/{self.database}"
        return f"redis://{hosts}/{self.database}"


def parse_address(url: str) -> Address:
    """
    Read `redis://[[user]:password@]host[:port][/db]`, `unix://[:password@]/path[?db=N]` or
    `redis+sentinel://[:password@]host[:port][,host[:port]…]/master[/db]`.

    :raises ValueError: it is none of these.
    """
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    common: dict[str, Any] = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
    }
    if parts.scheme == "unix" and not place and parts.path.startswith("/"):
        query = parse_qs(parts.query)
        return Address(path=parts.path, database=_database(query.get("db", ["0"])[0]), **common)
    segments = [segment for segment in parts.path.split("/") if segment]
    if parts.scheme == "redis" and len(segments) <= 1:
        (host,) = _hosts(place, 6379)
        return Address(hosts=(host,), database=_database(*segments), **common)
    if parts.scheme == "redis+sentinel" and 1 <= len(segments) <= 2:
        return Address(
            hosts=_hosts(place, 26379),
            service=segments[0],
            database=_database(*segments[1:]),
            **common,
        )
    raise ValueError("none of these")


def _database(text: str = "0") -> int:
    if not re.fullmatch("[0-9]{1,4}", text, re.ASCII):
        raise ValueError(text)
    return int(text)


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    found = []
    for entry in text.split(","):
        match = re.fullmatch(
            r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", entry, re.ASCII
        )
        port = default_port if match is None or match[2] is None else int(match[2])
        if match is None or not 0 < port < 65536:
            raise ValueError(text)
        found.append((match[1].strip("[]"), port))
    return tuple(found)
