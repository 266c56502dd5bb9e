"""What all commands have in common: errors, exit codes, help, variables."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import click
import pytest
from click.testing import CliRunner, Result

from capflow_tasks.errors import PlanError, ServiceError
from capflow_tasks.settings import Settings
from producer.cli.__main__ import capflow
from producer.cli.options import Command


def a_command(error: BaseException) -> click.Command:
    @click.command(cls=Command, name="capflow-try")
    def command() -> None:
        raise error

    return command


def run(*arguments: str, **environment: str) -> Result:
    """Run `capflow` with these arguments on a wide terminal."""
    return CliRunner(env=environment).invoke(capflow, arguments, prog_name="capflow", terminal_width=200)


def test_an_error_is_printed_by_line_and_its_class_gives_the_exit_code() -> None:
    answer = CliRunner().invoke(a_command(PlanError("line 1 is bad\nline 2 is bad")))

    assert answer.exit_code == 2
    assert answer.stderr.splitlines() == [
        "capflow-try: error: line 1 is bad",
        "capflow-try: error: line 2 is bad",
    ]
    assert answer.stdout == ""


@pytest.mark.parametrize(("error", "code"), [(ServiceError("away"), 3), (KeyboardInterrupt(), 130)])
def test_the_exit_code_says_what_to_do(error: BaseException, code: int) -> None:
    assert CliRunner().invoke(a_command(error)).exit_code == code


def test_a_traceback_is_there_for_those_who_ask() -> None:
    assert isinstance(CliRunner().invoke(a_command(ServiceError("away")), ["-v"]).exception, ServiceError)


def test_the_help_names_every_setting_with_its_default() -> None:
    text = " ".join(run("caption", "-h").stdout.split())

    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else field.default
        assert f" CAPFLOW_{name.upper()} {field.description} [{default}]" in text


@pytest.mark.parametrize("name", [*capflow.list_commands(click.Context(capflow)), "produce"])
def test_every_command_has_help_with_examples_a_short_option_for_it_and_a_version(name: str) -> None:
    helped = run(name, "-h")
    version = run(name, "--version")

    assert (helped.exit_code, version.exit_code, version.stdout) == (0, 0, "capflow 0.1.0\n")
    assert helped.stdout.startswith(f"Usage: capflow {name} ")
    if name not in ("db", "domains", "eval"):
        assert (
            f"  capflow {name.replace('produce', 'caption')}" in helped.stdout.partition("\nExamples:\n")[2]
        )
        assert "\nExit codes:\n" in helped.stdout


def test_a_command_prints_only_the_exit_codes_that_it_has() -> None:
    def codes(name: str) -> list[str]:
        section = run(name, "-h").stdout.partition("Exit codes:\n")[2].partition("\n\n")[0]
        return [line.split()[0] for line in section.splitlines()]

    assert codes("caption") == ["0", "1", "2", "3", "4", "5", "130"]
    assert codes("score") == ["0", "1", "2", "3", "5", "130"]
    assert codes("stop") == ["0", "2", "3"]
    assert codes("delete") == ["0", "1", "2", "3"]


def test_the_help_of_an_option_shows_its_variable_unit_and_default() -> None:
    text = " ".join(run("doctor", "-h").stdout.split())

    assert "--timeout SECONDS How long workers may take to answer. [env var: CAPFLOW_DOCTOR_TIMEOUT; " in text
    assert "default: 2.0;" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["statsu"], "there is no command 'statsu'; did you mean status?"),
        (["xyz"], "there is no command 'xyz'; use one of: caption, retry, resume, plan, "),
        (["domains", "shw"], "there is no command 'shw'; did you mean show?"),
        (
            ["retry", "plan.jsonl", "--kind", "media_mising"],
            "'media_mising'; did you mean media_missing?",
        ),
        (
            ["retry", "plan.jsonl", "--kind", "xyz"],
            "'xyz'; use one of: bad_entry, text_only, media_missing, ",
        ),
        (["caption"], "name a SOURCE, or use --reconcile alone"),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest_word(arguments: list[str], message: str) -> None:
    answer = run(*arguments)

    assert answer.exit_code == 2
    assert message in answer.stderr


def test_a_misspelt_variable_is_refused_with_the_nearest_name() -> None:
    answer = run("domains", "list", CAPFLOW_BATCH_SIZES="8", CAPFLOW_DATABSE_URL="x", CAPFLOW_MY_OWN="1")

    assert answer.exit_code == 2
    assert [line.rpartition("did you mean ")[2] for line in answer.stderr.splitlines()] == [
        "CAPFLOW_BATCH_SIZE?",
        "CAPFLOW_DATABASE_URL?",
    ]


def test_variables_of_other_commands_and_of_the_deployment_are_accepted() -> None:
    names = "PLAN PLAN_OUTPUT SCORE_RUN EXPORT ENV ENVIRONMENT PASSWORD_FILE TAG TARGET USER CONCURRENCY"
    environment = {f"CAPFLOW_{name}": "8" for name in names.split()}

    answer = run("domains", "list", **environment)

    assert answer.exit_code == 0, answer.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["caption", "--help"], ["status", "--help"]])
def test_help_waits_neither_for_sqlalchemy_nor_for_celery(arguments: list[str]) -> None:
    script = (
        "import sys; from producer.cli.__main__ import capflow; "
        f"capflow({arguments!r}, standalone_mode=False); "
        "print(*sys.modules.keys() & {'sqlalchemy', 'celery', 'torch', 'rich'}, file=sys.stderr)"
    )

    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )

    assert answer.stderr == "\n"


def test_the_older_names_are_the_same_commands() -> None:
    scripts = entry_points(group="console_scripts")
    older = [script for script in scripts if script.name.startswith("capflow-")]

    assert len(older) == 12
    for script in older:
        name = script.name.removeprefix("capflow-")
        assert script.load() is capflow.get_command(click.Context(capflow), name)
