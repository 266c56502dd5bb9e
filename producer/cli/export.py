"""`capflow export`: write what is captioned of a run for those who train on it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.errors import EXIT_SAMPLES_FAILED
from producer.cli import options as cli

if TYPE_CHECKING:
    from capflow_tasks.domains.catalogue import Catalogue
    from producer.reading.caption_files import Criteria
    from producer.writing.export import Exported

#: The names of the formats; those in the second line are in producer.writing.trainers as well.
_FORMATS = (
    *("jsonl", "txt", "parquet", "webdataset"),
    *("messages", "llava", "llama-factory", "ms-swift"),
)
#: The options that only some formats have.
_ONLY_FOR = {
    "fields": ("jsonl", "parquet", "webdataset"),
    "shares": tuple(form for form in _FORMATS if form != "txt"),
    "embeds": ("parquet",),
}


def _shares(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Parse values such as train=0.98; the rest is the split `test`."""
    shares: dict[str, float] = {}
    for value in values:
        name, _, share = value.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            shares[name] = 0
        if not name.isidentifier() or not 0 < shares[name] <= 1:
            raise click.BadParameter(f"{value!r} is not NAME=SHARE with a share above 0 and up to 1")
    if sum(shares.values()) > 1 + 1e-9:
        raise click.BadParameter(f"the shares add up to {sum(shares.values()):g}, more than 1")
    if shares and sum(shares.values()) < 1 - 1e-9:
        if "test" in shares:
            raise click.BadParameter("the shares add up to less than 1; the rest would be called test")
        shares["test"] = 1 - sum(shares.values())
    return shares


def _names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


@click.command(
    cls=cli.Command,
    exit_codes=(0, 2, 3, 130),
    exit_meanings={
        0: "everything that is captioned and chosen is in the files",
        1: "some media could not be read; see *.left_out.jsonl",
    },
)
@cli.run_argument
@cli.option("--format form", "What to write.", "jsonl", click.Choice(_FORMATS), "EXPORT_FORMAT")
@cli.output_option("Folder of the files.", "EXPORT", "Output/Export")
@cli.option(
    "--min-overall",
    "Lowest overall grade to export; captions without valid grades are left out too.",
    kind=click.IntRange(1, 3),
    variable="EXPORT_MIN_OVERALL",
)
@cli.min_option("Lowest grade in this dimension")
@cli.drop_guard_option
@cli.share_options
@cli.marks_option(
    "Leave out what someone marked bad in this file, which a report's page exported; keep the good"
)
@cli.option("--shuffle SEED seed", "Mix the samples of all datasets.", None, int, "EXPORT_SHUFFLE")
@cli.repeatable(
    "--split shares",
    "Put this share of the samples into a split; the rest is `test`. A picture is in one split only",
    _shares,
    metavar="NAME=SHARE",
)
@cli.option(
    "--fields NAMES",
    "The only keys or columns to write, with commas.",
    "",
    variable="EXPORT_FIELDS",
    callback=_names,
)
@cli.flag("--keep-question keeps_question", "Ask the entry's own first question, not a neutral one.")
@click.option(
    "--placeholder-escape/--no-placeholder-escape",
    "escapes",
    default=True,
    help="Write <image> and the like in conversations so that loaders do not count them.  [default: on]",
)
@cli.flag("--absolute is_absolute", "Write absolute paths of the media, not those below their root.")
@cli.flag("--embed embeds", "Put the media themselves into Parquet files.")
@cli.flag("--overwrite overwrites", "Replace files in the folder that are not this run's own.")
@cli.option("--shard-size SAMPLES", "Size of a tar.", 1000, click.IntRange(1))
@cli.json_option("what was written as one JSON object")
def export(run_or_plan: str, form: str, output: Path, as_json: bool, **asked: Any) -> None:
    """Write what is captioned of RUN, finished or not.

    RUN is a run's name or the plan that it came from. Export captions nothing. Each file appears whole, and
    the same state gives the same bytes. Run it again when more is captioned.

    Formats: jsonl (caption files as `capflow caption` writes them), txt (photo.txt for photo.jpg), parquet,
    webdataset (tars with the media), messages (role and typed parts, for chat templates), llava (also for
    Qwen's fine-tuning), llama-factory (with dataset_info.json) and ms-swift. All but txt come with a data set
    card, README.md.

    Examples:
      capflow export plan.jsonl --format webdataset -o Output/Tars
      capflow export plan.jsonl --format llama-factory --min-overall 3 --shuffle 1 --split train=0.98
      capflow export plan.jsonl --format llava --min-overall 2 --marks marks.json
      capflow export plan.jsonl --format txt -o /data/photos
      capflow export plan-2c792dcc --format parquet --embed -o Output/Parquet
      capflow export plan.jsonl --json | jq .remaining
    """
    from capflow_tasks.domains.catalogue import load_workflow
    from capflow_tasks.settings import read_settings
    from capflow_tasks.store.views import Views
    from producer.console import counted
    from producer.writing.conversations import ConversationStyle
    from producer.writing.export import Order, export_run
    from producer.writing.selection import Choice

    _refuse_what_has_no_effect(form, asked)
    style = ConversationStyle(asked["keeps_question"], asked["escapes"])
    rest = {name: asked[name] for name in ("shard_size", "fields", "embeds", "overwrites")}
    with cli.open_run(run_or_plan) as (run, engine):
        criteria = _criteria(load_workflow(run.workflow, read_settings().domains), asked)
        choice = Choice(criteria, style, asked["shares"], asked["seed"], asked["is_absolute"])
        exported = export_run(Views(engine), run, Order(form, output, choice, **rest))
    if as_json:
        left = {name: getattr(exported, name) for name in ("remaining", "rejected", "left_out")}
        files = [{"path": str(file.path), "samples": file.samples} for file in exported.files]
        cli.print_json({"run": run.name, "format": form, **asdict(exported.ended), **left, "files": files})
    else:
        for file in exported.files:
            click.echo(f"{file.path}: {counted(file.samples, 'sample')}")
    if not exported.has_card:
        click.echo(
            f"{output / 'README.md'} is not this run's, or was edited; no data set card was written",
            err=True,
        )
    click.echo(_summary(exported), err=True)
    if exported.left_out:
        sys.exit(EXIT_SAMPLES_FAILED)


def _refuse_what_has_no_effect(form: str, asked: dict[str, Any]) -> None:
    names = {"fields": "--fields", "shares": "--split", "embeds": "--embed"}
    for name, forms in _ONLY_FOR.items():
        if asked[name] and form not in forms:
            raise click.UsageError(f"{names[name]} is for --format {', '.join(forms)}; leave it out")


def _criteria(catalogue: Catalogue, asked: dict[str, Any]) -> Criteria:
    from producer.reading.caption_files import Criteria, Rubrics

    rubrics, overall = Rubrics(catalogue), asked["min_overall"]
    minimums = None
    if overall is not None or asked["dimensions"]:
        grades: dict[str, Any] = {"min_overall": overall or 1, "min_dim_score": 1, "domains": {}}
        minimums = cli.minimums_of(catalogue, rubrics, asked | grades)
    shares, marks = cli.shares_of(asked), cli.read_marks(asked["marks"])
    return Criteria(rubrics, minimums, frozenset(asked["rules"]), shares, marks)


def _summary(exported: Exported) -> str:
    """Say how far the run is, and what the files lack."""
    ended = exported.ended
    counts = {
        "captioned": ended.done,
        "failed": ended.failed,
        "held back": ended.held,
        "not finished yet": exported.remaining,
        "left out, as they do not meet the criteria": exported.rejected,
        "left out, as media cannot be read": exported.left_out,
    }
    shown = [f"{count} {what}" for what, count in counts.items() if count]
    return f"{ended.total + exported.remaining} samples: {', '.join(shown) or 'none in the plan'}"
