"""From results to scored files: each appears whole, its records in the order of the file they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from heapq import merge
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from capflow_tasks.domains.catalogue import Catalogue
from capflow_tasks.entries import unstorable
from capflow_tasks.records import FinishedSample, JsonObject, Stage
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.views import Views
from producer.reading.caption_files import CaptionLine, read_captions
from producer.reading.scores import Rubrics, Scores, scores_of
from producer.scoring.given_captions import place_of, unscorable
from producer.scoring.summary import FailedLine, ScoreCounts
from producer.writing.captions import failed_record
from producer.writing.whole import json_line, whole_file

#: What scoring adds to a record, and what therefore does not tell whether two records are the same.
_ADDED_KEYS = ("task", "confidence", "scores", "overall")


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """A file of captions, and where its scored records go."""

    path: Path
    scored: Path
    failed: Path
    #: Folder of its media; None when nobody has named it.
    root: Path | None
    #: Domain of the records that name none; None when they are to be routed.
    task: str | None


@dataclass(frozen=True, slots=True)
class JudgedLine:
    """One line of a caption file, and what is known of its scores."""

    line: CaptionLine
    #: None when the line is yet to be scored.
    scores: Scores | None = None
    #: The record with its scores, where they were published; None where the line says them itself.
    published: JsonObject | None = None

    @property
    def text(self) -> bytes:
        """As the scored file has it."""
        return self.line.raw if self.published is None else json_line(self.published)


def judged_lines(file: CaptionFile, rubrics: Rubrics) -> Iterator[JudgedLine]:
    """Every line of the file in order. Raises UserError where it cannot be read on."""
    published = _published(file.scored, rubrics)
    for line in read_captions(file.path):
        yield _judged(line, file.task, rubrics, published)


def with_scores(
    record: JsonObject, domain: str | None, confidence: float | None, scores: JsonObject, overall: int
) -> JsonObject:
    """The record with its scores, and with the domain that they were given in if it named none."""
    found = {} if record.get("task") else {"task": domain, "confidence": confidence}
    return {**record, **found, "scores": scores, "overall": overall}


def _judged(
    line: CaptionLine, task: str | None, rubrics: Rubrics, published: dict[bytes | None, str]
) -> JudgedLine:
    if line.record is None:
        return JudgedLine(line)
    scores = scores_of(line.record, rubrics)
    if isinstance(scores, Scores):
        return JudgedLine(line, scores)
    identity = _identity(line.record) if published else None
    if identity not in published:
        return JudgedLine(line)
    added = json.loads(published[identity])
    domain = rubrics.domain_of(line.record.get("task") or task)
    if domain not in (None, rubrics.domain_of(added["task"])):
        return JudgedLine(line)
    record = with_scores(line.record, added["task"], added["confidence"], added["scores"], added["overall"])
    scores = scores_of(record, rubrics)
    return JudgedLine(line, scores, record) if isinstance(scores, Scores) else JudgedLine(line)


def _published(path: Path, rubrics: Rubrics) -> dict[bytes | None, str]:
    """What was added to each record of a scored file, by the record's identity; empty where there is none."""
    if not path.exists():
        return {}
    # Most records share their text with others: there are few domains and grades.
    texts: dict[str, str] = {}
    found: dict[bytes | None, str] = {}
    for line in read_captions(path):
        if line.record is None or not isinstance(scores_of(line.record, rubrics), Scores):
            continue
        if (identity := _identity(line.record)) is not None:
            text = json.dumps({key: line.record.get(key) for key in _ADDED_KEYS})
            found[identity] = texts.setdefault(text, text)
    return found


def _identity(record: JsonObject) -> bytes | None:
    """The same for records that say the same but for their scores; None for what could not be written."""
    said = {key: value for key, value in record.items() if key not in _ADDED_KEYS}
    try:
        return blake2b(json_line(said), digest_size=16).digest()
    except (ValueError, RecursionError):  # half of a surrogate pair, a number beyond all bounds, too deep
        return None


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
        self._grades = ScoreCounts()

    def publish(self) -> ScoreCounts:
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
