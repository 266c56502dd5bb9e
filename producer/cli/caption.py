"""The commands capflow-produce and capflow-retry: parse, call, print."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console

from capflow_tasks.records import Stage
from capflow_tasks.settings import read_settings
from producer.cli.options import EXIT_CODES, Command, settings_help

if TYPE_CHECKING:
    from producer.scoring.summary import ScoreSummary
    from producer.summary import Summary


PRODUCE_EPILOG = f"""\b
Examples:
  capflow-produce plan.jsonl
  CAPFLOW_MODEL=/models/Qwen2.5-VL-7B-Instruct capflow-produce plan.jsonl --output captions
  capflow-produce plan.jsonl --dry-run
  capflow-produce plan.jsonl --stages route --min-confidence 0.6
  capflow-produce --reconcile

{EXIT_CODES}

{settings_help()}"""

RETRY_EPILOG = f"""\b
Examples:
  capflow-retry plan.jsonl
  capflow-retry plan.jsonl --kind media_missing --kind media_corrupt --domain Natural

{EXIT_CODES}"""


def parse_stages(value: str) -> tuple[Stage, ...]:
    """The stages of a comma-separated list, in the order in which they run."""
    words = {word.strip() for word in value.split(",") if word.strip()}
    if unknown := words - set(Stage):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; choose from {', '.join(Stage)}")
    if not words:
        raise click.BadParameter(f"name at least one of {', '.join(Stage)}")
    return tuple(stage for stage in Stage if stage in words)


BATCH_SIZE = click.option(
    "--batch-size",
    envvar="CAPFLOW_BATCH_SIZE",
    default=8,
    type=click.IntRange(1, 1024),
    help="Samples that one chain carries.",
    show_envvar=True,
    show_default=True,
)
WINDOW = click.option(
    "--window",
    envvar="CAPFLOW_WINDOW",
    default=256,
    type=click.IntRange(1),
    help="Batches in flight, over all workers.",
    show_envvar=True,
    show_default=True,
)

#: What produce and retry have in common.
_ORDER_OPTIONS = (
    click.option(
        "--output",
        envvar="CAPFLOW_OUTPUT",
        default="Output/Caption",
        type=click.Path(path_type=Path, file_okay=False),
        callback=lambda context, option, path: path.absolute(),
        help="Folder of the caption files.",
        show_envvar=True,
        show_default=True,
    ),
    BATCH_SIZE,
    WINDOW,
    click.option(
        "--run",
        envvar="CAPFLOW_RUN",
        help="Name of the run; the same name goes on with it.  [default: from the plan's path]",
        show_envvar=True,
    ),
    click.option(
        "--stages",
        envvar="CAPFLOW_STAGES",
        default=",".join(Stage),
        callback=lambda context, option, value: parse_stages(value),
        help="Stages to run; a later run with more of them goes on from here.",
        show_envvar=True,
        show_default=True,
    ),
    click.option(
        "--min-confidence",
        envvar="CAPFLOW_MIN_CONFIDENCE",
        default=0.0,
        type=click.FloatRange(0, 1),
        help="Hold back samples routed with a lower probability, in *.held.jsonl, until a run asks for less.",
        show_envvar=True,
        show_default=True,
    ),
    click.option(
        "--pin-ranks",
        envvar="CAPFLOW_PIN_RANKS",
        is_flag=True,
        help="A shard goes to the workers of its assign_rank only: celery ... worker -Q gpu.rank4",
        show_envvar=True,
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object."),
)


#: Characters per line where stdout is no terminal.
_PLAIN_WIDTH = 120


def order_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_ORDER_OPTIONS):
        command = option(command)
    return command


@click.command(cls=Command, epilog=PRODUCE_EPILOG)
@click.argument("plan", type=click.Path(path_type=Path), required=False)
@order_options
@click.option("--dry-run", is_flag=True, help="Check the plan, count its samples, send nothing.")
@click.option(
    "--reconcile", is_flag=True, help="Without PLAN: send again what runs have lost, until stopped."
)
def produce(plan: Path | None, as_json: bool, dry_run: bool, reconcile: bool, **options: Any) -> None:
    """Caption every sample of the split plan PLAN and write the caption files.

    Run again, it goes on where it stopped. Without CAPFLOW_DATABASE_URL and CAPFLOW_BROKER_URL it
    starts PostgreSQL, Redis and a worker of its own, and stops them at the end.
    The first Ctrl-C lets the worker finish what it runs; the second stops at once.
    """
    # Only now: `--help` need not wait for SQLAlchemy and Celery.
    from producer.caption_run import CaptionRun
    from producer.run import Order, reconcile_until_stopped

    if reconcile == (plan is not None):
        raise click.UsageError("name a PLAN, or --reconcile alone")
    if plan is None:
        with stop_on_signals() as stopping:
            reconcile_until_stopped(read_settings(), stopping)
        return
    captioning = CaptionRun(Order(plan, **options), read_settings())
    if dry_run:
        checked = captioning.plan
        click.echo(f"{plan}: {len(checked.shards)} shards, {checked.sample_count} samples, nothing to mend")
        return
    with stop_on_signals() as stopping:
        summary = captioning.run(stopping)
    tell(summary, as_json)


@click.command(cls=Command, epilog=RETRY_EPILOG)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--kind", "kinds", multiple=True, help="Only failures of this kind, as in the failed files.")
@click.option("--domain", "domains", multiple=True, help="Only samples of this domain.")
@order_options
def retry(
    plan: Path, as_json: bool, kinds: tuple[str, ...], domains: tuple[str, ...], **options: Any
) -> None:
    """Caption again what failed in the run of PLAN, and nothing else; then write the caption files."""
    from producer.caption_run import CaptionRun, Retry
    from producer.run import Order

    captioning = CaptionRun(Order(plan, **options), read_settings())
    with stop_on_signals() as stopping:
        summary = captioning.run(stopping, Retry(kinds, domains))
    tell(summary, as_json)


def tell(summary: Summary | ScoreSummary, as_json: bool) -> NoReturn:
    """Print how the run ended, and end with its exit code."""
    if as_json:
        click.echo(json.dumps(summary.as_json(), ensure_ascii=False))
    else:
        summary.show(Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH))
    for problem in summary.problems:
        click.echo(f"error: {problem}", err=True)
    if not summary.is_complete:
        click.echo(f"run {summary.run} was stopped; the same command goes on from here", err=True)
    sys.exit(summary.exit_code)


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second ends the process."""
    stopping = Event()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        click.echo("\nfinishing what runs; once more to stop at once", err=True)

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    produce()
