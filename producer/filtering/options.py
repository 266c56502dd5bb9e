"""The flags that say which captions are good enough, for every command that asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from capflow_tasks.domains.catalogue import Catalogue
    from producer.filtering.rubrics import Rubrics
    from producer.filtering.scores import Minimums


def _grades(separator: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, int]]:
    """Reads values such as NAME=3."""

    def parse(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
        grades = {}
        for value in values:
            name, _, grade = value.rpartition(separator)
            if not name.strip() or grade.strip() not in ("1", "2", "3"):
                raise click.BadParameter(f"{value!r} is not NAME{separator}GRADE with a grade of 1, 2 or 3")
            grades[name.strip()] = int(grade)
        return grades

    return parse


def _minimum(
    flag: str, variable: str, help_text: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        flag,
        envvar=variable,
        default=3,
        type=click.IntRange(1, 3),
        help=help_text,
        show_envvar=True,
        show_default=True,
    )


_OPTIONS = (
    _minimum("--min-overall", "CAPFLOW_MIN_OVERALL", "Least overall grade, 1 to 3."),
    _minimum("--min-dim-score", "CAPFLOW_MIN_DIM_SCORE", "Least grade in each dimension, 1 to 3."),
    click.option(
        "--min",
        "dimensions",
        multiple=True,
        metavar="DIMENSION=GRADE",
        callback=_grades("="),
        help="Least grade in this dimension, in place of --min-dim-score; repeatable.  [default: none]",
    ),
    click.option(
        "--min-domain",
        "domains",
        multiple=True,
        metavar="DOMAIN:OVERALL",
        callback=_grades(":"),
        help="Least overall grade in this domain, in place of --min-overall; repeatable.  [default: none]",
    ),
)


def minimum_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives the command the arguments that `minimums_of` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def minimums_of(catalogue: Catalogue, rubrics: Rubrics, asked: dict[str, Any]) -> Minimums:
    """What was asked for, by the catalogue's names. Raises UsageError for a dimension that nobody grades."""
    from producer.filtering.scores import Minimums

    dimensions: dict[str, int] = asked["dimensions"]
    if unknown := sorted(dimensions.keys() - rubrics.dimensions):
        known = ", ".join(sorted(rubrics.dimensions))
        raise click.UsageError(f"--min: no judge grades {', '.join(unknown)}; use some of: {known}")
    domains = {catalogue.resolve(name).name: grade for name, grade in asked["domains"].items()}
    return Minimums(asked["min_overall"], asked["min_dim_score"], dimensions, domains)
