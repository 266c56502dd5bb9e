"""`capflow filter`: keep the captions that are good enough."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from producer.cli import options as cli

if TYPE_CHECKING:
    from producer.filtering import CaptionFilter

#: Between two lines of progress, seconds.
_LINE_SECONDS = 5.0
#: What becomes of a record.
_OUTCOMES = ("kept", "rejected", "invalid")


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
@cli.drop_guard_option
@cli.share_options
@cli.marks_option(
    "Reject what someone marked bad in this file, which a report's page exported; keep the good"
)
@cli.output_option("Folder of the folders kept and rejected.", "FILTERED", show_default="FOLDER")
@cli.flag("--overwrite overwrites", "Replace files that an earlier `capflow filter` of FOLDER did not write.")
@cli.json_option("the counts as one JSON object")
def filter(  # noqa: A001
    folder: Path | None,
    data_folder: Path,
    output: Path | None,
    rules: tuple[str, ...],
    marks: Path | None,
    as_json: bool,
    overwrites: bool,
    **asked: Any,
) -> None:
    """Keep the captions in FOLDER that are good enough, and say why the others are not.

    Each caption file is split into kept/<same name>, with its lines unchanged, and rejected/<same name>, with
    the reasons under "rejected_because". If `capflow score` wrote X.scored.jsonl, only that is read, as
    X.jsonl. Earlier results of this command for FOLDER are replaced, other files are not; the caption files
    never change. Without any option
    only captions with top grades throughout are kept. Records without valid scores (none, not 1, 2 or 3, a
    dimension of their domain missing, not JSON) are never kept; they are counted as invalid.

    Examples:
      capflow filter Output/Caption
      capflow filter Output/Caption --min-overall 2 --min-dim-score 1 --min factual_accuracy=3 -o Output/Good
      capflow filter Output/Caption --min-overall 2 --min-dim-score 1 --marks marks.json
      capflow filter --min-domain Medical:2 --min-domain "UI & Interaction:2" --json | jq .by_domain
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.settings import read_settings
    from producer.filtering import CaptionFilter
    from producer.reading.caption_files import Criteria, Rubrics

    catalogue = load_catalogue(read_settings().domains)
    rubrics = Rubrics(catalogue)
    folder = folder or data_folder
    minimums, shares = cli.minimums_of(catalogue, rubrics, asked), cli.shares_of(asked)
    criteria = Criteria(rubrics, minimums, frozenset(rules), shares, cli.read_marks(marks))
    result = CaptionFilter(criteria, output or folder, overwrites=overwrites)
    shown_at = monotonic()
    for path in result.run(folder):
        if monotonic() - shown_at >= _LINE_SECONDS:
            shown_at, counts = monotonic(), result.all
            click.echo(f"{path.name} is done; {counts.total()} records, {counts['kept']} kept", err=True)
    for message in result.invalid_examples:
        click.echo(f"invalid: {message}", err=True)
    if hidden := result.all["invalid"] - len(result.invalid_examples):
        click.echo(f"invalid: {hidden} more; see the rejected files", err=True)
    if not as_json:
        _show(result)
        click.echo(f"{output or folder}: kept/ and rejected/")
        return
    by_domain = {domain: _as_json(counts) for domain, counts in sorted(result.by_domain.items())}
    rejected_by = dict(result.rejected_by.most_common())
    cli.print_json(_as_json(result.all) | {"by_domain": by_domain, "rejected_by": rejected_by})


def _as_json(counts: Counter[str]) -> dict[str, Any]:
    return {name: counts[name] for name in _OUTCOMES} | {"keep_rate": round(_keep_rate(counts), 4)}


def _keep_rate(counts: Counter[str]) -> float:
    return counts["kept"] / (counts.total() or 1)


def _show(result: CaptionFilter) -> None:
    from rich.console import Console
    from rich.markup import escape

    from producer.console import table

    shown = table(None, ["domain"], [*_OUTCOMES, "keep rate"])
    for domain, of in [*sorted(result.by_domain.items()), ("all", result.all)]:
        if domain == "all":
            shown.add_section()
        shown.add_row(escape(domain), *(str(of[name]) for name in _OUTCOMES), f"{_keep_rate(of):.1%}")
    console = Console(highlight=False)
    console.print(shown)
    for cause, count in result.rejected_by.most_common():
        found = "was bad" if cause == "mark" else "was found" if cause.startswith("guard") else "was too low"
        console.print(f"{escape(cause)} {found} in {count} of {result.all['rejected']} rejected records")
