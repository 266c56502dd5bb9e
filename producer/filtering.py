"""Parts a folder's caption files into what is good enough and what is not, record by record.

Knows nothing of the command line. Memory holds one record and the counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject
from producer.reading.caption_files import CaptionLine, caption_files, plain_name, read_captions
from producer.reading.scores import NO_DOMAIN, Minimums, Rubrics, Scores, scores_of
from producer.writing.captions import whole_file

#: The key under which a record that is not kept says why.
REASONS_KEY = "rejected_because"

#: Bytes shown of a line that is no record.
_SHOWN_BYTES = 1000


@dataclass(slots=True)
class FilterCounts:
    """How many records ended how."""

    kept: int = 0
    rejected: int = 0
    #: Without valid scores; never kept.
    invalid: int = 0

    @property
    def total(self) -> int:
        return self.kept + self.rejected + self.invalid

    @property
    def keep_rate(self) -> float:
        return self.kept / self.total if self.total else 0.0

    def __add__(self, other: FilterCounts) -> FilterCounts:
        return FilterCounts(
            self.kept + other.kept, self.rejected + other.rejected, self.invalid + other.invalid
        )


@dataclass(slots=True)
class FilterResult:
    """How it went."""

    by_domain: dict[str, FilterCounts] = field(default_factory=dict)
    #: Rejected records by the dimension that was too low; one record may count under several.
    rejected_by: Counter[str] = field(default_factory=Counter)

    def tally(self, domain: str) -> FilterCounts:
        return self.by_domain.setdefault(domain, FilterCounts())

    @property
    def all(self) -> FilterCounts:
        return sum(self.by_domain.values(), FilterCounts())


@dataclass(frozen=True, slots=True)
class Filter:
    """What is kept, and where what goes."""

    minimums: Minimums
    rubrics: Rubrics
    #: Folder of the folders `kept` and `rejected`.
    output: Path
    #: Called with the place and the reason of each record without valid scores.
    tell_invalid: Callable[[str], None]

    def run(self, folder: Path, progress: Callable[[Path, FilterCounts], None]) -> FilterResult:
        """Part every caption file of the folder; both parts of one appear whole, an empty one too."""
        parts = [self.output / "kept", self.output / "rejected"]
        if folder.resolve() in [part.resolve() for part in parts]:
            raise UserError(f"{folder}: its files would be written over; name another folder with --output")
        report = FilterResult()
        for path in caption_files(folder):
            name = plain_name(path)
            with whole_file(parts[0] / name) as kept, whole_file(parts[1] / name) as rejected:
                for line in read_captions(path):
                    reasons = self._reasons(path, line, report)
                    if reasons:
                        rejected.write(_with_reasons(line, reasons))
                    else:
                        kept.write(line.raw)
            progress(path, report.all)
        return report

    def _reasons(self, path: Path, line: CaptionLine, report: FilterResult) -> list[str]:
        """Why the record is not kept, counted; nothing when it is."""
        scores = scores_of(line.record, self.rubrics) if line.record is not None else line.problem
        if not isinstance(scores, Scores):
            self.tell_invalid(f"{path}:{line.number}: {scores}")
            task = line.record.get("task") if line.record is not None else None
            report.tally(self.rubrics.domain_of(task) or NO_DOMAIN).invalid += 1
            return [str(scores)]
        missed = self.minimums.missed(scores)
        tally = report.tally(scores.domain)
        tally.kept, tally.rejected = tally.kept + (not missed), tally.rejected + bool(missed)
        report.rejected_by.update(missed.keys())
        return list(missed.values())


def _with_reasons(line: CaptionLine, reasons: list[str]) -> bytes:
    """The record with its reasons; a line that is none is shown with its number."""
    record: JsonObject = line.record if line.record is not None else _stand_in(line)
    record = {**record, REASONS_KEY: reasons}
    try:
        text = json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        text = json.dumps(record).encode()
    return text + b"\n"


def _stand_in(line: CaptionLine) -> JsonObject:
    text = line.raw[:_SHOWN_BYTES].decode("utf-8", "replace").rstrip("\r\n")
    return {"line_number": line.number, "line": text}
