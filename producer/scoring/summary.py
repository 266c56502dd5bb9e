"""What came of scoring: counts, failures with file and line, mean grades by domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capflow_tasks.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_SAMPLES_FAILED, EXIT_USAGE
from capflow_tasks.records import Failure, JsonObject
from producer.reading.scores import Scores

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
class ScoreCounts:
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

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        domains = sorted(self.by_domain.keys() | other.by_domain.keys())
        none = DomainGrades()
        return ScoreCounts(
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


_DECIMALS = 2


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """How the scoring of a folder ended."""

    run: str
    #: False when it was told to stop before every record had come to its end.
    is_complete: bool
    #: Files that could not be read or published, one message each.
    problems: Sequence[str]
    grades: ScoreCounts
    #: The scored files; empty before the run is complete.
    files: Sequence[Path]
    seconds: float

    @property
    def exit_code(self) -> int:
        if not self.is_complete:
            return EXIT_INTERRUPTED
        if self.problems:
            return EXIT_USAGE
        return EXIT_SAMPLES_FAILED if self.grades.failed else EXIT_OK

    def as_json(self) -> JsonObject:
        """For programs: the same facts as one object."""
        grades = self.grades
        return {
            "run": self.run,
            "complete": self.is_complete,
            "problems": list(self.problems),
            "records": grades.records,
            "known": grades.known,
            "scored": grades.scored,
            "failed": grades.failed,
            "seconds": round(self.seconds, 3),
            "domains": {name: _means(domain) for name, domain in grades.by_domain.items()},
            "files": [str(path) for path in self.files],
        }

    def show(self, console: Console) -> None:
        if not self.is_complete:
            return
        for dimensions, domains in _by_rubric(self.grades).items():
            console.print(_table(dimensions, domains))
        grades = self.grades
        console.print(
            f"{grades.records} records: {grades.scored} scored now, {grades.known} had scores, "
            f"{grades.failed} failed",
            highlight=False,
        )
        for each in grades.failures:
            place = f"{each.path}:{each.line_number}"
            reason = f"{each.failure.kind}: {each.failure.message}"
            console.print(escape(f"{place}: {reason}"), soft_wrap=True, highlight=False)
        if hidden := grades.failed - len(grades.failures):
            console.print(f"and {hidden} more: see the .scored.failed.jsonl files", highlight=False)
        for path in self.files:
            console.print(escape(str(path)), soft_wrap=True, highlight=False)


def _means(domain: DomainGrades) -> JsonObject:
    means = {name: round(domain.mean(name), _DECIMALS) for name in domain.dimensions}
    return {"records": domain.records, "overall": round(domain.mean_overall, _DECIMALS), "scores": means}


def _by_rubric(grades: ScoreCounts) -> Mapping[tuple[str, ...], dict[str, DomainGrades]]:
    """The domains that are graded in the same dimensions, together; they make one table."""
    rubrics: dict[tuple[str, ...], dict[str, DomainGrades]] = {}
    for name, domain in grades.by_domain.items():
        rubrics.setdefault(tuple(domain.dimensions), {})[name] = domain
    return rubrics


def _table(dimensions: Sequence[str], domains: Mapping[str, DomainGrades]) -> Table:
    table = Table(title="Mean grades, 1 to 3", title_justify="left")
    table.add_column("domain", no_wrap=True)
    # Without underscores a long name is wrapped where it stands.
    for column in ("records", *(name.replace("_", " ") for name in dimensions), "overall"):
        table.add_column(column, justify="right", overflow="fold")
    rows = [*domains.items()]
    if len(rows) > 1:
        rows.append(("all", sum(domains.values(), DomainGrades())))
    for name, domain in rows:
        if name == "all":
            table.add_section()
        table.add_row(escape(name), str(domain.records), *_cells(dimensions, domain))
    return table


def _cells(dimensions: Sequence[str], domain: DomainGrades) -> Iterator[str]:
    for mean in (*map(domain.mean, dimensions), domain.mean_overall):
        yield f"{mean:.{_DECIMALS}f}"
