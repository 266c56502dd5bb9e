"""Claims, their goals, and what was measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

log = logging.getLogger(__name__)

OUT_OF_TIME = "out of time on this machine; measure it alone with --only"


@dataclass(frozen=True, slots=True)
class Goal:
    """The number that a claim must reach; None where no goal is set."""

    number: float | None = None
    #: Whether the number is a maximum.
    is_ceiling: bool = False

    def __str__(self) -> str:
        if self.number is None:
            return "none set"
        return f"{'at most' if self.is_ceiling else 'at least'} {self.number:,g}"

    def share_reached(self, measured: float) -> float | None:
        """Return the share of the goal that is reached, more being better for either kind of goal."""
        if self.number is None:
            return None
        reached, wanted = (self.number, measured) if self.is_ceiling else (measured, self.number)
        return reached / wanted if wanted else inf


@dataclass(frozen=True, slots=True)
class Measured:
    """What a study found about one claim."""

    #: None when it could not be measured; the baseline then says why.
    value: float | None
    #: What it is compared with, and that thing's own numbers.
    baseline: str


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a study works, and how large it is."""

    #: A folder of its own, removed afterwards.
    folder: Path
    #: Whether to measure millions of samples.
    is_full: bool = False
    #: Whether it may take its time, because no other study waits or `--full` was asked for.
    is_alone: bool = True


@dataclass(frozen=True, slots=True)
class Study:
    """One measurement, which may answer several claims."""

    goals: Mapping[str, Goal]
    measure: Callable[[Bench], Mapping[str, Measured]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    claim: str
    #: A number, or the words "not measured".
    measured: float | str
    goal: str
    baseline: str
    #: Share of the goal that is reached; None where nothing was measured or no goal is set.
    share: float | None

    @property
    def is_met(self) -> bool | None:
        return None if self.share is None else self.share >= 1


def rows_of(study: Study, bench: Bench) -> list[Row]:
    """Measure; a study that fails loses only its own rows."""
    try:
        found = study.measure(bench)
    except Exception as error:
        log.warning("a study failed", exc_info=error)
        return unmeasured(study, f"failed: {type(error).__name__}: {error}".splitlines()[0][:200])
    return [_row(claim, goal, found[claim]) for claim, goal in study.goals.items()]


def unmeasured(study: Study, reason: str) -> list[Row]:
    """Return the study's rows with the reason why they have no numbers."""
    return [_row(claim, goal, Measured(None, reason)) for claim, goal in study.goals.items()]


def _row(claim: str, goal: Goal, found: Measured) -> Row:
    if found.value is None:
        return Row(claim, "not measured", str(goal), found.baseline, None)
    share = goal.share_reached(found.value)
    return Row(claim, float(f"{found.value:.4g}"), str(goal), found.baseline, share)
