"""The hops as web sites: take a request, ask the rules, send the answer as well or badly as told."""

from typing import Any

import attrs
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from coverart.simulator import answers
from coverart.simulator.answers import Answer, FilesWanted, FileWanted, Places
from coverart.simulator.catalogue import Catalogue
from coverart.simulator.counts import Connections, Counts
from coverart.simulator.delivery import Delivery, deliver
from coverart.simulator.faults import (
    Behaviour,
    Body,
    Faults,
    Gate,
    Html,
    Latency,
    Redirect,
    RedirectLoop,
    Status,
)
from coverart.simulator.gallery import Gallery

_PIECE_S = 0.05
_CHUNK = 8192
_BODILESS = {204, 304}


class HopChannel(HTTPChannel):
    """An HTTP connection that its site knows of."""

    site: "HopSite"

    def connectionMade(self) -> None:
        self.site.opened(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.closed(self)
        super().connectionLost(reason)


class HopSite(Site):
    """A site without an access log that counts its connections and can drop them."""

    # Plain HTTP/1.1: the archive's wrapper for HTTP/2 would only hide the transport from the faults.
    protocol = HopChannel  # type: ignore[assignment]

    def __init__(self, resource: Resource, connections: Connections, reactor: Any) -> None:
        super().__init__(resource, reactor=reactor)
        self._connections = connections
        self._channels: set[HopChannel] = set()
        self._drained: list[Deferred[None]] = []

    def log(self, request: object) -> None:
        """Keep no access log."""

    def opened(self, channel: HopChannel) -> None:
        self._channels.add(channel)
        connections = self._connections
        connections.current += 1
        connections.total += 1
        connections.peak = max(connections.peak, connections.current)

    def closed(self, channel: HopChannel) -> None:
        self._channels.discard(channel)
        self._connections.current -= 1
        if not self._channels:
            drained, self._drained = self._drained, []
            for waiting in drained:
                waiting.callback(None)

    def drop(self) -> Deferred[None]:
        """Reset all connections; the Deferred fires when the last one is gone."""
        gone: Deferred[None] = Deferred()
        if not self._channels:
            gone.callback(None)
            return gone
        self._drained.append(gone)
        for channel in self._channels:
            _abort(channel)
        return gone


class Hop(Resource):
    """
    One hop of the archive.

    :param name: one of `faults.HOPS`.
    :param places: base URLs of all hops, this one's included.
    :param alternate: archive.org sends every other request to the other node.
    """

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        name: str,
        *,
        catalogue: Catalogue,
        gallery: Gallery,
        faults: Faults,
        counts: Counts,
        places: Places,
        alternate: bool = False,
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._name = name
        self._catalogue = catalogue
        self._gallery = gallery
        self._faults = faults
        self._counts = counts
        self._places = places
        self._turn = 0 if alternate else None

    def render(self, request: Request) -> bytes | int:
        path = request.path.decode("latin-1")
        method = request.method.decode("latin-1")
        self._counts.saw(self._name, method, path, request.requestHeaders)
        plan = self._faults.plan(self._name, path)
        if not plan:
            answer = self._at_once(method, path)
            if answer is not None:
                answer = _conditional(request, answer)
                _write_head(request, answer, len(answer.body))
                return b"" if method == "HEAD" or answer.status in _BODILESS else answer.body
        playing = Deferred.fromCoroutine(self._play(request, method, path, plan))
        gone = request.notifyFinish()
        gone.addErrback(lambda _: playing.cancel())
        playing.addErrback(self._failed, request)
        return NOT_DONE_YET

    def _failed(self, failure: Failure, request: Request) -> None:
        if failure.check(CancelledError):
            return  # the client left
        self._log.failure("The simulator failed at hop {hop}", failure, hop=self._name)
        _abort(request.channel)

    def _answer(self, method: str, path: str) -> Answer | FileWanted | FilesWanted:
        if self._name in {"release", "event"}:
            return answers.redirect_service(self._catalogue, self._places, self._name, method, path)
        if self._name == "archive":
            if self._turn is not None:
                self._turn += 1
            return answers.archive(self._catalogue, self._places, method, path, self._turn)
        return answers.node(self._catalogue, method, path)

    def _at_once(self, method: str, path: str) -> Answer | None:
        """Give the answer if it takes no drawing: the busy way, kept free of Deferreds."""
        answer = self._answer(method, path)
        if isinstance(answer, FileWanted):
            body = self._gallery.ready(answer.image, answer.size)
            return None if body is None else answers.file_answer(answer, body)
        return answer if isinstance(answer, Answer) else None

    async def _play(
        self, request: Request, method: str, path: str, plan: tuple[Behaviour, ...]
    ) -> None:
        for behaviour in plan:
            if isinstance(behaviour, Latency):
                await self._sleep(behaviour.seconds)
            elif isinstance(behaviour, Gate):
                await self._faults.gates.wait(behaviour.name)
        if any(isinstance(behaviour, _REPLACES) for behaviour in plan):
            answer = Answer(status=200)  # not worth drawing what nobody will see
        else:
            answer = _conditional(request, await self._drawn_answer(method, path))
        own_url = attrs.asdict(self._places)[self._name] + path
        await self._send(request, deliver(answer, plan, own_url))

    async def _drawn_answer(self, method: str, path: str) -> Answer:
        answer = self._answer(method, path)
        if isinstance(answer, FileWanted):
            return answers.file_answer(answer, await self._gallery.bytes(answer.image, answer.size))
        if isinstance(answer, FilesWanted):
            wanted = answers.item_files(answer.item)
            bodies = [await self._gallery.bytes(image, size) for image, size in wanted]
            return answers.files_answer(answer.item, tuple(bodies))
        return answer

    def _sleep(self, seconds: float) -> Deferred[None]:
        return task.deferLater(self._reactor, seconds, lambda: None)

    async def _send(self, request: Request, delivery: Delivery) -> None:
        answer = delivery.answer
        if delivery.then == "reset" and delivery.send is None:
            _abort(request.channel)
            return
        _write_head(request, answer, delivery.length)
        if delivery.then == "close":
            request.setHeader(b"Connection", b"close")
        if delivery.length is None and not delivery.chunked:
            _begin_unframed(request)
        body = b"" if request.method == b"HEAD" or answer.status in _BODILESS else answer.body
        first = body if delivery.send is None else body[: delivery.send]
        await self._write(request, first, delivery)
        if delivery.then == "stall":
            await self._stalled(delivery)
            await self._write(request, body[len(first) :], delivery)
        if delivery.then in {"finish", "stall"}:
            request.finish()
        elif delivery.then == "close":
            request.channel.loseConnection()
        else:
            # A reset throws away what was not sent yet, so let the kernel have it first.
            while request.channel.transport in self._reactor.getWriters():
                await self._sleep(0)
            _abort(request.channel)

    def _stalled(self, delivery: Delivery) -> Deferred[None]:
        return Deferred() if delivery.gate is None else self._faults.gates.wait(delivery.gate)

    async def _write(self, request: Request, data: bytes, delivery: Delivery) -> None:
        if delivery.bytes_per_s is not None:
            await self._drip(request, data, delivery.bytes_per_s)
        elif delivery.chunked:
            for start in range(0, len(data), _CHUNK):
                request.write(data[start : start + _CHUNK])
        else:
            request.write(data)

    async def _drip(self, request: Request, data: bytes, bytes_per_s: int) -> None:
        piece = max(1, int(bytes_per_s * _PIECE_S))
        began = self._reactor.seconds()
        for start in range(0, len(data), piece):
            request.write(data[start : start + piece])
            sent = min(start + piece, len(data))
            # By the clock from the start, so that the delays of each turn do not add up.
            await self._sleep(max(0.0, began + sent / bytes_per_s - self._reactor.seconds()))


_REPLACES = (Status, Html, Body, Redirect, RedirectLoop)


def _abort(channel: Any) -> None:
    """Reset a connection: Twisted turns SO_LINGER to zero for it."""
    channel.transport.abortConnection()


def _conditional(request: Request, answer: Answer) -> Answer:
    headers = request.requestHeaders
    return answers.conditional(
        answer,
        if_none_match=_first(headers, b"If-None-Match"),
        if_modified_since=_first(headers, b"If-Modified-Since"),
        wanted_range=_first(headers, b"Range"),
    )


def _first(headers: Headers, name: bytes) -> bytes | None:
    values = headers.getRawHeaders(name)
    return values[0] if values else None


def _write_head(request: Request, answer: Answer, length: int | None) -> None:
    request.setResponseCode(answer.status)
    request.defaultContentType = None  # an answer without a type has none on purpose
    for name, value in answer.headers:
        request.setHeader(name, value)
    if length is not None and answer.status not in _BODILESS:
        request.setHeader(b"Content-Length", b"%d" % length)


def _begin_unframed(request: Request) -> None:
    """Write the head of a body that ends with its connection; Twisted would frame it in chunks."""
    request.channel.writeHeaders(
        b"HTTP/1.1", b"%d" % request.code, request.code_message, request.responseHeaders
    )
    request.startedWriting = 1
