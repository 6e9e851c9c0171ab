"""
How the simulated archive misbehaves on command: behaviours, and the rules that bring them about.

Nothing here does any I/O; `delivery` says what a behaviour makes of an answer.

A rule says where it applies (hop, path), how often, and what happens then.  Rules are asked in the
order they were added.  Those that only delay (`Latency`, `Gate`) all apply; of the others the first
that matches applies, and the rest keep their turns for later requests.  So one rule can slow a hop
down while others make it fail twice and then answer.
"""

import base64
import itertools
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import attrs
from attrs.validators import ge, in_, instance_of, optional

from coverart.simulator.gates import Gates

HOPS = ("release", "event", "archive", "node1", "node2")
_ANY_NODE = "node"


@attrs.frozen(kw_only=True)
class Latency:
    """Wait before answering."""

    seconds: float = attrs.field(converter=float, validator=ge(0))


@attrs.frozen(kw_only=True)
class Gate:
    """Wait before answering until the gate of that name is open."""

    name: str = attrs.field(validator=instance_of(str))


@attrs.frozen(kw_only=True)
class Refuse:
    """Stop listening for as long as the rule stands: connections are refused."""


@attrs.frozen(kw_only=True)
class Reset:
    """Drop the connection with a TCP reset, after `after_bytes` of the body if given."""

    after_bytes: int | None = attrs.field(
        default=None, validator=optional([instance_of(int), ge(0)])
    )


@attrs.frozen(kw_only=True)
class Status:
    """Answer with another status, an HTML page, and Retry-After if given (text, as sent)."""

    code: int = attrs.field(validator=[instance_of(int), ge(100)])
    retry_after: str | None = attrs.field(default=None, validator=optional(instance_of(str)))


@attrs.frozen(kw_only=True)
class Cut:
    """Announce the whole body, send `after_bytes` of it and close the connection."""

    after_bytes: int = attrs.field(validator=[instance_of(int), ge(0)])


@attrs.frozen(kw_only=True)
class WrongLength:
    """Announce `by` bytes more (or, below zero, fewer) than are sent, then close."""

    by: int = attrs.field(validator=instance_of(int))


@attrs.frozen(kw_only=True)
class NoLength:
    """Announce no length at all: the body ends where the connection does."""


@attrs.frozen(kw_only=True)
class Chunked:
    """Announce no length, but frame the body in chunks."""


@attrs.frozen(kw_only=True)
class Stall:
    """Send headers and `after_bytes` of the body, then nothing until the gate opens, if ever."""

    after_bytes: int = attrs.field(default=0, validator=[instance_of(int), ge(0)])
    gate: str | None = attrs.field(default=None, validator=optional(instance_of(str)))


@attrs.frozen(kw_only=True)
class Drip:
    """Send the body slowly."""

    bytes_per_s: int = attrs.field(validator=[instance_of(int), ge(1)])


@attrs.frozen(kw_only=True)
class Html:
    """Answer 200 with an HTML page in place of what was asked for."""


@attrs.frozen(kw_only=True)
class ContentType:
    """Announce another content type; None announces none."""

    value: str | None = attrs.field(validator=optional(instance_of(str)))


@attrs.frozen(kw_only=True)
class Body:
    """Answer 200 with these bytes; in JSON, ``data`` is base64."""

    data: bytes = attrs.field(validator=instance_of(bytes))
    content_type: str = attrs.field(default="image/jpeg", validator=instance_of(str))


@attrs.frozen(kw_only=True)
class Gzip:
    """Send the body with Content-Encoding: gzip, asked for or not."""


@attrs.frozen(kw_only=True)
class Redirect:
    """Redirect to a location of choice."""

    location: str = attrs.field(validator=instance_of(str))
    code: int = attrs.field(default=302, validator=[instance_of(int), ge(300)])


@attrs.frozen(kw_only=True)
class RedirectLoop:
    """Redirect to the very URL that was asked for."""


Behaviour = (
    Latency
    | Gate
    | Refuse
    | Reset
    | Status
    | Cut
    | WrongLength
    | NoLength
    | Chunked
    | Stall
    | Drip
    | Html
    | ContentType
    | Body
    | Gzip
    | Redirect
    | RedirectLoop
)
_DELAYS = (Latency, Gate)
KINDS: dict[str, type[Any]] = {
    "latency": Latency,
    "gate": Gate,
    "refuse": Refuse,
    "reset": Reset,
    "status": Status,
    "cut": Cut,
    "wrong_length": WrongLength,
    "no_length": NoLength,
    "chunked": Chunked,
    "stall": Stall,
    "drip": Drip,
    "html": Html,
    "content_type": ContentType,
    "body": Body,
    "gzip": Gzip,
    "redirect": Redirect,
    "redirect_loop": RedirectLoop,
}
_KIND_OF = {kind: name for name, kind in KINDS.items()}


def _behaviours(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@attrs.frozen(kw_only=True)
class Rule:
    """
    What happens to the requests of a hop.

    :ivar hop: one of `HOPS`, ``node`` for both nodes, or ``*`` for every hop.
    :ivar does: one behaviour, or several that go together (a Drip and a ContentType, say).
    :ivar path: a glob on the path; ``*`` matches slashes too.
    :ivar times: how many requests it applies to; None means all.
    """

    hop: str = attrs.field(validator=in_(("*", _ANY_NODE, *HOPS)))
    does: tuple[Behaviour, ...] = attrs.field(converter=_behaviours)
    path: str = attrs.field(default="*", validator=instance_of(str))
    times: int | None = attrs.field(default=None, validator=optional([instance_of(int), ge(1)]))

    @does.validator
    def _check_does(self, _attribute: object, value: tuple[Behaviour, ...]) -> None:
        if not value or any(type(behaviour) not in _KIND_OF for behaviour in value):
            raise ValueError("does: one or more behaviours")

    def __attrs_post_init__(self) -> None:
        # A refused connection has no path, and nobody sees it who could count it.
        if self.refuses and (self.path != "*" or self.times is not None):
            raise ValueError("Refuse applies to a whole hop until the rule goes")

    @property
    def refuses(self) -> bool:
        return any(isinstance(behaviour, Refuse) for behaviour in self.does)

    @property
    def only_delays(self) -> bool:
        return all(isinstance(behaviour, _DELAYS) for behaviour in self.does)

    def covers(self, hop: str) -> bool:
        return self.hop in {"*", hop} or (self.hop == _ANY_NODE and hop.startswith(_ANY_NODE))

    def matches(self, hop: str, path: str) -> bool:
        return self.covers(hop) and (self.path == "*" or fnmatchcase(path, self.path))


def rule_from_json(value: Any) -> Rule:
    """
    Read a rule from its JSON form.

    ``{"hop": "node", "path": "*", "times": 2, "does": [{"kind": "status", "code": 503}]}``

    :raises ValueError: it is no rule; the text says what is wrong.
    """
    try:
        return _rule_from_json(value)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _rule_from_json(value: Any) -> Rule:
    if not isinstance(value, dict):
        raise TypeError("a rule is a JSON object")
    if unknown := set(value) - {"hop", "path", "times", "does"}:
        raise ValueError(f"a rule has no {', '.join(sorted(unknown))}")
    does = value.get("does")
    return Rule(
        hop=value.get("hop", ""),
        path=value.get("path", "*"),
        times=value.get("times"),
        does=tuple(
            _behaviour_from_json(each) for each in (does if isinstance(does, list) else [does])
        ),
    )


def _behaviour_from_json(value: Any) -> Behaviour:
    if not isinstance(value, dict) or value.get("kind") not in KINDS:
        raise ValueError(f"does: objects with a kind out of {', '.join(KINDS)}")
    fields = {name: field for name, field in value.items() if name != "kind"}
    if isinstance(fields.get("data"), str):
        fields["data"] = base64.b64decode(fields["data"], validate=True)
    made: Behaviour = KINDS[value["kind"]](**fields)
    return made


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """Write a rule as `rule_from_json` reads it."""
    does = []
    for behaviour in rule.does:
        fields = attrs.asdict(behaviour)
        if isinstance(fields.get("data"), bytes):
            fields["data"] = base64.b64encode(fields["data"]).decode("ascii")
        does.append({"kind": _KIND_OF[type(behaviour)], **fields})
    return {"hop": rule.hop, "path": rule.path, "times": rule.times, "does": does}


@attrs.define(eq=False)
class _Standing:
    rule: Rule
    used: int = 0

    @property
    def spent(self) -> bool:
        return self.rule.times is not None and self.used >= self.rule.times


class Faults:
    """
    The rules that stand now, and the gates they name.

    :ivar changed: called after rules were added or removed, for whoever opens and shuts ports.
    """

    def __init__(self) -> None:
        self.gates = Gates()
        self.changed: Callable[[], None] = lambda: None
        self._numbers = itertools.count(1)
        self._standing: dict[int, _Standing] = {}

    def add(self, rule: Rule) -> int:
        """Add a rule after the others; the number given back names it."""
        number = next(self._numbers)
        self._standing[number] = _Standing(rule)
        if rule.refuses:
            self.changed()
        return number

    def remove(self, number: int) -> None:
        """
        Remove a rule.

        :raises LookupError: there is no such rule.
        """
        if number not in self._standing:
            raise LookupError(f"no rule {number}")
        if self._standing.pop(number).rule.refuses:
            self.changed()

    def clear(self) -> None:
        """Remove all rules and let go of all held requests."""
        self._standing.clear()
        self.gates.clear()
        self.changed()

    def used(self, number: int) -> int:
        """
        Say how many requests a rule has applied to.

        :raises LookupError: there is no such rule.
        """
        if number not in self._standing:
            raise LookupError(f"no rule {number}")
        return self._standing[number].used

    def __iter__(self) -> Iterator[tuple[int, Rule, int]]:
        """Give number, rule and uses of each, spent ones too."""
        return iter([(number, each.rule, each.used) for number, each in self._standing.items()])

    def refused(self, hop: str) -> bool:
        """Say whether a hop should not be listening."""
        return any(each.rule.refuses and each.rule.covers(hop) for each in self._standing.values())

    def plan(self, hop: str, path: str) -> tuple[Behaviour, ...]:
        """Say what happens to this request, and count it against the rules that apply."""
        if not self._standing:
            return ()
        plan: list[Behaviour] = []
        decided = False
        for each in self._standing.values():
            rule = each.rule
            if each.spent or rule.refuses or not rule.matches(hop, path):
                continue
            if not rule.only_delays:
                if decided:
                    continue
                decided = True
            each.used += 1
            plan.extend(rule.does)
        return tuple(plan)
