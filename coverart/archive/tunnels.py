"""Connections through a proxy: an endpoint that speaks with the proxy first, and then hands over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from coverart.archive.handshakes import Handshake, Unopened, handshake
from coverart.archive.name_lookup import addresses_of
from coverart.archive.proxies import Proxy
from coverart.errors import BadUpstream

MOST_ADDRESSES = 4
"""Addresses of one name that a proxy is asked for in turn."""


class ProxyError(ConnectError):
    """A proxy can't be reached, or opens no way."""

    def __init__(self, proxy: Proxy, what: str) -> None:
        super().__init__(string=f"proxy {proxy} {what}")

    def __str__(self) -> str:
        return str(self.args[0])


class ProxyNotReached(ProxyError):
    """Nobody listens there, or its name is unknown."""


class GivenUp(ConnectingCancelledError):
    """Who waited for a proxy waits no more; as text, which proxy that was."""

    def __init__(self, proxy: Proxy, address: IAddress) -> None:
        super().__init__(address)
        self._proxy = proxy

    def __str__(self) -> str:
        return f"proxy {self._proxy}"


@implementer(IStreamClientEndpoint)
class ToProxy:
    """A connection to a proxy itself; what fails is told in its name."""

    def __init__(self, proxy: Proxy, endpoint: IStreamClientEndpoint) -> None:
        self.proxy = proxy
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """The Deferred fails with ProxyNotReached, or GivenUp if it was cancelled."""
        connected: Deferred[IProtocol] = self._endpoint.connect(protocolFactory)
        return connected.addErrback(self._explain)

    def _explain(self, failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, ConnectingCancelledError):
            raise GivenUp(self.proxy, error.address) from error
        if isinstance(error, (ConnectError, DNSLookupError)):
            raise ProxyNotReached(self.proxy, f"can't be reached: {error}") from error
        return failure


@implementer(IStreamClientEndpoint)
class Tunnel:
    """A way through a proxy to one host; what follows there, TLS or not, is none of its business."""

    def __init__(self, to_proxy: ToProxy, host: str, port: int) -> None:
        """:param host: a name or an address, without brackets."""
        self._to_proxy = to_proxy
        self._host = host
        self._port = port

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """
        Fires with the factory's protocol once the way is open.

        The Deferred fails with ProxyError, or GivenUp if it was cancelled while the proxy had said
        nothing yet.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        proxy = self._to_proxy.proxy
        steps = handshake(proxy, self._host, self._port)
        speaking = Factory.forProtocol(lambda: _Speaking(proxy, steps, factory))
        speaking.noisy = False
        first: Any = await self._to_proxy.connect(speaking)
        inner: IProtocol = await first.opened
        return inner


class _Speaking(Protocol):
    """The connection to a proxy: its handshake, and from then on the way of what was asked for."""

    transport: Any

    def __init__(self, proxy: Proxy, steps: Handshake, factory: IProtocolFactory) -> None:
        self.opened: Deferred[IProtocol] = Deferred(self._give_up)
        self._proxy = proxy
        self._steps = steps
        self._factory = factory
        self._inner: Any = None

    def connectionMade(self) -> None:
        self.transport.write(next(self._steps))

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        if self.opened.called:
            return
        try:
            self.transport.write(self._steps.send(data))
        except StopIteration:
            self._open()
        except Unopened as error:
            self._fail(ProxyError(self._proxy, str(error)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self.opened.called:
            self.opened.errback(ProxyError(self._proxy, "closed the connection, and said no more"))

    def _open(self) -> None:
        inner: Any = self._factory.buildProtocol(self.transport.getPeer())
        if inner is None:
            self.transport.abortConnection()
            self.opened.cancel()
            return
        self._inner = inner
        inner.makeConnection(self.transport)
        self.opened.callback(inner)

    def _fail(self, error: ProxyError) -> None:
        self.opened.errback(error)
        self.transport.abortConnection()

    def _give_up(self, opened: Deferred[IProtocol]) -> None:
        opened.errback(GivenUp(self._proxy, self.transport.getPeer()))
        self.transport.abortConnection()


@implementer(IStreamClientEndpoint)
class ResolvedHere:
    """
    A way through a proxy that is told addresses: the name is looked up here.

    The proxy is asked for one address after the other, up to MOST_ADDRESSES, until it reaches one.
    """

    def __init__(
        self,
        resolver: IHostnameResolver,
        host: str,
        tunnel_to: Callable[[str], IStreamClientEndpoint],
        usable: Callable[[str], bool],
    ) -> None:
        """
        :param tunnel_to: what leads to an address.
        :param usable: whether an address may be connected to.
        """
        self._resolver = resolver
        self._host = host
        self._tunnel_to = tunnel_to
        self._usable = usable

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """The same as a tunnel; BadUpstream where none of the name's addresses may be asked for."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        found = await addresses_of(self._resolver, self._host)
        if not found:
            raise DNSLookupError(f"no address of {self._host}")
        usable = [address for address in found if self._usable(address)][:MOST_ADDRESSES]
        if not usable:
            raise BadUpstream(f"{found[-1]} is no public address")
        for address in usable[:-1]:
            try:
                return await self._tunnel_to(address).connect(factory)
            except ProxyNotReached:
                raise
            except ProxyError:
                continue
        return await self._tunnel_to(usable[-1]).connect(factory)
