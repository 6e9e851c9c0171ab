"""What a walk counts, of events that were recorded, and the table that says it (pure)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs

Event = tuple[int, str, str, str]
"""Thread, one of the kinds below, and for a call its module and function."""

CALL, RESUMED, LOOK_UP = "call", "resumed", "look-up"
TIMER, DEFERRED, HAND_OVER, SYMLINK = "timer", "deferred", "hand-over", "symlink"

COLUMNS = {
    "modules": "modules",
    "changes": "changes of module",
    "calls": "calls",
    "look_ups": "look-ups",
    "redis": "Redis commands",
    "timers": "timers",
    "deferreds": "Deferreds",
    "hand_overs": "hand-overs",
    "system_calls": "system calls",
    "symlinks": "looks at symlinks",
}
"""What is counted, as the table calls it."""

_SYSTEM_CALL = re.compile(r"([0-9]+) +([a-z0-9_]+)\(")
_IGNORED = frozenset({"brk", "mmap", "munmap", "mremap", "madvise", "futex", "sched_yield"})


@attrs.frozen(kw_only=True)
class Counts:
    """
    What one request took.

    :ivar modules: files of the package in which a function was called.
    :ivar changes: calls into another module than the call before them, in the same thread.
    :ivar calls: of functions of the package; a coroutine that goes on after an await is the same.
    :ivar look_ups: of the index, by the methods of its protocol that say what it found.
    :ivar redis: commands sent; a script is one.
    :ivar timers: calls of the reactor's callLater, by anyone; those that were set before do not count.
    :ivar deferreds: Deferreds made, by anyone.
    :ivar hand_overs: jobs given to threads.
    :ivar system_calls: but for those of memory and of locks; None without strace.
    :ivar symlinks: readlink and lstat that found a symlink or nothing where one could be.
    """

    modules: int = 0
    changes: int = 0
    calls: int = 0
    look_ups: int = 0
    redis: int = 0
    timers: int = 0
    deferreds: int = 0
    hand_overs: int = 0
    system_calls: int | None = None
    symlinks: int = 0


@attrs.frozen(kw_only=True)
class Walked:
    """A kind of request, what one took, and the most that it should take, by the names of Counts."""

    kind: str
    counts: Counts
    budget: Mapping[str, int]

    @property
    def over(self) -> list[str]:
        """What is over its budget."""
        found = attrs.asdict(self.counts)
        return [name for name, most in self.budget.items() if (found[name] or 0) > most]


def count(events: Iterable[Event], *, redis: int, system_calls: int | None) -> Counts:
    """Count what was recorded in one window."""
    last: dict[int, str] = {}
    modules: set[str] = set()
    kinds: Counter[str] = Counter()
    changes = 0
    for thread, kind, module, _ in events:
        kinds[kind] += 1
        if kind == CALL:
            modules.add(module)
            changes += last.get(thread, module) != module
            last[thread] = module
    return Counts(
        modules=len(modules),
        changes=changes,
        calls=kinds[CALL],
        look_ups=kinds[LOOK_UP],
        redis=redis,
        timers=kinds[TIMER],
        deferreds=kinds[DEFERRED],
        hand_overs=kinds[HAND_OVER],
        system_calls=system_calls,
        symlinks=kinds[SYMLINK],
    )


def redis_commands(lines: Iterable[str]) -> list[str]:
    """
    The names of the commands that clients sent, from what MONITOR says.

    What a script does inside the server is part of the script.
    """
    found = []
    for line in lines:
        said = re.match(r'\+?[0-9.]+ \[[0-9]+ (?P<who>.*?)\] "(?P<name>[^"]*)"', line)
        if said is not None and said["who"] != "lua":
            found.append(said["name"].upper())
    return found


def system_calls(lines: Iterable[str], begin: str, end: str, ours: int) -> int | None:
    """
    How many there were between two marks, from what `strace -f` wrote.

    :param begin: part of the line after which is counted; `end` likewise.
    :param ours: the thread that controls the walk, which is no part of it.
    :returns: None while the end is not there.
    """
    counting, total = False, 0
    for line in lines:
        if begin in line:
            counting = True
        elif counting and end in line:
            return total
        elif counting and (said := _SYSTEM_CALL.match(line)) is not None:
            # The second half of an interrupted line begins with "<...", and is not counted again.
            total += int(said[1]) != ours and said[2] not in _IGNORED
    return None


def middle(rounds: Sequence[Counts]) -> Counts:
    """The round with the median of calls, of those with as many the one with that of commands."""
    return sorted(rounds, key=lambda each: (each.calls, each.redis))[(len(rounds) - 1) // 2]


def table(rows: Sequence[Walked]) -> str:
    """A line for each kind of request; "543 of 250" is a figure and its budget."""
    lines = [["request", *COLUMNS.values(), "over budget"]]
    for row in rows:
        cells = [row.kind]
        for name, figure in attrs.asdict(row.counts).items():
            shown = "n/a" if figure is None else f"{figure}"
            cells.append(f"{shown} of {row.budget[name]}" if name in row.budget else shown)
        over = ", ".join(COLUMNS[name] for name in row.over)
        lines.append([*cells, over or ("no" if row.budget else "-")])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    shown_lines = [
        "  ".join(
            cell.ljust(width) if at in (0, len(widths) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([shown_lines[0], "-" * len(shown_lines[0]), *shown_lines[1:]])
