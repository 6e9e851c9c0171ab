"""`coverart`: look at a cache, tell what it holds, clean it; while the service runs or not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import attrs
import click
from twisted.internet.defer import Deferred, TimeoutError  # noqa: A004
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.task import deferLater
from twisted.web.client import Agent, ResponseFailed, readBody

from coverart import __version__
from coverart.cli.command import (
    DIFFERENT,
    FINE,
    WRONG_USE,
    NotNow,
    fail,
    opened,
    run,
    settings_of,
)
from coverart.cli.output import progress, scan_table, show, status_table, table
from coverart.coordination.leader import LEADER_LIFE_S
from coverart.index.base import SLICES, Index
from coverart.maintenance.scan import Scanner
from coverart.maintenance.sweep import SLICES_A_SWEEP, Bounds
from coverart.model import MEGABYTE
from coverart.service.open_cache import OpenCache, bounds_of, index_for
from coverart.service.settings import PREFIX, Settings, variables
from coverart.service.timers import Repeated
from coverart.web.status import describe

ANSWER_S = 10.0
ASK_FOR_LEAD_S = 1.0
MOST_COUNTED = 5_000
"""Limit of files at the front of the queue that a dry run looks at; it reckons the rest from them."""

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
            await _reach(index)
            with progress() as told:
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
        show(attrs.asdict(seen), None if as_json else scan_table(seen))
        return DIFFERENT if seen.differences and (dry_run or verify) else FINE

    run(work)


@main.command()
@click.option("--url", help="Ask the service there; by default as COVER_ART_LISTEN says.")
@_json
@_with_settings
def stats(*, url: str | None, as_json: bool, **given: str | None) -> None:
    """Tell what the cache holds: from Redis if it is set, else from the running service."""
    settings = settings_of(given)
    if url is not None and urlsplit(url).scheme not in ("http", "https"):
        fail(WRONG_USE, f"--url={url!r}: must be an http or https URL")

    async def work(reactor: Any) -> int:
        if url is None and settings.redis_url is not None:
            status = await _status_in_redis(settings, reactor)
        else:
            status = await _status_of_service(url or _own_url(settings), reactor)
        show(status, None if as_json else status_table(status))
        return FINE

    run(work)


@main.command()
@click.option("--to", "to_mb", type=float, help="Evict down to so many MB, whatever the limit.")
@click.option("--dry-run", is_flag=True, help="Change nothing, say what would be evicted.")
@click.option("--wait", is_flag=True, help="If another process leads, wait for its term to end.")
@click.option("--force", is_flag=True, help="Without Redis: clean though a service runs there.")
@_json
@_with_settings
def clean(
    *,
    to_mb: float | None,
    dry_run: bool,
    wait: bool,
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
    if to_mb is not None and not (math.isfinite(to_mb) and to_mb >= 0):
        fail(WRONG_USE, f"--to={to_mb}: must be a number of MB from 0 up")
    bounds = bounds_of(settings)
    if to_mb is not None:
        to_bytes = int(to_mb * MEGABYTE)
        bounds = attrs.evolve(bounds, max_bytes=to_bytes, clean_to_bytes=to_bytes)

    async def work(reactor: Any) -> int:
        async with opened(settings, reactor) as cache:
            await _reach(None if cache.link is None else cache.index)
            if dry_run:
                told = await _would_evict(cache, bounds)
            else:
                if cache.link is None and cache.store.is_served() and not force:
                    raise NotNow(
                        f"a service runs on {cache.store.root} and keeps its index in its own "
                        "memory: it cleans by itself, and its totals would be wrong until it has "
                        "compared the whole directory (--force cleans all the same)"
                    )
                await _lead(cache, wait=wait)
                told = await _sweep(cache, bounds)
        show(told, None if as_json else table("cleanup", told))
        return FINE

    run(work)


# What the commands do


async def _reach(index: Index | None) -> None:
    """:raises IndexAway: the index can't be asked."""
    if index is not None:
        await index.whole()


async def _lead(cache: OpenCache, *, wait: bool) -> None:
    """
    Take the lead.

    A process that was killed leads on until its lock ends; one that still leads after that is
    alive, and cleans by itself.
    """
    patience_s = LEADER_LIFE_S + ASK_FOR_LEAD_S if wait else 0.0
    until = cache.reactor.seconds() + patience_s
    while await cache.leadership.stand() is None:
        leader = (await cache.index.totals()).leader
        if not cache.index.available:
            raise NotNow("Redis can't be asked now")
        if cache.reactor.seconds() >= until:
            name = "another process" if leader is None else leader.rpartition(":")[0]
            more = "" if wait else "; --wait lets a process that is gone lose the lead"
            raise NotNow(f"{name} leads the cleanup and does it at its intervals{more}")
        await deferLater(cache.reactor, ASK_FOR_LEAD_S)


async def _sweep(cache: OpenCache, bounds: Bounds) -> dict[str, Any]:
    cleanup = cache.cleanup(bounds)
    leadership = cache.leadership
    lead = Repeated(cache.reactor, LEADER_LIFE_S / 3, "keeping the lead", leadership.stand)
    lead.start()
    cache.before_changes()
    try:
        # Without Redis this index is gone afterwards, so there is no next time for the rest.
        done = await cleanup.sweep(slices=SLICES if cache.link is None else SLICES_A_SWEEP)
    finally:
        lead.stop()
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
    """What a sweep would evict, and what would be left."""
    index = cache.index
    if cache.link is None:
        await Scanner(
            index=index, store=cache.store, in_thread=cache.threads, clock=cache.reactor
        ).run()
    totals = await index.totals()
    over = totals.size_bytes - bounds.clean_to_bytes
    if totals.size_bytes <= bounds.max_bytes or over < 0:
        over = 0
    # Redis has others to answer too.
    most = totals.files if cache.link is None else MOST_COUNTED
    files = freed = 0
    for _, entry in await index.first_to_evict(most if over else 0):
        if freed >= over:
            break
        files += 1
        freed += entry.size_bytes
    exact = freed >= over or files in (0, totals.files)
    if not exact:
        files, freed = min(totals.files, math.ceil(files * over / freed)), over
    return {
        "dry_run": True,
        "evicted": files,
        "evicted_bytes": freed,
        "exact": exact,
        "files": totals.files - files,
        "size_bytes": totals.size_bytes - freed,
    }


async def _status_in_redis(settings: Settings, reactor: Any) -> dict[str, Any]:
    index, _, link = index_for(settings, reactor, settings.directory())
    if link is None:
        raise AssertionError("called with Redis only")
    link.connect()
    try:
        await _reach(index)
        totals = await index.totals()
        if not index.available:
            raise NotNow("Redis can't be asked now")
    finally:
        await link.close()
    return describe(
        totals,
        index,
        status="in Redis",
        cache_dir=str(settings.directory()),
        limit_bytes=settings.max_bytes,
    )


async def _status_of_service(base: str, reactor: Any) -> dict[str, Any]:
    url = f"{base.rstrip('/')}/cache-status"
    try:
        agent = Agent(reactor, connectTimeout=ANSWER_S)
        asked: Deferred[Any] = agent.request(b"GET", url.encode())
        response = await asked.addTimeout(ANSWER_S, reactor)
        body: bytes = await readBody(response).addTimeout(ANSWER_S, reactor)
        status = json.loads(body)
    except (ConnectError, DNSLookupError, TimeoutError, ResponseFailed) as error:
        raise NotNow(f"no service answers at {base} ({error})") from error
    except ValueError as error:
        raise NotNow(f"what answers at {url} is no coverart") from error
    if response.code != 200 or not isinstance(status, dict) or "cached_files" not in status:
        raise NotNow(f"what answers at {url} is no coverart")
    return status


def _own_url(settings: Settings) -> str:
    """Where the service listens, as the first TCP endpoint says."""
    for endpoint in settings.listen:
        place = re.fullmatch(
            r"tcp:(?:port=)?([0-9]+)(?::backlog=[0-9]+)?(?::interface=((?:[^:\\]|\\.)*))?", endpoint
        )
        if place is not None:
            host = (place[2] or "").replace("\\", "")
            if host in ("", "0.0.0.0", "::"):  # noqa: S104
                host = "localhost"
            return f"http://[{host}]:{place[1]}" if ":" in host else f"http://{host}:{place[1]}"
    raise NotNow(f"{PREFIX}LISTEN names no TCP port that is understood here: say --url")
