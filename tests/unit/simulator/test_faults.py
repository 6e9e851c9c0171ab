"""Rules, gates, and what a behaviour makes of an answer."""

import gzip
import json

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from coverart.simulator import faults
from coverart.simulator.answers import Answer
from coverart.simulator.delivery import Delivery, deliver
from coverart.simulator.faults import (
    Body,
    Chunked,
    ContentType,
    Cut,
    Drip,
    Faults,
    Gate,
    Gzip,
    Html,
    Latency,
    NoLength,
    Redirect,
    RedirectLoop,
    Refuse,
    Reset,
    Rule,
    Stall,
    Status,
    WrongLength,
)
from coverart.simulator.gates import Gates


class RuleTests(SynchronousTestCase):
    """Where a rule applies, and how often."""

    def test_hops_and_paths(self) -> None:
        """A rule covers its hop, both nodes for `node`, and the paths its glob matches."""
        self.assertTrue(Rule(hop="node", does=Html()).matches("node2", "/x"))
        self.assertFalse(Rule(hop="node1", does=Html()).matches("node2", "/x"))
        self.assertTrue(Rule(hop="*", does=Html()).matches("event", "/x"))
        rule = Rule(hop="release", path="*/front*", does=Html())
        self.assertTrue(rule.matches("release", "/release/m/front-250"))
        self.assertFalse(rule.matches("release", "/release/m/back"))

    def test_times(self) -> None:
        """A rule applies as often as it says, then requests go through."""
        standing = Faults()
        number = standing.add(Rule(hop="node", times=2, does=Status(code=503)))
        plans = [standing.plan("node1", "/x") for _ in range(3)]
        self.assertEqual(plans, [(Status(code=503),), (Status(code=503),), ()])
        self.assertEqual(standing.used(number), 2)

    def test_sequence(self) -> None:
        """Rules that decide take their turns in order; delays apply to all."""
        standing = Faults()
        standing.add(Rule(hop="*", does=Latency(seconds=1)))
        standing.add(Rule(hop="node", times=1, does=Status(code=503)))
        standing.add(Rule(hop="node", times=1, does=Status(code=404)))
        slow = Latency(seconds=1)
        self.assertEqual(standing.plan("node1", "/"), (slow, Status(code=503)))
        self.assertEqual(standing.plan("node1", "/"), (slow, Status(code=404)))
        self.assertEqual(standing.plan("node1", "/"), (slow,))

    def test_refuse(self) -> None:
        """A refusal is told to whoever keeps the ports, and cannot be counted or aimed at a path."""
        standing, told = Faults(), []
        standing.changed = lambda: told.append(standing.refused("archive"))
        number = standing.add(Rule(hop="archive", does=Refuse()))
        standing.remove(number)
        self.assertEqual(told, [True, False])
        with self.assertRaises(ValueError):
            Rule(hop="archive", times=1, does=Refuse())

    def test_json_round_trip(self) -> None:
        """Every behaviour survives the way through JSON."""
        every = [
            Latency(seconds=0.5),
            Gate(name="g"),
            Refuse(),
            Reset(after_bytes=5),
            Status(code=429, retry_after="7"),
            Cut(after_bytes=3),
            WrongLength(by=-2),
            NoLength(),
            Chunked(),
            Stall(after_bytes=1, gate="g"),
            Drip(bytes_per_s=10),
            Html(),
            ContentType(value=None),
            Body(data=b"\xff\0"),
            Gzip(),
            Redirect(location="http://x/"),
            RedirectLoop(),
        ]
        self.assertEqual(len(every), len(faults.KINDS))
        for behaviour in every:
            with self.subTest(behaviour=behaviour):
                rule = Rule(hop="node", does=behaviour)
                text = json.dumps(faults.rule_to_json(rule))
                self.assertEqual(faults.rule_from_json(json.loads(text)), rule)

    def test_bad_json(self) -> None:
        """What is no rule is refused with a reason, never half understood."""
        for bad in [
            None,
            {},
            {"hop": "node"},
            {"hop": "moon", "does": [{"kind": "html"}]},
            {"hop": "node", "does": [{"kind": "explode"}]},
            {"hop": "node", "does": [{"kind": "status"}]},
            {"hop": "node", "does": [{"kind": "status", "code": "503"}]},
            {"hop": "node", "does": [{"kind": "latency", "seconds": -1}]},
            {"hop": "node", "does": [{"kind": "latency", "seconds": None}]},
            {"hop": "node", "does": [{"kind": "body", "data": "***"}]},
            {"hop": "node", "does": [{"kind": "html", "loud": True}]},
            {"hop": "node", "does": [], "times": 1},
            {"hop": "node", "does": [{"kind": "html"}], "times": 0},
            {"hop": "node", "does": [{"kind": "html"}], "time": 1},
        ]:
            with self.subTest(bad=bad), self.assertRaises(ValueError):
                faults.rule_from_json(bad)


class GateTests(SynchronousTestCase):
    """Requests meet at gates, so that tests need not sleep."""

    def setUp(self) -> None:
        self.gates = Gates()

    def test_held_until_open(self) -> None:
        """A gate holds until it opens, then lets later ones through too."""
        waiting = self.gates.wait("g")
        self.assertNoResult(waiting)
        self.assertEqual(self.gates.open("g"), 1)
        self.successResultOf(waiting)
        self.successResultOf(self.gates.wait("g"))

    def test_reached(self) -> None:
        """`reached` fires once that many are held at one time, or at once if they are."""
        reached = self.gates.reached("g", 2)
        self.gates.wait("g")
        self.assertNoResult(reached)
        self.gates.wait("g")
        self.assertEqual(self.successResultOf(reached), 2)
        self.assertEqual(self.successResultOf(self.gates.reached("g", 1)), 2)

    def test_leaving(self) -> None:
        """Who leaves is not counted, and a watcher that leaves is not told."""
        waiting = self.gates.wait("g")
        watching = self.gates.reached("g", 1000)
        waiting.cancel()
        watching.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.failureResultOf(watching, CancelledError)
        self.assertEqual(self.gates.waiting("g"), 0)

    def test_release(self) -> None:
        """Some can be let through, in order, while the gate stays shut."""
        first, second = self.gates.wait("g"), self.gates.wait("g")
        self.assertEqual(self.gates.release("g", 1), 1)
        self.successResultOf(first)
        self.assertNoResult(second)
        self.assertEqual(self.gates.as_json(), {"g": {"open": False, "waiting": 1}})
        self.gates.clear()
        self.successResultOf(second)

    def test_close(self) -> None:
        """A gate that was opened can be shut again."""
        self.gates.open("g")
        self.gates.close("g")
        self.assertNoResult(self.gates.wait("g"))


class DeliveryTests(SynchronousTestCase):
    """What behaviours make of an answer."""

    answer = Answer(status=200, headers=((b"Content-Type", b"image/jpeg"),), body=b"0123456789")

    def deliver(self, *plan: faults.Behaviour) -> Delivery:
        return deliver(self.answer, plan, "http://here/path")

    def test_plain(self) -> None:
        """Without a plan, the answer goes out whole with its length."""
        self.assertEqual(self.deliver(), Delivery(answer=self.answer, length=10))

    def test_transport(self) -> None:
        """Faults of the transport change how much is announced, sent, and what follows."""
        expected: list[tuple[faults.Behaviour, int | None, int | None, str]] = [
            (Cut(after_bytes=4), 10, 4, "close"),
            (WrongLength(by=5), 15, None, "close"),
            (WrongLength(by=-5), 5, None, "close"),
            (NoLength(), None, None, "close"),
            (Chunked(), None, None, "finish"),
            (Stall(after_bytes=2), 10, 2, "stall"),
            (Reset(), 10, None, "reset"),
            (Reset(after_bytes=3), 10, 3, "reset"),
            (Drip(bytes_per_s=5), 10, None, "finish"),
        ]
        for behaviour, length, send, then in expected:
            with self.subTest(behaviour=behaviour):
                delivery = self.deliver(behaviour)
                got = (delivery.length, delivery.send, delivery.then)
                self.assertEqual(got, (length, send, then))

    def test_contents(self) -> None:
        """Faults of the contents change status, type, body or direction."""
        status = self.deliver(Status(code=429, retry_after="3")).answer
        self.assertEqual((status.status, status.header(b"Retry-After")), (429, b"3"))
        html = self.deliver(Html()).answer
        self.assertEqual(
            (html.status, html.header(b"Content-Type")), (200, b"text/html; charset=utf-8")
        )
        self.assertEqual(self.deliver(ContentType(value=None)).answer.headers, ())
        self.assertEqual(self.deliver(Body(data=b"!")).answer.body, b"!")
        zipped = self.deliver(Gzip())
        self.assertEqual(gzip.decompress(zipped.answer.body), self.answer.body)
        self.assertEqual(zipped.length, len(zipped.answer.body))
        loop = self.deliver(RedirectLoop()).answer
        self.assertEqual(loop.header(b"Location"), b"http://here/path")

    def test_together(self) -> None:
        """Behaviours of one rule add up: an HTML page, cut short, dripping."""
        delivery = self.deliver(Html(), Cut(after_bytes=3), Drip(bytes_per_s=2))
        self.assertEqual((delivery.send, delivery.bytes_per_s), (3, 2))
        self.assertIn(b"<html>", delivery.answer.body)
