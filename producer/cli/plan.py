"""The command capflow-plan: parse, call, print."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.settings import Settings, read_settings
from producer.cli import options as flags
from producer.cli.options import EXIT_CODES, Command

if TYPE_CHECKING:
    from producer.planning.planner import Planned, PlanOrder


EPILOG = f"""\b
Examples:
  capflow-plan Metafile.json --ranks 8 -o plan.jsonl
  capflow-plan Metafile.json --ranks 64 --trust-lengths --video-weight 20 -o plan.jsonl
  CAPFLOW_DATABASE_URL=postgresql://capflow@db/capflow capflow-plan Metafile.json --remaining -o rest.jsonl
  capflow-plan Metafile.json --ranks 8 --json | jq '.ranks[].samples'

{EXIT_CODES}"""


def _fraction(context: click.Context, option: click.Parameter, value: float) -> Fraction:
    try:
        return Fraction(value).limit_denominator(1000)
    except ValueError:
        raise click.BadParameter("is not a number") from None


@click.command(cls=Command, epilog=EPILOG)
@click.argument("metafile", type=click.Path(path_type=Path))
@click.option(
    "--ranks",
    envvar="CAPFLOW_RANKS",
    default=1,
    type=click.IntRange(1, 100_000),
    help="Ranks to share the samples among.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "-o",
    "--output",
    envvar="CAPFLOW_PLAN",
    default="plan.jsonl",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The split plan to write, whole or not at all.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--video-weight",
    envvar="CAPFLOW_VIDEO_WEIGHT",
    default=11.0,
    type=click.FloatRange(0.001, 100_000),
    callback=_fraction,
    help="What one video costs, in pictures; 1,427 pictures take as long as 128 videos.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--seed",
    envvar="CAPFLOW_SAMPLE_SEED",
    default=0,
    type=int,
    help="Chooses the samples of a dataset with a sample_count; the same seed, the same samples.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--samples",
    envvar="CAPFLOW_SAMPLES",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the chosen samples.  [default: samples, beside the plan]",
    show_envvar=True,
)
@click.option(
    "--trust-lengths",
    envvar="CAPFLOW_TRUST_LENGTHS",
    is_flag=True,
    help="Believe each dataset's length; annotation files are not counted.  [default: count them]",
    show_envvar=True,
)
@click.option(
    "--remaining",
    is_flag=True,
    help="Leave out what any run in the database has captioned.  [default: plan everything]",
)
@flags.processes("CAPFLOW_PLAN_PROCESSES", "Annotation files read")
@click.option("--json", "as_json", is_flag=True, help="Print what was planned as one JSON object.")
def plan(
    metafile: Path, output: Path, samples: Path | None, remaining: bool, as_json: bool, **options: Any
) -> None:
    """Write a split plan for the datasets that METAFILE names.

    Every rank gets the same to do, within one sample; large datasets are split. Annotation files are
    counted, and a length that differs is warned of. A plan can only name ranges of a file, so a dataset
    with a sample_count gets a file of its own: its samples, in the order they had, in the folder of
    --samples. That file's name depends on what is sampled and how, so a later plan finds it again.
    """
    # Only now: `--help` need not wait.
    from producer.planning.planner import PlanOrder

    output = output.absolute()
    if output.exists() and metafile.exists() and output.samefile(metafile):
        raise click.UsageError("-o names the metafile itself; name another file for the plan")
    folder = (samples or output.parent / "samples").absolute()
    order = PlanOrder(output=output, samples=folder, trusts_lengths=options.pop("trust_lengths"), **options)
    planned = _plan(metafile, order, remaining, read_settings())
    for warning in planned.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(json.dumps(_as_json(planned, order), ensure_ascii=False) if as_json else _told(planned, order))


def _plan(metafile: Path, order: PlanOrder, remaining: bool, settings: Settings) -> Planned:
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.records import Modality
    from producer.parallel import ProgressLines
    from producer.planning.metafile import read_metafile
    from producer.planning.planner import make_plan

    catalogue = load_catalogue(settings.domains)
    video_tasks = {domain.name for domain in catalogue.domains if domain.modality is Modality.VIDEO}
    datasets = read_metafile(metafile, lambda task: catalogue.resolve(task).name, video_tasks)
    told = ProgressLines("annotation files counted")
    if not remaining:
        return make_plan(datasets, order, told)
    from producer.planning.planner import captioned_in
    from producer.services import database

    with database(settings) as url:
        return make_plan(datasets, order, told, partial(captioned_in, url))


def _told(planned: Planned, order: PlanOrder) -> str:
    datasets = f"{planned.datasets} {'dataset' if planned.datasets == 1 else 'datasets'}"
    if not planned.lines:
        return f"no plan is needed: all {planned.total} samples of {datasets} are captioned"
    done = f" ({planned.processed} of {planned.total} are captioned)" if planned.processed else ""
    costs = [share.cost for share in planned.shares]
    return (
        f"{order.output}: {len(planned.lines)} lines, {planned.remain} samples of {datasets}{done}\n"
        f"{order.ranks} ranks, each at a cost of {min(costs):g} to {max(costs):g} pictures"
    )


def _as_json(planned: Planned, order: PlanOrder) -> dict[str, Any]:
    return {
        "plan": str(order.output) if planned.lines else None,
        "lines": len(planned.lines),
        "datasets": planned.datasets,
        "total": planned.total,
        "processed": planned.processed,
        "remain": planned.remain,
        "ranks": [
            {"rank": rank, "samples": share.samples, "cost": share.cost}
            for rank, share in enumerate(planned.shares)
        ],
        "warnings": planned.warnings,
    }


if __name__ == "__main__":
    plan()
