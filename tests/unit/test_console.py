from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from capflow_tasks.errors import PlanError, ServiceError
from capflow_tasks.settings import Settings
from producer.cli.options import Command, settings_help


def a_command(error: BaseException) -> click.Command:
    @click.command(cls=Command, name="capflow-try")
    def command() -> None:
        raise error

    return command


def test_an_error_is_told_by_line_and_its_kind_is_the_exit_code() -> None:
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


def test_a_traceback_is_there_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["capflow-try", "-v"])

    assert isinstance(CliRunner().invoke(a_command(ServiceError("away")), ["-v"]).exception, ServiceError)


def test_the_help_names_every_setting_with_its_default() -> None:
    lines = settings_help()

    for name, field in Settings.model_fields.items():
        assert f"CAPFLOW_{name.upper()} " in lines
        assert str(field.description) in lines
    assert "[unset]" in lines
