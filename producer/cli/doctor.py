"""The command capflow-doctor: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capflow_tasks.settings import read_settings
from producer.cli.options import Command

if TYPE_CHECKING:
    from producer.doctor.findings import Finding


EPILOG = """\b
Examples:
  capflow-doctor
  capflow-doctor --plan plan.jsonl --output captions
  capflow-doctor --json | jq -r '.findings[] | select(.level != "ok") | .remedy'

\b
Exit codes: 0 nothing fails (warnings may be); 1 something fails; 2 a setting must be mended;
3 the database or the broker cannot be reached."""


@click.command(cls=Command, epilog=EPILOG)
@click.option(
    "--plan",
    envvar="CAPFLOW_PLAN",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Look at the media of this plan, too: every root, and a sample of files.  [default: none]",
    show_envvar=True,
)
@click.option(
    "--output",
    envvar="CAPFLOW_OUTPUT",
    default="Output/Caption",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the caption files, for its free space.",
    show_envvar=True,
    show_default=True,
)
@click.option(
    "--timeout",
    "timeout_seconds",
    envvar="CAPFLOW_DOCTOR_TIMEOUT",
    default=2.0,
    type=click.FloatRange(0.1, 60),
    help="How long workers may take to answer, seconds.",
    show_envvar=True,
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all findings.")
@click.pass_context
def doctor(
    context: click.Context, plan: Path | None, output: Path, timeout_seconds: float, as_json: bool
) -> None:
    """Look at everything that a fleet needs, and say what mends it: one line each, OK, WARN or FAIL.

    Looks from here, with the settings that are set here: run it where a worker is to run, and where
    capflow-produce is. Changes nothing and shows no password.
    """
    from producer.doctor.findings import exit_code
    from producer.doctor.machine import check_machine
    from producer.doctor.services import check_services

    settings, findings = read_settings(), []
    for finding in chain(check_machine(settings, output, plan), check_services(settings, timeout_seconds)):
        findings.append(finding)
        if not as_json:
            click.echo(_line(finding))
    code = exit_code(findings)
    if as_json:
        listed = [
            {key: value for key, value in asdict(each).items() if key != "is_service"} for each in findings
        ]
        click.echo(json.dumps({"exit_code": code, "findings": listed}, ensure_ascii=False))
    context.exit(code)


def _line(finding: Finding) -> str:
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{finding.level.upper():<4}  {finding.check:<13}  {finding.said}{remedy}"
