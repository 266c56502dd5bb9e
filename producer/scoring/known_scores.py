"""Which records of a caption file have scores: their own, or those that an earlier run published beside it.

What was published belongs to a record as long as the record says the same, wherever it stands by then: a file
that has grown costs only its new records. Memory holds one line, and some 300 bytes per published record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from capflow_tasks.records import JsonObject
from producer.filtering.rubrics import Rubrics
from producer.filtering.scores import Scores, scores_of
from producer.reading.caption_files import CaptionLine, read_captions

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


def json_line(record: JsonObject) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


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
