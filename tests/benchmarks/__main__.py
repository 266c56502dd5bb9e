"""`python -m tests.benchmarks`: measure, print one table, write build/bench.json and build/bench.png."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import click
from rich.console import Console

from tests.benchmarks.claims import OUT_OF_TIME, Bench, Goal, Row, Study, rows_of, unmeasured
from tests.benchmarks.report import draw, table, write_json
from tests.benchmarks.studies import STUDIES

BUILD = Path("build")
#: No study starts later than this, so that all of it ends in 15 minutes on any machine.
_LAST_START_SECONDS = 12 * 60.0
#: Characters per line where stdout is no terminal.
_PLAIN_WIDTH = 150

GOALS: dict[str, Goal] = {claim: goal for study in STUDIES for claim, goal in study.goals.items()}


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="CLAIM",
    type=click.Choice(list(GOALS)),
    help="Measure this claim, and the others of its study; repeatable.",
)
@click.option("--full", is_flag=True, help="Measure 10 million samples in 1,000 shards, and 10 million rows.")
def main(only: tuple[str, ...], full: bool) -> None:
    """Measure the claims about speed and scale; exit code 1 when a goal is missed or a study failed."""
    console = Console(stderr=True)
    rows: list[Row] = []
    began, studies = monotonic(), _chosen(only)
    is_alone = full or bool(only)
    for number, study in enumerate(studies, 1):
        started = monotonic()
        if not is_alone and started - began > _LAST_START_SECONDS:
            rows += unmeasured(study, OUT_OF_TIME)
            continue
        left = f"{number} of {len(studies)}, {(started - began) / 60:.0f} min so far"
        console.print(f"measuring {', '.join(study.goals)} ({left})", style="dim", soft_wrap=True)
        with _folder() as folder:
            rows += rows_of(study, Bench(folder, full, is_alone))
        console.print(f"  took {monotonic() - started:.0f} s", style="dim")
        # After each study, so that an interrupted run keeps its results.
        write_json(rows, BUILD / "bench.json")
    draw(rows, BUILD / "bench.png")
    Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(table(rows))
    sys.exit(any(row.is_met is False or isinstance(row.measured, str) for row in rows))


def _chosen(only: Sequence[str]) -> list[Study]:
    return [study for study in STUDIES if not only or study.goals.keys() & set(only)]


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder that PostgreSQL can read, which runs as another user when root starts it."""
    with tempfile.TemporaryDirectory(prefix="capflow-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


if __name__ == "__main__":
    main()
