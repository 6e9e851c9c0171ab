"""The simulated archive as a whole: its ports, opened and shut together or one by one."""

from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.web.resource import Resource

from coverart.simulator.answers import Places
from coverart.simulator.catalogue import Catalogue
from coverart.simulator.control import Control
from coverart.simulator.counts import Counts
from coverart.simulator.draw import Studio
from coverart.simulator.faults import HOPS, Faults
from coverart.simulator.gallery import Gallery
from coverart.simulator.hops import Hop, HopSite

CONTROL = "control"
PORTS = (*HOPS, CONTROL)


class Simulator:
    """
    An archive on local ports, to run inside a test, a benchmark or a service.

    .. code-block:: python

        archive = Simulator(reactor, Catalogue(seed=1))
        await archive.start()
        archive.faults.add(Rule(hop="node", does=Gate(name="bytes")))
        ...  # ask the proxy for archive.catalogue.examples()["jpeg"]
        await archive.faults.gates.reached("bytes")
        archive.faults.gates.open("bytes")
        await archive.stop()

    :param reactor: for sockets, time and threads.
    :param variants: how many different drawings there are; 0 draws each cover.
    :param base_port: the first of six ports in a row; 0 takes any that are free.
    :param interface: the address to listen on.
    :param hostname: how others reach that address: it is what Locations say.
    :param alternate_nodes: archive.org sends every other request to the other node.
    :ivar faults: the rules of its misbehaviour; ``faults.gates`` holds requests.
    :ivar counts: what reached its hops.
    :ivar ports: port numbers by name, once it listens.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        catalogue: Catalogue | None = None,
        *,
        variants: int = 0,
        base_port: int = 0,
        interface: str = "127.0.0.1",
        hostname: str = "127.0.0.1",
        alternate_nodes: bool = False,
        cache_bytes: int = 64 * 2**20,
    ) -> None:
        self.catalogue = Catalogue() if catalogue is None else catalogue
        self.faults = Faults()
        self.counts = Counts()
        self.studio = Studio(variants, cache_bytes)
        self.gallery = Gallery(reactor, self.studio)
        self.ports: dict[str, int] = {}
        self._reactor = reactor
        self._base_port = base_port
        self._interface = interface
        self._hostname = hostname
        self._alternate = alternate_nodes
        self._listening: dict[str, Any] = {}
        self._sites: dict[str, HopSite] = {}
        self._stopped: set[str] = set()
        self._moving = DeferredLock()

    # All of it

    def listen(self) -> None:
        """
        Open all ports at once.

        :raises twisted.internet.error.CannotListenError: one is taken.
        """
        # Locations name the ports, so the ports come first and their sites learn of them after.
        roots = {name: _Door() for name in PORTS}
        for place, name in enumerate(PORTS):
            connections = self.counts.connections(name)
            self._sites[name] = HopSite(roots[name], connections, self._reactor)
            wanted = self._base_port + place if self._base_port else 0
            try:
                self._open(name, wanted)
            except Exception:
                for port in self._listening.values():
                    port.stopListening()
                self._listening.clear()
                raise
        places = Places(**{name: self.url(name) for name in HOPS})
        for name in HOPS:
            roots[name].inside = Hop(
                self._reactor,
                name,
                catalogue=self.catalogue,
                gallery=self.gallery,
                faults=self.faults,
                counts=self.counts,
                places=places,
                alternate=self._alternate,
            )
        control = Control(self, places)
        roots[CONTROL].inside = control.app.resource()
        self.faults.changed = self._faults_changed

    async def start(self) -> None:
        """Open all ports; see `listen`."""
        self.listen()

    async def stop(self) -> None:
        """Let go of held requests, shut all ports and drop all connections."""
        self.faults.changed = lambda: None
        self.faults.clear()
        await self._moving.acquire()
        try:
            for name in list(self._listening):
                await self._shut(name)
            for site in self._sites.values():
                await site.drop()
        finally:
            self._moving.release()

    def url(self, name: str) -> str:
        """Give the base URL of a hop, or of ``control``, without a slash at its end."""
        return f"http://{self._hostname}:{self.ports[name]}"

    def environment(self) -> dict[str, str]:
        """Give the settings that make a proxy use this archive."""
        allowed = [f"{self._hostname}:{self.ports[name]}" for name in HOPS[2:]]
        return {
            "COVER_ART_UPSTREAM": self.url("release"),
            "COVER_ART_EVENT_UPSTREAM": self.url("event"),
            "COVER_ART_ALLOWED_HOSTS": ",".join(allowed),
        }

    # One hop

    async def stop_hop(self, name: str) -> None:
        """Refuse connections to a hop from now on, and drop those it has."""
        self._stopped.add(name)
        await self.settled()

    async def start_hop(self, name: str) -> None:
        """Accept connections again, on the same port."""
        self._stopped.discard(name)
        await self.settled()

    async def settled(self) -> None:
        """
        Wait until each port is as the rules want it.

        A Refuse takes effect by itself, but a port needs a turn of the reactor to shut.
        """
        await self._moving.acquire()
        try:
            for name in HOPS:
                wanted = name not in self._stopped and not self.faults.refused(name)
                if wanted and name not in self._listening:
                    self._open(name, self.ports[name])
                elif not wanted and name in self._listening:
                    await self._shut(name)
                    await self._sites[name].drop()
        finally:
            self._moving.release()

    def _faults_changed(self) -> None:
        settling = Deferred.fromCoroutine(self.settled())
        settling.addErrback(
            lambda failure: self._log.failure("A port did not open or shut", failure)
        )

    def _open(self, name: str, port: int) -> None:
        listening = self._reactor.listenTCP(
            port, self._sites[name], backlog=1024, interface=self._interface
        )
        self._listening[name] = listening
        self.ports[name] = listening.getHost().port

    async def _shut(self, name: str) -> None:
        await self._listening.pop(name).stopListening()


class _Door(Resource):
    """Stands in for a resource that can only be made once all ports are known."""

    inside: Any = None

    def getChildWithDefault(self, path: bytes, request: Any) -> Any:
        if self.inside.isLeaf:
            # The leaf wants to see the whole path.
            request.postpath.insert(0, request.prepath.pop())
            return self.inside
        return self.inside.getChildWithDefault(path, request)
