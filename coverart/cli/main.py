"""`coverart`: look at a cache, tell what it holds, clean it; while the service runs or not."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.request import urlopen

import attrs
import click

from coverart import __version__
from coverart.cli.command import (
    DIFFERENT,
    FINE,
    NOT_NOW,
    NotNow,
    fail,
    opened,
    run,
    settings_of,
    show,
)
from coverart.coordination.leader import LEADER_LIFE_S
from coverart.index.base import SLICES
from coverart.maintenance.scan import Scan, Scanner
from coverart.maintenance.sweep import SLICES_A_SWEEP, Bounds
from coverart.model import MEGABYTE
from coverart.service.open_cache import OpenCache, bounds_of
from coverart.service.settings import PREFIX, Settings, variables
from coverart.service.timers import repeat
from coverart.web.status import describe

ANSWER_S = 10.0

_OFTEN = ("CACHE_DIR", "CACHE_MAX_SIZE", "CACHE_CLEAN_TO", "REDIS_URL", "CACHE_NAME")


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Take every setting as an option, as twistd does; those that matter here are in the help."""
    for variable, meaning in reversed(variables().items()):
        name = variable.removeprefix(PREFIX)
        command = click.option(
            f"--{name.lower().replace('_', '-')}",
            variable,
            metavar="TEXT",
            help=f"{variable}: {meaning}",
            hidden=name not in _OFTEN,
        )(command)
    return command


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="coverart")
def main() -> None:
    """
    Look at the cache and keep it in order, while the service runs or not.

    Settings come from the environment, a .env file in the working directory, or options.

    Exit codes: 0 fine, 1 differences found, 2 wrong use or settings, 3 not possible now.
    """


@main.command()
@click.option("--dry-run", is_flag=True, help="Change nothing, say what would be changed.")
@click.option("--verify", is_flag=True, help="Read listings and the first bytes of images, too.")
@_json
@_with_settings
def scan(*, dry_run: bool, verify: bool, as_json: bool, **given: str | None) -> None:
    """
    Compare the cache directory with the index, and mend the index.

    With --verify, empty files, images that do not begin as their name says, and listings that do
    not parse are removed.
    With --dry-run or --verify the exit code is 1 if something differed.
    """
    settings = settings_of(given)

    async def work(reactor: Any) -> int:
        async with opened(settings, reactor) as cache:
            index = None if cache.link is None else cache.index
            hidden = not sys.stderr.isatty()
            with click.progressbar(
                length=1, label="scanning", file=sys.stderr, hidden=hidden
            ) as bar:

                def told(done: int, of: int, _scan: Scan) -> None:
                    bar.length = of
                    bar.update(done - bar.pos)

                scanner = Scanner(
                    index=index,
                    store=cache.store,
                    in_thread=cache.threads,
                    clock=reactor,
                    dry_run=dry_run,
                    verify=verify,
                    told=told,
                )
                seen = await scanner.run()
        show(attrs.asdict(seen), as_json=as_json)
        return DIFFERENT if seen.differences and (dry_run or verify) else FINE

    run(work)


@main.command()
@click.option(
    "--url", help="Ask the service there; by default on this host, at the port of COVER_ART_LISTEN."
)
@_json
@_with_settings
def stats(*, url: str | None, as_json: bool, **given: str | None) -> None:
    """Tell what the cache holds: from Redis if it is set, else from the running service."""
    settings = settings_of(given)
    if settings.redis_url is None or url is not None:
        show(_status_of_service(url or _own_url(settings)), as_json=as_json)
        return

    async def work(reactor: Any) -> int:
        async with opened(settings, reactor) as cache:
            status = describe(
                await cache.index.totals(),
                cache.index,
                status="in Redis",
                cache_dir=str(cache.store.root),
                limit_bytes=settings.max_bytes,
            )
        show(status, as_json=as_json)
        return FINE

    run(work)


@main.command()
@click.option(
    "--to",
    "to_mb",
    type=click.FloatRange(min=0, max=1 << 40),
    help="Evict down to so many MB, whatever the limit.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing, say what would be evicted.")
@click.option("--force", is_flag=True, help="Without Redis: clean though a service runs there.")
@_json
@_with_settings
def clean(
    *,
    to_mb: float | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **given: str | None,
) -> None:
    """
    Do one cleanup now.

    With Redis it is done by the elected leader: this command takes the lead if nobody has it.
    Without Redis a running service has its own index, and would not learn what was evicted: the
    command refuses unless forced.
    """
    settings = settings_of(given)
    bounds = bounds_of(settings)
    if to_mb is not None:
        to_bytes = int(to_mb * MEGABYTE)
        bounds = attrs.evolve(bounds, max_bytes=to_bytes, clean_to_bytes=to_bytes)

    async def work(reactor: Any) -> int:
        async with opened(settings, reactor) as cache:
            if cache.link is None:
                if cache.store.is_served() and not (force or dry_run):
                    raise NotNow(
                        f"a service runs on {cache.store.root} and keeps its index in its own "
                        "memory: it cleans by itself, and its totals would be wrong until it has "
                        "compared the whole directory (--force cleans all the same)"
                    )
                # Its index is empty, and would show neither what is over nor what goes first.
                await Scanner(
                    index=cache.index, store=cache.store, in_thread=cache.threads, clock=reactor
                ).run()
            if dry_run:
                told = await _would_evict(cache, bounds)
            else:
                if await cache.leadership.stand() is None:
                    leader = (await cache.index.totals()).leader or "another process:"
                    raise NotNow(
                        f"{leader.rpartition(':')[0]} leads the cleanup and does it at its "
                        f"intervals; one that was killed loses the lead after {LEADER_LIFE_S:.0f} s"
                    )
                told = await _sweep(cache, bounds)
        show(told, as_json=as_json)
        return FINE

    run(work)


# What the commands do


async def _sweep(cache: OpenCache, bounds: Bounds) -> dict[str, Any]:
    cleanup = cache.cleanup(bounds)
    leadership = cache.leadership
    end = repeat(cache.reactor, LEADER_LIFE_S / 3, "keeping the lead", leadership.stand)
    cache.before_changes()
    try:
        # Without Redis this index is gone afterwards, so there is no next time for the rest.
        done = await cleanup.sweep(slices=SLICES if cache.link is None else SLICES_A_SWEEP)
    finally:
        end()
    if done is None or leadership.token is None or not cache.index.available:
        raise NotNow("the cleanup was not finished: Redis went away, or the lead was lost")
    await cache.counts.tell()
    totals = await cache.index.totals()
    return {
        **attrs.asdict(done),
        "dry_run": False,
        "files": totals.files,
        "size_bytes": totals.size_bytes,
    }


async def _would_evict(cache: OpenCache, bounds: Bounds) -> dict[str, Any]:
    """What a sweep would evict, and what would be left, if files were of one size."""
    totals = await cache.index.totals()
    over = max(0, totals.size_bytes - bounds.clean_to_bytes)
    if totals.size_bytes <= bounds.max_bytes:
        over = 0
    evicted = math.ceil(totals.files * over / max(1, totals.size_bytes))
    return {
        "dry_run": True,
        "evicted": evicted,
        "evicted_bytes": over,
        "files": totals.files - evicted,
        "size_bytes": totals.size_bytes - over,
    }


def _status_of_service(base: str) -> dict[str, Any]:
    url = f"{base.rstrip('/')}/cache-status"
    try:
        with urlopen(url, timeout=ANSWER_S) as answer:  # noqa: S310 - who says --url may read it
            status = json.load(answer)
    except (OSError, HTTPException, ValueError) as error:
        fail(NOT_NOW, f"no service answers at {url} ({error})")
    if not isinstance(status, dict) or "cached_files" not in status:
        fail(NOT_NOW, f"what answers at {url} is no coverart")
    return status


def _own_url(settings: Settings) -> str:
    """Where the service listens, as the first TCP endpoint says."""
    port = re.search(r"(?:^| )tcp:(?:port=)?([0-9]+)", " ".join(settings.listen))
    if port is None:
        fail(NOT_NOW, f"{PREFIX}LISTEN names no TCP port: say --url")
    return f"http://localhost:{port[1]}"
