"""
One request to the archive: takes a slot, asks the circuit breaker, sets timeouts, names the error.

The only place that sends requests, with treq. Redirects are not followed here but returned
(follow_redirects.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from hyperlink import EncodedURL
from treq.client import HTTPClient
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredSemaphore,
    TimeoutError,  # noqa: A004
)
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from coverart.archive.circuit_breaker import Breaker, Leave
from coverart.archive.connect_errors import kind_of
from coverart.archive.proxies import Proxies
from coverart.archive.source import FetchDeadline, Sink
from coverart.archive.throttle import at_once
from coverart.archive.transfer import leave_unread, transfer
from coverart.archive.tunnels import GivenUp
from coverart.archive.url_policy import Hop
from coverart.errors import (
    BadUpstream,
    CoverError,
    FileNotInArchive,
    NotInArchive,
    NotReached,
    PassingTrouble,
    Unavailable,
    UpstreamTimeout,
)
from coverart.metrics import Metrics

DRAIN_S = 1.0
"""Seconds to wait for the end of a body that nobody needs, so that its connection can be used again."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SLOW_DOWN = frozenset({429, 503})
_PASSING = frozenset({500, 502, 504})
_LOOP = 508
_SMALLEST_STATUS, _LARGEST_STATUS = 100, 599
_BROKEN_OFF = (ResponseNeverReceived, ResponseFailed, RequestTransmissionFailed)
_MOST_SAID = 200


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds on one fetch, in seconds and numbers."""

    total_s: float = 60.0
    concurrency: int = 16
    silence_s: float = 30.0
    """How long a host may take to connect and answer, or be silent in the middle of a body."""


class _Checked(EncodedURL):
    """A URL that Rules.check() accepted: ASCII already, so nothing is left to encode."""

    def to_uri(self) -> EncodedURL:
        return self


class ArchiveClient:
    """Sends single requests; shared by all fetches of a process."""

    def __init__(
        self,
        *,
        http: HTTPClient,
        clock: IReactorTime,
        breaker: Breaker,
        limits: Limits,
        user_agent: str,
        metrics: Metrics | None = None,
        turn: Callable[[], Deferred[None]] = at_once,
        proxies: Proxies | None = None,
        mark: str | None = None,
    ) -> None:
        """
        :param turn: awaited before each request.
        :param mark: by which a request is known where it comes back here.
        :param proxies: by which `http` asks, for the words of errors.
        """
        self._proxies = proxies or Proxies()
        self._limits = limits
        self._breaker = breaker
        self.metrics = metrics or Metrics()
        self._http = http
        self._clock = clock
        self._turn = turn
        self._headers = Headers({b"User-Agent": [user_agent.encode()], b"Accept": [b"*/*"]})
        if mark is not None:
            self._headers.setRawHeaders(b"CDN-Loop", [mark.encode()])
        self._places = DeferredSemaphore(limits.concurrency)

    async def get(
        self, hop: Hop, label: str, deadline: FetchDeadline, sink: Sink | None
    ) -> bytes | None:
        """
        Send one GET.

        :param label: which hop this is, for the counters.
        :param sink: takes the body of a 200; None at hop 1, which has redirects only.
        :returns: the Location of a redirect (b"" if it has none); None when `sink` has it all.
        :raises BadUpstream: a redirect names two places.
        :raises NotInArchive: 404 at hop 1; FileNotInArchive behind it.
        :raises Unavailable: the breaker is open, nobody listens there, or 429 or 503.
        :raises CoverError: anything else that is neither a redirect nor a whole 200.
        """
        with self.metrics.upstream_waiting.track_inprogress():
            place = await self._places.acquire()
        try:
            await self._turn()
            deadline.host, deadline.received = hop.origin.removesuffix(":443"), None
            leave = self._breaker.admit(hop.origin, self._clock.seconds())
            deadline.hops += 1
            response: IResponse | None = None
            try:
                answer: Deferred[Any] = self._http.get(
                    _Checked.from_text(hop.url),
                    headers=self._headers,
                    allow_redirects=False,
                    unbuffered=True,
                )
                response = await answer.addTimeout(
                    self._limits.silence_s, self._clock, onTimeoutCancel=_too_slow
                )
            except Exception as error:
                told = self._told(error, hop, label, leave)
                if isinstance(told, CoverError):
                    told.proxy_error = kind_of(error) or told.proxy_error
                    told.retry_after_s = self._breaker.left_s(hop.origin, self._clock.seconds())
                raise told from error
            finally:
                if response is None:
                    self._breaker.returned(leave)
            # Whoever answers chooses the number, and each is a counter of its own for good.
            code = deadline.received = response.code
            status = str(code) if _SMALLEST_STATUS <= code <= _LARGEST_STATUS else "no-status"
            self.metrics.upstream_requests.labels(label, status).inc()
            if code in _SLOW_DOWN:
                wish_s = retry_after_s(response)
                pause_s = self._breaker.overloaded(leave, self._clock.seconds(), wish_s)
            else:
                self._breaker.succeeded(leave)
            if code == 200 and sink is not None:
                await transfer(response, sink, self._limits.silence_s, self._clock)
                return None
            if response.length:
                await leave_unread(response, DRAIN_S, self._clock)
        finally:
            place.release()
        if code in _REDIRECTS:
            return _location(response)
        said = f"{self._asked(hop)} said {code}"
        if code == _LOOP:
            said += ": a loop, as a rule it leads to this proxy itself"
        if code in _SLOW_DOWN:
            raise Unavailable(f"{said}; not asked for {pause_s:.0f} s", retry_after_s=pause_s)
        if code == 404:
            raise NotInArchive(said) if sink is None else FileNotInArchive(said)
        raise PassingTrouble(said) if code in _PASSING else BadUpstream(said)

    def _told(self, error: Exception, hop: Hop, label: str, leave: Leave) -> Exception:
        """What a request that brought no answer means, for the breaker and for the caller."""
        reasons: Sequence[Failure] = getattr(error, "reasons", ())
        # The Agent wraps up that it was cancelled.
        cancelled = (CancelledError, ConnectingCancelledError)
        if isinstance(error, cancelled) or any(reason.check(*cancelled) for reason in reasons):
            return CancelledError()
        refused_here = isinstance(error, CoverError)
        status = "refused-here" if refused_here else type(error).__name__
        self.metrics.upstream_requests.labels(label, status).inc()
        now = self._clock.seconds()
        match error:
            case TimeoutError():
                self._breaker.timed_out(leave, now)
                if isinstance(error.__cause__, GivenUp):
                    said = f"{error.__cause__} did not open a way to {hop.origin} in time"
                    return UpstreamTimeout(said)
                return UpstreamTimeout(f"{self._asked(hop)} did not answer in time")
            case ConnectError() | DNSLookupError():
                # archive.org refuses connections when it was asked too much.
                pause_s = self._breaker.overloaded(leave, now)
                return NotReached(
                    f"{hop.origin}: {error}; not asked for {pause_s:.0f} s", retry_after_s=pause_s
                )
        if isinstance(error, _BROKEN_OFF):
            # Reasons can quote a line of 16 kB.
            why = "; ".join(str(reason.value)[:_MOST_SAID] for reason in reasons)
            return PassingTrouble(f"{self._asked(hop)} broke off: {why}")
        detail = str(error) if refused_here else f"{type(error).__name__}: {error}"
        return BadUpstream(f"{hop.origin}: {detail}")

    def _asked(self, hop: Hop) -> str:
        """Which host was asked, and by which proxy: either may be at fault."""
        scheme, host = hop.url.partition(":")[0], hop.host.strip("[]")
        proxy = self._proxies.leading_to(scheme, host, hop.port)
        return hop.origin if proxy is None else f"{hop.origin} (by proxy {proxy})"


def _too_slow(result: object, timeout_s: float) -> IResponse:
    """What became of a request that was cancelled because its time was up."""
    raise TimeoutError(timeout_s) from getattr(result, "value", None)


def _location(response: IResponse) -> bytes:
    """
    Where a redirect leads; empty if it does not say.

    :raises BadUpstream: it says so in two ways. Whoever added one of them may have meant to be
        believed by us and not by those who look at the other.
    """
    locations: list[bytes] = response.headers.getRawHeaders(b"location", [b""])
    if len(set(locations)) > 1:
        raise BadUpstream("a redirect with more than one Location")
    return locations[0]


def retry_after_s(response: IResponse) -> float | None:
    """Seconds to wait (RFC 9110 section 10.2.3); None if absent, a date or not understood."""
    value = response.headers.getRawHeaders(b"retry-after", [b""])[0].strip()
    return float(value) if value.isdigit() and len(value) < 10 else None
