"""What the command line prints: tables for people, JSON for programs, a bar while it works."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from coverart.maintenance.scan import Scan


def show(told: dict[str, Any], as_table: Table | None) -> None:
    """Print it as a table; as one JSON object where there is none."""
    if as_table is None:
        click.echo(json.dumps(told))
    else:
        Console().print(as_table)


def scan_table(seen: Scan) -> Table:
    """What a scan saw and did."""
    would = "would be " if seen.dry_run else ""
    rows: dict[str, object] = {
        "directory": seen.cache_dir,
        "files": f"{seen.files:,}",
        **{f"  {entity}": f"{count:,}" for entity, count in seen.by_entity.items()},
        "size": _size(seen.size_bytes),
        "aliases": f"{seen.aliases:,}",
        "links, dangling": f"{seen.links:,}, {seen.dangling:,}",
        "unfinished files": f"{seen.unfinished:,}",
        "foreign": _named(seen.foreign, seen.foreign_names),
        "damaged" if seen.verified else "empty": _named(seen.damaged, seen.damaged_names),
    }
    if seen.index == "none":
        rows["index"] = (
            "no Redis: a running service has its own,\nin its memory; only the disk was looked at"
        )
    else:
        rows[f"{would}learnt by the index"] = f"{seen.learnt:,}"
        rows[f"{would}forgotten by it"] = f"{seen.forgotten:,}"
    rows["took"] = f"{seen.elapsed_s:.1f} s"
    return table("scan, nothing changed" if seen.dry_run else "scan", rows)


def status_table(status: dict[str, Any]) -> Table:
    """What /cache-status tells."""
    rows = {name.replace("_", " "): value for name, value in status.items() if value is not None}
    if isinstance(status.get("oldest"), int | float):
        rows["oldest"] = datetime.fromtimestamp(status["oldest"], UTC).strftime(
            "%Y-%m-%d %H:%M UTC"
        )
    return table("cache", rows)


def table(title: str, rows: dict[str, Any]) -> Table:
    """Names and what they are."""
    made = Table(title=title, show_header=False, title_justify="left")
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in rows.items():
        said = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(value, float):
            said = f"{value:,.2f}"
        # Text of the disk and of the service is no markup.
        made.add_row(name.replace("_", " "), str(said).replace("[", "\\["))
    return made


def _named(count: int, names: list[str]) -> str:
    more = count - len(names)
    lines = [f"{count:,}", *names, *([f"… and {more:,} more"] if more else [])]
    # A name on disk need not be text that a terminal can be sent.
    return "\n".join(repr(line)[1:-1] if not line.isprintable() else line for line in lines)


def _size(size_bytes: int) -> str:
    return f"{size_bytes:,} bytes ({decimal(size_bytes)})"


@contextlib.contextmanager
def progress() -> Iterator[Callable[[int, int, Scan], None]]:
    """What moves a bar on stderr while a scan runs, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("scanning"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[files]:,} files"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task: TaskID = bar.add_task("", total=None, files=0, rate=0.0)
        began = bar.get_time()

        def told(done: int, of: int, scan: Scan) -> None:
            rate = scan.files / max(1e-6, bar.get_time() - began)
            bar.update(task, completed=done, total=of, files=scan.files, rate=rate)

        yield told
