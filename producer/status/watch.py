"""Shows what one look gives, or look after look: live where somebody sees it, else a line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep

import click
from rich.console import Console, RenderableType
from rich.live import Live

from capflow_tasks.records import JsonObject
from capflow_tasks.store.statistics import Statistics
from producer.status.snapshot import Observer
from producer.status.views import (
    document,
    runs_document,
    runs_line,
    runs_table,
    snapshot_line,
    snapshot_tables,
)

#: A look at a large run takes long; between two of them the database rests for so many times that.
_RESTS = 4

#: Characters per line where stdout is no terminal.
_PLAIN_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Look:
    """The same facts in the three ways in which they are shown."""

    document: JsonObject
    tables: RenderableType
    line: str
    #: Nothing will change any more.
    is_over: bool


def look_at_run(observer: Observer) -> Look:
    seen = observer.look()
    return Look(document(seen), snapshot_tables(seen), snapshot_line(seen), is_over=not seen.run.is_open)


def look_at_runs(statistics: Statistics, lease_seconds: float) -> Look:
    runs, workers = statistics.runs(), statistics.workers(lease_seconds)
    return Look(
        runs_document(runs, workers), runs_table(runs, workers), runs_line(runs, workers), is_over=False
    )


def show(look: Look, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(look.document, ensure_ascii=False))
    else:
        _console().print(look.tables, soft_wrap=True)


def watch(look: Callable[[], Look], interval_seconds: float, as_json: bool) -> None:
    """Show look after look until all is over or Ctrl-C, which is the way to end it and no error."""
    with suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            for seen in _looks(look, interval_seconds):
                click.echo(json.dumps(seen.document, ensure_ascii=False) if as_json else seen.line)
            return
        with Live(console=_console(), auto_refresh=False) as live:
            for seen in _looks(look, interval_seconds):
                live.update(seen.tables, refresh=True)


def _looks(look: Callable[[], Look], interval_seconds: float) -> Iterator[Look]:
    while True:
        began = monotonic()
        seen = look()
        took = monotonic() - began
        yield seen
        if seen.is_over:
            return
        sleep(max(interval_seconds, _RESTS * took))


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
