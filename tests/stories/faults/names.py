"""Names do not resolve: no such name, no nameserver that answers, one that takes its time."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import gatherResults
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from tests.stories.faults.archive import LONGEST_PAUSE_S, TIMEOUT, TIMEOUT_S
from tests.stories.faults.matrix import Row
from tests.stories.faults.stage import Stage
from tests.support.talk import LOCAL, start, until, within

NAME = "archive.test"
THREADS = 10
"""As many as the reactor has for looking up names."""
MANY = 12
"""More covers than there are threads."""


@implementer(IHostResolution)
class Resolution:
    """One look-up under way; a thread that waits for the system can't be called back."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Go on."""


@implementer(IHostnameResolver)
class Nameserver:
    """Answers for the row's names as it is told to; in threads, as the system's resolver does."""

    def __init__(self, stage: Stage) -> None:
        self.answer: Callable[[str], str] = lambda _: LOCAL
        self.asked = 0
        self.let_go = threading.Event()
        self._pool = ThreadPool(minthreads=0, maxthreads=THREADS)
        self._pool.start()
        stage.at_the_end(self._pool.stop)
        stage.at_the_end(self.let_go.set)
        stage.machine.nameResolver = self

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        *_: Any,
        **__: Any,
    ) -> IHostResolution:
        resolution = Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)

        def found(address: str) -> None:
            resolutionReceiver.addressResolved(IPv4Address("TCP", address, portNumber))

        def unknown(failure: Failure) -> None:
            failure.trap(socket.gaierror)

        looking = deferToThreadPool(reactor, self._pool, self._look_up, hostName)  # type: ignore[arg-type]
        looking.addCallback(found).addErrback(unknown)
        looking.addCallback(lambda _: resolutionReceiver.resolutionComplete())
        return resolution

    def _look_up(self, host: str) -> str:
        self.asked += 1
        return host if host == LOCAL else self.answer(host)

    def fails(self, code: int) -> Callable[[str], str]:
        def answer(host: str) -> str:
            raise socket.gaierror(code, f"{host}: no answer")

        return answer

    def silent(self, _: str) -> str:
        self.let_go.wait(60)
        return LOCAL


def settings(stage: Stage, hop: str) -> dict[str, str]:
    """Lead to the archive by name: everywhere, or from hop 2 on."""
    if hop == "1":
        return {}
    port = urlsplit(stage.sim.url("release")).port
    return {"COVER_ART_UPSTREAM": f"http://{LOCAL}:{port}"}


async def unknown(stage: Stage, *, hop: str, code: int) -> None:
    """There is no such name, or no nameserver can say so."""
    names = Nameserver(stage)
    proxy = await stage.proxy(**settings(stage, hop))
    held = stage.thumbnail(3)
    await stage.ask(proxy.port, held.path)
    # The connections that stand need no name.
    await proxy.forget_connections()
    names.answer = names.fails(code)
    thing = stage.thumbnail()
    seen = await stage.ask(proxy.port, thing.path)
    stage.refused(
        seen, 503, r"the name .* can't be resolved; it is asked again in \d+ s", of="cold"
    )
    stage.at_once(seen)
    stage.whole(await stage.ask(proxy.port, held.path), held, "HIT", of="held")
    again = await stage.ask(proxy.port, thing.path)
    stage.refused(
        again,
        503,
        r".* failed and is not asked for a while; it is asked again in \d+ s",
        of="the next",
    )
    await proxy.settled()
    stage.claim("disk", "nothing new", len(proxy.files()) == 1, proxy.files())
    await stage.exact(proxy)
    stage.logged(rf"{NAME}:\d+: .*lookup.*not asked for \d+ s", thing.path, text="HOST, lookup")
    names.answer = lambda _: LOCAL
    stage.machine.advance(LONGEST_PAUSE_S)
    stage.whole(await stage.ask(proxy.port, thing.path), thing, "MISS", "after", of="")


async def silent(stage: Stage) -> None:
    """The nameserver answers nothing, and more covers are asked for than there are threads."""
    names = Nameserver(stage)
    proxy = await stage.proxy()
    held = stage.thumbnail(1)
    await stage.ask(proxy.port, held.path)
    await proxy.forget_connections()
    names.answer = names.silent
    names.asked = 0
    catalogue = stage.sim.catalogue
    fronts = [n for n in range(2, 60) if n not in (5, 6) and catalogue.release(n).front]
    things = [stage.thumbnail(number) for number in fronts[:MANY]]
    asking = [start(stage.ask(proxy.port, thing.path)) for thing in things]
    await until(lambda: names.asked == THREADS, "all threads wait for the nameserver")
    seen = await stage.ask(proxy.port, held.path)
    stage.whole(seen, held, "HIT", of="held")
    done = gatherResults(asking)
    await stage.machine.wait_for(lambda: done.called, TIMEOUT_S)
    answers = await within(done)
    for seen in answers:
        busy = seen.status in (503, 504)
        stage.claim("client", "504, later ones 503", busy, seen.how, of="cold")
        stage.bounded(seen, TIMEOUT, TIMEOUT_S)
    stage.claim("client", "504, later ones 503", answers[0].status == 504, of="cold")
    await proxy.settled()
    stage.claim("disk", "nothing new", len(proxy.files()) == 1, proxy.files())
    await stage.exact(proxy)
    stage.logged("did not answer in time", things[0].path, text="HOST did not answer in time")
    names.answer = lambda _: LOCAL
    names.let_go.set()
    stage.machine.advance(LONGEST_PAUSE_S * 2)
    seen = await stage.ask(proxy.port, things[0].path)
    stage.whole(seen, things[0], "MISS", "after", of="")


async def slow(stage: Stage) -> None:
    """The nameserver takes its time."""
    names = Nameserver(stage)
    proxy = await stage.proxy()
    names.answer = names.silent
    thing = stage.thumbnail()
    asking = start(stage.ask(proxy.port, thing.path))
    await until(lambda: names.asked == 1, "it is asked")
    stage.machine.advance(20)
    names.let_go.set()
    seen = await within(asking)
    stage.whole(seen, thing, "MISS", of="")
    stage.bounded(seen, TIMEOUT, TIMEOUT_S)
    await proxy.settled()
    stage.claim("disk", "the whole file", len(proxy.files()) == 1)
    await stage.exact(proxy)
    lines = stage.log.about("could not be fetched", thing.path)
    stage.claim("log", "nothing", not [line for line in lines if thing.path in line], lines)
    stage.whole(await stage.ask(proxy.port, thing.path), thing, "HIT", "after", of="")


async def private(stage: Stage) -> None:
    """A public name leads to a private address: a rebinding, or a hosts file."""
    names = Nameserver(stage)
    names.answer = lambda _: "10.0.0.1"
    proxy = await stage.proxy(COVER_ART_UPSTREAM=f"https://{NAME}")
    thing = stage.thumbnail()
    seen = await stage.ask(proxy.port, thing.path)
    stage.refused(seen, 502, r".*; the next request asks it again", of="")
    stage.at_once(seen)
    await stage.nothing_kept(proxy)
    await stage.exact(proxy)
    text = "HOST: ADDRESS is no public address"
    stage.logged(rf"{NAME}:\d+: 10\.0\.0\.1 is no public address", thing.path, text=text)
    total = sum(stage.sim.counts.connections(hop).total for hop in ("release", "archive"))
    stage.claim("after", "nobody was connected to", total == 0, total)


ROWS = (
    *(
        Row(
            group="names",
            name=f"{what}, hop {hop}",
            play=functools.partial(unknown, hop=hop, code=code),
            hostname=NAME,
        )
        for what, code in (
            ("no such name (NXDOMAIN)", socket.EAI_NONAME),
            ("the nameserver fails (SERVFAIL)", socket.EAI_AGAIN),
        )
        for hop in ("1", "2")
    ),
    Row(group="names", name="the nameserver is silent", play=silent, hostname=NAME),
    Row(group="names", name="the nameserver takes 20 s", play=slow, hostname=NAME),
    Row(group="names", name="a private address", play=private, hostname=NAME),
)
