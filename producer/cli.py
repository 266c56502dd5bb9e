"""The command capflow-produce: parses, calls, prints."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import click
from rich.console import Console

from capflow_tasks.console import EXIT_CODES, Command, settings_help
from capflow_tasks.settings import read_settings

EPILOG = f"""\b
Examples:
  capflow-produce plan.jsonl
  CAPFLOW_MODEL=/models/Qwen2.5-VL-7B-Instruct capflow-produce plan.jsonl --output captions
  capflow-produce plan.jsonl --dry-run

{EXIT_CODES}

{settings_help()}"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--output",
    envvar="CAPFLOW_OUTPUT",
    default="Output/Caption",
    type=click.Path(path_type=Path, file_okay=False),
    callback=lambda context, option, path: path.absolute(),
    help="Folder of the caption files.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--batch-size",
    envvar="CAPFLOW_BATCH_SIZE",
    default=8,
    type=click.IntRange(1, 1024),
    help="Samples that one chain carries.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--window",
    envvar="CAPFLOW_WINDOW",
    default=256,
    type=click.IntRange(1),
    help="Batches in flight, over all workers.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--run",
    envvar="CAPFLOW_RUN",
    help="Name of the run; the same name goes on with it.  [default: from the plan's path]",
    show_envvar=True,
)
@click.option("--dry-run", is_flag=True, help="Check the plan, count its samples, send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def produce(plan: Path, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Caption every sample of the split plan PLAN and write the caption files.

    Run again, it goes on where it stopped. Without CAPFLOW_DATABASE_URL and CAPFLOW_BROKER_URL it
    starts PostgreSQL, Redis and a worker of its own, and stops them at the end.
    The first Ctrl-C lets the worker finish what it runs; the second stops at once.
    """
    # Only now: `--help` need not wait for SQLAlchemy and Celery.
    from producer.production import Order, Production

    production = Production(Order(plan, **options), read_settings())
    if dry_run:
        checked = production.plan
        click.echo(f"{plan}: {len(checked.shards)} shards, {checked.sample_count} samples, nothing to mend")
        return
    with stop_on_signals() as stopping:
        summary = production.run(stopping)
    if as_json:
        click.echo(json.dumps(summary.as_json(), ensure_ascii=False))
    else:
        summary.show(Console())
    for problem in summary.problems:
        click.echo(f"capflow-produce: error: {problem}", err=True)
    if not summary.is_complete:
        click.echo("capflow-produce: stopped; the same command goes on from here", err=True)
    sys.exit(summary.exit_code)


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second ends the process."""
    stopping = Event()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        click.echo("\ncapflow-produce: finishing what runs; once more to stop at once", err=True)

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    produce()
