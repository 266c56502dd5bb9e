"""The caption files: what a line of them holds, and how a file comes to be there whole.

A line is the annotation entry with all its keys in their order; a key that Capflow fills takes the place of
an input key of that name. Keys of stages that have not run are left out, so that what an earlier run wrote
there stays: `caption`, `workflow` and the last `gpt` turn come from the summarize stage, `reports` from
perceive and reason, `scores` and `overall` from score. `task` and `confidence` need a domain; `confidence`
is null where the domain was given.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry, ServiceError
from capflow_tasks.records import FinishedSample, JsonObject, Modality, Result, Stage
from capflow_tasks.store.rows import ShardRow
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.views import Views
from producer.reading.plan import output_name


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block ends well and leaves no trace when not.

    Raises ServiceError when the disk does not take it.
    """
    aside = path.with_name(f".capflow-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise ServiceError(
            f"{path}: cannot be written: {reason}; free or mend the disk, then run again"
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def caption_record(sample: FinishedSample, model: str | None = None) -> JsonObject:
    """The line of a captioned sample; the sample's own entry is left as it is.

    Without `model` the line names the one that wrote the caption, else the one that answered last.
    """
    by_stage = {stage: [result for result in sample.results if result.stage is stage] for stage in Stage}
    record = dict(sample.entry)
    if sample.domain is not None:
        record |= {"task": sample.domain, "confidence": sample.confidence}
    summaries = by_stage[Stage.SUMMARIZE]
    if summaries:
        record["caption"] = summaries[-1].text
    if reports := _reports(by_stage[Stage.PERCEIVE] + by_stage[Stage.REASON]):
        record["reports"] = reports
    for judgement in by_stage[Stage.SCORE][-1:]:
        record |= _scores(judgement)
    if model or sample.results:
        record["model"] = model or (summaries or sample.results)[-1].model
    if summaries:
        record["workflow"] = summaries[-1].workflow
        record["conversations"] = _conversations(sample.entry, summaries[-1].text)
    return record


def failed_record(sample: FinishedSample) -> JsonObject:
    """The line of a sample that has no caption, with the reason."""
    failure = sample.failure
    if failure is None:
        raise ValueError(f"sample {sample.index} has not failed")
    error = {
        "stage": failure.stage.value,
        "kind": failure.kind,
        "message": failure.message,
        "attempts": sample.attempts,
        "retryable": failure.is_retryable,
    }
    return {**sample.entry, "error": error}


def _reports(results: list[Result]) -> dict[str, str]:
    """The text of each agent; one that goes by a name already taken is told apart by its stage."""
    reports: dict[str, str] = {}
    for result in results:
        name = result.agent if result.agent not in reports else f"{result.stage}_{result.agent}"
        reports[name] = result.text
    return reports


def _scores(judgement: Result) -> JsonObject:
    if judgement.data is None:
        return {}
    scores = {dimension: grade for dimension, grade in judgement.data.items() if dimension != "overall"}
    return {"scores": scores, "overall": judgement.data.get("overall")}


def _conversations(entry: JsonObject, caption: str) -> list[Any]:
    """The entry's conversation with the caption as its last `gpt` turn, so that the line trains as it is."""
    given = entry.get("conversations")
    turns = list(given) if isinstance(given, list) and all(isinstance(turn, dict) for turn in given) else []
    if turns and turns[-1].get("from") == "gpt":
        return [*turns[:-1], {**turns[-1], "value": caption}]
    if not any(turn.get("from") == "human" for turn in turns):
        turns.append({"from": "human", "value": _question(entry)})
    return [*turns, {"from": "gpt", "value": caption}]


def _question(entry: JsonObject) -> str:
    """A neutral question with one placeholder per picture or video."""
    try:
        kinds = [kind for kind, _ in media_of(entry, Modality.IMAGE)]
    except BadEntry:
        kinds = [Modality.IMAGE]
    placeholders = "".join(f"<{kind}>\n" for kind in kinds)
    noun = Modality.VIDEO if Modality.VIDEO in kinds else Modality.IMAGE
    return f"{placeholders}Describe {f'this {noun}' if len(kinds) == 1 else f'these {noun}s'} in detail."


def write_lines(path: Path, records: Iterable[JsonObject], *, keep_empty: bool = False) -> int:
    """Write one record per line; the file appears whole or not at all. Returns how many there were.

    Without records the file is removed, or left empty with `keep_empty`. Raises ServiceError when the disk
    does not take it.
    """
    coming = iter(records)
    known = list(islice(coming, 1))
    if not known and not keep_empty:
        path.unlink(missing_ok=True)
        return 0
    count = 0
    with whole_file(path) as file:
        for record in chain(known, coming):
            count += 1
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return count


@dataclass(frozen=True, slots=True)
class ExportedFile:
    path: Path
    #: Lines in it.
    samples: int


def latest(rows: Sequence[ShardRow]) -> list[ShardRow]:
    """Without those whose files a later one would write over: their plan line has changed since."""
    by_name = {output_name(row.shard): row for row in rows}
    return [row for row in rows if by_name[output_name(row.shard)] is row]


#: Which samples go to which part of a shard's files, and as what.
_PARTS = (
    (SampleState.DONE, "", caption_record),
    (SampleState.FAILED, "failed", failed_record),
    (SampleState.HELD, "held", caption_record),
)


def export(views: Views, shards: Sequence[ShardRow], folder: Path) -> list[ExportedFile]:
    """Write `<folder>/Rank*_node*_*.jsonl`, and `*.failed.jsonl` and `*.held.jsonl` where there are such."""
    return [file for row in shards for file in _export_shard(views, row, folder)]


def _export_shard(views: Views, row: ShardRow, folder: Path) -> list[ExportedFile]:
    files = []
    for state, part, record in _PARTS:
        path = folder / output_name(row.shard, part)
        samples = map(record, views.finished_samples(row.id, state))
        # A shard has its file of captions even when that is empty.
        is_main = not part
        if (count := write_lines(path, samples, keep_empty=is_main)) or is_main:
            files.append(ExportedFile(path, count))
    return files
