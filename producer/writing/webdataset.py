"""From the database to tar files as the `webdataset` library reads them: captions together with their media.

    Rank0_node0_vqa-000000012.json      the line of the caption file
    Rank0_node0_vqa-000000012.txt       the caption
    Rank0_node0_vqa-000000012.jpg       the file as it is; several are .0.jpg, .1.png and so on

A key is the name of the shard's caption file and the sample's index. The library takes what precedes the
first dot for the key, so a dot in a dataset's name becomes a "~", which stands in no such name. Nothing in a
tar says when and by whom it was written, so that the same state and media give the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from io import BytesIO
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from capflow_tasks.entries import media_of
from capflow_tasks.errors import MediaCorrupt, SampleError
from capflow_tasks.media.paths import check_file, file_errors, resolve_media
from capflow_tasks.records import FinishedSample, JsonObject, Modality, PlanShard
from capflow_tasks.store.rows import ShardRow
from capflow_tasks.store.states import SampleState
from capflow_tasks.store.views import Views
from producer.reading.plan import output_name
from producer.writing.captions import ExportedFile, caption_record, whole_file

if TYPE_CHECKING:
    from _typeshed import SupportsRead

#: What may stand behind the key's dot, in lower case.
_SUFFIX = re.compile(r"[a-z0-9]+")
_OWN_SUFFIXES = ("json", "txt")


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written."""

    files: list[ExportedFile]
    #: Captioned samples whose media could not be read; each is a line of the last file.
    left_out: int


@dataclass(frozen=True, slots=True)
class _Sample:
    """One captioned sample on its way into a tar."""

    key: str
    record: JsonObject
    #: What is behind the key's dot, and the file; these were there when it was looked at.
    media: list[tuple[str, str]]


class _LeftOut:
    """Lines about the samples that cannot be packed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def add(self, key: str, error: SampleError) -> None:
        self.count += 1
        line = {"key": key, "kind": error.kind, "message": str(error)}
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def export_webdataset(
    views: Views, rows: Sequence[ShardRow], folder: Path, name: str, shard_size: int
) -> Packed:
    """Write `<folder>/<name>-000000.tar` and on, and `<name>.left_out.jsonl` where there is such."""
    files = []
    with _left_out(folder / f"{name}.left_out.jsonl") as left_out:
        samples = _samples(views, rows, left_out)
        for number in count():
            if (first := next(samples, None)) is None:
                break
            path = folder / f"{name}-{number:06}.tar"
            with whole_file(path) as file:
                written = _fill(file, chain([first], islice(samples, shard_size - 1)), left_out)
            files.append(ExportedFile(path, written))
    _remove_earlier(folder, name, {file.path for file in files})
    if left_out.count:
        files.append(ExportedFile(folder / f"{name}.left_out.jsonl", left_out.count))
    return Packed(files, left_out.count)


@contextmanager
def _left_out(path: Path) -> Iterator[_LeftOut]:
    with whole_file(path) as file:
        left_out = _LeftOut(file)
        yield left_out
    if not left_out.count:
        path.unlink()


def _remove_earlier(folder: Path, name: str, written: set[Path]) -> None:
    """Tars of an earlier export that were more or smaller."""
    for path in folder.glob(f"{escape(name)}-{'[0-9]' * 6}.tar"):
        if path not in written:
            path.unlink()


def _samples(views: Views, rows: Sequence[ShardRow], left_out: _LeftOut) -> Iterator[_Sample]:
    for row in rows:
        for sample in views.finished_samples(row.id, SampleState.DONE):
            key = key_of(row.shard, sample.index)
            try:
                media = _media(row.shard, sample)
            except SampleError as error:
                left_out.add(key, error)
            else:
                yield _Sample(key, caption_record(sample), media)


def key_of(shard: PlanShard, index: int) -> str:
    """What names a sample in all tars of a run; without a dot."""
    name = output_name(shard).removesuffix(".jsonl").replace(".", "~")
    return f"{name}-{index:09}"


def _media(shard: PlanShard, sample: FinishedSample) -> list[tuple[str, str]]:
    media = media_of(sample.entry, shard.modality)
    found = []
    for number, (kind, relative) in enumerate(media):
        path = resolve_media(shard.root, relative)
        check_file(path, sys.maxsize)
        place = f"{number}." if len(media) > 1 else ""
        found.append((place + _suffix(relative, kind), path))
    return found


def _suffix(path: str, kind: Modality) -> str:
    """The file's own in lower case; "image" or "video" where it has none that can be used."""
    suffix = Path(path).suffix.removeprefix(".").lower()
    return suffix if _SUFFIX.fullmatch(suffix) and suffix not in _OWN_SUFFIXES else kind.value


def _fill(file: BinaryIO, samples: Iterator[_Sample], left_out: _LeftOut) -> int:
    """A tar of these samples; one whose media break while they are read leaves nothing in it."""
    written = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            start = tar.offset
            try:
                _add_sample(tar, sample)
                written += 1
            except SampleError as error:
                left_out.add(sample.key, error)
                file.seek(start)
                file.truncate()
                tar.offset = start
    return written


def _add_sample(tar: tarfile.TarFile, sample: _Sample) -> None:
    line = json.dumps(sample.record, ensure_ascii=False).encode()
    _add(tar, f"{sample.key}.json", BytesIO(line), len(line))
    if isinstance(caption := sample.record.get("caption"), str):
        text = caption.encode()
        _add(tar, f"{sample.key}.txt", BytesIO(text), len(text))
    for suffix, path in sample.media:
        with _opened(path) as source:
            size = os.fstat(source.fileno()).st_size
            _add(tar, f"{sample.key}.{suffix}", _Medium(path, source), size)


def _opened(path: str) -> BinaryIO:
    with file_errors(path):
        return Path(path).open("rb")


def _add(tar: tarfile.TarFile, name: str, source: SupportsRead[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    tar.addfile(member, source)


class _Medium:
    """A file being read; what goes wrong is the sample's reason, not that of the tar."""

    def __init__(self, path: str, source: BinaryIO) -> None:
        self._path = path
        self._source = source

    def read(self, size: int = -1, /) -> bytes:
        with file_errors(self._path):
            data = self._source.read(size)
        if len(data) < size:
            raise MediaCorrupt(f"{self._path} became shorter while it was read.")
        return data
