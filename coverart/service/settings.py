"""
Settings: from the environment, a .env file and twistd's options, checked once at the start.

Declared with environ-config; a wrong value ends the start with one line that names the variable,
the value and what is allowed. A variable that is set but empty counts as unset, since that is how
compose files pass on what a user left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal, TypeVar

import environ
from dotenv import dotenv_values
from platformdirs import user_cache_path

from coverart import __version__
from coverart.archive.proxies import BadProxy, Proxies, read_proxies
from coverart.coordination.redis_url import Address, parse_address
from coverart.freshness import Lifetimes
from coverart.index.codec import LARGEST_FILE_BYTES
from coverart.index.eviction_order import Eviction
from coverart.model import MEGABYTE
from coverart.service import setting_values as values

PREFIX = "COVER_ART_"
PROJECT_PAGE = "https://pypi.org/project/coverart-proxy/"
SHARED_DIR = Path("/opt/cover-art-cache")
UPSTREAM = "https://coverartarchive.org"
EVENT_UPSTREAM = "https://eventartarchive.org"

PROXIES = "proxies"
"""A name that no variable has."""

T = TypeVar("T")


_MEANINGS: dict[str, str] = {}


class ConfigError(ValueError):
    """A setting that can't be used; the message is fit for the operator."""


def _setting(
    name: str,
    parse: Callable[[str], T],
    allowed: str,
    *,
    means: str,
    default: str | None = None,
    secret: bool = False,
) -> Any:
    """
    One variable: how its text becomes a value, and what to say if it does not.

    :param secret: the text may hold a password wherever it is malformed, and is not quoted.
    """

    def convert(text: str | None) -> T | None:
        if text is None:
            return None
        try:
            return parse(text.strip())
        except ValueError:
            # A login in any other URL is refused, and not quoted either.
            quoted = "" if secret else f"={re.sub('(?s)//.*@', '//…@', text)!r}"
            raise ConfigError(f"{PREFIX}{name}{quoted}: must be {allowed}") from None

    _MEANINGS[PREFIX + name] = help_ = f"{means}; {allowed}"
    return environ.var(default=default, converter=convert, name=PREFIX + name, help=help_)


_FOREVER = 10 * 365 * 86400
_SECONDS = "a number of seconds"


@environ.config(prefix="", frozen=True)
class Settings:
    """Every setting of the proxy, checked."""

    cache_dir: Path | None = _setting(
        "CACHE_DIR",
        Path,
        "a directory",
        means=f"where images live; default {SHARED_DIR} if it is there and writable, "
        "else the user's cache folder",
    )
    cache_max_size: int = _setting(
        "CACHE_MAX_SIZE",
        values.whole(1, 1 << 40),
        "a whole number of MB from 1 up",
        default="100",
        means="MB (2^20 bytes) that trigger a cleanup",
    )
    cache_clean_to: float | None = _setting(
        "CACHE_CLEAN_TO",
        values.number(0, 1 << 40),
        "a number of MB, at most COVER_ART_CACHE_MAX_SIZE",
        means="MB that a cleanup leaves; default 90 % of the maximum",
    )
    cache_cleanup_interval: float = _setting(
        "CACHE_CLEANUP_INTERVAL",
        values.number(0.1, _FOREVER),
        "a number of seconds from 0.1 up",
        default="300",
        means="seconds between cleanups",
    )
    cache_eviction: Eviction = _setting(
        "CACHE_EVICTION",
        values.matching("oldest|least-useful"),
        "oldest or least-useful",
        default="oldest",
        means="what a cleanup removes first: by download time, or by uses and size",
    )
    listen: tuple[str, ...] = _setting(
        "LISTEN",
        lambda text: tuple(text.split()),
        "Twisted endpoint strings with spaces between them, such as tcp:8080 (ports up to 65535)",
        default="tcp:8080",
        means="where to listen; a tcp: port without an interface is listened on in IPv4 and IPv6",
    )
    redis_url: Address | None = _setting(
        "REDIS_URL",
        parse_address,
        "redis://[:password@]host:port/db, unix:///path?db=N or "
        "redis+sentinel://[:password@]host:port,host:port/master/db",
        secret=True,
        means="the index that several processes share; unset, the index is in memory",
    )
    cache_name: str = _setting(
        "CACHE_NAME",
        values.matching("[A-Za-z0-9._-]{1,64}"),
        "up to 64 letters, digits, dots, dashes and underscores",
        default="default",
        means="part of every Redis key, so that machines with disks of their own can share one "
        "Redis",
    )
    processes: int = _setting(
        "PROCESSES",
        values.processes,
        "a whole number from 1 to 256, or auto for one on each core",
        default="1",
        means="processes that share the sockets; more than one needs COVER_ART_REDIS_URL",
    )
    upstream: str = _setting(
        "UPSTREAM",
        values.base_url,
        "an http or https URL",
        default=UPSTREAM,
        means="hop 1 for releases",
    )
    event_upstream: str = _setting(
        "EVENT_UPSTREAM",
        values.base_url,
        "an http or https URL",
        default=EVENT_UPSTREAM,
        means="hop 1 for events",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "ALLOWED_HOSTS",
        values.hosts,
        "names, *.names or host:port entries with commas between them",
        default="archive.org,*.archive.org",
        means="hosts a redirect may lead to; host:port lifts the https and public-address rules",
    )
    resolver: tuple[tuple[str, int], ...] | None = _setting(
        "RESOLVER",
        values.name_servers,
        "addresses of name servers with commas between them, each with :port if it is not 53",
        means="name servers that are asked for the archive's names; unset, the system's",
    )
    accel: str | None = _setting(
        "ACCEL",
        values.matching("/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/"),
        "a path that starts and ends with /",
        means="internal prefix for X-Accel-Redirect; unset, the app sends files itself",
    )
    hit_log: Path | None = _setting(
        "HIT_LOG",
        Path,
        "a file",
        means="the log of the hits that nginx sends without asking; unset, there is none",
    )
    public_url: str = _setting(
        "PUBLIC_URL",
        values.public_url,
        "auto, off, or an http or https URL",
        default="auto",
        means="base URL of listings and redirects; auto makes it of the Host header, with off "
        "listings pass unchanged",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = _setting(
        "TRUSTED_PROXIES",
        values.networks,
        "addresses or networks with commas between them",
        default="127.0.0.0/8,::1",
        means="proxies whose X-Forwarded-For and X-Forwarded-Proto the app believes; what comes "
        "by a Unix socket is believed always",
    )
    image_mode: Literal["serve", "redirect"] = _setting(
        "IMAGE_MODE",
        values.matching("serve|redirect"),
        "serve or redirect",
        default="serve",
        means="redirect answers a front or back with 307 to its image's own URL here",
    )
    alias_ttl: float = _setting(
        "ALIAS_TTL",
        values.number(0, _FOREVER),
        _SECONDS,
        default="86400",
        means="how long what a front or back points at counts as fresh",
    )
    listing_ttl: float = _setting(
        "LISTING_TTL",
        values.number(0, _FOREVER),
        _SECONDS,
        default="86400",
        means="how long a listing counts as fresh",
    )
    absent_ttl: float = _setting(
        "ABSENT_TTL",
        values.number(0, _FOREVER),
        _SECONDS,
        default="3600",
        means="how long a 404 counts as fresh; it is answered up to twice as long",
    )
    absent_thumb_ttl: float = _setting(
        "ABSENT_THUMB_TTL",
        values.number(0, _FOREVER),
        _SECONDS,
        default="300",
        means="the same for one size of an image that is there",
    )
    max_image_size: int = _setting(
        "MAX_IMAGE_SIZE",
        values.whole(1, LARGEST_FILE_BYTES // MEGABYTE),
        "a whole number of MB from 1 to 4095",
        default="128",
        means="MB a single file may have",
    )
    substitute_max_size: float = _setting(
        "SUBSTITUTE_MAX_SIZE",
        values.number(0, LARGEST_FILE_BYTES // MEGABYTE),
        "a number of MB from 0 to 4095",
        default="2",
        means="MB of the largest original sent in place of a size that the archive has not made; "
        "0: such a size is a 404",
    )
    upstream_concurrency: int = _setting(
        "UPSTREAM_CONCURRENCY",
        values.whole(1, 1000),
        "a whole number from 1 to 1000",
        default="16",
        means="requests to the archive at once",
    )
    max_waiting: int = _setting(
        "MAX_WAITING",
        values.whole(1, 1_000_000),
        "a whole number from 1 to 1000000",
        default="1000",
        means="different things that are fetched for clients, or wait to be, at once",
    )
    fetches_per_minute: int = _setting(
        "FETCHES_PER_MINUTE",
        values.whole(0, 1_000_000),
        "a whole number up to 1000000, 0 for no limit",
        default="300",
        means="fetches that one client may start in a minute, in each process; private and loopback "
        "addresses may start any number",
    )
    max_connections: int = _setting(
        "MAX_CONNECTIONS",
        values.whole(1, 1_000_000),
        "a whole number from 1 to 1000000",
        default="10000",
        means="connections of clients at once, in each process; the system's limit of open "
        "files may allow less",
    )
    upstream_timeout: float = _setting(
        "UPSTREAM_TIMEOUT",
        values.number(0.1, 3600),
        "a number of seconds from 0.1 to 3600",
        default="60",
        means="seconds for one whole fetch",
    )
    contact: str = _setting(
        "CONTACT",
        # What may stand in a comment (RFC 9110 section 5.6.5).
        values.matching(r"[ -'*-~]+"),
        "one line of ASCII without parentheses",
        default=PROJECT_PAGE,
        means="put in the User-Agent, so that the archive's people can reach you",
    )
    admin_token: str | None = _setting(
        "ADMIN_TOKEN",
        str,
        "any text",
        means="bearer token for purge and refresh; unset, those answer 403",
    )

    proxies: Proxies = environ.var(default=Proxies(), name=PROXIES)
    """By which the archive is asked: four variables, none of them ours alone, read as one."""

    @property
    def user_agent(self) -> str:
        """As MusicBrainz asks for it (https://musicbrainz.org/doc/MusicBrainz_API/Rate_Limiting)."""
        return f"coverart/{__version__} ( {self.contact} )"

    @property
    def max_bytes(self) -> int:
        return self.cache_max_size * MEGABYTE

    @property
    def clean_to_bytes(self) -> int:
        clean_to = self.cache_clean_to
        return int(self.max_bytes * 0.9 if clean_to is None else clean_to * MEGABYTE)

    @property
    def lifetimes(self) -> Lifetimes:
        return Lifetimes(
            alias_s=self.alias_ttl,
            listing_s=self.listing_ttl,
            absent_s=self.absent_ttl,
            absent_thumb_s=self.absent_thumb_ttl,
        )

    def directory(self) -> Path:
        """Where images live: as set, else the shared folder, else the user's own."""
        if self.cache_dir is not None:
            return self.cache_dir
        if os.access(SHARED_DIR, os.W_OK | os.X_OK):
            return SHARED_DIR
        return user_cache_path("coverart")


def variables() -> dict[str, str]:
    """Every setting's variable and what it means, in the order of the documentation."""
    return dict(_MEANINGS)


def load(environment: Mapping[str, str], *, options: Mapping[str, str] | None = None) -> Settings:
    """
    Read the settings.

    :param environment: variables; those that are none of ours are not looked at.
    :param options: what was given on the command line, by variable; it wins, and an empty one
        gives a variable its default.
    :raises ConfigError: a value can't be used, or two do not go together.
    """
    merged = _not_empty({**environment, **(options or {})})
    try:
        proxies = read_proxies(merged)
    except BadProxy as error:
        raise ConfigError(str(error)) from None
    everything: dict[str, Any] = {**merged, PROXIES: proxies}
    settings = environ.to_config(Settings, environ=everything)
    if settings.clean_to_bytes > settings.max_bytes:
        raise ConfigError(
            f"{PREFIX}CACHE_CLEAN_TO={merged[PREFIX + 'CACHE_CLEAN_TO']!r}: must be at most "
            f"{PREFIX}CACHE_MAX_SIZE, which is {settings.cache_max_size}"
        )
    if settings.processes > 1 and settings.redis_url is None:
        raise ConfigError(
            f"{PREFIX}PROCESSES={merged[PREFIX + 'PROCESSES']!r}: must be 1 unless "
            f"{PREFIX}REDIS_URL is set, since each process would have an index of its own"
        )
    return settings


def read_environment(directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, over what a .env file in `directory` says; what is empty covers nothing."""
    file = {k: v for k, v in dotenv_values(directory / ".env").items() if v is not None}
    return {**file, **_not_empty(environment)}


def _not_empty(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in variables.items() if text.strip()}
