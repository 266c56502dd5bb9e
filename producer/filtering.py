"""Split caption files into the records that are good enough and those that are not."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from capflow_tasks.errors import UserError
from producer.reading import caption_files
from producer.writing.ownership import OwnFiles
from producer.writing.whole import whole_file

#: Invalid records that are listed one by one; all of them are in the rejected files.
_LISTED_INVALID = 10


class CaptionFilter:
    """Writes the records of caption files to `output/kept` and `output/rejected`, and counts them."""

    def __init__(self, criteria: caption_files.Criteria, output: Path, *, overwrites: bool = False) -> None:
        self._criteria = criteria
        self._output = output
        self._overwrites = overwrites
        #: Records that are "kept", "rejected", or "invalid": without valid scores, and never kept.
        self.by_domain: defaultdict[str, Counter[str]] = defaultdict(Counter)
        #: Rejected records by each dimension whose grade was too low, and by `guard: <rule>`.
        self.rejected_by: Counter[str] = Counter()
        #: The first invalid records, each with its file, line and reason.
        self.invalid_examples: list[str] = []

    @property
    def all(self) -> Counter[str]:
        return sum(self.by_domain.values(), Counter[str]())

    def run(self, folder: Path) -> Iterator[Path]:
        """Split every caption file of the folder; yield each file's path once both its parts are written.

        The parts keep the file's name and appear whole, empty ones too. Raises UserError when the output
        would overwrite the folder's own files, or those of another command.
        """
        kept_folder, rejected_folder = self._output / "kept", self._output / "rejected"
        if folder.resolve() in (kept_folder.resolve(), rejected_folder.resolve()):
            raise UserError(f"{folder}: its files would be overwritten; name another folder with --output")
        sources = {
            path: path.name.removesuffix(".jsonl").removesuffix(".scored") + ".jsonl"
            for path in caption_files.find(folder)
        }
        own = OwnFiles.of_command("capflow filter", folder, self._output, overwrites=self._overwrites)
        with own.writing([f"{part}/{name}" for name in sources.values() for part in ("kept", "rejected")]):
            for path, name in sources.items():
                with whole_file(kept_folder / name) as kept, whole_file(rejected_folder / name) as rejected:
                    self._split(path, kept, rejected)
                yield path

    def _split(self, path: Path, kept: BinaryIO, rejected: BinaryIO) -> None:
        for line in caption_files.read_captions(path):
            if reasons := self._judge(path, line):
                rejected.write(_with_reasons(line, reasons))
            else:
                kept.write(line.raw)

    def _judge(self, path: Path, line: caption_files.CaptionLine) -> list[str]:
        """Count the record and return why it is not kept; an empty list when it is."""
        scores = caption_files.scores_of(line.record or {}, self._criteria.rubrics)
        is_good = line.record is not None and self._criteria.is_marked_good(line.record)
        if (problem := line.problem or scores.problem) and not is_good:
            if len(self.invalid_examples) < _LISTED_INVALID:
                self.invalid_examples.append(f"{path}:{line.number}: {problem}")
            self.by_domain[scores.domain]["invalid"] += 1
            return [problem]
        missed = self._criteria.missed(line.record or {}, scores)
        self.by_domain[scores.domain]["rejected" if missed else "kept"] += 1
        self.rejected_by.update(missed.keys())
        return list(missed.values())


def _with_reasons(line: caption_files.CaptionLine, reasons: list[str]) -> bytes:
    """Return the record with its reasons; a line that is not a record is quoted with its number."""
    record = {"line_number": line.number, "line": line.quoted} if line.record is None else line.record
    record = {**record, "rejected_because": reasons}
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(record).encode() + b"\n"
