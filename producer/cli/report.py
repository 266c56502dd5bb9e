"""The command capflow-report: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from capflow_tasks.settings import read_settings
from producer.cli import options as flags
from producer.cli.options import EXIT_CODES, Command

EPILOG = f"""\b
Examples:
  capflow-report plan.jsonl -o report
  capflow-report plan-2c792dcc --max-samples 100000 --thumbnails 2000 -o report
  capflow-report plan.jsonl --json | jq .shown

{EXIT_CODES}"""


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
@flags.processes("CAPFLOW_REPORT_PROCESSES", "Pictures drawn")
@flags.prices()
@click.option("--json", "as_json", is_flag=True, help="Print what was made as one JSON object.")
def report(run: str, output: Path, prices: Path | None, as_json: bool, **options: Any) -> None:
    """Write a page to look at the captions of RUN with, a run's name or its plan.

    One folder that opens from disk in any browser: figures and charts, and a gallery with each sample's
    picture, caption, scores, what each agent said, and where it came from; to filter, search and step
    through by keyboard. It holds small copies of the pictures, so it can be moved, zipped or put on a web
    server.
    """
    # Only now: `--help` need not wait.
    from producer.parallel import ProgressLines
    from producer.report.gallery import Size
    from producer.report.report import make_report
    from producer.services import database, reading
    from producer.status.cost import read_prices

    settings, table = read_settings(), read_prices(prices)
    with database(settings) as url, reading(url) as engine:
        made = make_report(
            engine, run, output.absolute(), Size(**options), table, ProgressLines("samples written")
        )
    if as_json:
        click.echo(json.dumps(asdict(made) | {"page": str(made.page)}, ensure_ascii=False))
    else:
        click.echo(f"{made.page}: {made.shown} of {made.samples} samples, {made.pictures} with pictures")


if __name__ == "__main__":
    report()
