"""The closing summary of a run: samples by domain and stage, failures with reasons, files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

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
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.figures import DomainFigures
from capflow_tasks.store.states import Tally
from capflow_tasks.store.views import FailedSample
from producer.console import table
from producer.writing.captions import ExportedFile

#: Failures shown on the terminal; all of them are in the *.failed.jsonl files.
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
    #: The limit that paused the run; None when none did.
    pause: str | None = None

    @property
    def exit_code(self) -> int:
        if not self.is_complete:
            return EXIT_PAUSED if self.pause else EXIT_INTERRUPTED
        if self.problems:
            return EXIT_USAGE
        if self.tally.failed:
            return EXIT_SAMPLES_FAILED
        return EXIT_SAMPLES_HELD if self.tally.held else EXIT_OK

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
        for file in self.files:
            samples = "1 sample" if file.samples == 1 else f"{file.samples} samples"
            console.print(f"{escape(str(file.path))}: {samples}", soft_wrap=True, highlight=False)

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
