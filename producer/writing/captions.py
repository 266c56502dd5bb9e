"""Write what is captioned of a run: lines of caption files, Parquet, tars for `webdataset`.

A line is the annotation entry with all its keys in their order; a key that Capflow writes replaces an input
key of the same name. The keys of a stage that has not run are not written, so that what an earlier run wrote
stays: `caption`, `workflow` and the last `gpt` turn come from summarize, `reports` from perceive and reason,
`scores` and `overall` from score. `task` and `confidence` need a domain; `confidence` is null where the
domain was given.

docs/reference/files.md describes the columns of Parquet; lists of pairs stand for maps, which not every
reader knows. A tar holds captions together with their media:

    Rank0_node0_vqa-000000012.json      the line of the caption file
    Rank0_node0_vqa-000000012.txt       the caption
    Rank0_node0_vqa-000000012.jpg       the media file, unchanged; several are .0.jpg, .1.png and so on

A key is the name of the shard's caption file and the sample's index. The library ends a key at the first dot,
so a dot in a dataset's name becomes "~", which such names never contain. Row groups of Parquet have a fixed
size, and no file records a time or an owner, so that the same state and media give the same bytes.
"""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO, FileIO
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, BinaryIO

from capflow_tasks.captioning.answers import errors_named, is_grade
from capflow_tasks.domains.catalogue import load_workflow
from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry, MediaCorrupt, SampleError, UserError
from capflow_tasks.media.paths import check_file, file_errors, resolve_media
from capflow_tasks.records import FinishedSample, GuardOutcome, JsonObject, Modality, PlanShard, Result, Stage
from capflow_tasks.store.figures import RunFigures
from capflow_tasks.store.states import SampleState, ShardRow, Tally
from capflow_tasks.store.views import Views
from producer.parallel import ProgressLines
from producer.reading.caption_files import Rubrics
from producer.reading.plan import file_name_part, output_name
from producer.writing.whole import json_line, whole_file, write_lines

#: Yields a shard's samples that finished in this state, in index order.
ReadSamples = Callable[[int, SampleState], Iterator[FinishedSample]]

#: Samples in a row group of Parquet: the most held in memory at a time, and the least that a reader loads.
ROW_GROUP = 1000
#: A usable suffix of a media file, in lower case.
_SUFFIX = re.compile(r"(?!json$|txt$)[a-z0-9]+")
#: A sample's files by their suffix: their bytes, or the path of a media file.
_Members = dict[str, bytes | str]


@dataclass(frozen=True, slots=True)
class ExportedFile:
    path: Path
    #: Samples in it.
    samples: int
    #: Whether it lists captioned samples that no other file has, because their media cannot be read.
    is_left_out: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    files: list[ExportedFile]
    #: Finished samples of the run, by how they ended.
    ended: Tally
    #: Samples that are not finished.
    remaining: int

    @property
    def left_out(self) -> int:
        """Captioned samples whose media cannot be read."""
        return sum(file.samples for file in self.files if file.is_left_out)


def export_run(
    views: Views, run: RunFigures, form: str, folder: Path, shard_size: int, domains: Path | None
) -> Exported:
    """Write the run as "jsonl", "parquet" or "webdataset", the latter with `shard_size` samples per tar.

    `domains` is the user's folder of domain files. Raises ServiceError when the disk refuses a file.
    """
    rows = latest(views.shards(run.id))
    progress, numbers = ProgressLines("samples"), count(1)

    def read(shard_id: int, state: SampleState) -> Iterator[FinishedSample]:
        for sample in views.finished_samples(shard_id, state):
            progress(next(numbers))
            yield sample

    if form == "parquet":
        files = export_parquet(read, rows, folder, Rubrics(load_workflow(run.workflow, domains)).dimensions)
    elif form == "webdataset":
        files = export_webdataset(read, rows, folder, file_name_part(run.name), shard_size)
    else:
        files = export(read, rows, folder)
    ended = views.ended([row.id for row in rows])
    return Exported(files, ended, sum(row.shard.sample_count for row in rows) - ended.total)


def latest(rows: Sequence[ShardRow]) -> list[ShardRow]:
    """Leave out shards whose plan line has changed since: a later shard writes the same files."""
    by_name = {output_name(row.shard): row for row in rows}
    return [row for row in rows if by_name[output_name(row.shard)] is row]


def caption_record(sample: FinishedSample) -> JsonObject:
    """Return the line of a captioned sample; its model is the caption's, else the last that answered."""
    by_stage = {stage: [result for result in sample.results if result.stage is stage] for stage in Stage}
    record = dict(sample.entry)
    if sample.domain is not None:
        record |= {"task": sample.domain, "confidence": sample.confidence}
    summaries = by_stage[Stage.SUMMARIZE]
    if summaries:
        record["caption"] = summaries[-1].text
    reports: dict[str, str] = {}
    for result in by_stage[Stage.PERCEIVE] + by_stage[Stage.REASON]:
        if not result.text:  # an optional agent whose answer the guard refused
            continue
        # An agent of each of the two stages may have this name.
        name = result.agent if result.agent not in reports else f"{result.stage}_{result.agent}"
        reports[name] = result.text
    if reports:
        record["reports"] = reports
    for judgement in by_stage[Stage.SCORE][-1:]:
        if judgement.data is not None:
            scores = dict(judgement.data)
            overall = scores.pop("overall", None)
            record |= {"scores": scores, "overall": overall, "errors": errors_named(judgement.text)}
            record["expected_scores"] = judgement.expected
    if sample.results:
        record["model"] = (summaries or sample.results)[-1].model
    if summaries:
        record["workflow"] = summaries[-1].workflow
        record["finish_reason"] = summaries[-1].finish_reason
        record["guard"] = guard_findings(sample.results)
        record["conversations"] = _conversations(sample.entry, summaries[-1].text)
    return record


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
    return {**sample.entry, "error": error}


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


def export(read: ReadSamples, rows: Sequence[ShardRow], folder: Path) -> list[ExportedFile]:
    """Write each shard's `Rank*_node*_*.jsonl`, even when empty, and its `.failed` and `.held.jsonl`."""
    parts = {
        "": (SampleState.DONE, caption_record),
        "failed": (SampleState.FAILED, failed_record),
        "held": (SampleState.HELD, caption_record),
    }
    files = []
    for row in rows:
        for part, (state, build) in parts.items():
            path = folder / output_name(row.shard, part)
            samples = write_lines(path, map(build, read(row.id, state)), keep_empty=not part)
            if samples or not part:
                files.append(ExportedFile(path, samples))
    return files


def export_parquet(
    read: ReadSamples, rows: Sequence[ShardRow], folder: Path, dimensions: Iterable[str]
) -> list[ExportedFile]:
    """Write `Rank*_node*_*.parquet` for each shard, even for one without captions, with a row per sample."""
    try:
        from pyarrow import RecordBatch, parquet
    except ImportError as error:
        raise UserError("--format parquet needs pyarrow: pip install '.[export]'") from error
    schema, files = schema_of(dimensions), []
    for row in rows:
        path = folder / Path(output_name(row.shard)).with_suffix(".parquet")
        samples, written = read(row.id, SampleState.DONE), 0
        with whole_file(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            while group := [_row(row.shard, sample) for sample in islice(samples, ROW_GROUP)]:
                writer.write_batch(RecordBatch.from_pylist(group, schema), ROW_GROUP)
                written += len(group)
        files.append(ExportedFile(path, written))
    return files


def schema_of(dimensions: Iterable[str]) -> Any:
    """Return the columns of a Parquet file; each of the `dimensions` gets one of its own."""
    import pyarrow as arrow

    text, grade = arrow.string(), arrow.int8()

    def list_of(**fields: Any) -> Any:
        return arrow.list_(arrow.struct(list(fields.items())))

    return arrow.schema(
        {
            "dataset": text,
            "index": arrow.int64(),
            "id": text,
            "root": text,
            "media": list_of(kind=text, path=text),
            "domain": text,
            "confidence": arrow.float64(),
            "caption": text,
            "conversations": list_of(**{"from": text, "value": text}),
            "reports": list_of(agent=text, text=text),
            "scores": list_of(dimension=text, grade=grade),
            **{f"score_{dimension}": grade for dimension in sorted(dimensions)},
            "overall": grade,
            "expected_scores": list_of(dimension=text, grade=arrow.float64()),
            "errors": arrow.list_(text),
            "model": text,
            "workflow": text,
            "finish_reason": text,
            "guard": list_of(agent=text, rule=text, outcome=text, evidence=text),
            "entry": text,
        }
    )


def _row(shard: PlanShard, sample: FinishedSample) -> JsonObject:
    """Return the sample's values by column."""
    record = caption_record(sample)
    # The annotation file may have brought values of any type under these names.
    scores, reports = (
        value if isinstance(value := record.get(key), dict) else {} for key in ("scores", "reports")
    )
    scores = {name: grade if is_grade(grade) else None for name, grade in scores.items()}
    judged = [result.expected or {} for result in sample.results if result.stage is Stage.SCORE]
    turns, overall, errors = (record.get(key) for key in ("conversations", "overall", "errors"))
    try:
        media = media_of(sample.entry, shard.modality)
    except BadEntry:
        media = ()
    return {
        "dataset": shard.dataset,
        "index": sample.index,
        "id": _text(sample.entry.get("id")),
        "root": shard.root,
        "media": [{"kind": kind.value, "path": path} for kind, path in media],
        "domain": sample.domain,
        "confidence": sample.confidence,
        "conversations": [
            {key: _text(turn.get(key)) for key in ("from", "value")}
            for turn in (turns if isinstance(turns, list) else [])
            if isinstance(turn, dict)
        ],
        "reports": [{"agent": name, "text": _text(text)} for name, text in reports.items()],
        "scores": [{"dimension": name, "grade": grade} for name, grade in scores.items()],
        **{f"score_{name}": grade for name, grade in scores.items()},
        "overall": overall if is_grade(overall) else None,
        "expected_scores": [
            {"dimension": name, "grade": grade} for each in judged[-1:] for name, grade in each.items()
        ],
        "errors": [_text(error) for error in (errors if isinstance(errors, list) else [])],
        **{key: _text(record.get(key)) for key in ("caption", "model", "workflow", "finish_reason")},
        "guard": guard_findings(sample.results),
        "entry": _text(sample.entry),
    }


def _text(value: Any) -> str | None:
    """Return a text or None as it is, and anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def export_webdataset(
    read: ReadSamples, rows: Sequence[ShardRow], folder: Path, name: str, shard_size: int
) -> list[ExportedFile]:
    """Write `<name>-000000.tar` and on; `<name>.left_out.jsonl` lists samples with unreadable media."""
    files, left_out = [], 0
    left_out_path = folder / f"{name}.left_out.jsonl"
    with whole_file(left_out_path) as file:

        def leave_out(key: str, error: SampleError) -> None:
            nonlocal left_out
            left_out += 1
            file.write(json_line({"key": key, "kind": error.kind, "message": str(error)}))

        samples = _samples(read, rows, leave_out)
        for number in count():
            if (first := next(samples, None)) is None:
                break
            path = folder / f"{name}-{number:06}.tar"
            with whole_file(path) as tar:
                packed = _pack(tar, chain([first], islice(samples, shard_size - 1)), leave_out)
            files.append(ExportedFile(path, packed))
    # An earlier export may have written more tars. The name is part of a file name, without wildcards.
    for path in folder.glob(f"{name}-{'[0-9]' * 6}.tar"):
        if path not in {file.path for file in files}:
            path.unlink()
    if left_out:
        return [*files, ExportedFile(left_out_path, left_out, is_left_out=True)]
    left_out_path.unlink()
    return files


def _samples(
    read: ReadSamples, rows: Sequence[ShardRow], leave_out: Callable[[str, SampleError], None]
) -> Iterator[tuple[str, _Members]]:
    """Yield the key and the files of each sample whose media are there."""
    for row in rows:
        for sample in read(row.id, SampleState.DONE):
            key = key_of(row.shard, sample.index)
            try:
                yield key, _members(row.shard, sample)
            except SampleError as error:
                leave_out(key, error)


def key_of(shard: PlanShard, index: int) -> str:
    """Return the sample's name, which has no dot and is unique among all tars of a run."""
    name = output_name(shard).removesuffix(".jsonl").replace(".", "~")
    return f"{name}-{index:09}"


def _members(shard: PlanShard, sample: FinishedSample) -> _Members:
    """Return what to pack of the sample. Raises SampleError when a media file is missing or unusable."""
    record = caption_record(sample)
    members: _Members = {"json": json.dumps(record, ensure_ascii=False).encode()}
    if isinstance(caption := record.get("caption"), str):
        members["txt"] = caption.encode()
    media = media_of(sample.entry, shard.modality)
    for number, (kind, relative) in enumerate(media):
        path = resolve_media(shard.root, relative)
        check_file(path, max_bytes=1 << 62)
        place = f"{number}." if len(media) > 1 else ""
        suffix = Path(relative).suffix.removeprefix(".").lower()
        members[place + (suffix if _SUFFIX.fullmatch(suffix) else kind.value)] = path
    return members


def _pack(
    file: BinaryIO, samples: Iterator[tuple[str, _Members]], leave_out: Callable[[str, SampleError], None]
) -> int:
    """Write a tar and return the number of its samples; one whose media fail leaves nothing in it."""
    packed = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, members in samples:
            start = tar.offset
            try:
                for suffix, content in members.items():
                    _add(tar, f"{key}.{suffix}", content)
                packed += 1
            except SampleError as error:
                leave_out(key, error)
                file.seek(start)
                file.truncate()
                tar.offset = start
    return packed


def _add(tar: tarfile.TarFile, name: str, content: bytes | str) -> None:
    member = tarfile.TarInfo(name)
    if isinstance(content, bytes):
        member.size = len(content)
        tar.addfile(member, BytesIO(content))
        return
    with file_errors(content):
        source = _MediaFile(FileIO(content))
    with source:
        member.size = os.fstat(source.fileno()).st_size
        tar.addfile(member, source)


class _MediaFile(BufferedReader):
    """A media file whose read errors are the sample's, not the tar's."""

    def read(self, size: int | None = -1, /) -> bytes:
        with file_errors(self.name):
            data = super().read(size)
        if size is not None and len(data) < size:
            raise MediaCorrupt(f"{self.name} became shorter while it was read.")
        return data
