"""What is claimed, what was measured of it, and which study measures what."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Goal:
    """The number that a claim is held against; None where there is none yet."""

    number: float | None = None
    #: Whether less is better.
    is_ceiling: bool = False

    def __str__(self) -> str:
        if self.number is None:
            return "none set"
        return f"{'at most' if self.is_ceiling else 'at least'} {self.number:,g}"

    def share_reached(self, measured: float) -> float | None:
        """1 is the goal and more is better, whichever way the number is to go; None without a goal."""
        if self.number is None:
            return None
        reached, wanted = (self.number, measured) if self.is_ceiling else (measured, self.number)
        return reached / wanted if wanted else inf


@dataclass(frozen=True, slots=True)
class Measured:
    """What a study found of one claim."""

    #: None when it could not be measured; then the baseline says why.
    value: float | None
    #: What it was measured against, with that thing's own numbers.
    baseline: str


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a study works, and how much it may take."""

    #: A folder of its own, thrown away afterwards.
    folder: Path
    #: Millions of samples instead of a sample of them.
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Study:
    """One measurement, which may answer several claims at once."""

    goals: Mapping[str, Goal]
    measure: Callable[[Bench], Mapping[str, Measured]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    claim: str
    #: A number, or in words why there is none.
    measured: float | str
    goal: str
    baseline: str
    #: How much of the goal is reached, 1 for all of it; None where nothing was measured or no goal is set.
    share: float | None

    @property
    def is_met(self) -> bool | None:
        return None if self.share is None else self.share >= 1


def rows_of(study: Study, bench: Bench) -> list[Row]:
    """Measure; a study that fails costs its own rows and no others."""
    try:
        found = study.measure(bench)
    except Exception as error:
        log.warning("a study failed", exc_info=error)
        reason = f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]
        found = {claim: Measured(None, reason) for claim in study.goals}
    return [_row(claim, goal, found[claim]) for claim, goal in study.goals.items()]


def _row(claim: str, goal: Goal, found: Measured) -> Row:
    if found.value is None:
        return Row(claim, "not measured", str(goal), found.baseline, None)
    share = goal.share_reached(found.value)
    return Row(claim, float(f"{found.value:.4g}"), str(goal), found.baseline, share)
