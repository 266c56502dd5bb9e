"""The command capflow-score: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from capflow_tasks.settings import read_settings
from producer.cli import options as flags
from producer.cli.caption import BATCH_SIZE, WINDOW, stop_on_signals, tell
from producer.cli.options import EXIT_CODES, Command, settings_help

EPILOG = f"""\b
Examples:
  capflow-score Output/Caption --plan plan.jsonl
  capflow-score Output/Caption --root /data/vqa --output Output/Scored
  capflow-score Output/Caption --root /data/vqa --dry-run

{EXIT_CODES}

{settings_help()}"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--root",
    envvar="CAPFLOW_ROOT",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder that the media paths of the records are taken from.  [default: that of --plan]",
    show_envvar=True,
)
@click.option(
    "--plan",
    envvar="CAPFLOW_PLAN",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Split plan that names root and task of each dataset, in place of --root.  [default: none]",
    show_envvar=True,
)
@click.option(
    "--output",
    envvar="CAPFLOW_SCORED",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the scored files.  [default: FOLDER]",
    show_envvar=True,
)
@BATCH_SIZE
@WINDOW
@click.option(
    "--run",
    envvar="CAPFLOW_SCORE_RUN",
    help="Name of the scoring; the same name goes on with it.  [default: from FOLDER's path]",
    show_envvar=True,
)
@flags.processes("CAPFLOW_SCORE_PROCESSES", "Caption files looked through")
@click.option("--dry-run", is_flag=True, help="Count what has no scores yet, send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def score(
    as_json: bool, dry_run: bool, run: str | None, batch_size: int, window: int, **options: Any
) -> None:
    """Score the captions in FOLDER's Rank*_node*_*.jsonl that have no valid scores yet.

    Files of capflow-produce, and of the CapFlow scripts, whose caption is the last "gpt" turn. The work is
    shared by all workers there are. X.jsonl stays as it is; all its records that have scores by then go to
    X.scored.jsonl in their order, the others to X.scored.failed.jsonl with the reason. capflow-filter then
    reads X.scored.jsonl in place of X.jsonl. Run again, it goes on where it stopped, and scores what is new
    or has failed. The first Ctrl-C lets the worker finish what it runs; the second stops at once.
    """
    # Only now: `--help` need not wait for SQLAlchemy and Celery.
    from producer.scoring.score_run import ScoreRun

    scoring = ScoreRun(settings=read_settings(), **options)
    if dry_run:
        click.echo(f"{len(scoring.files)} files, {scoring.to_score} records without scores")
        return
    with stop_on_signals() as stopping:
        summary = scoring.run(stopping, run, batch_size, window)
    tell(summary, as_json)


if __name__ == "__main__":
    score()
