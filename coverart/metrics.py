"""The counters of a process for Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coverart.cache import CoverCache
from coverart.index import Totals
from coverart.upstream import Upstream


class CacheCollector(Collector):
    """Reads the counters when asked; `totals` is set before, since the index may be elsewhere."""

    def __init__(self, cache: CoverCache, upstream: Upstream) -> None:
        self._cache = cache
        self._upstream = upstream
        self.totals = Totals()

    def collect(self) -> Iterator[Metric]:
        stats = self._cache.stats
        answers = CounterMetricFamily(
            "coverart_answers", "Answers to clients by how they came about.", labels=["outcome"]
        )
        for outcome in ("hits", "misses", "stale", "absent", "errors"):
            answers.add_metric([outcome], getattr(stats, outcome))
        yield answers
        yield CounterMetricFamily(
            "coverart_joined", "Misses that waited on a fetch already running.", value=stats.joined
        )
        yield CounterMetricFamily(
            "coverart_refreshes", "Background checks the archive answered.", value=stats.refreshes
        )
        asked = CounterMetricFamily(
            "coverart_upstream_requests",
            "Requests to the archive by hop and by status or error.",
            labels=["hop", "status"],
        )
        for (hop, status), count in self._upstream.client.answers.items():
            asked.add_metric([hop, status], count)
        yield asked
        yield GaugeMetricFamily(
            "coverart_fetches", "Things being fetched now.", value=self._cache.fetching
        )
        yield GaugeMetricFamily(
            "coverart_upstream_waiting",
            "Requests that wait for a place.",
            value=self._upstream.client.waiting,
        )
        yield GaugeMetricFamily(
            "coverart_cache_bytes", "Bytes of the files held.", value=self.totals.size_bytes
        )
        yield GaugeMetricFamily("coverart_cache_files", "Files held.", value=self.totals.files)
