"""`capflow filter`: keep the captions that are good enough."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from producer.cli import options as cli

if TYPE_CHECKING:
    from producer.filtering import FilterCounts, FilterResult


#: Records without valid scores that are reported one by one; all of them are in the rejected files.
_SHOWN_INVALID = 10
#: Between two lines of progress, seconds.
_LINE_SECONDS = 5.0


@click.command(cls=cli.Command, exit_codes=(0, 2, 3, 130))
@click.argument("folder", type=cli.FOLDER, required=False)
@cli.option(
    "--data-folder",
    "Folder of the caption files, Rank*_node*_*.jsonl, if FOLDER is not given.",
    "Output/Caption",
    cli.FOLDER,
    variable="OUTPUT",
)
@cli.minimum_options
@cli.output_option("Folder of the folders kept and rejected.", "FILTERED", show_default="FOLDER")
@cli.json_option("the counts as one JSON object")
def filter(  # noqa: A001
    folder: Path | None, data_folder: Path, output: Path | None, as_json: bool, **asked: Any
) -> None:
    """Keep the captions in FOLDER that are good enough, and say why the others are not.

    Each caption file is split into kept/<same name>, with its lines unchanged, and rejected/<same name>, with
    the reasons under "rejected_because". If `capflow score` wrote X.scored.jsonl, only that is read, as
    X.jsonl. Earlier results of this command are replaced; the caption files never change. Without any option
    only captions with top grades throughout are kept. Records without valid scores (none, not 1, 2 or 3, a
    dimension of their domain missing, not JSON) are never kept; they are counted as invalid.

    Examples:
      capflow filter Output/Caption
      capflow filter Output/Caption --min-overall 2 --min-dim-score 1 --min factual_accuracy=3 -o Output/Good
      capflow filter --min-domain Medical:2 --min-domain "UI & Interaction:2" --json | jq .by_domain
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.settings import read_settings
    from producer.filtering import Filter
    from producer.reading.scores import Rubrics

    folder = folder or data_folder
    catalogue = load_catalogue(read_settings().domains)
    rubrics = Rubrics(catalogue)
    minimums = cli.minimums_of(catalogue, rubrics, asked)
    messages = _Messages()
    result = Filter(minimums, rubrics, output or folder, messages.invalid).run(folder, messages.progress)
    messages.finish()
    if as_json:
        cli.print_json(_as_json(result))
    else:
        _show(result)


class _Messages:
    """Prints progress and the first invalid records to stderr."""

    def __init__(self) -> None:
        self._shown_at = monotonic()
        self._invalid = 0

    def invalid(self, message: str) -> None:
        self._invalid += 1
        if self._invalid <= _SHOWN_INVALID:
            click.echo(f"invalid: {message}", err=True)

    def finish(self) -> None:
        if self._invalid > _SHOWN_INVALID:
            click.echo(f"invalid: {self._invalid - _SHOWN_INVALID} more; see the rejected files", err=True)

    def progress(self, path: Path, counts: FilterCounts) -> None:
        if monotonic() - self._shown_at >= _LINE_SECONDS:
            self._shown_at = monotonic()
            click.echo(f"{path.name} is done; {counts.total} records, {counts.kept} kept", err=True)


def _as_json(result: FilterResult) -> dict[str, Any]:
    def counts(of: FilterCounts) -> dict[str, Any]:
        return {
            "kept": of.kept,
            "rejected": of.rejected,
            "invalid": of.invalid,
            "keep_rate": round(of.keep_rate, 4),
        }

    by_domain = {domain: counts(of) for domain, of in sorted(result.by_domain.items())}
    return {
        **counts(result.all),
        "by_domain": by_domain,
        "rejected_by": dict(result.rejected_by.most_common()),
    }


def _show(result: FilterResult) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("domain")
    for column in ("kept", "rejected", "invalid", "keep rate"):
        table.add_column(column, justify="right")
    for domain, of in [*sorted(result.by_domain.items()), ("all", result.all)]:
        if domain == "all":
            table.add_section()
        counts = (str(count) for count in (of.kept, of.rejected, of.invalid))
        table.add_row(escape(domain), *counts, f"{of.keep_rate:.1%}")
    console = Console(highlight=False)
    console.print(table)
    for dimension, count in result.rejected_by.most_common():
        console.print(f"{escape(dimension)} was too low in {count} of {result.all.rejected} rejected records")
