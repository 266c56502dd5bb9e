"""What came of scoring: counts, failures with file and line, mean grades by domain."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from capflow_tasks.records import Failure
from producer.filtering.scores import Scores

#: Failures that are kept for the terminal; all of them are in the failed files.
SHOWN_FAILURES = 20


@dataclass(slots=True)
class DomainGrades:
    """The grades of one domain's captions, added up."""

    records: int = 0
    overall: int = 0
    #: By dimension, in the order in which a judge gives them.
    dimensions: Counter[str] = field(default_factory=Counter)

    def add(self, scores: Scores) -> None:
        self.records += 1
        self.overall += scores.overall
        self.dimensions.update(scores.dimensions)

    def __add__(self, other: DomainGrades) -> DomainGrades:
        return DomainGrades(
            self.records + other.records, self.overall + other.overall, self.dimensions + other.dimensions
        )

    def mean(self, dimension: str) -> float:
        return self.dimensions[dimension] / self.records

    @property
    def mean_overall(self) -> float:
        return self.overall / self.records


@dataclass(frozen=True, slots=True)
class FailedLine:
    """A line that has no scores, and why."""

    path: Path
    line_number: int
    failure: Failure


@dataclass(slots=True)
class Grades:
    """How the lines of all files ended."""

    by_domain: dict[str, DomainGrades] = field(default_factory=dict)
    #: With scores before this run.
    known: int = 0
    #: Scored by this run.
    scored: int = 0
    failed: int = 0
    #: The first of those that failed.
    failures: list[FailedLine] = field(default_factory=list)
    #: Files that are published in part only, one message each.
    problems: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        return self.known + self.scored + self.failed

    def add(self, scores: Scores) -> None:
        self.by_domain.setdefault(scores.domain, DomainGrades()).add(scores)

    def __add__(self, other: Grades) -> Grades:
        domains = sorted(self.by_domain.keys() | other.by_domain.keys())
        none = DomainGrades()
        return Grades(
            {name: self.by_domain.get(name, none) + other.by_domain.get(name, none) for name in domains},
            self.known + other.known,
            self.scored + other.scored,
            self.failed + other.failed,
            [*self.failures, *other.failures][:SHOWN_FAILURES],
            [*self.problems, *other.problems],
        )

    def fail(self, line: FailedLine) -> None:
        self.failed += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append(line)
