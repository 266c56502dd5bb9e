"""What all commands have in common: how an error is told, and what the exit code says."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from capflow_tasks.errors import EXIT_INTERRUPTED, CapflowError
from capflow_tasks.log_format import RedactingFormatter
from capflow_tasks.redaction import print_redacted, redacted
from capflow_tasks.settings import Settings

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
