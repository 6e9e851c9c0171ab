"""A row of the matrix, the claims that fill its columns, and the table of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

COLUMNS = ("client", "disk", "index", "log", "time", "after")
HEADINGS = {
    "client": "the client sees",
    "disk": "on disk",
    "index": "the index says",
    "log": "the log says",
    "time": "how long",
    "after": "after the fault",
}
HELD = "held"


class Broken(Exception):
    """A claim that is not so."""


@attrs.define
class Claims:
    """What a row claims and was seen to be so, by column; in each, what it was claimed of."""

    made: dict[str, dict[str, list[str]]] = attrs.field(factory=dict)

    def claim(
        self, column: str, text: str, true: object, saw: object = "", *, of: str = ""
    ) -> None:
        """
        Claim something.

        :param text: for the table.
        :param of: which of several things asked for, if it is not about all.
        :raises Broken: it is not true; `saw` is told in its place.
        """
        assert column in COLUMNS
        if not true:
            about = f" ({of})" if of else ""
            raise Broken(f"{column}: not “{text}”{about}, but {saw!s}".removesuffix(", but "))
        things = self.made.setdefault(column, {}).setdefault(text, [])
        if of and of not in things:
            things.append(of)

    def cell(self, column: str) -> str:
        """A column as the table shows it."""
        claims = self.made.get(column, {})
        everything = {of for things in claims.values() for of in things}
        # Things are asked for at once: the table does not tell which was answered first.
        return "; ".join(
            f"{', '.join(sorted(things))}: {text}" if things and set(things) != everything else text
            for text, things in sorted(claims.items(), key=lambda claim: (bool(claim[1]), claim[0]))
        )

    def check_full(self) -> None:
        """:raises Broken: a column has no claim."""
        if missing := [column for column in COLUMNS if column not in self.made]:
            raise Broken(f"says nothing of: {', '.join(missing)}")


@attrs.frozen(kw_only=True)
class Row:
    """One fault. `play` brings it about on a stage and claims what holds."""

    group: str
    name: str
    play: Callable[[Any], Awaitable[None]] = attrs.field(repr=False)
    hostname: str = "127.0.0.1"
    """What the archive calls its own hosts."""

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


@attrs.frozen(kw_only=True)
class Outcome:
    """A row that was played."""

    row: Row
    claims: Claims
    broken: str = ""
    not_here: str = ""

    @property
    def verdict(self) -> str:
        if self.not_here:
            return f"NOT MADE HERE: {self.not_here}"
        return f"BROKEN: {self.broken}" if self.broken else HELD


def render(groups: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """The matrix as Markdown, a table for each group; a group without rows is told too."""
    lines = []
    for group in groups:
        lines += [f"## {group}", ""]
        played = [outcome for outcome in outcomes if outcome.row.group == group]
        if not played:
            lines += ["no rows", ""]
            continue
        headings = ["fault", *(HEADINGS[column] for column in COLUMNS), ""]
        lines += [_line(headings), _line(["---"] * len(headings))]
        for outcome in played:
            cells = [outcome.claims.cell(column) for column in COLUMNS]
            lines.append(_line([outcome.row.name, *cells, outcome.verdict]))
        lines.append("")
    verdicts = [outcome.verdict for outcome in outcomes]
    held = verdicts.count(HELD)
    broken = sum(verdict.startswith("BROKEN") for verdict in verdicts)
    not_made = len(verdicts) - held - broken
    lines.append(f"{held} rows held, {broken} BROKEN, {not_made} NOT MADE HERE")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"
