"""The command capflow-filter: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.settings import read_settings
from producer.cli.options import EXIT_CODES, Command, minimum_options, minimums_of

if TYPE_CHECKING:
    from producer.filtering import FilterCounts, FilterResult


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
@minimum_options
@click.option(
    "--output",
    envvar="CAPFLOW_FILTERED",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the folders kept and rejected.  [default: the data folder]",
    show_envvar=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
def filter_captions(data_folder: Path, output: Path | None, as_json: bool, **asked: Any) -> None:
    """Keep the captions that are good enough, and say why the others are not.

    Each file of the data folder is parted into kept/<same name>, its lines as they were, and
    rejected/<same name>, with the reasons under "rejected_because". Of X.jsonl and the X.scored.jsonl that
    capflow-score wrote only the latter is read, as X.jsonl. What was filtered before is written anew;
    the data folder's own files are never touched. Without any flag, only straight top grades are kept.
    Records without valid scores (none, not 1, 2 or 3, a dimension of their domain left out, no JSON) are
    never kept; they are counted as invalid.
    """
    # Only now: `--help` need not wait.
    from capflow_tasks.domains.catalogue import load_catalogue
    from producer.filtering import Filter
    from producer.reading.scores import Rubrics

    catalogue = load_catalogue(read_settings().domains)
    rubrics = Rubrics(catalogue)
    minimums = minimums_of(catalogue, rubrics, asked)
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

    def progress(self, path: Path, tally: FilterCounts) -> None:
        if monotonic() - self._shown_at >= _LINE_SECONDS:
            self._shown_at = monotonic()
            click.echo(f"{path.name} is done; {tally.total} records, {tally.kept} kept", err=True)


def _as_json(report: FilterResult) -> dict[str, Any]:
    def counts(tally: FilterCounts) -> dict[str, Any]:
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


def _show(report: FilterResult) -> None:
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
