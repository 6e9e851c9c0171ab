"""What is counted, and what Prometheus and /cache-status are told of it."""

import os
from unittest.mock import patch

from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from coverart.index.memory import MemoryIndex
from coverart.maintenance.share_counts import SharedCounts
from coverart.metrics import FOLDER_VARIABLE, OUTCOMES, SWEPT, Metrics
from tests.support.doubles import folder


class MetricsTests(SynchronousTestCase):
    """One process, counting in memory."""

    def setUp(self) -> None:
        self.metrics = Metrics()

    def test_request(self) -> None:
        """A request is counted by outcome, with its bytes and its time."""
        self.metrics.request("hits", 15_000, 0.002)
        self.metrics.request("hits", 0, 0.2)
        value = self.metrics.value
        self.assertEqual(value("coverart_answers_total", outcome="hits"), 2)
        self.assertEqual(value("coverart_sent_bytes_total", outcome="hits"), 15_000)
        self.assertEqual(value("coverart_request_seconds_count", outcome="hits"), 2)
        self.assertEqual(value("coverart_request_seconds_bucket", outcome="hits", le="0.0025"), 1)
        self.assertEqual(value("coverart_process_answers"), 2)
        self.assertEqual(value("coverart_answers_total", outcome="misses"), 0)

    def test_every_kind(self) -> None:
        """Each outcome, each thing a cleanup does, is there before it first happens."""
        for outcome in OUTCOMES:
            self.assertEqual(self.metrics.value("coverart_answers_total", outcome=outcome), 0)
        for what in SWEPT:
            self.assertEqual(self.metrics.value("coverart_swept_total", what=what), 0)
        self.assertIsNone(self.metrics.value("coverart_answers_total", outcome="never"))

    def test_tallied(self) -> None:
        """What all processes tell the index, by the names of /cache-status, whole numbers all."""
        for outcome in OUTCOMES:
            self.metrics.request(outcome, 1, 0.1)
        self.metrics.joined.inc()
        self.metrics.direct_hits.inc(5)
        self.metrics.swept["evicted"].inc(7)
        self.metrics.swept["orphans"].inc(9)
        counts = self.metrics.tallied()
        self.assertEqual(
            counts,
            {
                "hits": 1,
                "misses": 1,
                "joined": 1,
                "stale": 1,
                "absent": 1,
                "errors": 1,
                "evicted": 7,
                "direct_hits": 5,
            },
        )
        self.assertEqual({type(number) for number in counts.values()}, {int})

    def test_successor(self) -> None:
        """A process in the place of a killed one counts on, and tells nothing of it again."""
        with patch.dict(os.environ, {FOLDER_VARIABLE: str(folder(self))}):
            index = MemoryIndex()
            for asked in (3, 5):
                # As worker.py has it: a file by the number of the place.
                self.patch(values, "ValueClass", values.MultiProcessValue(lambda: 1))
                metrics = Metrics()
                counts = SharedCounts(metrics, index)
                for _ in range(asked):
                    metrics.request("hits", 1, 0.1)
                self.successResultOf(Deferred.fromCoroutine(counts.tell()))
            self.assertEqual(metrics.tallied()["hits"], 8)
            totals = self.successResultOf(Deferred.fromCoroutine(index.totals()))
            self.assertEqual(totals.tallies, {"hits": 8})

    def test_format(self) -> None:
        """Prometheus' own parser understands it; when a counter was made is not told."""
        self.metrics.upstream_requests.labels("1", "307").inc()
        families = list(text_string_to_metric_families(self.metrics.expose().decode()))
        samples = {sample.name for family in families for sample in family.samples}
        self.assertIn("coverart_upstream_requests_total", samples)
        self.assertEqual([name for name in samples if name.endswith("_created")], [])
        self.assertEqual([family.name for family in families if not family.documentation], [])

    def test_asked_while_another_starts(self) -> None:
        """Another process behind the port has just made its file, and counted nothing in it yet."""
        counts = folder(self)
        (counts / "counter_2.db").touch()
        with patch.dict(os.environ, {FOLDER_VARIABLE: str(counts)}):
            self.assertEqual(self.metrics.expose(), b"")

    def test_asked_while_another_ends(self) -> None:
        """What another process behind the port was at ends with it, between two looks at its file."""
        counts = folder(self)
        (counts / "gauge_liveall_2.db").symlink_to("gone")
        with patch.dict(os.environ, {FOLDER_VARIABLE: str(counts)}):
            self.assertEqual(self.metrics.expose(), b"")

    def test_apart(self) -> None:
        """Two of them count each for itself."""
        other = Metrics()
        other.joined.inc()
        self.assertEqual(self.metrics.value("coverart_joined_total"), 0)
