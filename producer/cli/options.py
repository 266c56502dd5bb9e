"""What all commands have in common: how an error is told, and what the exit code says."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capflow_tasks.errors import EXIT_INTERRUPTED, CapflowError, redacted
from capflow_tasks.observe.logs import RedactingFormatter, print_redacted
from capflow_tasks.settings import Settings

if TYPE_CHECKING:
    from capflow_tasks.domains.catalogue import Catalogue
    from producer.reading.scores import Minimums, Rubrics


EXIT_CODES = """\b
Exit codes: 0 all is done; 1 some samples failed; 2 the input must be mended;
3 a service cannot be reached; 4 some samples are held back; 130 interrupted."""


class Command(click.Command):
    """A command whose errors are one sentence, and a traceback only with -v."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.append(
            click.Option(
                ["-v", "--verbose"], is_flag=True, expose_value=False, help="Tracebacks and debug log."
            )
        )

    def invoke(self, context: click.Context) -> Any:
        is_verbose = "-v" in sys.argv[1:] or "--verbose" in sys.argv[1:]
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(RedactingFormatter(logging.Formatter("%(levelname)s %(message)s")))
        logging.basicConfig(level=logging.DEBUG if is_verbose else logging.WARNING, handlers=[handler])
        sys.excepthook = print_redacted
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            context.exit(EXIT_INTERRUPTED)
        except CapflowError as error:
            if is_verbose:
                raise
            for line in str(error).splitlines():
                click.echo(redacted(f"{context.info_name}: error: {line}"), err=True)
            context.exit(error.exit_code)


def settings_help() -> str:
    """Every setting with its variable, meaning and default, for the end of a command's help."""
    fields = Settings.model_fields.items()
    width = max(len(name) for name, _ in fields)
    lines = (
        f"  CAPFLOW_{name.upper():<{width}}  {field.description} [{_default(field.default)}]"
        for name, field in fields
    )
    return "\b\nSettings (environment):\n" + "\n".join(lines)


def _default(value: Any) -> str:
    return "unset" if value is None else str(value)


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def processes(variable: str, what: str) -> Decorator:
    """How many of these are dealt with at a time, each in a process of its own."""
    return click.option(
        "--processes",
        envvar=variable,
        default=min(4, os.cpu_count() or 1),
        type=click.IntRange(1, 256),
        help=f"{what} at a time.  [default: one per CPU, at most 4]",
        show_envvar=True,
    )


def prices() -> Decorator:
    return click.option(
        "--prices",
        envvar="CAPFLOW_PRICES",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Price table (YAML) that is laid over the one that is shipped.  [default: that one alone]",
        show_envvar=True,
    )


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
    from producer.reading.scores import Minimums

    dimensions: dict[str, int] = asked["dimensions"]
    if unknown := sorted(dimensions.keys() - rubrics.dimensions):
        known = ", ".join(sorted(rubrics.dimensions))
        raise click.UsageError(f"--min: no judge grades {', '.join(unknown)}; use some of: {known}")
    domains = {catalogue.resolve(name).name: grade for name, grade in asked["domains"].items()}
    return Minimums(asked["min_overall"], asked["min_dim_score"], dimensions, domains)
