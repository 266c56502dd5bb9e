"""From results to scored files: each appears whole, its records in the order of the file they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from heapq import merge
from operator import attrgetter
from typing import BinaryIO

from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.entries import unstorable
from capflow_tasks.records import FinishedSample, JsonObject, Stage
from capflow_tasks.state import SampleState
from capflow_tasks.store.views import Views
from producer.filtering.rubrics import Rubrics
from producer.filtering.scores import Scores, scores_of
from producer.reading.caption_files import CaptionLine
from producer.scoring.given_captions import place_of, unscorable
from producer.scoring.grades import FailedLine, Grades
from producer.scoring.known_scores import CaptionFile, json_line, judged_lines, with_scores
from producer.writing.captions import failed_record
from producer.writing.whole_file import whole_file

#: Bytes shown of a line that is no record.
_SHOWN_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file held when it was looked at."""

    file: CaptionFile
    #: Lines without scores.
    to_score: int
    #: Digest of them all.
    version: str


def survey(catalogue: Catalogue, file: CaptionFile) -> Survey:
    """Read the file once. Raises UserError where it cannot be read on."""
    digest, to_score = blake2b(digest_size=16), 0
    for judged in judged_lines(file, Rubrics(catalogue)):
        if judged.scores is None:
            to_score += 1
            digest.update(f"{judged.line.number} {judged.line.digest} ".encode())
    return Survey(file, to_score, digest.hexdigest())


def finished_lines(views: Views, shard_id: int) -> Iterator[FinishedSample]:
    """The shard's samples that were scored or failed, in the order of their lines."""
    parts = [views.finished_samples(shard_id, state) for state in (SampleState.DONE, SampleState.FAILED)]
    return merge(*parts, key=attrgetter("index"))


class Publisher:
    """Writes one file's scored records and, where there are such, its failed ones."""

    def __init__(self, file: CaptionFile, finished: Iterator[FinishedSample], rubrics: Rubrics) -> None:
        self._file = file
        self._finished = finished
        self._next = next(finished, None)
        self._rubrics = rubrics
        self._grades = Grades()

    def publish(self) -> Grades:
        """How the file's lines ended; what has changed since it was sent is left to another run.

        Raises UserError where the file cannot be read on, and leaves what was published as it was.
        """
        file, grades, left = self._file, self._grades, 0
        with whole_file(file.scored) as scored, whole_file(file.failed) as failed:
            for judged in judged_lines(file, self._rubrics):
                if judged.scores is not None:
                    grades.known += 1
                    grades.add(judged.scores)
                    scored.write(judged.text)
                elif (sample := self._sample_of(judged.line)) is not None:
                    self._write(judged.line, sample, scored, failed)
                else:
                    left += 1
        if not grades.failed:
            file.failed.unlink(missing_ok=True)
        if left:
            lines = "1 line has" if left == 1 else f"{left} lines have"
            grades.problems.append(
                f"{file.path}: {lines} changed since they were sent; run the command again"
            )
        return grades

    def _sample_of(self, line: CaptionLine) -> FinishedSample | None:
        while self._next is not None and self._next.entry["line_number"] < line.number:
            self._next = next(self._finished, None)
        sample = self._next
        return sample if sample is not None and place_of(line).items() <= sample.entry.items() else None

    def _write(self, line: CaptionLine, sample: FinishedSample, scored: BinaryIO, failed: BinaryIO) -> None:
        record = _scored_record(line, sample)
        scores = scores_of(record, self._rubrics) if record else f"the domain {sample.domain} has no judge"
        if record and isinstance(scores, Scores):
            self._grades.scored += 1
            self._grades.add(scores)
            scored.write(json_line(record))
            return
        failure = sample.failure or unscorable(str(scores))
        self._grades.fail(FailedLine(self._file.path, line.number, failure))
        failed.write(json_line(_failed_record(line, replace(sample, failure=failure))))


def _scored_record(line: CaptionLine, sample: FinishedSample) -> JsonObject | None:
    grades = [result.data for result in sample.results if result.stage is Stage.SCORE and result.data]
    if sample.failure or line.record is None or not grades:
        return None
    scores = dict(grades[-1])
    overall = scores.pop("overall")
    return with_scores(line.record, sample.domain, sample.confidence, scores, overall)


def _failed_record(line: CaptionLine, sample: FinishedSample) -> JsonObject:
    """The record, or what there is of it, with the reason."""
    entry = line.record
    if entry is None or unstorable(entry) is not None:
        entry = {"line": line.raw[:_SHOWN_BYTES].decode("utf-8", "replace").rstrip("\r\n")}
    record = failed_record(replace(sample, entry=entry))
    record["error"] = {"line_number": line.number, **record["error"]}
    return record
