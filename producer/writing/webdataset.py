"""Export to tar files for the `webdataset` library: captions together with their media.

    Rank0_node0_vqa-000000012.json      the line of the caption file
    Rank0_node0_vqa-000000012.txt       the caption
    Rank0_node0_vqa-000000012.jpg       the media file, unchanged; several are .0.jpg, .1.png and so on

A key is the name of the shard's caption file and the sample's index. The library ends a key at the first dot,
so a dot in a dataset's name becomes "~", which such names never contain. A tar records no time and no owner,
so that the same state and media give the same bytes.
"""

import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from glob import escape
from io import BufferedReader, BytesIO, FileIO
from itertools import chain, count, islice
from pathlib import Path
from typing import BinaryIO

from capflow_tasks.entries import media_of
from capflow_tasks.errors import MediaCorrupt, SampleError
from capflow_tasks.media.paths import check_file, file_errors, resolve_media
from capflow_tasks.records import FinishedSample, Modality, PlanShard
from capflow_tasks.store.states import SampleState, ShardRow
from producer.reading.plan import output_name
from producer.writing.captions import ExportedFile, ReadSamples, caption_record
from producer.writing.whole import json_line, whole_file

#: A usable suffix of a media file, in lower case.
_SUFFIX = re.compile(r"(?!json$|txt$)[a-z0-9]+")

#: A sample's files by their suffix: their bytes, or the path of a media file.
_Members = dict[str, bytes | str]


def export_webdataset(
    read: ReadSamples, rows: Sequence[ShardRow], folder: Path, name: str, shard_size: int
) -> list[ExportedFile]:
    """Write `<name>-000000.tar` and on; `<name>.left_out.jsonl` lists samples with unreadable media."""
    files = []
    left_out_path = folder / f"{name}.left_out.jsonl"
    with whole_file(left_out_path) as file:
        left_out = _LeftOut(file)
        samples = _samples(read, rows, left_out)
        for number in count():
            if (first := next(samples, None)) is None:
                break
            path = folder / f"{name}-{number:06}.tar"
            with whole_file(path) as tar:
                packed = _pack(tar, chain([first], islice(samples, shard_size - 1)), left_out)
            files.append(ExportedFile(path, packed))
    # An earlier export may have written more tars.
    for path in folder.glob(f"{escape(name)}-{'[0-9]' * 6}.tar"):
        if path not in {file.path for file in files}:
            path.unlink()
    if left_out.count:
        return [*files, ExportedFile(left_out_path, left_out.count, is_left_out=True)]
    left_out_path.unlink()
    return files


class _LeftOut:
    """Lists the samples that cannot be packed, one line each."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def add(self, key: str, error: SampleError) -> None:
        self.count += 1
        self._file.write(json_line({"key": key, "kind": error.kind, "message": str(error)}))


def _samples(
    read: ReadSamples, rows: Sequence[ShardRow], left_out: _LeftOut
) -> Iterator[tuple[str, _Members]]:
    """Yield the key and the files of each sample whose media are there."""
    for row in rows:
        for sample in read(row.id, SampleState.DONE):
            key = key_of(row.shard, sample.index)
            try:
                yield key, _members(row.shard, sample)
            except SampleError as error:
                left_out.add(key, error)


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
        check_file(path, sys.maxsize)
        place = f"{number}." if len(media) > 1 else ""
        members[place + _suffix(relative, kind)] = path
    return members


def _suffix(path: str, kind: Modality) -> str:
    """Return the file's own suffix in lower case, or "image" or "video" when that is unusable."""
    suffix = Path(path).suffix.removeprefix(".").lower()
    return suffix if _SUFFIX.fullmatch(suffix) else kind.value


def _pack(file: BinaryIO, samples: Iterator[tuple[str, _Members]], left_out: _LeftOut) -> int:
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
                left_out.add(key, error)
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
