"""`twistd coverart`: its options, and the one place that takes the global reactor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.protocol import Factory
from twisted.python import usage

from coverart.archive.proxies import VARIABLES as PROXY_VARIABLES
from coverart.service.listening import Listening, listening_at
from coverart.service.open_cache import open_store
from coverart.service.processes import Processes, check_listen
from coverart.service.settings import (
    PREFIX,
    ConfigError,
    Settings,
    load,
    read_environment,
    variables,
)
from coverart.service.timers import go_by_monotonic_time
from coverart.service.wiring import assemble
from coverart.web.connection_limits import GatedEndpoint


class Options(usage.Options):
    """One option for each setting; what is not given comes from the environment or .env."""

    longdesc = "A caching proxy for the MusicBrainz Cover Art Archive."

    optParameters = [  # noqa: RUF012
        [
            variable.removeprefix(PREFIX).lower().replace("_", "-"),
            None,
            None,
            f"{variable}: {meaning}",
        ]
        for variable, meaning in variables().items()
    ]

    def variables(self) -> dict[str, str]:
        """What was given, over the environment and a .env file in the working directory."""
        given = {
            PREFIX + name.upper().replace("-", "_"): value
            for name, value in self.items()
            if value is not None
        }
        return {**read_environment(Path.cwd(), os.environ), **given}

    def settings(self) -> Settings:
        """
        The same, checked.

        :raises ConfigError: a value can't be used.
        """
        return load(self.variables())


def makeService(options: Options) -> IService:
    """
    The service that twistd runs.

    :raises SystemExit: a setting can't be used; twistd then prints one line and ends.
    """
    from twisted.internet import reactor

    go_by_monotonic_time(reactor)
    try:
        settings = options.settings()
        if settings.processes > 1:
            return _several(options, settings, reactor)
        return assemble(settings, reactor)
    except ConfigError as error:
        raise SystemExit(f"coverart: {error}") from error


def _several(options: Options, settings: Settings, reactor: Any) -> IService:
    """
    The parent of several processes.

    :raises ConfigError: a setting can't be used. What each of them would stumble over is told
        here, once, before any of them starts.
    """
    check_listen(settings)
    open_store(settings)
    everything = MultiService()
    given = options.variables().items()
    processes = Processes(
        count=settings.processes,
        settings={
            name: text
            for name, text in given
            if (name.startswith(PREFIX) or name.upper() in PROXY_VARIABLES) and text.strip()
        },
        reactor=reactor,
    )
    processes.setServiceParent(everything)
    for endpoint in listening_at(settings, reactor):
        shared = GatedEndpoint(endpoint, processes.hand_over)
        Listening(shared, Factory()).setServiceParent(everything)
    return everything
