"""``twistd coverart-archive``: the simulated archive as a service, for demos, load tests and CI."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python import usage

from coverart.simulator.catalogue import MAX_RELEASES, MIN_RELEASES, Catalogue

if TYPE_CHECKING:
    from coverart.simulator.service import Simulator


def _number(
    option: str, low: float, high: float, kind: type[int] | type[float] = int
) -> Callable[[str], float]:
    def coerce(value: str) -> float:
        try:
            number = kind(value)
        except ValueError:
            raise ValueError(f"--{option} is a number") from None
        if not low <= number <= high:
            raise ValueError(f"--{option} must be between {low} and {high}")
        return number

    return coerce


class Options(usage.Options):
    """What the command line can say."""

    synopsis = "[options]"
    longdesc = (
        "Plays coverartarchive.org, eventartarchive.org, archive.org and two storage nodes on six "
        "local ports in a row; the last is the control port. Covers are drawn on demand."
    )
    optParameters: ClassVar[list[list[Any]]] = [
        [
            "base-port",
            "p",
            8190,
            "First of six ports; 0 takes any that are free.",
            _number("base-port", 0, 65530),
        ],
        ["ports-file", None, None, "Write the ports there, as JSON, once all of them listen."],
        ["interface", None, "127.0.0.1", "Address to listen on."],
        ["hostname", None, "127.0.0.1", "How clients reach that address; Locations say it."],
        [
            "releases",
            "n",
            1000,
            "How many releases there are.",
            _number("releases", MIN_RELEASES, MAX_RELEASES),
        ],
        ["seed", "s", 0, "Another seed is another archive.", _number("seed", -(2**63), 2**63)],
        [
            "without-art",
            None,
            0.2,
            "Share of releases without art.",
            _number("without-art", 0, 1, float),
        ],
        [
            "variants",
            None,
            0,
            "For load tests: how many different drawings there are; 0 draws each cover.",
            _number("variants", 0, 10**6),
        ],
        ["cache", None, 64, "MB of rendered files to keep in memory.", _number("cache", 1, 10**6)],
    ]
    optFlags: ClassVar[list[list[Any]]] = [
        ["alternate-nodes", None, "Send every other request to the other storage node."],
    ]


class SimulatorService(Service):
    """Runs a simulator and says how to use it."""

    _log = Logger()

    def __init__(self, simulator: "Simulator", ports_file: Path | None) -> None:
        self._simulator = simulator
        self._ports_file = ports_file

    def startService(self) -> None:
        try:
            self._simulator.listen()
        except CannotListenError as error:
            raise SystemExit(
                f"coverart-archive: can't listen on port {error.port}: {error.socketError.strerror}; "
                "--base-port names another"
            ) from None
        if self._ports_file is not None:
            _write_whole(self._ports_file, json.dumps(self._simulator.ports))
        settings = self._simulator.environment().items()
        catalogue = self._simulator.catalogue
        self._log.info(
            "{settings}  # for example {example}; control port at {control}",
            settings=" ".join(f"{name}={shlex.quote(value)}" for name, value in settings),
            example=catalogue.examples()["thumbnail"],
            control=self._simulator.url("control"),
        )
        names = f"RELEASE={catalogue.release(0).mbid} GROUP={catalogue.release_group(0).mbid}"
        self._log.info("{names}  # for test.sh and validate.sh", names=names)
        super().startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._simulator.stop())


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def makeService(options: Any, reactor: Any = None) -> IService:
    """
    Make the service that the options ask for.

    :raises usage.UsageError: Pillow, which draws the covers, is not installed.
    """
    try:
        from coverart.simulator.service import Simulator
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "PIL":
            raise
        raise usage.UsageError(
            "the simulated archive draws its covers with Pillow: pip install 'coverart-proxy[simulator]'"
        ) from error
    if reactor is None:
        from twisted.internet import reactor
    simulator = Simulator(
        reactor,
        Catalogue(options["seed"], options["releases"], without_art=options["without-art"]),
        variants=options["variants"],
        base_port=options["base-port"],
        interface=options["interface"],
        hostname=options["hostname"],
        alternate_nodes=bool(options["alternate-nodes"]),
        cache_bytes=options["cache"] * 2**20,
    )
    ports_file = options["ports-file"]
    return SimulatorService(simulator, Path(ports_file) if ports_file else None)
