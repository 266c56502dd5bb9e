"""`capflow plan`: write a split plan."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producer.cli import options as cli
from producer.cli.sources import plan_sources, source_options, sources_argument

if TYPE_CHECKING:
    from producer.planning.planner import Planned, PlanOrder


def _fraction(context: click.Context, option: click.Parameter, value: float) -> Fraction:
    try:
        return Fraction(value).limit_denominator(1000)
    except ValueError:
        raise click.BadParameter("is not a number") from None


@click.command(cls=cli.Command, exit_codes=(0, 2, 3, 130))
@sources_argument
@source_options
@cli.option("--ranks", "Ranks that share the samples.", 1, click.IntRange(1, 100_000))
@cli.option(
    "-o --output", "Split plan to write, whole or not at all.", "plan.jsonl", cli.FILE, variable="PLAN_OUTPUT"
)
@cli.option(
    "--video-weight PICTURES",
    "Cost of one video; 1,427 pictures take as long as 128 videos.",
    11.0,
    click.FloatRange(0.001, 100_000),
    callback=_fraction,
)
@cli.option(
    "--seed",
    "Chooses the samples of a dataset with a sample_count; the same seed chooses the same samples.",
    0,
    variable="SAMPLE_SEED",
)
@cli.option(
    "--samples",
    "Folder of chosen samples and of listings.",
    kind=cli.FOLDER,
    show_default="samples, next to the plan",
)
@cli.option(
    "--trust-lengths", "Believe each dataset's length instead of counting its entries.", False, is_flag=True
)
@cli.flag("--remaining", "Leave out what any run in the database has captioned.")
@cli.processes_option("Annotation files read", "PLAN_PROCESSES")
@cli.json_option("what was planned as one JSON object")
def plan(
    sources: tuple[str, ...],
    output: Path,
    samples: Path | None,
    remaining: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a split plan for each SOURCE: what capflow caption takes, such as a folder or a metafile.

    A source that is no annotation file is listed as one in the folder of --samples; its media stay where they
    are. Planned again, samples keep their places, and files that were added come last.

    Every rank gets the same amount of work, within one sample; large datasets are split. Annotation files
    are counted, and a wrong length is reported. A plan can only name ranges of a file, so the samples of a
    dataset with a sample_count are copied to a file of their own in the folder of --samples. The name of that
    file depends on what is sampled and how, so a later plan finds it again.

    Examples:
      capflow plan photos/ more/*.csv --image-key file -o plan.jsonl
      capflow plan Metafile.json --ranks 8 -o plan.jsonl
      capflow plan Metafile.json --ranks 64 --trust-lengths --video-weight 20 -o plan.jsonl
      capflow plan Metafile.json --remaining -o rest.jsonl
      capflow plan Metafile.json --ranks 8 --json | jq '.ranks[].samples'

    Metafile.json names datasets; the keys from task on may be left out:
      {"ADE20K": {"root": "/data/ade20k", "annotation": "ade20k.json", "modality": "image",
                  "task": "Natural", "length": 100000, "sample_count": 42522}}
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.settings import read_settings
    from producer.planning.planner import PlanOrder, captioned_in
    from producer.services import database

    if not sources:
        raise click.UsageError("name at least one SOURCE, such as a folder or a metafile")
    output = output.absolute()
    if any(output.exists() and Path(source).exists() and output.samefile(source) for source in sources):
        raise click.UsageError("-o names a source itself; name another file for the plan")
    folder = (samples or output.parent / "samples").absolute()
    keys = {name: options.pop(name) for name in ("image_key", "id_key", "parts", "root")}
    order = PlanOrder(output=output, samples=folder, trusts_lengths=options.pop("trust_lengths"), **options)
    settings = read_settings()
    make = partial(plan_sources, sources, keys, order, load_catalogue(settings.domains).resolve)
    if remaining:
        with database(settings) as url:
            planned = make(partial(captioned_in, url))
    else:
        planned = make()
    for warning in planned.warnings:
        click.echo(f"warning: {warning}", err=True)
    if not as_json:
        click.echo(_summary(planned, order))
        return
    written = {"plan": str(output) if planned.lines else None, "lines": len(planned.lines)}
    names = ("datasets", "total", "processed", "remain", "ranks", "warnings")
    cli.print_json(written | {name: getattr(planned, name) for name in names})


def _summary(planned: Planned, order: PlanOrder) -> str:
    from producer.console import counted

    datasets = counted(planned.datasets, "dataset")
    if not planned.lines:
        return f"no plan is needed: all {planned.total} samples of {datasets} are captioned"
    done = f" ({planned.processed} of {planned.total} are captioned)" if planned.processed else ""
    costs = [rank["cost"] for rank in planned.ranks]
    lines, samples = counted(len(planned.lines), "line"), counted(planned.remain, "sample")
    return (
        f"{order.output}: {lines}, {samples} of {datasets}{done}\n"
        f"{counted(order.ranks, 'rank')}, each at a cost of {min(costs):g} to {max(costs):g} pictures"
    )
