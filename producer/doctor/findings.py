"""What a check finds, and what the sum of all findings is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from capflow_tasks.errors import EXIT_OK, EXIT_SAMPLES_FAILED, EXIT_SERVICE


class Level(StrEnum):
    OK = "ok"
    #: Works, and not as well as it could, or not for long.
    WARN = "warn"
    #: Does not work.
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's. Holds no password."""

    check: str
    level: Level
    said: str
    #: The command or setting that mends it; empty when all is well.
    remedy: str = ""
    #: Whether it is the database or the broker that cannot be reached.
    is_service: bool = False


def ok(check: str, said: str) -> Finding:
    return Finding(check, Level.OK, said)


def warn(check: str, said: str, remedy: str) -> Finding:
    return Finding(check, Level.WARN, said, remedy)


def fail(check: str, said: str, remedy: str, is_service: bool = False) -> Finding:
    return Finding(check, Level.FAIL, said, remedy, is_service)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 when nothing fails, 3 when a service cannot be reached, else 1."""
    failed = [finding for finding in findings if finding.level is Level.FAIL]
    if any(finding.is_service for finding in failed):
        return EXIT_SERVICE
    return EXIT_SAMPLES_FAILED if failed else EXIT_OK
