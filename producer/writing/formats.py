"""Export what is captioned of a run as the files of one format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.errors import UserError
from capflow_tasks.records import FinishedSample
from capflow_tasks.store.figures import RunFigures
from capflow_tasks.store.states import SampleState, ShardRow, Tally
from capflow_tasks.store.views import Views
from producer.parallel import ProgressLines
from producer.reading.caption_files import Rubrics
from producer.reading.plan import file_name_part, output_name
from producer.writing.captions import ExportedFile, ReadSamples, export
from producer.writing.webdataset import export_webdataset


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
    read = _with_progress(views.finished_samples)
    if form == "parquet":
        files = _export_parquet(read, rows, folder, domains)
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


def _with_progress(read: ReadSamples) -> ReadSamples:
    """Print on stderr, now and then, how many samples have been read."""
    progress, numbers = ProgressLines("samples"), count(1)

    def read_counted(shard_id: int, state: SampleState) -> Iterator[FinishedSample]:
        for sample in read(shard_id, state):
            progress(next(numbers))
            yield sample

    return read_counted


def _export_parquet(
    read: ReadSamples, rows: Sequence[ShardRow], folder: Path, domains: Path | None
) -> list[ExportedFile]:
    try:
        from producer.writing.parquet import export_parquet
    except ImportError as error:
        raise UserError("--format parquet needs pyarrow: pip install '.[export]'") from error
    return export_parquet(read, rows, folder, Rubrics(load_catalogue(domains)).dimensions)
