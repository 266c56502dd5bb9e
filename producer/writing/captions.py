"""Turn what the database knows of a sample into a line of a caption file, and write caption files.

A line is the annotation entry with all its keys in their order; a key that Capflow writes replaces an input
key of the same name. The keys of a stage that has not run are not written, so that what an earlier run wrote
stays: `caption`, `workflow`, `conversations` and `quote_support` come from summarize, `reports` from perceive
and reason, `scores` and `overall` from score. `task` and `confidence` need a domain; `confidence` is null
where the domain was given.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from capflow_tasks.captioning.answers import errors_named
from capflow_tasks.captioning.quotes import claim_support, quote_support, text_coverage
from capflow_tasks.errors import SampleError
from capflow_tasks.records import FinishedSample, GuardOutcome, JsonObject, PlanShard, Result, Stage, rounded
from capflow_tasks.store.candidates import by_candidate
from capflow_tasks.store.states import SampleState, ShardRow
from producer.reading.plan import output_name
from producer.writing.conversations import PLAIN, ConversationStyle, with_conversation
from producer.writing.ownership import OwnFiles
from producer.writing.whole import json_line, whole_file, write_lines

#: Yields a shard's samples that finished in this state, in index order.
ReadSamples = Callable[[int, SampleState], Iterator[FinishedSample]]
#: Yields the lines of one file of a shard.
ReadRecords = Callable[[ShardRow], Iterable[JsonObject]]


#: What becomes of a caption's claims.
VERDICTS = ("kept", "unsure", "dropped")
#: The files of a shard: its captions, and what has none.
_PARTS = ("", "failed", "held")


@dataclass(frozen=True, slots=True)
class Captioned:
    """A captioned sample on its way into a file."""

    shard: PlanShard
    sample: FinishedSample
    #: Its line of a caption file.
    record: JsonObject

    @property
    def key(self) -> str:
        """A name without dots that is unique within a run."""
        return key_of(self.shard, self.sample.index)

    @property
    def caption(self) -> str | None:
        """The caption; None when no stage of this run has written one."""
        texts = [result.text for result in self.sample.results if result.stage is Stage.SUMMARIZE]
        return texts[-1] if texts else None


@dataclass(frozen=True, slots=True)
class ExportedFile:
    path: Path
    #: Samples in it.
    samples: int
    #: Whether it lists captioned samples that no other file has, because their media cannot be read.
    is_left_out: bool = False


class LeftOut:
    """Lists captioned samples whose media cannot be read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def add(self, key: str, error: SampleError) -> None:
        self.count += 1
        self._file.write(json_line({"key": key, "kind": error.kind, "message": str(error)}))


@contextmanager
def listing_left_out(path: Path, files: list[ExportedFile]) -> Iterator[LeftOut]:
    """Write the list to `path` and add it to `files`, unless nothing is left out."""
    with whole_file(path) as file:
        left_out = LeftOut(file)
        yield left_out
    if left_out.count:
        files.append(ExportedFile(path, left_out.count, is_left_out=True))
    else:
        path.unlink()


def key_of(shard: PlanShard, index: int) -> str:
    """Return the sample's name, which has no dot and is unique within a run."""
    name = output_name(shard).removesuffix(".jsonl").replace(".", "~")
    return f"{name}-{index:09}"


def latest(rows: Sequence[ShardRow]) -> list[ShardRow]:
    """Leave out shards whose plan line has changed since: a later shard writes the same files."""
    by_name = {output_name(row.shard): row for row in rows}
    return [row for row in rows if by_name[output_name(row.shard)] is row]


def caption_record(sample: FinishedSample, style: ConversationStyle = PLAIN) -> JsonObject:
    """Return the line of a captioned sample; its model is the caption's, else the last that answered."""
    by_stage = {stage: [result for result in sample.results if result.stage is stage] for stage in Stage}
    record = dict(sample.entry)
    if sample.domain is not None:
        record |= {"task": sample.domain, "confidence": sample.confidence}
    summaries = by_stage[Stage.SUMMARIZE]
    if summaries:
        record["caption"] = _said(summaries[-1])
    reports: JsonObject = {}
    for result in by_stage[Stage.PERCEIVE] + by_stage[Stage.REASON]:
        if not result.text:  # an optional agent whose answer the guard refused
            continue
        # An agent of each of the two stages may have this name.
        name = result.agent if result.agent not in reports else f"{result.stage}_{result.agent}"
        reports[name] = _said(result)
    if reports:
        record["reports"] = reports
    record |= _judged(sample.results)
    if sample.results:
        last = (summaries or sample.results)[-1]
        record |= {name: getattr(last, name) for name in ("model", "revision", "engine", "sampling")}
    if summaries:
        record["workflow"] = summaries[-1].workflow
        record["finish_reason"] = summaries[-1].finish_reason
        record["guard"] = guard_findings(sample.results)
        record |= checks_of(summaries[-1])
        if listed := candidate_records(sample):
            record["candidates"] = listed
        return with_conversation(record, summaries[-1].text, style)
    return record


def _said(result: Result) -> str | JsonObject:
    """Return what an agent wrote: an object where its answer is one; a tool's data are not what it says."""
    if result.data is not None:
        with suppress(ValueError, RecursionError):
            if json.loads(result.text, strict=False) == result.data:
                return result.data
    return result.text


def candidate_records(sample: FinishedSample) -> list[JsonObject]:
    """List all captions of a sample with their grades; nothing where it has only one."""
    written = by_candidate((*sample.results, *sample.others)) if sample.others else {}
    return [
        {
            "caption": [_said(each) for each in results if each.stage is Stage.SUMMARIZE][-1],
            "is_chosen": results[0] in sample.results,
            **_judged(results),
            "tokens": sum(each.prompt_tokens + each.completion_tokens for each in results),
        }
        for results in written.values()
    ]


def checks_of(caption: Result) -> JsonObject:
    """Return how far a caption agrees with the text read in its pictures, and with what its media show.

    Nothing is returned where no text was read, and no claim was asked about.
    """
    checks, found = caption.checks or {}, dict[str, Any]()
    if "quotes" in checks:
        found = {
            "quote_support": rounded(quote_support(checks)),
            "text_coverage": rounded(text_coverage(checks)),
            "unsupported_quotes": checks["unsupported_quotes"],
        }
    if "kept" in checks:
        found["claim_support"] = rounded(claim_support(checks))
        found["claims"] = {verdict: checks[verdict] for verdict in VERDICTS}
    return found


def _judged(results: Sequence[Result]) -> JsonObject:
    """Return what the last judge found; nothing where none has graded."""
    judgements = [each for each in results if each.stage is Stage.SCORE]
    if not judgements or judgements[-1].data is None:
        return {}
    scores = judgements[-1].data
    return {
        "scores": {name: grade for name, grade in scores.items() if name != "overall"},
        "overall": scores.get("overall"),
        "errors": errors_named(judgements[-1].text),
        "expected_scores": judgements[-1].expected,
    }


def guard_findings(results: Sequence[Result]) -> list[JsonObject]:
    """List what the guard found in the agents' answers, and what became of each: the columns of an export."""
    found: list[JsonObject] = []
    for result in results:
        guard = result.guard or {}
        outcome = GuardOutcome.ASKED_AGAIN if result.text else GuardOutcome.LEFT_OUT
        faults = [
            (rule, outcome, evidence)
            for attempt in guard.get("attempts", ())
            for rule, evidence in attempt["faults"].items()
        ]
        repaired = GuardOutcome.REPAIRED
        repairs = [(rule, repaired, evidence) for rule, evidence in guard.get("repairs", {}).items()]
        found += (
            {"agent": result.agent, "rule": rule, "outcome": outcome, "evidence": evidence}
            for rule, outcome, evidence in faults + repairs
        )
    return found


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
    # what is no JSON object has no keys of its own by which to find it
    return {**(sample.entry or {"index": sample.index}), "error": error}


def file_names(shards: Iterable[PlanShard]) -> list[str]:
    """Return the names of the files that `export` may write."""
    return [output_name(shard, part) for shard in shards for part in _PARTS]


def export(
    read: ReadSamples,
    rows: Sequence[ShardRow],
    folder: Path,
    own: OwnFiles,
    captioned: ReadRecords | None = None,
) -> list[ExportedFile]:
    """Write each shard's `Rank*_node*_*.jsonl`, even when empty, and its `.failed` and `.held.jsonl`.

    `captioned` yields the lines of a shard's captioned samples, where they are not all and as they are.
    Raises UserError where a file in the folder is not the run's `own`, and ServiceError when the disk refuses
    one.
    """

    def records(state: SampleState, build: Callable[[FinishedSample], JsonObject]) -> ReadRecords:
        return lambda row: map(build, read(row.id, state))

    parts = (
        captioned or records(SampleState.DONE, caption_record),
        records(SampleState.FAILED, failed_record),
        records(SampleState.HELD, caption_record),
    )
    files = []
    with own.writing(file_names(row.shard for row in rows)):
        for row in rows:
            for part, lines in zip(_PARTS, parts, strict=True):
                path = folder / output_name(row.shard, part)
                samples = write_lines(path, lines(row), keep_empty=not part)
                if samples or not part:
                    files.append(ExportedFile(path, samples))
    return files
