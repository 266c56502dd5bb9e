"""Write a shard's captions as a Parquet file: one row per captioned sample in index order.

docs/reference/files.md describes the columns; lists of pairs stand for maps, which not every reader knows.
Row groups have a fixed size and files carry no time stamp, so that the same state gives the same bytes. Only
this module imports pyarrow.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import parquet

from capflow_tasks.captioning.answers import is_grade
from capflow_tasks.entries import media_of
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import FinishedSample, JsonObject, PlanShard
from producer.writing.whole import whole_file

#: Samples held in memory at a time, and the smallest piece that a reader can load.
ROW_GROUP = 1000

_TEXT = arrow.string()
_GRADE = arrow.int8()


def _list_of(**fields: arrow.DataType) -> arrow.DataType:
    return arrow.list_(arrow.struct(list(fields.items())))


def schema_of(dimensions: Iterable[str]) -> arrow.Schema:
    """Return the columns; each of the `dimensions` gets one of its own."""
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


def write_parquet(
    path: Path, schema: arrow.Schema, shard: PlanShard, records: Iterator[tuple[FinishedSample, JsonObject]]
) -> int:
    """Write a row for each sample and its caption record, and return their number."""
    count = 0
    with whole_file(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := [_values(shard, sample, record) for sample, record in islice(records, ROW_GROUP)]:
            writer.write_batch(arrow.RecordBatch.from_pylist(group, schema), ROW_GROUP)
            count += len(group)
    return count


def _values(shard: PlanShard, sample: FinishedSample, record: JsonObject) -> JsonObject:
    # The annotation file may have brought values of any type under these names.
    scores, reports = (
        value if isinstance(value := record.get(key), dict) else {} for key in ("scores", "reports")
    )
    scores = {name: grade if is_grade(grade) else None for name, grade in scores.items()}
    turns, overall = record.get("conversations"), record.get("overall")
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
        **{key: _text(record.get(key)) for key in ("caption", "model", "workflow")},
        "entry": _text(sample.entry),
    }


def _text(value: Any) -> str | None:
    """Return a text or None as it is, and anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
