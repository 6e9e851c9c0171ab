"""
What operators ask: is it alive, is it ready, what does it hold, how is it doing; and what they do
to it by hand, with the token: purge and refresh. Beside them what browsers and robots ask.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import attrs
from klein import Klein
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import GaugeMetricFamily, Metric
from twisted.python.failure import Failure

from coverart import __version__
from coverart.archive.leads_here import LeadsHere
from coverart.cache.answers import Absent
from coverart.cache.lookup import CoverCache
from coverart.errors import Refused
from coverart.index.base import Totals
from coverart.maintenance.share_counts import SharedCounts
from coverart.metrics import Metrics
from coverart.model import MEGABYTE, SIZES
from coverart.web.access_log import LoggedRequest
from coverart.web.headers import explain, json_body, sized
from coverart.web.operator_hosts import OwnNames
from coverart.web.status import describe

API = b"https://musicbrainz.org/doc/Cover_Art_Archive/API"
_DAY = (b"cache-control", b"public, max-age=86400")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
PAGES: Mapping[bytes, tuple[int, bytes, tuple[tuple[bytes, bytes], ...]]] = {
    b"/robots.txt": (200, b"User-agent: *\nAllow: /", (_TEXT, _DAY)),
    b"/api": (301, b"See: %s\n" % API, (_TEXT, _DAY, (b"location", API))),
    b"/favicon.ico": (204, b"", (_DAY,)),
}
"""What the archive answers to anybody besides covers; it has a picture for the last."""
OWN_PATHS = frozenset(
    {b"/", b"/health", b"/ready", b"/cache-status", b"/metrics", b"/openapi.json", *PAGES}
)


@cache
def openapi() -> dict[str, Any]:
    """What openapi.json in this package says, of this version."""
    text = files("coverart.web").joinpath("openapi.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    document["info"]["version"] = __version__
    return document


@attrs.define(kw_only=True, eq=False)
class OperatorRoutes:
    """The routes that are not the archive's."""

    app = Klein()

    _cache: CoverCache
    _metrics: Metrics
    _counts: SharedCounts
    _names: OwnNames
    _limit_bytes: int
    _rebuilding: Callable[[], bool]
    """Whether the index is still being filled from the disk."""
    _leads_here: LeadsHere
    _admin_token: str | None

    @app.route("/robots.txt")
    @app.route("/api")
    @app.route("/favicon.ico")
    def page(self, request: LoggedRequest) -> bytes:
        """What there is to say to browsers and robots."""
        status, body, headers = PAGES[request.path]
        request.setResponseCode(status)
        for name, value in headers:
            request.setHeader(name, value)
        return sized(request, body)

    @app.route("/")
    async def home(self, request: LoggedRequest) -> bytes:
        """A page for the person who opens the proxy in a browser."""
        totals = await self._cache.index.totals()
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        request.setHeader(b"cache-control", b"no-cache")
        request.setHeader(
            b"content-security-policy",
            b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        )
        page = _PAGE.format(
            version=escape(__version__),
            size=SIZES[0],
            sizes=", ".join(f"<code>-{size}</code>" for size in SIZES[1:]),
            files=f"{totals.files:,}",
            used=f"{totals.size_bytes / MEGABYTE:,.1f}",
            limit=f"{self._limit_bytes / MEGABYTE:,.0f}",
        )
        return sized(request, page.encode())

    @app.route("/health")
    def health(self, request: LoggedRequest) -> bytes:
        """Alive: answers as long as the event loop turns; where it keeps things, to operators."""
        told = {"status": "healthy"}
        if self._names.asked_by(request):
            told["cache_dir"] = str(self._cache.store.root)
        return json_body(request, told)

    @app.route("/ready")
    def ready(self, request: LoggedRequest) -> bytes:
        """
        Fit to be sent clients: the cache directory is there. A cold index is no hindrance, the
        disk answers for it, but is told; so is that the archive can't be asked since its name
        leads here: what is held can be sent all the same.
        """
        there = self._cache.store.usable()
        if not there:
            request.setResponseCode(503)
        status = "ready" if there else "the cache directory is gone or read-only"
        told: dict[str, object] = {"status": status, "rebuilding": self._rebuilding()}
        if self._leads_here.told is not None:
            told["archive"] = self._leads_here.told
        return json_body(request, told)

    @app.route("/cache-status")
    async def status(self, request: LoggedRequest) -> bytes:
        """What the cache holds and did, as JSON, by all processes that share it."""
        self._names.check(request)
        # What other processes counted in the last seconds is not told yet.
        await self._counts.tell()
        totals = await self._cache.index.totals()
        told = describe(
            totals,
            self._cache.index,
            status="running",
            cache_dir=str(self._cache.store.root),
            limit_bytes=self._limit_bytes,
            rebuilding=self._rebuilding(),
        )
        return json_body(request, told)

    @app.route("/metrics")
    async def metrics(self, request: LoggedRequest) -> bytes:
        """The same for Prometheus."""
        self._names.check(request)
        totals = await self._cache.index.totals()
        request.setHeader(b"content-type", CONTENT_TYPE_LATEST.encode())
        request.setHeader(b"cache-control", b"no-store")
        return sized(request, self._metrics.expose(self._held(totals)))

    @app.route("/openapi.json")
    def description(self, request: LoggedRequest) -> bytes:
        """Every route and answer, for machines (OpenAPI 3.1)."""
        return json_body(request, openapi())

    @app.route("/admin/purge/<path:_>")
    async def purge(self, request: LoggedRequest, _: str) -> bytes:
        """Forget a thing and remove its file: the next request fetches it."""
        self._check_token(request)
        purged = await self._cache.operator_actions.purge(request.thing)
        return json_body(request, {"purged": purged})

    @app.route("/admin/refresh/<path:_>")
    async def refresh(self, request: LoggedRequest, _: str) -> bytes:
        """Ask the archive again now; what is held stays if it can't be asked."""
        self._check_token(request)
        answer = await self._cache.operator_actions.refresh(request.thing)
        return json_body(request, {"refreshed": not isinstance(answer, Absent)})

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """What could not be done, in the words of the contract."""
        return explain(request, failure)

    def _check_token(self, request: LoggedRequest) -> None:
        self._names.check(request)
        if self._admin_token is None:
            raise Refused(403, "switched off: COVER_ART_ADMIN_TOKEN is not set")
        given = request.getHeader(b"authorization") or b""
        # Compared in constant time, so that answers do not tell how much of it was right.
        if not hmac.compare_digest(given, b"Bearer " + self._admin_token.encode()):
            raise Refused(401, "wrong token", {b"www-authenticate": b'Bearer realm="coverart"'})

    def _held(self, totals: Totals) -> Iterator[Metric]:
        """What the index knows, of all processes that share it."""
        there = self._cache.index.available
        yield GaugeMetricFamily(
            "coverart_index_available", "1 while the index can be asked.", value=int(there)
        )
        yield GaugeMetricFamily(
            "coverart_cache_limit_bytes",
            "Bytes over which a cleanup evicts.",
            value=self._limit_bytes,
        )
        if not there:
            return  # No sample is better than a cache that looks empty.
        yield GaugeMetricFamily(
            "coverart_cache_bytes", "Bytes of the files held.", value=totals.size_bytes
        )
        yield GaugeMetricFamily("coverart_cache_files", "Files held.", value=totals.files)
        yield GaugeMetricFamily(
            "coverart_cache_aliases", "Names held.", value=sum(totals.aliases.values())
        )
        if totals.oldest is not None:
            yield GaugeMetricFamily(
                "coverart_cache_oldest_seconds",
                "When the file first to be evicted was downloaded, since the epoch.",
                value=totals.oldest,
            )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>coverart</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem;
       color: #1d2433; background: #fbfbf9 }}
h1 {{ font-size: 1.6rem; margin-bottom: 0 }}
code {{ background: #eceae4; padding: .1em .35em; border-radius: 4px; word-break: break-all }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid #ddd8cc }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #e8e6e0; background: #16181d }} code {{ background: #2a2d35 }}
  td, th {{ border-color: #333 }} a {{ color: #8ab4f8 }} }}
</style>
<h1>coverart {version}</h1>
<p>A caching proxy for the <a href="https://coverartarchive.org/">Cover Art Archive</a>.
Ask it as you would ask the archive; it answers with the image itself.</p>
<table>
<tr><th>Path<th>Answer
<tr><td><code>/release/{{mbid}}/front-{size}</code><td>front cover, also {sizes} or in full
<tr><td><code>/release/{{mbid}}/{{id}}</code><td>one image, by its id
<tr><td><code>/release-group/{{mbid}}/front</code><td>front cover of a release group
<tr><td><code>/event/{{mbid}}/front</code><td>poster of an event
<tr><td><code>/release/{{mbid}}/</code><td>the listing, as JSON
</table>
<p>Holding {files} files, {used} of {limit} MB.
<a href="/cache-status">Status</a> · <a href="/metrics">metrics</a> · <a href="/health">health</a> ·
<a href="/openapi.json">description of all routes</a></p>
</html>
"""
