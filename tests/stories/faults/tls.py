"""TLS towards the archive: a front with certificates made for the occasion."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import DeferredLock
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.portforward import ProxyFactory

from tests.stories.faults.archive import TIMEOUT, TIMEOUT_S
from tests.stories.faults.matrix import Row
from tests.stories.faults.names import NAME, Nameserver
from tests.stories.faults.stage import Stage
from tests.support.certificates import TRUSTED, Signed, authority, signed
from tests.support.running import free_port
from tests.support.talk import LOCAL, start, until, within

_variable = DeferredLock()
"""Rows set one variable of the process: one at a time."""


class Tls:
    """A proxy whose hop 1 is behind a front that can be exchanged, at one port."""

    def __init__(self, stage: Stage) -> None:
        Nameserver(stage)
        self._stage = stage
        self.port = free_port()
        self._listening: Any = None

    @property
    def netloc(self) -> str:
        return f"{NAME}:{self.port}"

    async def show(self, factory: Factory, options: CertificateOptions | None) -> None:
        """Listen with this certificate; None: without TLS."""
        listen: Any = reactor
        await self.end()
        if options is None:
            self._listening = listen.listenTCP(self.port, factory, interface=LOCAL)
        else:
            self._listening = listen.listenSSL(self.port, factory, options, interface=LOCAL)

    async def end(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()


def _archive(stage: Stage) -> Any:
    factory = ProxyFactory(LOCAL, stage.sim.ports["release"])
    factory.noisy = False
    return factory


async def play(stage: Stage, *, front: Callable[[], Signed] | Factory, log: str) -> None:
    """
    Ask through a front, and again through a good one.

    :param front: makes its certificate; or a factory of another protocol.
    :param log: what the log says, as a pattern; empty where nothing is wrong.
    """
    async with _variable:
        before = os.environ.get(TRUSTED)
        (stage.folder / "authorities.pem").write_bytes(authority().pem)
        os.environ[TRUSTED] = os.fspath(stage.folder / "authorities.pem")
        tls = Tls(stage)
        try:
            await _play(stage, tls, front, log)
        finally:
            await tls.end()
            os.environ.pop(TRUSTED)
            if before is not None:
                os.environ[TRUSTED] = before


async def _play(stage: Stage, tls: Tls, front: Callable[[], Signed] | Factory, log: str) -> None:
    if isinstance(front, Factory):
        await tls.show(front, None)
    else:
        await tls.show(_archive(stage), front().options())
    proxy = await stage.proxy(COVER_ART_UPSTREAM=f"https://{tls.netloc}")
    thing = stage.thumbnail()
    asking = start(stage.ask(proxy.port, thing.path))
    if isinstance(front, _Silent):
        await until(lambda: front.taken, "it is connected to")
        await stage.machine.wait_for(lambda: asking.called, TIMEOUT_S)
    seen = await within(asking)
    await proxy.settled()
    if not log:
        stage.whole(seen, thing, "MISS", of="")
        stage.claim("disk", "the whole file", len(proxy.files()) == 1, proxy.files())
        lines = [line for line in stage.log.about(thing.path) if "could not" in line]
        stage.claim("log", "nothing", not lines, lines)
    else:
        if isinstance(front, _Silent):
            stage.refused(seen, 504, r".* did not answer in time; .*", of="")
        else:
            stage.refused(
                seen,
                502,
                r".* (TLS|certificate|broke off).*; the next request asks it again",
                of="",
            )
        asked = stage.sim.counts.requests("release")
        # Nothing is told to a host that did not prove who it is.
        stage.claim("client", "no request sent", asked == 0, asked)
        await stage.nothing_kept(proxy)
        pattern = f"could not be fetched: {tls.netloc}.*{log}"
        stage.logged(pattern, thing.path, text=f"HOST:PORT … {log.replace(chr(92), '')}")
    await stage.exact(proxy)
    if isinstance(front, _Silent):
        stage.bounded(seen, TIMEOUT, TIMEOUT_S)
    else:
        stage.at_once(seen)
    await tls.show(_archive(stage), signed(NAME, authority()).options())
    again = await stage.ask(proxy.port, thing.path)
    stage.whole(again, thing, "MISS" if log else "HIT", "after", of="")


class _Silent(Factory):
    """Takes connections and says nothing."""

    protocol = Protocol
    noisy = False

    def __init__(self) -> None:
        self.taken = 0

    def buildProtocol(self, addr: Any) -> Any:
        self.taken += 1
        return super().buildProtocol(addr)


class _Plain(Factory):
    """Speaks HTTP where TLS is expected."""

    noisy = False

    class protocol(Protocol):  # noqa: N801 - Twisted's name for it
        """Says no at once."""

        def dataReceived(self, data: bytes) -> None:
            transport: Any = self.transport
            transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            transport.loseConnection()


FRONTS: tuple[tuple[str, Any, str], ...] = (
    ("a good certificate", lambda: signed(NAME, authority()), ""),
    (
        "of another name",
        lambda: signed("other.test", authority()),
        "VerificationError",
    ),
    ("expired", lambda: signed(NAME, authority(), days=-1), "certificate verify failed"),
    ("self-signed", lambda: signed(NAME, None), "certificate verify failed"),
    (
        "of an unknown authority",
        lambda: signed(NAME, signed("CA unknown", None)),
        "certificate verify failed",
    ),
    ("no TLS at all", _Plain(), "SSL routines"),
    ("a silent handshake", _Silent(), "in time|not done"),
)
ROWS = tuple(
    Row(
        group="TLS",
        name=name,
        play=functools.partial(play, front=front, log=log),
        hostname=NAME,
    )
    for name, front, log in FRONTS
)
