"""Prints a status once, or again and again: live on a terminal, else a line each time."""

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
from producer.status.document import run_document, runs_document
from producer.status.snapshot import Observer
from producer.status.tables import run_line, run_tables, runs_line, runs_table

#: A snapshot of a large run takes long; the database then rests for so many times as long.
_RESTS = 4

#: Characters per line where stdout is no terminal.
_PLAIN_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Status:
    """The same facts in the three forms in which they are shown."""

    document: JsonObject
    tables: RenderableType
    line: str
    #: Nothing will change any more.
    is_final: bool


def status_of_run(observer: Observer) -> Status:
    snapshot = observer.snapshot()
    is_final = not snapshot.run.is_open
    return Status(run_document(snapshot), run_tables(snapshot), run_line(snapshot), is_final)


def status_of_runs(statistics: Statistics, lease_seconds: float) -> Status:
    facts = statistics.runs(), statistics.workers(lease_seconds)
    return Status(runs_document(*facts), runs_table(*facts), runs_line(*facts), is_final=False)


def show(status: Status, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(status.document, ensure_ascii=False))
    else:
        _console().print(status.tables, soft_wrap=True)


def watch(ask: Callable[[], Status], interval_seconds: float, as_json: bool) -> None:
    """Show the status again and again, until it is final or Ctrl-C, which is no error."""
    with suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            for status in _ask_again(ask, interval_seconds):
                click.echo(json.dumps(status.document, ensure_ascii=False) if as_json else status.line)
            return
        with Live(console=_console(), auto_refresh=False) as live:
            for status in _ask_again(ask, interval_seconds):
                live.update(status.tables, refresh=True)


def _ask_again(ask: Callable[[], Status], interval_seconds: float) -> Iterator[Status]:
    while True:
        began = monotonic()
        status = ask()
        took = monotonic() - began
        yield status
        if status.is_final:
            return
        sleep(max(interval_seconds, _RESTS * took))


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
