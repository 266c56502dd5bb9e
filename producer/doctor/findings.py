"""What a check finds, and the exit code that follows from all findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from capflow_tasks.errors import EXIT_OK, EXIT_SAMPLES_FAILED, EXIT_SERVICE


class Level(StrEnum):
    OK = "ok"
    #: Works, but badly or not for long.
    WARN = "warn"
    #: Does not work.
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `capflow doctor`, without passwords."""

    check: str
    level: Level
    said: str
    #: The command or setting that fixes it; empty when nothing is wrong.
    remedy: str = ""
    #: Whether the database or the broker cannot be reached.
    is_service: bool = False


def ok(check: str, said: str) -> Finding:
    return Finding(check, Level.OK, said)


def warn(check: str, said: str, remedy: str, *, unless: bool = False) -> Finding:
    """Return a warning, or an OK finding of the same text `unless` it is not due."""
    return ok(check, said) if unless else Finding(check, Level.WARN, said, remedy)


def fail(check: str, said: str, remedy: str, *, unless: bool = False, is_service: bool = False) -> Finding:
    """Return a failure, or an OK finding of the same text `unless` it is not due."""
    return ok(check, said) if unless else Finding(check, Level.FAIL, said, remedy, is_service)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 3 when a service cannot be reached, 1 when anything else fails, and 0 otherwise."""
    failed = [finding for finding in findings if finding.level is Level.FAIL]
    if any(finding.is_service for finding in failed):
        return EXIT_SERVICE
    return EXIT_SAMPLES_FAILED if failed else EXIT_OK
