"""Looking up the archive's names."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver
from zope.interface import implementer


def addresses_of(resolver: IHostnameResolver, host: str) -> Deferred[list[str]]:
    """The addresses of a name, in the resolver's order; none where it is unknown."""
    receiver = _Receiver()
    resolver.resolveHostName(receiver, host)
    return receiver.done


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects what is found."""

    def __init__(self) -> None:
        self._found: list[str] = []
        # Twisted's own resolution can't be cancelled.
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """Nothing to do."""

    def addressResolved(self, address: Any) -> None:
        self._found.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.done.called:
            self.done.callback(self._found)
