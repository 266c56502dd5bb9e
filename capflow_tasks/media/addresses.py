"""Addresses of media: a file, or a part of a container, which is read where it lies.

    photos/a.jpg
    shards/000.tar#offset=1536&size=10240&name=a.jpg              a member of a tar
    data/train-0.parquet#row_group=3&row=17&column=image          a cell of Parquet, `&item=2` of a list in it
    data-0.arrow#row_group=3&row=17&column=image                  one of Arrow, in a record batch
    s3://bucket/000.tar#offset=1536&size=10240&name=a.jpg         a member of a remote tar
    clip.mp4#t=10,20.5    scan.tiff#frame=3    a.jpg#xywh=10,20,300,200    a part, as in W3C's Media Fragments

A part may follow any of the others, after `&`: `shards/000.tar#offset=...&name=clip.mp4&t=10,20`.
Nothing is unpacked: a member costs one read, a cell the column of its row group; the latest columns are kept.
Of remote media, a copy is read: of a file, also one of Parquet, or of a tar's member.
"""

import os
import re
import tarfile
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BufferedReader, BytesIO, FileIO, RawIOBase
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, quote

from capflow_tasks.errors import MediaCorrupt, MediaMissing, MediaUnsupported
from capflow_tasks.media import arrow_files, remote
from capflow_tasks.records import Span

#: How the fragment of an address starts; no other name of a file is taken for one.
_STARTS = ("#offset=", "#row_group=")
#: Columns of row groups that are kept decoded.
_KEPT_COLUMNS = 4
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar that is not compressed."""

    #: Where its bytes start.
    offset: int
    size: int
    #: For people; the bytes are found without it.
    name: str

    def __str__(self) -> str:
        return f"offset={self.offset}&size={self.size}&name={quote(self.name, errors='surrogateescape')}"

    def size_in(self, file: str) -> int:
        return self.size

    def open(self, file: str, said: str) -> BinaryIO:
        """Open the member, unless the tar was written anew since; errors name it `said`.

        Raises SampleError and OSError.
        """
        source = FileIO(file)
        try:
            header = tarfile.TarInfo.frombuf(
                os.pread(source.fileno(), _BLOCK, self.offset - _BLOCK), "utf-8", "surrogateescape"
            )
            is_there = header.isreg() and header.size == self.size
        except (tarfile.HeaderError, OSError):
            is_there = False
        if is_there and self.offset + self.size <= os.fstat(source.fileno()).st_size:
            return BufferedReader(_Slice(source, self.offset, self.size))
        source.close()
        raise MediaMissing(
            f"{said} has changed or is cut short: byte {self.offset:,} is not {self.name}; plan again."
        )


class _Slice(RawIOBase):
    """The bytes of a file from an offset on; reads without moving the file's own position."""

    def __init__(self, file: FileIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        read = os.preadv(self._file.fileno(), [view], self._offset + self._at)
        self._at += read
        return read

    def readall(self) -> bytes:
        chunks = list[bytes]()
        while chunk := os.pread(self._file.fileno(), max(0, self._size - self._at), self._offset + self._at):
            chunks.append(chunk)
            self._at += len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """A value of a Parquet or Arrow file: bytes, or an object with `bytes` as `datasets` writes pictures."""

    #: Of Arrow, the record batch.
    row_group: int
    #: From 0 in its row group.
    row: int
    column: str
    #: The place in the value, where it is a list.
    item: int | None = None

    def __str__(self) -> str:
        item = "" if self.item is None else f"&item={self.item}"
        return f"row_group={self.row_group}&row={self.row}&column={quote(self.column, safe='')}{item}"

    def size_in(self, file: str) -> int:
        """Return how many bytes the column, of which the value is a part, has in the row group.

        Of Arrow, it is all columns of the record batch.
        """
        version = Path(file).stat().st_mtime_ns
        if arrow_files.is_arrow(file):
            batches = arrow_files.batch_sizes(file, version)
            if self.row_group >= len(batches):
                raise MediaMissing(f"{file} has changed: it has no {self}; plan again.")
            return batches[self.row_group][1]
        groups = _row_group_sizes(file, version)
        sizes = groups[self.row_group] if self.row_group < len(groups) else {}
        if self.column not in sizes:
            raise MediaMissing(f"{file} has changed: it has no {self}; plan again.")
        return sizes[self.column]

    def open(self, file: str, said: str) -> BinaryIO:
        """Open the value's bytes; errors name the file `said`. Raises SampleError."""
        where = f"row {self.row} of row group {self.row_group}, column {self.column}"
        self.size_in(file)
        with _READING:  # two threads that want the same column read it once
            column = _column(file, Path(file).stat().st_mtime_ns, self.row_group, self.column)
        value = column[self.row].as_py() if self.row < len(column) else None
        if isinstance(value, list) and self.item is not None:
            value = value[self.item] if self.item < len(value) else None
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise MediaMissing(f"{said}: {where} holds no bytes of a picture or video.")
        if not value:
            raise MediaCorrupt(f"{said}: {where} is empty: zero bytes.")
        return BytesIO(value)


_READING = Lock()
Member = TarMember | ParquetCell


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a medium that is meant; None for all of it."""

    #: Of a video.
    span: Span | None = None
    #: The number of an animation's frame or a document's page, from 0.
    frame: int | None = None
    #: (left, top, width, height) of the upright picture, pixels.
    box: tuple[int, int, int, int] | None = None

    def __str__(self) -> str:
        if self.span is not None:
            start, end = (f"{at:.3f}".rstrip("0").rstrip(".") for at in (self.span.start, self.span.end))
            return f"t={start},{end}"
        return f"frame={self.frame}" if self.box is None else f"xywh={','.join(map(str, self.box))}"


_PART = re.compile(
    r"[#&](?:t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)|frame=(\d{1,9})|xywh=(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9}))$"
)


def part_of(path: str) -> Part:
    """Return the part of the medium that the address names."""
    found = _PART.search(path)
    if found is None:
        return Part()
    start, end, frame, left, top, width, height = found.groups()
    if start is not None:
        return Part(Span(float(start), float(end)))
    return Part(frame=int(frame)) if frame else Part(box=(int(left), int(top), int(width), int(height)))


def with_part(path: str, part: Part) -> str:
    """Return the address of a part of the medium."""
    if part == Part():
        return path
    return f"{path}{'#' if split_address(path)[1] is None else '&'}{part}"


def split_address(path: str) -> tuple[str, Member | None]:
    """Return the file, and its member that the address names, without a part; None for all of the file."""
    path = _PART.sub("", path)
    start = max(map(path.rfind, _STARTS))
    if start < 0:
        return path, None
    values = dict(parse_qsl(path[start + 1 :], keep_blank_values=True, errors="surrogateescape"))
    try:
        if "offset" in values:
            member = TarMember(int(values["offset"]), int(values["size"]), values.get("name", ""))
            return (path[:start], member) if member.offset >= _BLOCK and member.size >= 0 else (path, None)
        item = int(values["item"]) if "item" in values else None
        cell = ParquetCell(int(values["row_group"]), int(values["row"]), values["column"], item)
        return (path[:start], cell) if min(cell.row_group, cell.row, item or 0) >= 0 else (path, None)
    except (KeyError, ValueError):
        return path, None


def open_media(path: str) -> BinaryIO:
    """Open a file or a part of one for reading. Raises SampleError and OSError."""
    file, member = located(path)
    return Path(file).open("rb") if member is None else member.open(file, split_address(path)[0])


def located(path: str) -> tuple[str, Member | None]:
    """Return the file, on disk, and its member that the address names; fetches what is remote.

    Raises SampleError.
    """
    file, member = split_address(path)
    if not remote.is_remote(file):
        return file, member
    if isinstance(member, TarMember):
        copy = remote.local_copy(file, member.offset - _BLOCK, member.offset + member.size)
        return copy, replace(member, offset=_BLOCK)
    return remote.local_copy(file), member


def readable_name(path: str) -> str:
    """Return a path that says where a medium is from and ends with its name: `shards/000.tar/a.jpg`."""
    file, member = split_address(path)
    if isinstance(member, TarMember):
        return f"{file}/{member.name}"
    if isinstance(member, ParquetCell):
        item = "" if member.item is None else f"-{member.item}"
        return f"{file}/{member.row_group}-{member.row}{item}.{member.column}"
    return file


def _parquet(file: str, column: str | None = None) -> Any:
    """Open the file, so that equal values of the column are held once, however many there are."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MediaUnsupported(f"{file} needs pyarrow: pip install '.[export]' on every worker.") from error
    try:
        metadata = pq.read_metadata(file)
        leaves = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
        repeated = [leaf for leaf in leaves if leaf.split(".")[0] == column]
        return pq.ParquetFile(file, metadata=metadata, read_dictionary=repeated)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise MediaCorrupt(f"{file} is no sound Parquet file: {error}.") from error


@lru_cache(maxsize=256)
def _row_group_sizes(file: str, version: int) -> list[dict[str, int]]:
    """Return the uncompressed bytes of each row group's top-level columns."""
    with _parquet(file) as opened:
        metadata, groups = opened.metadata, list[dict[str, int]]()
        for number in range(metadata.num_row_groups):
            group, sizes = metadata.row_group(number), dict[str, int]()
            for place in range(group.num_columns):
                chunk = group.column(place)
                name = chunk.path_in_schema.split(".")[0]
                sizes[name] = sizes.get(name, 0) + chunk.total_uncompressed_size
            groups.append(sizes)
        return groups


@lru_cache(maxsize=_KEPT_COLUMNS)
def _column(file: str, version: int, row_group: int, column: str) -> Any:
    if arrow_files.is_arrow(file):
        return arrow_files.read_column(file, version, row_group, column)
    import pyarrow as pa

    with _parquet(file, column) as opened:
        try:
            return opened.read_row_group(row_group, columns=[column]).column(column)
        except (pa.ArrowException, OSError) as error:
            raise MediaCorrupt(f"{file}: row group {row_group} is damaged: {error}.") from error
