"""
How many fetches one client may start in a minute, so that nobody takes all that there are.

A client is an IPv4 address, or an IPv6 /64: whoever has one address has all of those. It may start
a minute's fetches at once, and one more each time that its part of a minute is over (the generic
cell rate algorithm: a client's account is one moment, up to which its fetches are paid for).
Whoever has a private address is near the operator, and is not counted.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import NoReturn, Protocol, TypeVar

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from coverart.errors import CoverError, TooManyFetches
from coverart.metrics import Metrics

MINUTE_S = 60.0
PRIVATE = tuple(
    map(
        ip_network,
        (
            *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
            *("::1", "fc00::/7", "fe80::/10"),
        ),
    )
)
"""Loopback, private and link-local (RFC 1918, 3927, 4193 and 4291)."""
MOST_CLIENTS = 10_000
"""Clients that are remembered; past it the one that was quiet for the longest time is forgotten."""


@attrs.define(eq=False)
class _Account:
    paid_until: float
    told_at: float = -math.inf


class FairShares:
    """What clients have started in this process. Other processes count for themselves."""

    log = Logger()

    def __init__(self, per_minute: int, clock: IReactorTime, metrics: Metrics) -> None:
        """:param per_minute: fetches of one client; 0 lets everyone start as many as they like."""
        self.per_minute = per_minute
        self._cost_s = MINUTE_S / per_minute if per_minute else 0.0
        self._clock = clock
        self._metrics = metrics
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._named = lru_cache(maxsize=1024)(name_of_client)

    def __len__(self) -> int:
        """How many clients are remembered."""
        return len(self._accounts)

    def of(self, address: IPv4Address | IPv6Address | None) -> Share | None:
        """The share of who has this address; None if what it fetches is not counted."""
        who = self._named(address) if self.per_minute and address is not None else None
        return None if who is None else Share(self, who)

    def wait_s(self, who: str) -> float:
        """Seconds until a client may start one more; 0 if it may now."""
        account = self._accounts.get(who)
        if account is None:
            return 0.0
        # Nobody waits for what is lost in rounding.
        wait_s = account.paid_until + self._cost_s - self._clock.seconds() - MINUTE_S
        return wait_s if wait_s > 1e-6 else 0.0

    def spend(self, who: str) -> None:
        """Count one fetch of a client."""
        now = self._clock.seconds()
        account = self._accounts.pop(who, None) or _Account(now)
        account.paid_until = max(account.paid_until, now) + self._cost_s
        self._accounts[who] = account
        self._forget(now)

    def give_back(self, who: str) -> None:
        """Take one fetch back that was counted."""
        account = self._accounts.get(who)
        if account is not None:
            account.paid_until -= self._cost_s

    def refuse(self, who: str, wait_s: float) -> NoReturn:
        """:raises TooManyFetches: always. Told in the log once a minute for each client."""
        self._metrics.overload["share"].inc()
        account, now = self._accounts[who], self._clock.seconds()
        if now - account.told_at >= MINUTE_S:
            account.told_at = now
            self.log.warn(
                "{who} starts more than {most} fetches a minute (COVER_ART_FETCHES_PER_MINUTE): "
                "answering 429 to what it would have fetched; what is held it still gets",
                who=who,
                most=self.per_minute,
            )
        raise TooManyFetches(self.per_minute, wait_s)

    def _forget(self, now: float) -> None:
        """Forget who has nothing to pay and was not told of lately, at most two at a time."""
        for _ in range(2):
            who, first = next(iter(self._accounts.items()))
            idle = max(first.paid_until, first.told_at + MINUTE_S) <= now
            if not (idle or len(self._accounts) > MOST_CLIENTS):
                break
            del self._accounts[who]


class Costs(Protocol):
    """What a fetch came to: an answer, or an error."""

    @property
    def hops(self) -> int:
        """How often the archive was asked."""


A = TypeVar("A", bound=Costs)


@attrs.frozen
class Share:
    """What one client may fetch."""

    _shares: FairShares
    _who: str

    def spend(self, unless: Callable[[], bool] = lambda: False) -> None:
        """
        Count a fetch that starts.

        :param unless: asked where it would be refused: whether it may need no fetch after all.
        :raises TooManyFetches: the client may start no more now.
        """
        wait_s = self._shares.wait_s(self._who)
        if wait_s and not unless():
            self._shares.refuse(self._who, wait_s)
        self._shares.spend(self._who)

    async def settled(self, fetching: Awaitable[A]) -> A:
        """What was fetched. It is not counted where the archive was not asked."""
        try:
            answer = await fetching
        except CoverError as error:
            if not error.hops:
                self._shares.give_back(self._who)
            raise
        if not answer.hops:
            self._shares.give_back(self._who)
        return answer


def nobodys() -> Share | None:
    """The share of who is not counted."""
    return None


def name_of_client(address: IPv4Address | IPv6Address) -> str | None:
    """The client that an address belongs to; None if it is not counted."""
    if any(address in network for network in PRIVATE):
        return None
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))
