"""How `capflow caption` and `capflow plan` read sources and make a plan of them: options and calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.errors import PlanError
from producer.cli import options as cli

if TYPE_CHECKING:
    from capflow_tasks.settings import Settings
    from producer.planning.planner import Planned, PlanOrder
    from producer.reading.plan import Resolve

sources_argument = click.argument("sources", metavar="SOURCE...", nargs=-1)

#: The options that `plan_sources` reads.
source_options = cli.combined(
    cli.option("--image-key KEY", "Key or column that names an entry's pictures or videos.", None, str),
    cli.option("--id-key KEY", "Key or column that holds an entry's id.", None, str),
    cli.flag(
        "--parts", "Caption the part that an entry's start and end (seconds), frame, or bbox (pixels) names."
    ),
    cli.option(
        "--root",
        "Folder that media paths are relative to.",
        kind=click.Path(path_type=Path, file_okay=False, exists=True),
        variable="MEDIA_ROOT",
        show_default="that of the source",
    ),
)


def planned(sources: Sequence[str], asked: dict[str, Any], settings: Settings, resolve: Resolve) -> Path:
    """Return the split plan of the sources: the one that is given, or one that is kept for them."""
    from producer.planning.planner import PlanOrder
    from producer.reading.plan import is_split_plan, kept_plan

    if len(sources) == 1 and is_split_plan(Path(sources[0])):
        _refuse_options(asked)
        return Path(sources[0])
    output = settings.home.absolute() / kept_plan(sources)
    processes = min(4, os.cpu_count() or 1)
    order = PlanOrder(output, 1, Fraction(1), output.parent, 0, trusts_lengths=False, processes=processes)
    plan = plan_sources(sources, asked, order, resolve)
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)
    return output


def plan_sources(
    sources: Sequence[str],
    asked: dict[str, Any],
    order: PlanOrder,
    resolve: Resolve,
    coverage: Callable[..., Any] | None = None,
) -> Planned:
    """List the sources, try some of their entries, and write the plan. Raises PlanError."""
    from producer.parallel import ProgressLines
    from producer.planning.listings import SourceOrder
    from producer.planning.planner import make_plan
    from producer.planning.preflight import check_datasets
    from producer.planning.sources import read_sources
    from producer.reading.plan import is_split_plan
    from producer.reading.tables import Keys

    if plans := [source for source in sources if is_split_plan(Path(source))]:
        raise PlanError(f"{plans[0]}: is a split plan already; capflow caption takes it, alone")
    keys = Keys(asked.pop("image_key"), asked.pop("id_key"), asked.pop("parts"))
    root = asked.pop("root")
    reading = SourceOrder(order.samples, keys, root and root.absolute(), order.processes)
    found = read_sources(sources, reading, resolve, ProgressLines("entries listed"))
    counted = ProgressLines("annotation files counted")
    made = make_plan(found.datasets, order, counted, coverage, check_datasets)
    made.warnings[:0] = found.warnings
    return made


def _refuse_options(asked: dict[str, Any]) -> None:
    for name in ("image_key", "id_key", "parts", "root"):
        if asked.pop(name):
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{option} is for other sources than a split plan; correct the plan instead"
            )
