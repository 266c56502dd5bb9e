"""Export a run in one of the formats, whole or in splits, with the files that describe it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject, Modality
from capflow_tasks.store.figures import RunFigures
from capflow_tasks.store.states import ShardRow, Tally
from capflow_tasks.store.views import Views
from producer.reading.plan import file_name_part, output_name
from producer.writing.captions import Captioned, ExportedFile, export, file_names, latest, listing_left_out
from producer.writing.card import Card, write_card
from producer.writing.ownership import OwnFiles
from producer.writing.parquet import Columns, write_parquet
from producer.writing.selection import Choice, Selection
from producer.writing.sidecars import write_sidecars
from producer.writing.tars import Packing, features_of, tars_of
from producer.writing.trainers import TRAINERS, register
from producer.writing.whole import write_lines


@dataclass(frozen=True, slots=True)
class Order:
    """What is exported, and how."""

    form: str
    folder: Path
    choice: Choice
    #: Samples per tar.
    shard_size: int = 1000
    #: The only keys or columns to write; empty for all.
    fields: tuple[str, ...] = ()
    #: Whether Parquet holds the media themselves.
    embeds: bool = False
    #: Whether files that are not this run's are replaced.
    overwrites: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    files: list[ExportedFile]
    #: Finished samples of the run, by how they ended.
    ended: Tally
    #: Samples that are not finished.
    remaining: int
    #: Captions that do not meet the criteria.
    rejected: int
    #: Whether a card was written; False where a README.md stays that is not this run's.
    has_card: bool

    @property
    def left_out(self) -> int:
        """Captioned samples whose media cannot be read."""
        return sum(file.samples for file in self.files if file.is_left_out)


#: A file to write: its split, its name without a suffix, and its samples.
_Part = tuple[str, str, Iterator[Captioned]]


def export_run(views: Views, run: RunFigures, order: Order) -> Exported:
    """Write the run's captioned samples.

    Raises UserError where a file in the folder is another's, and ServiceError when the disk refuses one.
    """
    rows = latest(views.shards(run.id))
    writer = _Writer(views, rows, run, order)
    writer.write()
    ended = views.ended([row.id for row in rows])
    remaining = sum(row.shard.sample_count for row in rows) - ended.total
    return Exported(writer.files, ended, remaining, writer.selection.rejected, writer.write_card())


class _Writer:
    """Writes the files of one export, and remembers what the card says of them."""

    def __init__(self, views: Views, rows: list[ShardRow], run: RunFigures, order: Order) -> None:
        self.selection = Selection(views, rows, order.choice)
        self.files: list[ExportedFile] = []
        self._views = views
        self._rows = rows
        self._run = run
        self._name = file_name_part(run.name)
        self._left_out = order.folder / f"{self._name}.left_out.jsonl"
        self._order = order
        self._own = OwnFiles(order.folder, run.name, run.created_at, overwrites=order.overwrites)
        #: Whether each plan line has a file of its own.
        self._is_by_shard = not order.choice.splits and order.choice.seed is None
        self._has_roots = len({row.shard.root for row in rows}) > 1
        #: Patterns of file names by split, and columns that `datasets` cannot infer.
        self._patterns: dict[str, str] = {}
        self._features: list[JsonObject] = []

    def write(self) -> None:
        writers = {
            "jsonl": self._write_caption_files if self._is_by_shard else self._write_lines,
            "parquet": self._write_parquet,
            "webdataset": self._write_tars,
            **dict.fromkeys(TRAINERS, self._write_for_trainer),
        }
        if self._order.form == "txt":
            # Too many for a list: a file with another text stays.
            self._write_sidecars()
            return
        with self._own.writing(self._names()):
            writers[self._order.form]()

    def _names(self) -> list[str]:
        """Name the files that are written, replaced or removed; of tars, those that are there."""
        form, folder = self._order.form, self._order.folder
        if form == "jsonl" and self._is_by_shard:
            return file_names(row.shard for row in self._rows)
        parts = self._shards() if form == "parquet" and self._is_by_shard else self._parts()
        stems = [stem for _, stem, _ in parts]
        left_out = [self._left_out.name] if form in ("parquet", "webdataset") else []
        if form == "webdataset":
            return [path.name for stem in stems for path in tars_of(folder, stem)] + left_out
        suffix = TRAINERS[form].suffix if form in TRAINERS else f".{form}"
        return [f"{stem}{suffix}" for stem in stems] + left_out

    def write_card(self) -> bool:
        if self._order.form == "txt":
            return True
        chosen = self.selection
        counts = {"domain": chosen.domains, "model": chosen.models, "prompts (digest)": chosen.workflows}
        card = Card(self._run.name, self._order.form, counts, self._patterns, self._features)
        return write_card(self._order.folder, card, self._own)

    def _parts(self) -> Iterator[_Part]:
        """Yield one part per split; without splits, all samples."""
        if not self._order.choice.splits:
            yield "train", self._name, self.selection.of_split(None)
        for split in self._order.choice.splits:
            yield split, f"{self._name}-{split}", self.selection.of_split(split)

    def _shards(self) -> Iterator[_Part]:
        for row in self._rows:
            yield "train", output_name(row.shard).removesuffix(".jsonl"), self.selection.of_shard(row)

    def _records_of(self, row: ShardRow) -> Iterator[JsonObject]:
        return map(self._record, self.selection.of_shard(row))

    def _record(self, each: Captioned) -> JsonObject:
        fields = self._order.fields or each.record
        return {key: each.record[key] for key in fields if key in each.record}

    def _write_caption_files(self) -> None:
        read, folder = self._views.finished_samples, self._order.folder
        self.files += export(read, self._rows, folder, self._own, self._records_of)

    def _write_lines(self) -> None:
        for _, stem, samples in self._parts():
            path = self._order.folder / f"{stem}.jsonl"
            count = write_lines(path, map(self._record, samples), keep_empty=True)
            self.files.append(ExportedFile(path, count))

    def _write_parquet(self) -> None:
        order, parts = self._order, self._shards() if self._is_by_shard else self._parts()
        columns = Columns(sorted(order.choice.criteria.rubrics.dimensions), order.fields, order.embeds)
        with listing_left_out(self._left_out, self.files) as left_out:
            for split, stem, samples in parts:
                path = order.folder / f"{stem}.parquet"
                self.files.append(ExportedFile(path, write_parquet(path, samples, columns, left_out)))
                self._patterns[split] = "Rank*.parquet" if self._is_by_shard else path.name

    def _write_tars(self) -> None:
        order, suffixes = self._order, dict[str, Modality]()
        with listing_left_out(self._left_out, self.files) as left_out:
            for split, stem, samples in self._parts():
                packing = Packing(self._own, order.folder, stem, order.shard_size, order.fields)
                self.files += packing.write(samples, left_out)
                suffixes |= packing.suffixes
                self._patterns[split] = f"{stem}-*.tar"
        self._features = features_of(suffixes, order.fields)

    def _write_for_trainer(self) -> None:
        if self._has_roots and not self._order.choice.is_absolute:
            raise UserError("the run has media under several roots; add --absolute, so that paths say which")
        trainer, folder = TRAINERS[self._order.form], self._order.folder
        for split, stem, samples in self._parts():
            path = folder / f"{stem}{trainer.suffix}"
            captioned = (each for each in samples if each.caption is not None)
            count, keys = trainer.write(path, map(trainer.record, captioned))
            self.files.append(ExportedFile(path, count))
            self._patterns[split] = path.name
            if self._order.form == "llama-factory":
                register(folder, stem, path.name, keys)

    def _write_sidecars(self) -> None:
        folder, overwrites = self._order.folder, self._order.overwrites
        captioned = (each for each in self.selection.of_split(None) if each.caption is not None)
        count = write_sidecars(captioned, folder, has_roots=self._has_roots, overwrites=overwrites)
        self.files.append(ExportedFile(folder, count))
