"""Addresses of media: a file, or a part of a container, which is read where it lies.

    photos/a.jpg
    shards/000.tar#offset=1536&size=10240&name=a.jpg              a member of a tar
    data/train-0.parquet#row_group=3&row=17&column=image          a cell of Parquet, `&item=2` of a list in it

Nothing is unpacked: a member costs one read, a cell the column of its row group; the latest columns are kept.
"""

import os
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader, BytesIO, FileIO, RawIOBase
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, quote

from capflow_tasks.errors import MediaCorrupt, MediaMissing, MediaUnsupported

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
        return f"offset={self.offset}&size={self.size}&name={quote(self.name)}"

    def size_in(self, file: str) -> int:
        return self.size

    def open(self, file: str) -> BinaryIO:
        """Open the member, unless the tar was written anew since. Raises SampleError and OSError."""
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
            f"{file} has changed or is cut short: byte {self.offset:,} is not {self.name}; plan again."
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

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """A value of a Parquet file: bytes, or an object with `bytes` as `datasets` writes pictures."""

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
        """Return how many bytes the column has in the row group, of which the value is a part."""
        groups = _row_group_sizes(file, Path(file).stat().st_mtime_ns)
        sizes = groups[self.row_group] if self.row_group < len(groups) else {}
        if self.column not in sizes:
            raise MediaMissing(f"{file} has changed: it has no {self}; plan again.")
        return sizes[self.column]

    def open(self, file: str) -> BinaryIO:
        """Open the value's bytes. Raises SampleError."""
        where = f"row {self.row} of row group {self.row_group}, column {self.column}"
        self.size_in(file)
        with _READING:  # two threads that want the same column read it once
            column = _column(file, Path(file).stat().st_mtime_ns, self.row_group, self.column)
        value = column[self.row].as_py() if self.row < len(column) else None
        if isinstance(value, list) and self.item is not None:
            value = value[self.item] if self.item < len(value) else None
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise MediaMissing(f"{file}: {where} holds no bytes of a picture or video.")
        if not value:
            raise MediaCorrupt(f"{file}: {where} is empty: zero bytes.")
        return BytesIO(value)


_READING = Lock()
Part = TarMember | ParquetCell


def split_address(path: str) -> tuple[str, Part | None]:
    """Return the file, and the part of it that the address names; None for all of it."""
    start = max(map(path.rfind, _STARTS))
    if start < 0:
        return path, None
    values = dict(parse_qsl(path[start + 1 :], keep_blank_values=True))
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
    file, part = split_address(path)
    return Path(file).open("rb") if part is None else part.open(file)


def readable_name(path: str) -> str:
    """Return a path that says where a medium is from and ends with its name: `shards/000.tar/a.jpg`."""
    file, part = split_address(path)
    if isinstance(part, TarMember):
        return f"{file}/{part.name}"
    if isinstance(part, ParquetCell):
        item = "" if part.item is None else f"-{part.item}"
        return f"{file}/{part.row_group}-{part.row}{item}.{part.column}"
    return path


def _parquet(file: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MediaUnsupported(f"{file} needs pyarrow: pip install '.[export]' on every worker.") from error
    try:
        return pq.ParquetFile(file)
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
    import pyarrow as pa

    with _parquet(file) as opened:
        try:
            return opened.read_row_group(row_group, columns=[column]).column(column)
        except (pa.ArrowException, OSError) as error:
            raise MediaCorrupt(f"{file}: row group {row_group} is damaged: {error}.") from error
