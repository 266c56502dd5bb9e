"""From the database to Parquet: one file per shard, a row per captioned sample in index order.

What the columns mean is said in docs/export.md. Lists of pairs and not maps, which not every reader takes.
Row groups have a fixed size and no file says when it was written: the same state gives the same bytes.
Nothing but this module imports pyarrow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import parquet

from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import FinishedSample, JsonObject, PlanShard
from capflow_tasks.store.rows import ShardRow
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.views import Views
from producer.reading.plan import output_name
from producer.writing.captions import ExportedFile, caption_record, whole_file

#: Samples that are in memory at a time, and that a reader can take out at a time.
ROW_GROUP = 1000

_TEXT = arrow.string()
_GRADE = arrow.int8()


def _list_of(**fields: arrow.DataType) -> arrow.DataType:
    return arrow.list_(arrow.struct(list(fields.items())))


def schema_of(dimensions: Iterable[str]) -> arrow.Schema:
    """The columns; `dimensions` are those that get one of their own."""
    return arrow.schema(
        {
            "dataset": _TEXT,
            "index": arrow.int64(),
            "id": _TEXT,
            "root": _TEXT,
            "media": _list_of(kind=_TEXT, path=_TEXT),
            "domain": _TEXT,
            "confidence": arrow.float64(),
            "caption": _TEXT,
            "conversations": _list_of(**{"from": _TEXT, "value": _TEXT}),
            "reports": _list_of(agent=_TEXT, text=_TEXT),
            "scores": _list_of(dimension=_TEXT, grade=_GRADE),
            **{f"score_{dimension}": _GRADE for dimension in sorted(dimensions)},
            "overall": _GRADE,
            "model": _TEXT,
            "workflow": _TEXT,
            "entry": _TEXT,
        }
    )


def export_parquet(
    views: Views, rows: Sequence[ShardRow], folder: Path, dimensions: Iterable[str]
) -> list[ExportedFile]:
    """Write `<folder>/Rank*_node*_*.parquet`; a shard has its file even when that is empty."""
    schema = schema_of(dimensions)
    return [_export_shard(views, row, folder, schema) for row in rows]


def _export_shard(views: Views, row: ShardRow, folder: Path, schema: arrow.Schema) -> ExportedFile:
    path = folder / Path(output_name(row.shard)).with_suffix(".parquet")
    samples = views.finished_samples(row.id, SampleState.DONE)
    count = 0
    with whole_file(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := [_values(row.shard, sample) for sample in islice(samples, ROW_GROUP)]:
            writer.write_batch(arrow.RecordBatch.from_pylist(group, schema), ROW_GROUP)
            count += len(group)
    return ExportedFile(path, count)


def _values(shard: PlanShard, sample: FinishedSample) -> JsonObject:
    record = caption_record(sample)
    # What an annotation file brought along under these names may be of any type.
    scores = {name: _grade(grade) for name, grade in _items(record.get("scores"))}
    return {
        "dataset": shard.dataset,
        "index": sample.index,
        "id": _text(sample.entry.get("id")),
        "root": shard.root,
        "media": list(_media(shard, sample.entry)),
        "domain": sample.domain,
        "confidence": sample.confidence,
        "caption": _text(record.get("caption")),
        "conversations": list(_turns(record.get("conversations"))),
        "reports": [{"agent": name, "text": _text(text)} for name, text in _items(record.get("reports"))],
        "scores": [{"dimension": name, "grade": grade} for name, grade in scores.items()],
        **{f"score_{name}": grade for name, grade in scores.items()},
        "overall": _grade(record.get("overall")),
        "model": _text(record.get("model")),
        "workflow": _text(record.get("workflow")),
        "entry": _text(sample.entry),
    }


def _media(shard: PlanShard, entry: JsonObject) -> Iterator[dict[str, str]]:
    try:
        media = media_of(entry, shard.modality)
    except BadEntry:
        return
    yield from ({"kind": kind.value, "path": path} for kind, path in media)


def _turns(value: Any) -> Iterator[dict[str, str | None]]:
    turns = value if isinstance(value, list) else []
    for turn in turns:
        if isinstance(turn, dict):
            yield {"from": _text(turn.get("from")), "value": _text(turn.get("value"))}


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _text(value: Any) -> str | None:
    """A text as it is, nothing as null, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _grade(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value <= 3 else None
