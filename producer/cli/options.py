"""The command and option classes, and the options that several commands have.

A command's module imports the rest of Capflow inside its function, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

import click

from capflow_tasks.errors import EXIT_INTERRUPTED, CapflowError, ServiceError, redacted
from capflow_tasks.records import Rule, Workflow

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from capflow_tasks.domains.catalogue import Catalogue
    from capflow_tasks.store.figures import RunFigures
    from producer.budget import Budget
    from producer.reading.caption_files import Minimums, Rubrics
    from producer.reading.marks import Marks

Decorator = Callable[[Callable[..., None]], Callable[..., None]]

#: What an exit code means, unless a command says otherwise.
EXIT_CODES = {
    0: "everything is done",
    1: "some samples failed",
    2: "the input has to be fixed",
    3: "a service cannot be reached, or a file cannot be written",
    4: "some samples are held back",
    5: "paused at --max-tokens or --max-cost, or as too much failed alike",
    130: "interrupted",
}

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
ANY_PATH = click.Path(path_type=Path)
EXISTING_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
COUNT = click.IntRange(0)


class Option(click.Option):
    """An option that reads CAPFLOW_<NAME>; its help shows that variable and the default."""

    #: Those of all options of the modules that have been imported.
    variables: ClassVar[set[str]] = set()

    def __init__(self, names: Sequence[str], variable: str = "", **attributes: Any) -> None:
        attributes.setdefault("show_default", attributes["default"] is not None or "none")
        super().__init__(names, show_envvar=True, **attributes)
        self.envvar = f"CAPFLOW_{variable or str(self.name).upper()}"
        Option.variables.add(self.envvar)

    def type_cast_value(self, context: click.Context, value: Any) -> Any:
        """As click, but say which numbers are expected."""
        try:
            return super().type_cast_value(context, value)
        except click.BadParameter:
            if not (expected := _numbers_expected(self.type)):
                raise
            raise click.BadParameter(f"expected {expected}, not {value!r}", context, self) from None


def _numbers_expected(kind: click.ParamType[Any]) -> str | None:
    """Describe the numbers that an option takes; None for one that takes other values."""
    noun = "a whole number" if isinstance(kind, click.types.IntParamType) else "a number"
    if not isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return None
    if not isinstance(kind, click.IntRange | click.FloatRange) or kind.min is None:
        return noun
    if kind.max is not None:
        return f"{noun} from {kind.min:g} to {kind.max:g}"
    return f"{noun} above {kind.min:g}" if kind.min_open else f"{noun} of {kind.min:g} or more"


def option(
    names: str, text: str, default: Any = None, kind: Any = None, variable: str = "", **attributes: Any
) -> Decorator:
    """Make an Option of its names and unit ("-w --wait SECONDS"), help text, default and click type."""
    unit = next((word for word in names.split() if word.isupper()), None)
    words = [word for word in names.split() if word != unit]
    attributes |= {"help": text, "default": default, "type": kind, "metavar": unit, "variable": variable}
    return click.option(*words, cls=Option, **attributes)


def flag(names: str, text: str) -> Decorator:
    """Make an option without a value or a variable: it is about this one call."""
    return click.option(*names.split(), is_flag=True, help=text)


def repeatable(names: str, text: str, parse: Any = None, **attributes: Any) -> Decorator:
    """Make an option without a variable that may be given several times."""
    text = f"{text}; repeatable."
    return click.option(*names.split(), multiple=True, callback=parse, help=text, **attributes)


def nearest(word: str, known: Sequence[str]) -> str:
    """Suggest the known word that is closest to a wrong one, or all of them if none is close."""
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"use one of: {', '.join(known)}"


class Explained(click.Command):
    """A command with -h and --version, whose help ends with exit codes, settings and examples.

    The examples are the part of the docstring after "Examples:", shown as it stands.
    """

    def __init__(
        self,
        *arguments: Any,
        exit_codes: Sequence[int] = (),
        exit_meanings: Mapping[int, str] | None = None,
        shows_settings: bool = False,
        **attributes: Any,
    ) -> None:
        text = inspect.cleandoc(attributes.get("help") or "")
        attributes["help"], _, self._examples = text.partition("\n\nExamples:\n")
        super().__init__(*arguments, **attributes)
        self._exit_codes = {code: EXIT_CODES[code] for code in exit_codes} | dict(exit_meanings or {})
        self._shows_settings = shows_settings
        self.context_settings.update(help_option_names=["-h", "--help"], max_content_width=110)
        click.version_option(package_name="capflow-fleet", message="capflow %(version)s")(self)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        sections = {"Exit codes": [(str(code), text) for code, text in sorted(self._exit_codes.items())]}
        if self._shows_settings:
            from capflow_tasks.settings import Settings

            sections["Settings (environment)"] = [
                (
                    f"CAPFLOW_{name.upper()}",
                    f"{field.description} [{'unset' if field.default is None else field.default}]",
                )
                for name, field in Settings.model_fields.items()
            ]
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=40)
        if self._examples:
            formatter.write(f"\nExamples:\n{self._examples}\n")


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at the time, so that log lines stand above a progress bar."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


class Command(Explained):
    """A command that reports an error in one sentence, and shows its traceback only with -v."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        flag("-v --verbose", "Show tracebacks and the debug log.")(self)

    def invoke(self, context: click.Context) -> Any:
        from capflow_tasks.observe.logs import RedactingFormatter, print_redacted
        from capflow_tasks.settings import check_environment

        is_verbose = context.params.pop("verbose")
        handler = StderrHandler()
        handler.setFormatter(RedactingFormatter(logging.Formatter("%(levelname)s %(message)s")))
        logging.basicConfig(level=logging.DEBUG if is_verbose else logging.WARNING, handlers=[handler])
        logging.getLogger("producer").setLevel(logging.DEBUG if is_verbose else logging.INFO)
        sys.excepthook = print_redacted
        try:
            # The modules of all commands cost little to import; then all variables are known.
            for module in iter_modules([str(Path(__file__).parent)]):
                import_module(f"producer.cli.{module.name}")
            check_environment(Option.variables)
            return super().invoke(context)
        except KeyboardInterrupt:
            context.exit(EXIT_INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            known = _known_error(error)
            if is_verbose or known is None:
                raise
            for line in str(known).splitlines():
                click.echo(redacted(f"{context.command_path}: error: {line}"), err=True)
            context.exit(known.exit_code)


def _known_error(error: Exception) -> CapflowError | None:
    """Return what to say without a traceback: Capflow's own errors, and those of servers that are away."""
    if isinstance(error, CapflowError):
        return error
    # Imported here because few commands fail so, and some never touch a server.
    from capflow_tasks import outages

    if outages.is_outage(error):
        return ServiceError(f"a server cannot be reached: {outages.explained(error)}")
    return None


class Group(Explained, click.Group):
    """A command with subcommands."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = arguments[0], self.list_commands(context)
        if not name.startswith("-") and self.get_command(context, name) is None:
            context.fail(f"there is no command {name!r}; {nearest(name, known)}")
        return super().resolve_command(context, arguments)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            # While the subcommand's modules are imported.
            context.exit(EXIT_INTERRUPTED)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


run_argument = click.argument("run_or_plan", metavar="RUN")


@contextmanager
def open_run(run_or_plan: str) -> Iterator[tuple[RunFigures, Engine]]:
    """Yield the run of this name or plan, and the database that holds it. Raises UserError."""
    from capflow_tasks.settings import read_settings
    from producer.services import database, find_run, reading

    with database(read_settings()) as url, reading(url) as engine:
        yield find_run(engine, run_or_plan), engine


def output_option(text: str, variable: str, default: str | None = None, **attributes: Any) -> Decorator:
    attributes["callback"] = lambda context, option, path: path and path.absolute()
    return option("-o --output", text, default, FOLDER, variable, **attributes)


def json_option(what: str = "the summary as one JSON object") -> Decorator:
    return flag("--json as_json", f"Print {what}.")


def processes_option(what: str, variable: str) -> Decorator:
    text = f"{what} at a time, each in its own process."
    default, shown = min(4, os.cpu_count() or 1), "one per CPU, at most 4"
    return option("--processes", text, default, click.IntRange(1, 256), variable, show_default=shown)


def _parse_workflow(context: click.Context, option: click.Parameter, value: str) -> str:
    """Return a name as it is, and a folder as an absolute path."""
    if value in set(Workflow):
        return str(value)
    if not Path(value).is_dir():
        raise click.BadParameter(f"{value!r} is no folder of domain files; {nearest(value, list(Workflow))}")
    return str(Path(value).resolve())


workflow_option = option(
    "--workflow",
    "The agents: standard (those of each domain), fast (one call and the judge), verified (as standard, with "
    "claims asked one by one and --candidates 3), or a folder of domain files that every worker sees at this "
    "path.",
    Workflow.STANDARD,
    callback=_parse_workflow,
)

prices_option = option(
    "--prices", "Price table (YAML) whose entries override the built-in ones.", kind=EXISTING_FILE
)


def _grades(
    separator: str, context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, int]:
    """Parse values such as NAME=3."""
    grades = {}
    for value in values:
        name, _, grade = value.rpartition(separator)
        if not name.strip() or grade.strip() not in ("1", "2", "3"):
            raise click.BadParameter(f"{value!r} is not NAME{separator}GRADE with a grade of 1, 2 or 3")
        grades[name.strip()] = int(grade)
    return grades


def combined(*decorators: Decorator) -> Decorator:
    """Make one decorator of several, in the order in which the help shows them."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def min_option(text: str) -> Decorator:
    return repeatable("--min dimensions", text, partial(_grades, "="), metavar="DIMENSION=GRADE")


#: The options that `minimums_of` reads.
minimum_options = combined(
    option("--min-overall", "Lowest overall grade to keep.", 3, click.IntRange(1, 3)),
    option("--min-dim-score", "Lowest grade to keep in each dimension.", 3, click.IntRange(1, 3)),
    min_option("Lowest grade in this dimension, instead of --min-dim-score"),
    repeatable(
        "--min-domain domains",
        "Lowest overall grade in this domain, instead of --min-overall",
        partial(_grades, ":"),
        metavar="DOMAIN:OVERALL",
    ),
)


drop_guard_option = repeatable(
    "--drop-guard rules",
    "Leave out captions in whose making the guard found this, though it was repaired or asked again",
    type=click.Choice([rule.value for rule in Rule]),
)


#: The options that `shares_of` reads.
share_options = combined(
    option(
        "--min-quote-support",
        "Lowest share of quoted passages that stand in the picture; captions without quotes are kept.",
        kind=click.FloatRange(0, 1),
    ),
    option(
        "--min-text-coverage",
        "Lowest share of the words surely read in the picture that the caption holds, or a verbatim report.",
        kind=click.FloatRange(0, 1),
    ),
    option(
        "--min-claim-support",
        "Lowest share of claims that the media bear out; captions that were not verified are kept.",
        kind=click.FloatRange(0, 1),
    ),
)


def shares_of(asked: dict[str, Any]) -> dict[str, float]:
    """Return the lowest shares that are asked for, by their keys in caption files."""
    asked_for = {name: asked[f"min_{name}"] for name in ("quote_support", "text_coverage", "claim_support")}
    return {name: share for name, share in asked_for.items() if share is not None}


def marks_option(text: str) -> Decorator:
    """Make the option --marks; `read_marks` reads its file."""
    return option("--marks FILE", f"{text}.", None, EXISTING_FILE, "MARKS")


def read_marks(path: Path | None) -> Marks | None:
    """Read the marks of a file. Raises UserError."""
    from producer.reading.marks import Marks

    return Marks(path) if path else None


#: The options that `budget_of` reads.
budget_options = combined(
    option(
        "--max-tokens TOKENS",
        "Pause when the run has used so many, of prompts and answers.",
        kind=click.IntRange(1),
    ),
    option(
        "--max-cost USD", "Pause when the run has cost so much.", None, click.FloatRange(0, min_open=True)
    ),
    prices_option,
)


def budget_of(asked: dict[str, Any]) -> Budget | None:
    """Take the budget's options out of the others; None where there is neither a limit nor a table."""
    from producer.budget import Budget
    from producer.cost import read_prices

    max_tokens, max_usd, prices = (asked.pop(name) for name in ("max_tokens", "max_cost", "prices"))
    if max_tokens is None and max_usd is None and prices is None:
        return None
    return Budget(max_tokens, max_usd, read_prices(prices))


def minimums_of(catalogue: Catalogue, rubrics: Rubrics, asked: dict[str, Any]) -> Minimums:
    """Return the minimums by canonical names. Raises UsageError for a dimension that no judge grades."""
    from producer.reading.caption_files import Minimums

    dimensions: dict[str, int] = asked["dimensions"]
    if unknown := sorted(dimensions.keys() - rubrics.dimensions):
        known = ", ".join(sorted(rubrics.dimensions))
        raise click.UsageError(f"--min: no judge grades {', '.join(unknown)}; use some of: {known}")
    domains = {catalogue.resolve(name).name: grade for name, grade in asked["domains"].items()}
    return Minimums(asked["min_overall"], asked["min_dim_score"], dimensions, domains)
