"""Write Parquet files: one typed row per sample, with paths of the media or with the media themselves.

Lists of pairs stand for maps, which not every reader knows. Row groups have a fixed size and no file records
a time, so that the same state and media give the same bytes. docs/reference/files.md describes the columns.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capflow_tasks.captioning.answers import is_grade
from capflow_tasks.errors import SampleError, UserError
from capflow_tasks.media.addresses import open_media
from capflow_tasks.media.paths import check_file, file_errors, resolve_media
from capflow_tasks.records import JsonObject, Modality, Stage
from producer.writing.captions import VERDICTS, Captioned, LeftOut, checks_of, guard_findings
from producer.writing.conversations import media_listed
from producer.writing.whole import whole_file

#: Samples in a row group: the most held in memory at a time, and the least that a reader loads.
ROW_GROUP = 1000
#: A row group with media ends at this size.
GROUP_BYTES = 64 << 20
#: The largest medium that is embedded.
EMBEDDED_BYTES = 1 << 30

#: The columns of embedded media and how `datasets` shows them.
_MEDIA_COLUMNS = {Modality.IMAGE: ("images", "Image"), Modality.VIDEO: ("videos", "Video")}


#: The keys of a caption file's line that are columns as they are.
_TEXTS = ("caption", "model", "revision", "engine", "sampling", "workflow", "finish_reason")
#: How far a caption agrees with the text read in its pictures, and with what its media show.
SHARES = ("quote_support", "text_coverage", "claim_support")


@dataclass(frozen=True, slots=True)
class Columns:
    #: Each of these, which judges grade, gets a column of its own.
    dimensions: Sequence[str]
    #: The only columns to write; empty for all.
    only: Sequence[str] = ()
    #: Whether columns with the media themselves are added.
    embeds: bool = False


def write_parquet(path: Path, samples: Iterable[Captioned], columns: Columns, left_out: LeftOut) -> int:
    """Write one row per sample and return their number.

    Raises UserError without pyarrow and for an unknown column, ServiceError when the disk refuses the file.
    """
    try:
        from pyarrow import RecordBatch, parquet
    except ImportError as error:
        raise UserError("--format parquet needs pyarrow: pip install '.[export]'") from error
    schema, written = schema_of(columns), 0
    with whole_file(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(_rows(samples, columns.embeds, left_out)):
            writer.write_batch(RecordBatch.from_pylist(group, schema), len(group))
            written += len(group)
    return written


def schema_of(columns: Columns) -> Any:
    """Return the columns of a Parquet file as an Arrow schema. Raises UserError for an unknown one."""
    import pyarrow as arrow

    text, grade = arrow.string(), arrow.int8()

    def list_of(**fields: Any) -> Any:
        return arrow.list_(arrow.struct(list(fields.items())))

    types = {
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
        **{f"score_{dimension}": grade for dimension in sorted(columns.dimensions)},
        "overall": grade,
        "expected_scores": list_of(dimension=text, grade=arrow.float64()),
        "errors": arrow.list_(text),
        "model": text,
        "revision": text,
        "engine": text,
        "sampling": text,
        "workflow": text,
        "finish_reason": text,
        **dict.fromkeys(SHARES, arrow.float64()),
        "claims": arrow.struct([(verdict, arrow.int32()) for verdict in VERDICTS]),
        "unsupported_quotes": arrow.list_(text),
        "guard": list_of(agent=text, rule=text, outcome=text, evidence=text),
        "entry": text,
    }
    if columns.embeds:
        types |= {name: list_of(bytes=arrow.binary(), path=text) for name, _ in _MEDIA_COLUMNS.values()}
    types = only_fields(types, columns.only)
    return arrow.schema(types, _shown_by_datasets(types))


def only_fields(row: JsonObject, names: Sequence[str]) -> JsonObject:
    """Return these fields of a row, all of them without names. Raises UserError for a field it lacks."""
    if unknown := [name for name in names if name not in row]:
        raise UserError(f"--fields: there is no field {', '.join(unknown)}; use some of: {', '.join(row)}")
    return {name: row[name] for name in names} if names else row


def _shown_by_datasets(types: JsonObject) -> dict[str, str]:
    """Return the metadata by which `datasets` decodes the columns of media."""
    features = {
        name: {"_type": "List", "feature": {"_type": shown}}
        for name, shown in _MEDIA_COLUMNS.values()
        if name in types
    }
    return {"huggingface": json.dumps({"info": {"features": features}})} if features else {}


def _groups(rows: Iterable[JsonObject]) -> Iterator[list[JsonObject]]:
    group: list[JsonObject] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(medium["bytes"]) for name in ("images", "videos") for medium in row.get(name, ()))
        if len(group) == ROW_GROUP or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _rows(samples: Iterable[Captioned], embeds: bool, left_out: LeftOut) -> Iterator[JsonObject]:
    for each in samples:
        try:
            yield row_of(each) | (_embedded(each) if embeds else {})
        except SampleError as error:
            left_out.add(each.key, error)


def _embedded(each: Captioned) -> JsonObject:
    """Read the sample's media. Raises SampleError when one is missing or unusable."""
    columns: dict[str, list[JsonObject]] = {name: [] for name, _ in _MEDIA_COLUMNS.values()}
    for kind, relative in media_listed(each.sample.entry):
        path = resolve_media(each.shard.root, relative)
        check_file(path, EMBEDDED_BYTES)
        with file_errors(path), open_media(path) as file:
            columns[_MEDIA_COLUMNS[kind][0]].append({"bytes": file.read(), "path": relative})
    return columns


def row_of(each: Captioned) -> JsonObject:
    """Return the sample's values by column."""
    record, sample = each.record, each.sample
    # The annotation file may have brought values of any type under these names.
    scores, reports = (
        value if isinstance(value := record.get(key), dict) else {} for key in ("scores", "reports")
    )
    scores = {name: grade if is_grade(grade) else None for name, grade in scores.items()}
    judged = [result.expected or {} for result in sample.results if result.stage is Stage.SCORE]
    turns, overall, errors = (record.get(key) for key in ("conversations", "overall", "errors"))
    return {
        "dataset": each.shard.dataset,
        "index": sample.index,
        "id": _text(sample.entry.get("id")),
        "root": each.shard.root,
        "media": [{"kind": kind.value, "path": path} for kind, path in media_listed(sample.entry)],
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
        **{key: _text(record.get(key)) for key in _TEXTS},
        **dict.fromkeys((*SHARES, "claims")),
        "unsupported_quotes": [],
        **{key: value for each in sample.results for key, value in checks_of(each).items()},
        "guard": guard_findings(sample.results),
        "entry": _text(sample.entry),
    }


def _text(value: Any) -> str | None:
    """Return a text or None as it is, and anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
