"""`capflow plan`: write a split plan."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producer.cli import options as cli

if TYPE_CHECKING:
    from producer.planning.planner import Planned, PlanOrder


def _fraction(context: click.Context, option: click.Parameter, value: float) -> Fraction:
    try:
        return Fraction(value).limit_denominator(1000)
    except ValueError:
        raise click.BadParameter("is not a number") from None


@click.command(cls=cli.Command, exit_codes=(0, 2, 3, 130))
@click.argument("metafile", type=cli.ANY_PATH)
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
    "--samples", "Folder of the chosen samples.", kind=cli.FOLDER, show_default="samples, next to the plan"
)
@cli.option(
    "--trust-lengths", "Believe each dataset's length instead of counting its entries.", False, is_flag=True
)
@cli.flag("--remaining", "Leave out what any run in the database has captioned.")
@cli.processes_option("Annotation files read", "PLAN_PROCESSES")
@cli.json_option("what was planned as one JSON object")
def plan(
    metafile: Path, output: Path, samples: Path | None, remaining: bool, as_json: bool, **options: Any
) -> None:
    """Write a split plan for the datasets that METAFILE names.

    Every rank gets the same amount of work, within one sample; large datasets are split. Annotation files
    are counted, and a wrong length is reported. A plan can only name ranges of a file, so the samples of a
    dataset with a sample_count are copied to a file of their own in the folder of --samples. The name of that
    file depends on what is sampled and how, so a later plan finds it again.

    Examples:
      capflow plan Metafile.json --ranks 8 -o plan.jsonl
      capflow plan Metafile.json --ranks 64 --trust-lengths --video-weight 20 -o plan.jsonl
      capflow plan Metafile.json --remaining -o rest.jsonl
      capflow plan Metafile.json --ranks 8 --json | jq '.ranks[].samples'
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.settings import read_settings
    from producer.parallel import ProgressLines
    from producer.planning.metafile import read_metafile
    from producer.planning.planner import PlanOrder, captioned_in, make_plan
    from producer.services import database

    output = output.absolute()
    if output.exists() and metafile.exists() and output.samefile(metafile):
        raise click.UsageError("-o names the metafile itself; name another file for the plan")
    folder = (samples or output.parent / "samples").absolute()
    order = PlanOrder(output=output, samples=folder, trusts_lengths=options.pop("trust_lengths"), **options)
    settings = read_settings()
    datasets = read_metafile(metafile, load_catalogue(settings.domains).resolve)
    make = partial(make_plan, datasets, order, ProgressLines("annotation files counted"))
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
    datasets = f"{planned.datasets} {'dataset' if planned.datasets == 1 else 'datasets'}"
    if not planned.lines:
        return f"no plan is needed: all {planned.total} samples of {datasets} are captioned"
    done = f" ({planned.processed} of {planned.total} are captioned)" if planned.processed else ""
    costs = [rank["cost"] for rank in planned.ranks]
    return (
        f"{order.output}: {len(planned.lines)} lines, {planned.remain} samples of {datasets}{done}\n"
        f"{order.ranks} ranks, each at a cost of {min(costs):g} to {max(costs):g} pictures"
    )
