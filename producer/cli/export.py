"""The command capflow-export: parse, call, print."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capflow_tasks.errors import EXIT_SAMPLES_FAILED
from capflow_tasks.settings import read_settings
from producer.cli.options import Command

if TYPE_CHECKING:
    from capflow_tasks.records import JsonObject
    from producer.writing.formats import Exported


EPILOG = """\b
Examples:
  capflow-export plan.jsonl --format webdataset -o Output/Tars
  capflow-export plan-2c792dcc --format parquet -o Output/Parquet
  CAPFLOW_DATABASE_URL=postgresql://capflow@db/capflow capflow-export plan.jsonl --json | jq .remaining

\b
Exit codes: 0 all that is captioned is in the files; 1 some media could not be read, see *.left_out.jsonl;
2 the input must be mended; 3 the database cannot be reached or the disk not be written; 130 interrupted."""


@click.command("export", cls=Command, epilog=EPILOG)
@click.argument("run_or_plan")
@click.option(
    "--format",
    "form",
    envvar="CAPFLOW_EXPORT_FORMAT",
    default="jsonl",
    type=click.Choice(["jsonl", "parquet", "webdataset"]),
    help="Caption files as capflow-produce writes them, Parquet, or tars with the media in them.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "-o",
    "--output",
    envvar="CAPFLOW_EXPORT",
    default="Output/Export",
    type=click.Path(path_type=Path, file_okay=False),
    callback=lambda context, option, path: path.absolute(),
    help="Folder of the files.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--shard-size",
    envvar="CAPFLOW_SHARD_SIZE",
    default=1000,
    type=click.IntRange(1),
    help="Samples per tar.",
    show_envvar=True,
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as one JSON object.")
def export_captions(run_or_plan: str, form: str, output: Path, shard_size: int, as_json: bool) -> None:
    """Write what is captioned of a run, named by itself or by its plan, whether it has ended or not.

    Nothing is captioned by this. Each file appears whole, and comes out byte for byte the same from the same
    state. Run again when more is captioned.
    """
    # Only now: `--help` need not wait for SQLAlchemy.
    from capflow_tasks.store.views import Views
    from producer.services import database, find_run, reading
    from producer.writing.formats import export_run

    settings = read_settings()
    with database(settings) as url, reading(url) as engine:
        run = find_run(engine, run_or_plan)
        exported = export_run(Views(engine), run, form, output, shard_size, settings.domains)
    if as_json:
        click.echo(json.dumps(_as_json(run.name, form, exported), ensure_ascii=False))
    else:
        for file in exported.files:
            click.echo(f"{file.path}: {file.samples} samples")
    click.echo(_told(exported), err=True)
    if exported.left_out:
        sys.exit(EXIT_SAMPLES_FAILED)


def _as_json(run: str, form: str, exported: Exported) -> JsonObject:
    return {
        "run": run,
        "format": form,
        **asdict(exported.ended),
        "remaining": exported.remaining,
        "left_out": exported.left_out,
        "files": [{"path": str(file.path), "samples": file.samples} for file in exported.files],
    }


def _told(exported: Exported) -> str:
    """How far the run is, and what is not in the files."""
    ended = exported.ended
    counts = {
        "captioned": ended.done,
        "failed": ended.failed,
        "held back": ended.held,
        "not finished yet": exported.remaining,
        "left out, as media cannot be read": exported.left_out,
    }
    shown = [f"{count} {what}" for what, count in counts.items() if count]
    return f"{ended.total + exported.remaining} samples: {', '.join(shown) or 'none in the plan'}"


if __name__ == "__main__":
    export_captions()
