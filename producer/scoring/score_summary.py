"""The closing words of capflow-score: mean grades by domain, what failed and where, the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capflow_tasks.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_SAMPLES_FAILED, EXIT_USAGE
from capflow_tasks.records import JsonObject
from producer.scoring.grades import DomainGrades, Grades

_DECIMALS = 2


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """How the scoring of a folder ended."""

    run: str
    #: False when it was told to stop before every record had come to its end.
    is_complete: bool
    #: Files that could not be read or published, one message each.
    problems: Sequence[str]
    grades: Grades
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


def _by_rubric(grades: Grades) -> Mapping[tuple[str, ...], dict[str, DomainGrades]]:
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
