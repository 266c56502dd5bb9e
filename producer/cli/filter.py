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
    from producer.filtering import CaptionFilter, FilterCounts


EPILOG = f"""\b
Examples:
  capflow-filter --data-folder ./Output/Caption --min-overall 3 --min-dim-score 3
  capflow-filter --min-overall 2 --min-dim-score 1 --min factual_accuracy=3 --output Output/Good
  capflow-filter --min-domain Medical:2 --min-domain "UI & Interaction:2" --json | jq .by_domain

{EXIT_CODES}"""

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
    from producer.filtering import CaptionFilter
    from producer.reading.scores import Rubrics

    catalogue = load_catalogue(read_settings().domains)
    rubrics = Rubrics(catalogue)
    minimums = minimums_of(catalogue, rubrics, asked)
    report = CaptionFilter(minimums, rubrics, output or data_folder)
    shown_at = monotonic()
    for path in report.run(data_folder):
        if monotonic() - shown_at >= _LINE_SECONDS:
            shown_at = monotonic()
            click.echo(f"{path.name} is done; {report.all.total} records, {report.all.kept} kept", err=True)
    for message in report.invalid_examples:
        click.echo(f"invalid: {message}", err=True)
    if hidden := report.all.invalid - len(report.invalid_examples):
        click.echo(f"invalid: {hidden} more; see the rejected files", err=True)
    if as_json:
        click.echo(json.dumps(_as_json(report), ensure_ascii=False))
    else:
        _show(report)


def _as_json(report: CaptionFilter) -> dict[str, Any]:
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


def _show(report: CaptionFilter) -> None:
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
