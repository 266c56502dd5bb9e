"""A run from the database into the files of one format, as far as it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import UserError
from capflow_tasks.records import FinishedSample
from capflow_tasks.settings import Settings
from capflow_tasks.store.figures import RunFigures
from capflow_tasks.store.rows import ShardRow, Tally
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.views import PAGE, Views
from producer.reading.plan import file_name_part
from producer.reading.scores import Rubrics
from producer.writing.captions import ExportedFile, export, latest
from producer.writing.webdataset import export_webdataset


@dataclass(frozen=True, slots=True)
class ExportOrder:
    """What is asked for on the command line."""

    #: "jsonl", "parquet" or "webdataset".
    format: str
    #: Folder of the files.
    output: Path
    #: Samples per tar.
    shard_size: int


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what not."""

    files: list[ExportedFile]
    #: How the run's samples ended so far.
    ended: Tally
    #: Samples that have not come to their end.
    remaining: int
    #: Captioned samples whose media could not be read.
    left_out: int


class ReadingViews(Views):
    """Views that tell `progress` how many samples have been read from them."""

    def __init__(self, engine: Engine, progress: Callable[[int], None]) -> None:
        super().__init__(engine)
        self._progress = progress
        self._read = 0

    def finished_samples(
        self, shard_id: int, state: SampleState, page_size: int = PAGE
    ) -> Iterator[FinishedSample]:
        for sample in super().finished_samples(shard_id, state, page_size):
            self._read += 1
            self._progress(self._read)
            yield sample


def export_run(run: RunFigures, views: Views, order: ExportOrder, settings: Settings) -> Exported:
    """Write the files. Raises ServiceError when the disk does not take them."""
    rows = latest(views.shards(run.id))
    left_out = 0
    if order.format == "parquet":
        files = _export_parquet(views, rows, order.output, settings)
    elif order.format == "webdataset":
        name = file_name_part(run.name)
        packed = export_webdataset(views, rows, order.output, name, order.shard_size)
        files, left_out = packed.files, packed.left_out
    else:
        files = export(views, rows, order.output)
    ended = views.ended([row.id for row in rows])
    samples = sum(row.shard.sample_count for row in rows)
    return Exported(files, ended, samples - ended.total, left_out)


def _export_parquet(
    views: Views, rows: Sequence[ShardRow], folder: Path, settings: Settings
) -> list[ExportedFile]:
    try:
        from producer.writing.parquet import export_parquet
    except ImportError as error:
        raise UserError("--format parquet needs pyarrow: pip install 'capflow[export]'") from error
    dimensions = Rubrics(load_catalogue(settings.domains)).dimensions
    return export_parquet(views, rows, folder, dimensions)
