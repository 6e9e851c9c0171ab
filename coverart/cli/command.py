"""
One command from its start to its exit code: settings, the parts it works with, the reactor, output.

Whatever goes wrong is one line for the operator.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

import click
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater, react
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from coverart.index.base import IndexAway
from coverart.service.open_cache import OpenCache, open_cache
from coverart.service.settings import PREFIX, ConfigError, Settings, load, read_environment
from coverart.service.timers import go_by_monotonic_time

FINE, DIFFERENT, WRONG_USE, NOT_NOW, INTERRUPTED, BROKEN = 0, 1, 2, 3, 130, 70

Work = Callable[[Any], Coroutine[Deferred[Any], Any, int]]


class NotNow(Exception):
    """What was asked for can't be done at present; the message is fit for the operator."""


def settings_of(given: dict[str, str | None]) -> Settings:
    """The environment, .env and these options; the process ends if one of them is wrong."""
    options = {name: text for name, text in given.items() if text is not None}
    try:
        return load(read_environment(Path.cwd(), os.environ), options=options)
    except ConfigError as error:
        fail(WRONG_USE, str(error))


@contextlib.asynccontextmanager
async def opened(settings: Settings, reactor: Any) -> AsyncIterator[OpenCache]:
    """
    The cache directory and its index, until the end.

    :raises IndexAway: Redis can't be asked.
    """
    directory = settings.directory()
    if not directory.is_dir():
        # The service makes it; who looks at a cache has mistaken the name.
        raise ConfigError(f"{PREFIX}CACHE_DIR={str(directory)!r}: there is no such directory")
    cache = open_cache(settings, reactor)
    cache.start()
    try:
        if cache.link is not None:
            await cache.index.whole()
        yield cache
    finally:
        await cache.close()


def run(work: Work) -> NoReturn:
    """Do it with the reactor running, and end the process with what it returns."""
    warnings = FilteringLogObserver(
        textFileLogObserver(sys.stderr), [LogLevelFilterPredicate(LogLevel.warn)]
    )
    globalLogBeginner.beginLoggingTo([warnings], redirectStandardIO=False)

    async def to_the_end(reactor: Any) -> None:
        try:
            # Once the reactor runs, an interrupt ends it in good order.
            await deferLater(reactor, 0)
            code = await work(reactor)
        except ConfigError as error:
            code = _say(WRONG_USE, str(error))
        except NotNow as error:
            code = _say(NOT_NOW, str(error))
        except IndexAway as error:
            code = _say(NOT_NOW, f"Redis can't be asked now ({error})")
        except CancelledError:
            code = INTERRUPTED
        except Exception:
            traceback.print_exc()
            code = BROKEN
        raise SystemExit(code)

    def start(reactor: Any) -> Deferred[None]:
        go_by_monotonic_time(reactor)
        working = Deferred.fromCoroutine(to_the_end(reactor))

        def interrupt() -> Deferred[None]:
            # The lead is given up, threads and progress bar are ended.
            working.cancel()
            return working

        reactor.addSystemEventTrigger("before", "shutdown", interrupt)
        return working

    react(start)


def show(told: dict[str, Any], *, as_json: bool) -> None:
    """Print it as one JSON object for programs, or a line for each name for people."""
    if as_json:
        click.echo(json.dumps(told))
        return
    for name, value in told.items():
        said = f"{value:,}" if type(value) is int else value
        click.echo(f"{name.replace('_', ' '):<20} {said}")


def fail(code: int, why: str) -> NoReturn:
    """End the process."""
    sys.exit(_say(code, why))


def _say(code: int, why: str) -> int:
    click.echo(f"coverart: {why}", err=True)
    return code
