"""The command capflow-filter: parse, call, print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.console import EXIT_CODES, Command
from capflow_tasks.settings import read_settings

if TYPE_CHECKING:
    from producer.filtering.caption_filter import Report, Tally

EPILOG = f"""\b
Examples:
  capflow-filter --data-folder ./Output/Caption --min-overall 3 --min-dim-score 3
  capflow-filter --min-overall 2 --min-dim-score 1 --min factual_accuracy=3 --output Output/Good
  capflow-filter --min-domain Medical:2 --min-domain "UI & Interaction:2" --json | jq .by_domain

{EXIT_CODES}"""

#: Records without valid scores that are told one by one; all of them are in the rejected files.
_TOLD_INVALID = 10
#: Between two lines of progress, seconds.
_LINE_SECONDS = 5.0


def _grades(separator: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, int]]:
    """Reads values such as NAME=3."""

    def parse(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
        grades = {}
        for value in values:
            name, _, grade = value.rpartition(separator)
            if not name.strip() or grade.strip() not in ("1", "2", "3"):
                raise click.BadParameter(f"{value!r} is not NAME{separator}GRADE with a grade of 1, 2 or 3")
            grades[name.strip()] = int(grade)
        return grades

    return parse


def _minimum(
    flag: str, variable: str, help_text: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        flag,
        envvar=variable,
        default=3,
        type=click.IntRange(1, 3),
        help=help_text,
        show_envvar=True,
        show_default=True,
    )


@click.command("filter", cls=Command, epilog=EPILOG)
@click.option(
    "--data-folder",
    envvar="CAPFLOW_OUTPUT",
    default="Output/Caption",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the caption files, Rank*_node*_*.jsonl.",
    show_envvar=True,
    show_default=True,
)
@_minimum("--min-overall", "CAPFLOW_MIN_OVERALL", "Least overall grade, 1 to 3.")
@_minimum("--min-dim-score", "CAPFLOW_MIN_DIM_SCORE", "Least grade in each dimension, 1 to 3.")
@click.option(
    "--min",
    "dimensions",
    multiple=True,
    metavar="DIMENSION=GRADE",
    callback=_grades("="),
    help="Least grade in this dimension, in place of --min-dim-score; can be repeated.  [default: none]",
)
@click.option(
    "--min-domain",
    "domains",
    multiple=True,
    metavar="DOMAIN:OVERALL",
    callback=_grades(":"),
    help="Least overall grade in this domain, in place of --min-overall; can be repeated.  [default: none]",
)
@click.option(
    "--output",
    envvar="CAPFLOW_FILTERED",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the folders kept and rejected.  [default: the data folder]",
    show_envvar=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
def filter_captions(
    data_folder: Path,
    min_overall: int,
    min_dim_score: int,
    dimensions: dict[str, int],
    domains: dict[str, int],
    output: Path | None,
    as_json: bool,
) -> None:
    """Keep the captions that are good enough, and say why the others are not.

    Each file of the data folder is parted into kept/<same name>, its lines as they were, and
    rejected/<same name>, with the reasons under "rejected_because". What was filtered before is written anew;
    the data folder's own files are never touched. Without any flag, only straight top grades are kept.
    Records without valid scores (none, not 1, 2 or 3, a dimension of their domain left out, no JSON) are
    never kept; they are counted as invalid.
    """
    # Only now: `--help` need not wait.
    from capflow_tasks.domains import load_catalogue
    from producer.filtering.caption_filter import Filter
    from producer.filtering.rubrics import Rubrics
    from producer.filtering.scores import Minimums

    catalogue = load_catalogue(read_settings().domains)
    rubrics = Rubrics(catalogue)
    if unknown := sorted(dimensions.keys() - rubrics.dimensions):
        known = ", ".join(sorted(rubrics.dimensions))
        raise click.UsageError(f"--min: no judge grades {', '.join(unknown)}; use some of: {known}")
    by_domain = {catalogue.resolve(name).name: grade for name, grade in domains.items()}
    minimums = Minimums(min_overall, min_dim_score, dimensions, by_domain)
    told = _Told()
    report = Filter(minimums, rubrics, output or data_folder, told.invalid).run(data_folder, told.progress)
    told.rest()
    if as_json:
        click.echo(json.dumps(_as_json(report), ensure_ascii=False))
    else:
        _show(report)


class _Told:
    """What goes to stderr: a line now and then, and the first of the invalid records."""

    def __init__(self) -> None:
        self._shown_at = monotonic()
        self._invalid = 0

    def invalid(self, message: str) -> None:
        self._invalid += 1
        if self._invalid <= _TOLD_INVALID:
            click.echo(f"invalid: {message}", err=True)

    def rest(self) -> None:
        if self._invalid > _TOLD_INVALID:
            click.echo(f"invalid: {self._invalid - _TOLD_INVALID} more; see the rejected files", err=True)

    def progress(self, path: Path, tally: Tally) -> None:
        if monotonic() - self._shown_at >= _LINE_SECONDS:
            self._shown_at = monotonic()
            click.echo(f"{path.name} is done; {tally.total} records, {tally.kept} kept", err=True)


def _as_json(report: Report) -> dict[str, Any]:
    def counts(tally: Tally) -> dict[str, Any]:
        return {
            "kept": tally.kept,
            "rejected": tally.rejected,
            "invalid": tally.invalid,
            "keep_rate": round(tally.keep_rate, 4),
        }

    by_domain = {domain: counts(tally) for domain, tally in sorted(report.by_domain.items())}
    return {
        **counts(report.all),
        "by_domain": by_domain,
        "rejected_by": dict(report.rejected_by.most_common()),
    }


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("domain")
    for column in ("kept", "rejected", "invalid", "keep rate"):
        table.add_column(column, justify="right")
    for domain, tally in [*sorted(report.by_domain.items()), ("all", report.all)]:
        if domain == "all":
            table.add_section()
        counts = (str(count) for count in (tally.kept, tally.rejected, tally.invalid))
        table.add_row(escape(domain), *counts, f"{tally.keep_rate:.1%}")
    console = Console(highlight=False)
    console.print(table)
    for dimension, count in report.rejected_by.most_common():
        console.print(f"{escape(dimension)} was too low in {count} of {report.all.rejected} rejected records")


if __name__ == "__main__":
    filter_captions()
