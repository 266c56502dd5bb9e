"""From the database to caption files: one pair of files per shard, whole, the same from the same state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capflow_tasks.state import SampleState
from capflow_tasks.store.rows import ShardRow
from capflow_tasks.store.views import Views
from producer.reading.plan import output_name
from producer.writing.captions import caption_record, failed_record, write_lines


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
