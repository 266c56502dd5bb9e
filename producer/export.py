"""From the database to caption files: one pair of files per shard, whole, the same from the same state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capflow_tasks.state import SampleState
from capflow_tasks.store.rows import ShardRow
from capflow_tasks.store.views import Views
from producer.captions import caption_record, failed_record, write_lines
from producer.plan import output_name


@dataclass(frozen=True, slots=True)
class ExportedFile:
    path: Path
    #: Lines in it.
    samples: int


def export(views: Views, shards: Sequence[ShardRow], folder: Path) -> list[ExportedFile]:
    """Write `<folder>/Rank*_node*_*.jsonl` and, for what failed, `*.failed.jsonl`."""
    return [file for row in shards for file in _export_shard(views, row, folder)]


def _export_shard(views: Views, row: ShardRow, folder: Path) -> list[ExportedFile]:
    done = views.finished_samples(row.id, SampleState.DONE)
    failed = views.finished_samples(row.id, SampleState.FAILED)
    captions = folder / output_name(row.shard)
    reasons = folder / output_name(row.shard, "failed")
    written = [
        ExportedFile(captions, write_lines(captions, map(caption_record, done), keep_empty=True)),
        ExportedFile(reasons, write_lines(reasons, map(failed_record, failed))),
    ]
    return [file for file in written if file.samples or file.path == captions]
