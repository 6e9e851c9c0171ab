"""Rows, what was measured of them, and the table that says so (pure but for the measuring call)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs


class CannotMeasureError(Exception):
    """A row can't be had here; the text says what it needs."""


@attrs.frozen(kw_only=True)
class Figure:
    """One measurement of one side, in the unit of its row."""

    value: float
    cpu_s: float | None = None
    """Processor time per answer, of the measured process and its children; None: not known."""
    p50_ms: float | None = None
    """Half of the answers were there after this; None where it was not measured."""
    p99_ms: float | None = None


@attrs.frozen(kw_only=True)
class Pair:
    """Both sides, measured one right after the other."""

    reference: Figure
    coverart: Figure

    @property
    def ratio(self) -> float:
        return self.coverart.value / self.reference.value


@attrs.frozen(kw_only=True)
class Goal:
    """
    Where the ratio coverart : reference should be: at least or at most a bound.

    :ivar of: what is bounded: "ratio"; "later", by how much coverart's figure is the larger one; or
        "figure", coverart's own, whatever the reference's. The last two in the unit of the row.
    """

    bound: float
    at_most: bool = False
    of: Literal["ratio", "later", "figure"] = "ratio"

    def reached(self, ratio: float, *, later: float = 0.0, figure: float = 0.0) -> bool:
        value = {"ratio": ratio, "later": later, "figure": figure}[self.of]
        return value <= self.bound if self.at_most else value >= self.bound

    def told(self, unit: str) -> str:
        """As the table shows it."""
        bound = f"{'<=' if self.at_most else '>='} {self.bound:g}"
        return {
            "ratio": bound,
            "later": f"{bound} {unit} later",
            "figure": f"{bound} {unit}",
        }[self.of]


@attrs.frozen(kw_only=True)
class Row:
    """
    Something that is measured.

    :ivar name: how it is picked with --rows.
    :ivar unit: of the figures: "/s", or "ms".
    :ivar goal: None where the row only informs.
    :ivar measure: given the bench (processes.Bench); one pair a round.
    """

    name: str
    what: str
    reference: str
    unit: str
    goal: Goal | None
    measure: Callable[[Any], list[Pair]]


@attrs.frozen(kw_only=True)
class Result:
    """A row and what came of it: pairs, or the reason why there are none."""

    row: Row
    pairs: tuple[Pair, ...] = ()
    why_not: str = ""

    @property
    def reference(self) -> float:
        return statistics.median(pair.reference.value for pair in self.pairs)

    @property
    def coverart(self) -> float:
        return statistics.median(pair.coverart.value for pair in self.pairs)

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: noise that lasts longer than a round cancels out."""
        return statistics.median(pair.ratio for pair in self.pairs)

    @property
    def reached(self) -> bool | None:
        """None where there is no goal or nothing was measured."""
        if self.row.goal is None or not self.pairs:
            return None
        later = statistics.median(pair.coverart.value - pair.reference.value for pair in self.pairs)
        return self.row.goal.reached(self.ratio, later=later, figure=self.coverart)

    def as_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "row": self.row.name,
            "what": self.row.what,
            "reference": self.row.reference,
            "unit": self.row.unit,
            "goal": None if self.row.goal is None else self.row.goal.told(self.row.unit),
            "reached": self.reached,
        }
        if not self.pairs:
            return {**told, "why_not": self.why_not}
        return {
            **told,
            "medians": {"reference": self.reference, "coverart": self.coverart},
            "ratio": self.ratio,
            "rounds": [attrs.asdict(pair) for pair in self.pairs],
        }


def interleaved(
    rounds: int, reference: Callable[[], Figure], coverart: Callable[[], Figure]
) -> list[Pair]:
    """
    Measure A B, B A, A B, …: whatever else the machine does meets both sides alike.

    The sides also change places from round to round, so that neither always comes first.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            ours = coverart()
            theirs = reference()
        else:
            theirs = reference()
            ours = coverart()
        pairs.append(Pair(reference=theirs, coverart=ours))
    return pairs


def in_turn(rounds: int, sides: dict[str, Callable[[], Figure]]) -> dict[str, tuple[Figure, ...]]:
    """Like interleaved, for many sides: A B C, C B A, A B C, … Gives each side's rounds."""
    figures: dict[str, list[Figure]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in reversed(sides) if number % 2 else sides:
            figures[name].append(sides[name]())
    return {name: tuple(found) for name, found in figures.items()}


def render(results: Sequence[Result]) -> str:
    """The table as text, and below it what an answer took: processor time, percentiles of time."""
    lines = [["row", "what", "reference", "coverart", "ratio", "rounds", "goal", "reached"]]
    costs: list[str] = []
    for result in results:
        row = result.row
        goal = "-" if row.goal is None else row.goal.told(row.unit)
        if not result.pairs:
            lines.append([row.name, row.what, "-", "-", "-", "-", goal, result.why_not])
            continue
        ratios = sorted(pair.ratio for pair in result.pairs)
        reached = {None: "-", True: "yes", False: "NO"}[result.reached]
        lines.append(
            [
                row.name,
                f"{row.what} : {row.reference}",
                _with_unit(result.reference, row.unit),
                _with_unit(result.coverart, row.unit),
                f"{result.ratio:.2f}",
                f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
                goal,
                reached,
            ]
        )
        costs.extend(filter(None, (_cost(result), _latency(result))))
    return "\n".join([*_columns(lines), *([""] if costs else []), *costs])


def _cost(result: Result) -> str:
    theirs = [pair.reference.cpu_s for pair in result.pairs if pair.reference.cpu_s is not None]
    ours = [pair.coverart.cpu_s for pair in result.pairs if pair.coverart.cpu_s is not None]
    if not theirs or not ours:
        return ""
    their_cpu, our_cpu = statistics.median(theirs), statistics.median(ours)
    return (
        f"{result.row.name}: processor time per answer {our_cpu * 1e6:.0f} us, "
        f"reference {their_cpu * 1e6:.0f} us ({their_cpu / our_cpu:.2f})"
    )


def _latency(result: Result) -> str:
    def told(figures: list[Figure]) -> str:
        p50s = [figure.p50_ms for figure in figures if figure.p50_ms is not None]
        p99s = [figure.p99_ms for figure in figures if figure.p99_ms is not None]
        if not p50s or not p99s:
            return ""
        return f"p50 {statistics.median(p50s):.1f} ms, p99 {statistics.median(p99s):.1f} ms"

    ours = told([pair.coverart for pair in result.pairs])
    theirs = told([pair.reference for pair in result.pairs])
    return f"{result.row.name}: answers by {ours}, reference {theirs}" if ours and theirs else ""


def _with_unit(value: float, unit: str) -> str:
    return f"{value:,.0f}{unit}" if unit.startswith("/") else f"{value:,.1f} {unit}"


def _columns(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    first, *rest = (
        "  ".join(
            cell.ljust(width) if column in (0, 1, 7) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return [first, "-" * len(first), *rest]
