"""`capflow agreement`: compare two judges."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from producer.cli import options as cli

if TYPE_CHECKING:
    from producer.agreement import JudgeComparison


@click.command(cls=cli.Command, exit_codes=(2,), exit_meanings={0: "compared"})
@click.argument("first", type=cli.FOLDER)
@click.argument("second", type=cli.FOLDER)
@cli.json_option("the figures as one JSON object")
def agreement(first: Path, second: Path, as_json: bool) -> None:
    """Show how far the scores in FIRST and SECOND, two folders of the same captions, agree.

    By dimension: the share of captions with the same grade, how much higher the second judge grades on the
    mean, and Cohen's kappa with quadratic weights, which is 1 for the same grades and 0 for what chance would
    give. `capflow score --anew` has captions scored by a second judge.

    Examples:
      capflow agreement Output/Caption Output/Second
      capflow agreement Output/Caption Output/Second --json | jq .dimensions.overall.kappa
    """
    from capflow_tasks.domains.catalogue import load_catalogue
    from capflow_tasks.settings import read_settings
    from producer.agreement import compare
    from producer.reading.caption_files import Rubrics

    found = compare(first, second, Rubrics(load_catalogue(read_settings().domains)))
    if as_json:
        cli.print_json(_as_json(found))
    else:
        _show(found)


def _as_json(found: JudgeComparison) -> dict[str, object]:
    dimensions = {
        name: {
            "captions": each.captions,
            "exact": round(each.exact, 4),
            "mean_difference": round(each.mean_difference, 4),
            "kappa": None if each.kappa is None else round(each.kappa, 4),
        }
        for name, each in sorted(found.dimensions.items())
    }
    counts = {name: getattr(found, name) for name in ("captions", "only_first", "only_second")}
    return counts | {"dimensions": dimensions}


def _show(found: JudgeComparison) -> None:
    from rich.console import Console

    from producer.console import count, percent, table

    shown = table(None, ["dimension"], ["captions", "same grade", "second minus first", "kappa"])
    for name, each in sorted(found.dimensions.items(), key=lambda pair: (pair[0] == "overall", pair[0])):
        kappa = "-" if each.kappa is None else f"{each.kappa:.2f}"
        shown.add_row(name, count(each.captions), percent(each.exact), f"{each.mean_difference:+.2f}", kappa)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(shown)
    if found.only_first or found.only_second:
        console.print(
            f"Left out, as scored in one folder only: {count(found.only_first)} captions of the first, "
            f"{count(found.only_second)} of the second"
        )
