"""The command capflow-report: parse, call, print."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import click

from capflow_tasks.console import EXIT_CODES, Command
from capflow_tasks.settings import read_settings

EPILOG = f"""\b
Examples:
  capflow-report plan.jsonl -o report
  capflow-report plan-2c792dcc --max-samples 100000 --thumbnails 2000 -o report
  capflow-report plan.jsonl --json | jq .shown

{EXIT_CODES}"""

#: Between two lines of progress, seconds.
_LINE_SECONDS = 5.0


@click.command(cls=Command, epilog=EPILOG)
@click.argument("run")
@click.option(
    "-o",
    "--output",
    envvar="CAPFLOW_REPORT",
    default="report",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the report, written whole or not at all; an earlier report there is replaced.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--max-samples",
    "samples",
    envvar="CAPFLOW_REPORT_SAMPLES",
    default=10_000,
    type=click.IntRange(0),
    help="Samples in the gallery, of every shard a fair share; the figures are of the whole run.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--thumbnails",
    envvar="CAPFLOW_REPORT_THUMBNAILS",
    default=10_000,
    type=click.IntRange(0),
    help="Samples that get pictures, the first ones; 0 for a report without pictures.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--picture-size",
    envvar="CAPFLOW_REPORT_PICTURE_SIZE",
    default=960,
    type=click.IntRange(64, 8192),
    help="Long side of the large pictures, pixels.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--processes",
    envvar="CAPFLOW_REPORT_PROCESSES",
    default=min(4, os.cpu_count() or 1),
    type=click.IntRange(1, 256),
    help="Pictures drawn at a time.  [default: one per CPU, at most 4]",
    show_envvar=True,
)
@click.option(
    "--prices",
    envvar="CAPFLOW_PRICES",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Your price table, laid over ours, for what the run cost.  [default: ours alone]",
    show_envvar=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print what was made as one JSON object.")
def report(run: str, output: Path, prices: Path | None, as_json: bool, **options: Any) -> None:
    """Write a page to look at the captions of RUN with, a run's name or its plan.

    One folder that opens from disk in any browser: figures and charts, and a gallery with each sample's
    picture, caption, scores, what each agent said, and where it came from; to filter, search and step
    through by keyboard. It holds small copies of the pictures, so it can be moved, zipped or put on a web
    server.
    """
    # Only now: `--help` need not wait.
    from producer.database import database, reading
    from producer.report.gallery import Size
    from producer.report.report import make_report
    from producer.status.prices import read_prices

    settings, table = read_settings(), read_prices(prices)
    progress = _Progress()
    with database(settings) as url, reading(url) as engine:
        made = make_report(engine, run, output.absolute(), Size(**options), table, progress)
    if as_json:
        click.echo(json.dumps(asdict(made) | {"page": str(made.page)}, ensure_ascii=False))
    else:
        click.echo(f"{made.page}: {made.shown} of {made.samples} samples, {made.pictures} with pictures")


class _Progress:
    """A line on stderr now and then."""

    def __init__(self) -> None:
        self._shown_at = monotonic()

    def __call__(self, done: int) -> None:
        if monotonic() - self._shown_at >= _LINE_SECONDS:
            self._shown_at = monotonic()
            click.echo(f"{done} samples written", err=True)


if __name__ == "__main__":
    report()
