"""The closing words of a run: a table by domain and stage, what failed and why, the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from capflow_tasks.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_SAMPLES_FAILED, EXIT_SAMPLES_HELD, EXIT_USAGE
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.rows import Tally
from capflow_tasks.store.views import DomainCounts, FailedSample
from producer.writing.captions import ExportedFile

#: Failures listed on the terminal; all of them are in the *.failed.jsonl files.
SHOWN_FAILURES = 20

#: Characters of the histogram's longest bar.
_BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended."""

    run: str
    #: False when it was told to stop before every sample had come to its end.
    is_complete: bool
    domains: Sequence[DomainCounts]
    #: Routed samples by confidence, in equal steps from 0 to 1.
    confidences: Sequence[int]
    #: The first of the failures.
    failures: Sequence[FailedSample]
    #: Annotation files that broke off, one message each.
    problems: Sequence[str]
    #: Empty before the run is complete.
    files: Sequence[ExportedFile]
    seconds: float

    @property
    def exit_code(self) -> int:
        if not self.is_complete:
            return EXIT_INTERRUPTED
        if self.problems:
            return EXIT_USAGE
        if self.tally.failed:
            return EXIT_SAMPLES_FAILED
        return EXIT_SAMPLES_HELD if self.tally.held else EXIT_OK

    @property
    def tally(self) -> Tally:
        return sum((row.tally for row in self.domains), Tally())

    def as_json(self) -> JsonObject:
        """For programs: the same facts as one object."""
        return {
            "run": self.run,
            "complete": self.is_complete,
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
        console.print(self._table())
        if any(self.confidences):
            console.print(self._histogram())
        if self.failures:
            console.print(self._failures())
        for file in self.files:
            console.print(
                f"{escape(str(file.path))}: {file.samples} samples", soft_wrap=True, highlight=False
            )

    def _table(self) -> Table:
        table = Table(title=f"Samples of run {escape(self.run)}", title_justify="left")
        table.add_column("domain", no_wrap=True)
        for stage in Stage:
            table.add_column(stage.value, justify="right")
        endings = ("done", "failed", "held") if self.tally.held else ("done", "failed")
        for column in endings:
            table.add_column(column, justify="right")
        for row in self.domains:
            stages = (str(row.by_stage[stage] or "-") for stage in Stage)
            table.add_row(
                row.domain or "(none)", *stages, *(str(getattr(row.tally, name)) for name in endings)
            )
        table.add_section()
        totals = (str(sum(row.by_stage[stage] for row in self.domains)) for stage in Stage)
        table.add_row("all", *totals, *(str(getattr(self.tally, name)) for name in endings))
        return table

    def _histogram(self) -> Table:
        table = Table(title="Router's confidence", title_justify="left")
        table.add_column("confidence")
        table.add_column("samples", justify="right")
        table.add_column("")
        steps, most = len(self.confidences), max(self.confidences)
        for number, count in enumerate(self.confidences):
            bar = "█" * -(-count * _BAR_WIDTH // most)
            table.add_row(f"{number / steps:.1f} to {(number + 1) / steps:.1f}", str(count), bar)
        return table

    def _failures(self) -> Table:
        hidden = self.tally.failed - len(self.failures)
        caption = f"and {hidden} more: see the .failed.jsonl files" if hidden else None
        table = Table(title="Failed samples", title_justify="left", caption=caption, caption_justify="left")
        for column in ("sample", "stage", "kind", "reason"):
            table.add_column(column, overflow="fold")
        for row in self.failures:
            failure = row.failure
            table.add_row(f"{row.dataset}[{row.idx}]", failure.stage, failure.kind, escape(failure.message))
        return table
