"""The closing summaries of captioning and scoring: counts, grades, failures with reasons, files."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capflow_tasks.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PAUSED,
    EXIT_SAMPLES_FAILED,
    EXIT_SAMPLES_HELD,
    EXIT_USAGE,
)
from capflow_tasks.records import Failure, JsonObject, Stage
from capflow_tasks.store.figures import DomainFigures
from capflow_tasks.store.states import Tally
from capflow_tasks.store.views import FailedSample
from producer.console import counted, table
from producer.reading.caption_files import Scores
from producer.writing.captions import ExportedFile

#: Failures shown on the terminal; all of them are in the *failed.jsonl files.
SHOWN_FAILURES = 20
#: Characters of the histogram's longest bar.
_BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended."""

    run: str
    #: False when it was stopped before every sample was finished.
    is_complete: bool
    #: With the samples by stage.
    domains: Sequence[DomainFigures]
    #: Routed samples by confidence, in equal steps from 0 to 1.
    confidences: Sequence[int]
    #: The first of the failures.
    failures: Sequence[FailedSample]
    #: Annotation files that could not be read to their end, one message each.
    problems: Sequence[str]
    #: Empty before the run is complete.
    files: Sequence[ExportedFile]
    seconds: float
    #: Why the run paused by itself, and how it goes on; None when it did not.
    pause: str | None = None
    #: Failed samples that were to be passed over, since their entries name no media.
    skipped: int = 0
    #: Failed samples by kind, the most frequent first.
    kinds: Mapping[str, int] = field(default_factory=dict)
    #: Batches that the fleet's workers go on with though this command was stopped.
    queued: int = 0

    @property
    def next_commands(self) -> list[str]:
        """What to do next, in two commands."""
        name = shlex.quote(self.run)
        retry = f"capflow retry {name}"
        if len(self.kinds) > 1:
            retry += f" --kind {next(iter(self.kinds))}"
        return [f"capflow report {name}", retry if self.kinds else f"capflow export {name} --format llava"]

    @property
    def tally(self) -> Tally:
        return sum((row.tally for row in self.domains), Tally())

    def as_json(self) -> JsonObject:
        return {
            "run": self.run,
            "complete": self.is_complete,
            "pause": self.pause,
            "problems": list(self.problems),
            **asdict(self.tally),
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "domains": [
                {"domain": row.domain, **asdict(row.tally), "stages": row.by_stage} for row in self.domains
            ],
            "confidences": list(self.confidences),
            "files": [{"path": str(file.path), "samples": file.samples} for file in self.files],
        }

    def show(self, console: Console) -> None:
        console.print(self._domains())
        if any(self.confidences):
            console.print(self._histogram())
        if self.failures:
            console.print(self._failures())
        if self.skipped:
            skipped = "1 entry is" if self.skipped == 1 else f"{self.skipped:,} entries are"
            console.print(
                f"{skipped} text only and skipped; the .failed.jsonl files list them", highlight=False
            )
        for file in self.files:
            samples = counted(file.samples, "sample")
            console.print(f"{escape(str(file.path))}: {samples}", soft_wrap=True, highlight=False)
        if self.kinds:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
            console.print(f"Failed: {kinds}", soft_wrap=True, highlight=False)
        if self.is_complete:
            console.print(
                "Next:", *self.next_commands, sep="\n  ", soft_wrap=True, highlight=False, markup=False
            )

    def _domains(self) -> Table:
        endings = ("done", "failed", "held") if self.tally.held else ("done", "failed")
        made = table(f"Samples of run {escape(self.run)}", (), ())
        made.add_column("domain", no_wrap=True)
        for column in (*Stage, *endings):
            made.add_column(column, justify="right")
        for row in self.domains:
            stages = (str(row.by_stage[stage] or "-") for stage in Stage)
            made.add_row(
                row.domain or "(none)", *stages, *(str(getattr(row.tally, name)) for name in endings)
            )
        made.add_section()
        totals = (str(sum(row.by_stage[stage] for row in self.domains)) for stage in Stage)
        made.add_row("all", *totals, *(str(getattr(self.tally, name)) for name in endings))
        return made

    def _histogram(self) -> Table:
        made = table("Router's confidence", ["confidence"], ["samples"], "")
        steps, most = len(self.confidences), max(self.confidences)
        for number, count in enumerate(self.confidences):
            if not count:
                continue
            bar = "█" * -(-count * _BAR_WIDTH // most)
            made.add_row(f"{number / steps:.1f} to {(number + 1) / steps:.1f}", str(count), bar)
        return made

    def _failures(self) -> Table:
        made = table("Failed samples", ("sample", "stage", "kind", "reason"), ())
        if hidden := self.tally.failed - len(self.failures):
            made.caption = f"and {hidden} more: see the .failed.jsonl files"
        for row in self.failures:
            failure = row.failure
            made.add_row(f"{row.dataset}[{row.idx}]", failure.stage, failure.kind, escape(failure.message))
        return made


@dataclass(slots=True)
class ScoreSummary:
    """How the scoring of a folder ended; `problems` are files published in part or not at all."""

    run: str
    #: False when it was stopped before every record had finished.
    is_complete: bool = True
    problems: list[str] = field(default_factory=list)
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
    #: The scored files; empty before the run is complete.
    files: list[Path] = field(default_factory=list)
    seconds: float = 0.0
    #: Why the scoring paused by itself, and how it goes on; None when it did not.
    pause: str | None = None

    @property
    def tally(self) -> Tally:
        return Tally(self.known + self.scored, self.failed)

    def add(self, scores: Scores, *, is_fresh: bool) -> None:
        self.scored += is_fresh
        self.known += not is_fresh
        self.by_domain[scores.domain] += 1
        for dimension, grade in scores.grades.items():
            self.grades[scores.domain, dimension] += grade

    def fail(self, place: str, failure: Failure) -> None:
        self.failed += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append(f"{place}: {failure.kind}: {failure.message}")

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

    def as_json(self) -> JsonObject:
        domains = {}
        for domain, records in sorted(self.by_domain.items()):
            means = {name: round(mean, 2) for name, mean in self.means([domain]).items()}
            domains[domain] = {"records": records, "overall": means.pop("overall"), "scores": means}
        return {
            "run": self.run,
            "complete": self.is_complete,
            "pause": self.pause,
            "problems": self.problems,
            "records": self.tally.total,
            "known": self.known,
            "scored": self.scored,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "domains": domains,
            "files": [str(path) for path in self.files],
        }

    def show(self, console: Console) -> None:
        if not self.is_complete:
            return
        by_rubric: dict[tuple[str, ...], list[str]] = {}
        for domain in sorted(self.by_domain):
            by_rubric.setdefault(tuple(self.means([domain])), []).append(domain)
        for dimensions, domains in by_rubric.items():
            console.print(self._means(dimensions, domains))
        counts = f"{self.scored} scored now, {self.known} had scores, {self.failed} failed"
        lines = [f"{self.tally.total} records: {counts}", *self.failures]
        if hidden := self.failed - len(self.failures):
            lines.append(f"and {hidden} more: see the .scored.failed.jsonl files")
        for line in [*lines, *map(str, self.files)]:
            console.print(escape(line), soft_wrap=True, highlight=False)

    def _means(self, dimensions: Iterable[str], domains: Sequence[str]) -> Table:
        """The mean grades of domains that are graded in the same dimensions."""
        made = table("Mean grades, 1 to 3", (), ())
        made.add_column("domain", no_wrap=True)
        # Without underscores a long name is wrapped where it stands.
        for column in ("records", *(name.replace("_", " ") for name in dimensions)):
            made.add_column(column, justify="right", overflow="fold")
        for group in [*([domain] for domain in domains), *([domains] if len(domains) > 1 else [])]:
            if len(group) > 1:
                made.add_section()
            records = sum(self.by_domain[domain] for domain in group)
            means = (f"{mean:.2f}" for mean in self.means(group).values())
            made.add_row("all" if len(group) > 1 else escape(group[0]), str(records), *means)
        return made


def exit_code(summary: Summary | ScoreSummary) -> int:
    if not summary.is_complete:
        return EXIT_PAUSED if summary.pause else EXIT_INTERRUPTED
    if summary.problems:
        return EXIT_USAGE
    skipped = summary.skipped if isinstance(summary, Summary) else 0
    if summary.tally.failed > skipped:
        return EXIT_SAMPLES_FAILED
    return EXIT_SAMPLES_HELD if summary.tally.held else EXIT_OK
