"""
What is counted, for Prometheus and for /cache-status.

One process counts in memory. Several behind one port (processes.py) each count in a file of
their own, by prometheus-client's multiprocess mode: whichever of them is asked reads all files
and answers with the sum (https://prometheus.github.io/client_python/multiprocess/).
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from glob import glob
from itertools import chain

import attrs
import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

# When a counter was made is of no use here, and would show with a single process only.
prometheus_client.disable_created_metrics()

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
OUTCOMES = ("hits", "misses", "stale", "absent", "errors", "refused", "left", "other")
"""
How requests end. errors: 5xx; refused: a 4xx but a remembered or new 404; left: the client went away
before there was an answer; other: what is not of the archive, such as /metrics.
"""
DIRECT_HITS = "direct_hits"
"""Hits that nginx sent by itself, as the leader reads in its log."""
TALLIED = ("hits", "misses", "joined", "stale", "absent", "errors", "evicted", DIRECT_HITS)
"""What every process adds to the index's tally of all that share it; hits are the app's own."""
OVERLOAD = ("fetch", "waited", "share", "refresh", "connection", "accept")
"""
What was turned away or put off. fetch: a 503, as much was being fetched as may; waited: a 503,
after a long wait; share: a 429, one client started as many as one may; refresh: put off; connection: closed when idle; accept: ceased for a while.
"""
SWEPT = ("evicted", "retired", "orphans", "learnt", "forgotten", "dangling")

_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DELAY_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_SWEEP_S = (0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 1200)


class Metrics:
    """All counters of a process. Each object counts for itself; a process has one."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._answers = answers = Counter(
            "coverart_answers",
            "Answers to clients by how they came about.",
            ["outcome"],
            registry=registry,
        )
        sent = Counter(
            "coverart_sent_bytes",
            "Bytes of answers' bodies sent by the app itself.",
            ["outcome"],
            registry=registry,
        )
        seconds = Histogram(
            "coverart_request_seconds",
            "From a request to the end of its answer.",
            ["outcome"],
            buckets=_REQUEST_S,
            registry=registry,
        )
        # Looked up once, since hits pay for it.
        self._outcomes = {
            outcome: (answers.labels(outcome), sent.labels(outcome), seconds.labels(outcome))
            for outcome in OUTCOMES
        }
        # A gauge, since counters of processes are always summed: how evenly is the load spread?
        self._own_answers = Gauge(
            "coverart_process_answers",
            "Answers since the process started, by process.",
            multiprocess_mode="liveall",
            registry=registry,
        )
        self.joined = Counter(
            "coverart_joined", "Misses that waited on a fetch already running.", registry=registry
        )
        self.direct_hits = Counter(
            "coverart_direct_hits",
            "Hits that nginx sent without asking, as its log told the leader.",
            registry=registry,
        )
        self._substitutes = Counter(
            "coverart_substitutes",
            "Answers with a larger size than was asked for, since the archive has not made that one.",
            ["size"],
            registry=registry,
        )
        self.refreshes = Counter(
            "coverart_refreshes", "Background checks the archive answered.", registry=registry
        )
        self.upstream_requests = Counter(
            "coverart_upstream_requests",
            "Requests to the archive by hop and by status or error.",
            ["hop", "status"],
            registry=registry,
        )
        self._skips = Counter(
            "coverart_hop_skips",
            "Requests to the archive saved by what was known.",
            ["known"],
            registry=registry,
        )
        self.target_known = self._skips.labels("target")
        self.node_known = self._skips.labels("node")
        self.fetches = Gauge(
            "coverart_fetches",
            "Things being fetched for clients now.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.upstream_waiting = Gauge(
            "coverart_upstream_waiting",
            "Requests to the archive that wait for a place.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.connections = Gauge(
            "coverart_connections",
            "Connections of clients.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        overload = Counter(
            "coverart_overload",
            "What was turned away or put off because a bound was reached, by kind.",
            ["what"],
            registry=registry,
        )
        self.overload = {what: overload.labels(what) for what in OVERLOAD}
        self._swept = swept = Counter(
            "coverart_swept",
            "What cleanups did, by kind: files evicted, aliases retired, unfinished files removed, "
            "found on disk, gone from disk, dangling links removed.",
            ["what"],
            registry=registry,
        )
        self.swept = {what: swept.labels(what) for what in SWEPT}
        self.evicted_bytes = Counter(
            "coverart_evicted_bytes", "Bytes of the files evicted.", registry=registry
        )
        self.sweep_seconds = Histogram(
            "coverart_sweep_seconds",
            "How long cleanups took.",
            buckets=_SWEEP_S,
            registry=registry,
        )
        self.reactor_delay = Histogram(
            "coverart_reactor_delay_seconds",
            "How much later than planned a timed call ran.",
            buckets=_DELAY_S,
            registry=registry,
        )
        self.leader = Gauge(
            "coverart_leader",
            "1 on the process that cleans.",
            multiprocess_mode="liveall",
            registry=registry,
        )
        self.start_time = Gauge(
            "coverart_start_time_seconds",
            "When the process started, since the epoch.",
            multiprocess_mode="liveall",
            registry=registry,
        )
        self.starts = Counter(
            "coverart_process_starts", "Processes started, again or at first.", registry=registry
        )

    def request(self, outcome: str, size_bytes: int, elapsed_s: float) -> None:
        """Count a request that ended. :param outcome: one of OUTCOMES."""
        answers, sent, seconds = self._outcomes[outcome]
        answers.inc()
        seconds.observe(elapsed_s)
        if size_bytes:
            sent.inc(size_bytes)
        self._own_answers.inc()

    def substitute(self, sent: str) -> None:
        """Count an answer with another size than was asked for. :param sent: that size."""
        self._substitutes.labels(sent).inc()

    def tallied(self) -> Counts[str]:
        """What this process counted of TALLIED, and those that ended in its place before it."""
        counts: Counts[str] = Counts()
        for family in chain(
            self._answers.collect(),
            self._swept.collect(),
            self.joined.collect(),
            self.direct_hits.collect(),
        ):
            for sample in family.samples:
                name = "".join(sample.labels.values()) or family.name.removeprefix("coverart_")
                if name in TALLIED:
                    counts[name] = int(sample.value)
        return counts

    def expose(self, more: Iterable[Metric] = ()) -> bytes:
        """
        Everything in Prometheus' text format, of all processes behind the port.

        :param more: families that are known at the moment of asking.
        """
        # Set before the library was imported, or it would count in memory.
        if FOLDER_VARIABLE in os.environ:
            counted: Iterable[Metric] = MultiProcessCollector.merge(_begun_files())
        else:
            counted = self._registry.collect()
        return generate_latest(_Families(chain(counted, more)))

    def value(self, name: str, **labels: str) -> float | None:
        """One sample of this process; None if there is no such series."""
        return self._registry.get_sample_value(name, labels)


def _begun_files() -> Iterator[str]:
    """
    The files in which the processes behind the port count.

    One that is being made is empty for a moment, and nothing was counted in it yet; one of a
    process that ended goes, which the library passes over.
    """
    for file in glob(os.path.join(os.environ[FOLDER_VARIABLE], "*.db")):
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(file):
                yield file


@attrs.frozen(eq=False)
class _Families(Collector):
    """Families as they were read."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families
