"""What scoring a folder has led to: counts, failed lines, mean grades by domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capflow_tasks.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PAUSED, EXIT_SAMPLES_FAILED, EXIT_USAGE
from capflow_tasks.records import Failure, JsonObject
from producer.reading.scores import Scores

#: Failures kept for the terminal; the failed files hold all of them.
SHOWN_FAILURES = 20

_DECIMALS = 2


@dataclass(slots=True)
class ScoreCounts:
    """The lines of caption files, counted, and their grades added up."""

    #: Lines with scores before this run.
    known: int = 0
    #: Lines scored by this run.
    scored: int = 0
    failed: int = 0
    #: Lines with scores, by domain.
    by_domain: Counter[str] = field(default_factory=Counter)
    #: Sum of the grades by domain and dimension; "overall" is the last of each domain.
    grades: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Place and reason of the first lines that failed.
    failures: list[str] = field(default_factory=list)
    #: Files that were published in part or not at all, one message each.
    problems: list[str] = field(default_factory=list)

    def add(self, scores: Scores, *, is_fresh: bool) -> None:
        self.scored += is_fresh
        self.known += not is_fresh
        self.by_domain[scores.domain] += 1
        for dimension, grade in [*scores.dimensions.items(), ("overall", scores.overall)]:
            self.grades[scores.domain, dimension] += grade

    def fail(self, place: str, failure: Failure) -> None:
        self.failed += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append(f"{place}: {failure.kind}: {failure.message}")

    def __iadd__(self, other: ScoreCounts) -> ScoreCounts:
        self.known += other.known
        self.scored += other.scored
        self.failed += other.failed
        self.by_domain.update(other.by_domain)
        self.grades.update(other.grades)
        self.failures = [*self.failures, *other.failures][:SHOWN_FAILURES]
        self.problems += other.problems
        return self

    def means(self, domains: Sequence[str]) -> dict[str, float]:
        """The mean grade of these domains' lines by dimension."""
        sums: Counter[str] = Counter()
        for (domain, dimension), grade in self.grades.items():
            if domain in domains:
                sums[dimension] += grade
        # Another dimension may have come later.
        sums["overall"] = sums.pop("overall")
        lines = sum(self.by_domain[domain] for domain in domains)
        return {dimension: grade / lines for dimension, grade in sums.items()}


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """How the scoring of a folder ended."""

    run: str
    #: False when it was stopped before every record had finished.
    is_complete: bool
    counts: ScoreCounts
    #: The scored files; empty before the run is complete.
    files: Sequence[Path]
    seconds: float
    #: The limit that paused the scoring; None when none did.
    pause: str | None = None

    @property
    def problems(self) -> Sequence[str]:
        return self.counts.problems

    @property
    def exit_code(self) -> int:
        if not self.is_complete:
            return EXIT_PAUSED if self.pause else EXIT_INTERRUPTED
        if self.problems:
            return EXIT_USAGE
        return EXIT_SAMPLES_FAILED if self.counts.failed else EXIT_OK

    def as_json(self) -> JsonObject:
        """The same facts as one object, for programs."""
        counts = self.counts
        return {
            "run": self.run,
            "complete": self.is_complete,
            "pause": self.pause,
            "problems": list(self.problems),
            "records": counts.known + counts.scored + counts.failed,
            "known": counts.known,
            "scored": counts.scored,
            "failed": counts.failed,
            "seconds": round(self.seconds, 3),
            "domains": {domain: self._domain_json(domain) for domain in sorted(counts.by_domain)},
            "files": [str(path) for path in self.files],
        }

    def _domain_json(self, domain: str) -> JsonObject:
        means = {name: round(mean, _DECIMALS) for name, mean in self.counts.means([domain]).items()}
        overall = means.pop("overall")
        return {"records": self.counts.by_domain[domain], "overall": overall, "scores": means}

    def show(self, console: Console) -> None:
        if not self.is_complete:
            return
        counts = self.counts
        by_rubric: dict[tuple[str, ...], list[str]] = {}
        for domain in sorted(counts.by_domain):
            by_rubric.setdefault(tuple(counts.means([domain])), []).append(domain)
        for dimensions, domains in by_rubric.items():
            console.print(self._table(dimensions, domains))
        lines = [
            f"{counts.known + counts.scored + counts.failed} records: {counts.scored} scored now, "
            f"{counts.known} had scores, {counts.failed} failed",
            *counts.failures,
        ]
        if hidden := counts.failed - len(counts.failures):
            lines.append(f"and {hidden} more: see the .scored.failed.jsonl files")
        for line in [*lines, *map(str, self.files)]:
            console.print(escape(line), soft_wrap=True, highlight=False)

    def _table(self, dimensions: Iterable[str], domains: Sequence[str]) -> Table:
        """The mean grades of domains that are graded in the same dimensions."""
        table = Table(title="Mean grades, 1 to 3", title_justify="left")
        table.add_column("domain", no_wrap=True)
        # Without underscores a long name is wrapped where it stands.
        for column in ("records", *(name.replace("_", " ") for name in dimensions)):
            table.add_column(column, justify="right", overflow="fold")
        rows = [(domain, [domain]) for domain in domains]
        if len(rows) > 1:
            rows.append(("all", list(domains)))
        for name, group in rows:
            if len(group) > 1:
                table.add_section()
            records = sum(self.counts.by_domain[domain] for domain in group)
            means = (f"{mean:.{_DECIMALS}f}" for mean in self.counts.means(group).values())
            table.add_row(escape(name), str(records), *means)
        return table
