"""Build the lines of caption files, and write those of a run.

A line is the annotation entry with all its keys in their order; a key that Capflow writes replaces an input
key of the same name. The keys of a stage that has not run are not written, so that what an earlier run wrote
stays: `caption`, `workflow` and the last `gpt` turn come from summarize, `reports` from perceive and reason,
`scores` and `overall` from score. `task` and `confidence` need a domain; `confidence` is null where the
domain was given.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import FinishedSample, JsonObject, Modality, Result, Stage
from capflow_tasks.store.states import SampleState, ShardRow
from producer.reading.plan import output_name
from producer.writing.whole import write_lines

#: Yields a shard's samples that finished in this state, in index order.
ReadSamples = Callable[[int, SampleState], Iterator[FinishedSample]]


def caption_record(sample: FinishedSample) -> JsonObject:
    """Return the line of a captioned sample; its model is the caption's, else the last that answered."""
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
        if judgement.data is not None:
            scores = dict(judgement.data)
            overall = scores.pop("overall", None)
            record |= {"scores": scores, "overall": overall}
    if sample.results:
        record["model"] = (summaries or sample.results)[-1].model
    if summaries:
        record["workflow"] = summaries[-1].workflow
        record["conversations"] = _conversations(sample.entry, summaries[-1].text)
    return record


def failed_record(sample: FinishedSample) -> JsonObject:
    """Return the line of a failed sample: its entry and the reason."""
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
    """Return each agent's text by its name, or by its stage and name when the name is taken."""
    reports: dict[str, str] = {}
    for result in results:
        name = result.agent if result.agent not in reports else f"{result.stage}_{result.agent}"
        reports[name] = result.text
    return reports


def _conversations(entry: JsonObject, caption: str) -> list[Any]:
    """Return the entry's conversation with the caption as its last `gpt` turn, ready for training."""
    given = entry.get("conversations")
    turns = list(given) if isinstance(given, list) and all(isinstance(turn, dict) for turn in given) else []
    if turns and turns[-1].get("from") == "gpt":
        return [*turns[:-1], {**turns[-1], "value": caption}]
    if not any(turn.get("from") == "human" for turn in turns):
        turns.append({"from": "human", "value": _question(entry)})
    return [*turns, {"from": "gpt", "value": caption}]


def _question(entry: JsonObject) -> str:
    """Return a neutral question with one placeholder per picture or video."""
    try:
        kinds = [kind for kind, _ in media_of(entry, Modality.IMAGE)]
    except BadEntry:
        kinds = [Modality.IMAGE]
    placeholders = "".join(f"<{kind}>\n" for kind in kinds)
    noun = Modality.VIDEO if Modality.VIDEO in kinds else Modality.IMAGE
    return f"{placeholders}Describe {f'this {noun}' if len(kinds) == 1 else f'these {noun}s'} in detail."


@dataclass(frozen=True, slots=True)
class ExportedFile:
    path: Path
    #: Samples in it.
    samples: int
    #: Whether it lists captioned samples that no other file has, because their media cannot be read.
    is_left_out: bool = False


#: The parts of a shard's output: samples in which state, and what builds their lines.
_PARTS = {
    "": (SampleState.DONE, caption_record),
    "failed": (SampleState.FAILED, failed_record),
    "held": (SampleState.HELD, caption_record),
}


def export(read: ReadSamples, rows: Sequence[ShardRow], folder: Path) -> list[ExportedFile]:
    """Write each shard's `Rank*_node*_*.jsonl`, even when empty, and its `.failed` and `.held.jsonl`."""
    files = []
    for row in rows:
        for part, (state, build) in _PARTS.items():
            path = folder / output_name(row.shard, part)
            count = write_lines(path, map(build, read(row.id, state)), keep_empty=not part)
            if count or not part:
                files.append(ExportedFile(path, count))
    return files
