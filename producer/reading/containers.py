"""Read samples of tars and Parquet files as entries that name their media by address; nothing is unpacked.

A tar is read as `webdataset` does: members whose paths are equal up to the name's first dot are a sample.
Memory holds one sample, or one row group without its media.
"""

import json
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, BinaryIO

from capflow_tasks.entries import MEDIA_KEYS, printable
from capflow_tasks.errors import PlanError
from capflow_tasks.media.addresses import ParquetCell, TarMember
from capflow_tasks.media.paths import HEAD_BYTES, kind_of
from capflow_tasks.records import JsonObject, Modality
from producer.reading.folders import named_kind
from producer.reading.tables import moved_aside

#: Longest member that is read as text or JSON, bytes.
_TEXT_BYTES = 1 << 20
#: Suffixes of members whose text becomes a key.
_TEXTS = ("txt", "caption", "cls", "id", "text")
#: Rows that are converted at a time.
_ROWS = 1000
#: More rows of a row group than any that is written on purpose.
_MOST_ROWS = 100_000_000
#: Types of values that JSON has as they are.
_SIMPLE = {str, int, bool, type(None)}
#: What a column may be called that holds pictures or videos.
_COLUMNS = {
    Modality.IMAGE: ("image", "images", "img", "picture", "jpg", "jpeg", "png", "webp"),
    Modality.VIDEO: ("video", "videos", "clip", "mp4"),
}


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar, compressed or not."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def tar_entries(file: BinaryIO, path: str, where: str) -> Iterator[JsonObject]:
    """Yield the samples of a tar that hold media, whose addresses call the tar `where`; errors, `path`.

    Raises PlanError where it cannot be read on.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in groupby(_plain_members(tar), key=lambda member: _key(member.name)):
                if (entry := _sample(file, where, key, members)) is not None:
                    yield entry
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{path}: cannot be read on: {reason}; fetch the tar again") from error


def _plain_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files: links and devices lead elsewhere, sparse files do not lie in one piece."""
    for member in tar:
        vars(tar)["members"] = []  # it would keep them all
        if member.isreg() and not member.sparse and member.name:
            yield member


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _sample(file: BinaryIO, tar: str, key: str, members: Iterable[tarfile.TarInfo]) -> JsonObject | None:
    """Return the entry of a sample's members; None without media."""
    said: JsonObject = {}
    media: dict[Modality, list[str]] = {}
    for member in members:
        suffix = member.name.removeprefix(key).removeprefix(".").lower()
        file.seek(member.offset_data)
        if suffix == "json" or suffix in _TEXTS:
            text = file.read(min(member.size, _TEXT_BYTES)).decode("utf-8", "replace").replace("\0", "")
            said |= _values(text) if suffix == "json" else {suffix: text.strip()}
            continue
        kind = kind_of(file.read(min(member.size, HEAD_BYTES))) or named_kind(member.name)
        if kind is not None:
            address = TarMember(member.offset_data, member.size, member.name)
            media.setdefault(kind, []).append(f"{tar}#{address}")
    return {"id": key, **moved_aside(said), **_named(media)} if media else None


def _values(text: str) -> JsonObject:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"json": text}
    return value if isinstance(value, dict) else {"json": value}


def _named(media: Mapping[Modality, list[str]]) -> JsonObject:
    """Return the media under the keys of an entry."""
    return {
        MEDIA_KEYS[kind][len(paths) > 1]: paths if len(paths) > 1 else paths[0]
        for kind, paths in media.items()
        if paths
    }


def parquet_entries(
    source: str | BinaryIO, path: str, where: str, column: str | None
) -> Iterator[JsonObject]:
    """Yield the rows of a Parquet file, which addresses call `where`, and errors `path`.

    `column` holds the media; None for those that look like it. Raises PlanError.
    """
    pa, pq = _pyarrow(path)
    try:
        with pq.ParquetFile(source) as file:
            media = [_MediaColumn(*each) for each in _media_columns(path, file.schema_arrow, column).items()]
            for number in range(file.num_row_groups):
                _check_rows(path, number, file.metadata.row_group(number).num_rows)
                yield from _rows(file, number, media, where)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = printable(str(error).strip())
        raise PlanError(f"{path}: cannot be read on: {reason}; fetch the file again") from error


def arrow_entries(path: str, where: str, column: str | None) -> Iterator[JsonObject]:
    """Yield the rows of an Arrow stream as `parquet_entries` does those of a Parquet file."""
    pa, _ = _pyarrow(path)
    try:
        with pa.memory_map(path) as source, pa.ipc.open_stream(source) as batches:
            media = [_MediaColumn(*each) for each in _media_columns(path, batches.schema, column).items()]
            names = {each.name for each in media}
            plain = [each.name for each in batches.schema if _is_plain(each, names)]
            for number, batch in enumerate(batches):
                reads = [(each, *_arrow_values(batch.column(each.name))) for each in media]
                for row, values in enumerate(_plain_rows(batch, plain)):
                    found = [(each, held[row], is_embedded) for each, held, is_embedded in reads]
                    yield _entry(where, number, row, values, found)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = printable(str(error).strip())
        raise PlanError(f"{path}: cannot be read on: {reason}; fetch the file again") from error


def _pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise PlanError(f"{path}: reading it needs pyarrow; pip install '.[export]'") from error
    return pa, pq


def _plain_rows(batch: Any, columns: Sequence[str]) -> Iterator[JsonObject]:
    if not columns:
        yield from ({} for _ in range(batch.num_rows))
        return
    for start in range(0, batch.num_rows, _ROWS):
        yield from batch.select(columns).slice(start, _ROWS).to_pylist()


def _arrow_values(column: Any) -> tuple[list[Any], bool]:
    """Return what `_MediaColumn.named` needs of each row, and whether the bytes, which stay, are embedded."""
    is_list = "list" in str(column.type).split("<")[0]
    inner = column.flatten() if is_list else column
    is_object = str(inner.type).startswith("struct")
    stored = inner.field("bytes") if is_object and "bytes" in [each.name for each in inner.type] else inner
    if "binary" not in str(stored.type) or stored.null_count == len(stored):
        return column.to_pylist(), False
    if is_list:
        return [None if size is None else [True] * size for size in column.value_lengths().to_pylist()], True
    return [is_there or None for is_there in stored.is_valid().to_pylist()], True


def _is_plain(field: Any, media: Collection[str]) -> bool:
    """Whether a column is kept: it holds neither media nor other bytes."""
    return field.name not in media and "binary" not in str(field.type)


def _check_rows(path: str, number: int, rows: int) -> None:
    """Refuse a count that no file has: of media that are embedded, the rows are counted and not read."""
    if not 0 <= rows <= _MOST_ROWS:
        said = f"says that row group {number} has {rows:,} rows"
        raise PlanError(f"{path}: {said}; fetch the file again, or write smaller row groups")


def _media_columns(path: str, schema: Any, column: str | None) -> dict[str, Modality]:
    """Return the columns of media: the one asked for, those that `datasets` calls so, or those named so."""
    names = ", ".join(schema.names)
    if column is not None and column not in schema.names:
        raise PlanError(f"{path}: has no column {column}; say --image-key, one of: {names}")
    named = {name: kind for kind, names in _COLUMNS.items() for name in names}
    noted = _noted_columns(schema)
    kinds = {name: kind for name in schema.names if (kind := noted.get(name) or named.get(name.lower()))}
    if column is not None:
        return {column: kinds.get(column, Modality.IMAGE)}
    if not kinds:
        raise PlanError(f"{path}: no column looks like pictures or videos; say --image-key, one of: {names}")
    return kinds


def _noted_columns(schema: Any) -> dict[str, Modality]:
    """Return the columns that `datasets` has noted as pictures or videos, alone or in lists."""
    note = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(note).get("info", {}).get("features", {}).items()
    except (ValueError, AttributeError):
        return {}
    return {
        name: kind
        for name, feature in features
        for word, kind in (("Image", Modality.IMAGE), ("Video", Modality.VIDEO))
        if f'"_type": "{word}"' in json.dumps(feature)
    }


@dataclass(frozen=True, slots=True)
class _MediaColumn:
    name: str
    kind: Modality

    def read(self, file: Any, row_group: int) -> tuple[list[str], bool]:
        """Return the columns to read for the places of its media, and whether the bytes are embedded.

        Of objects with `bytes` and `path`, as `datasets` writes them, that is the path.
        """
        group, leaves = file.metadata.row_group(row_group), dict[str, Any]()
        for place in range(group.num_columns):
            chunk = group.column(place)
            if chunk.path_in_schema.split(".")[0] == self.name:
                leaves[chunk.path_in_schema] = chunk
        stored = [leaf for leaf in leaves if leaf.endswith(".bytes")]
        if not stored:
            is_binary = "binary" in str(file.schema_arrow.field(self.name).type)
            return ([], True) if is_binary else ([self.name], False)
        statistics = leaves[stored[0]].statistics
        holds_none = statistics is not None and statistics.null_count == leaves[stored[0]].num_values
        return [leaf for leaf in leaves if leaf.endswith(".path")], not holds_none

    def named(self, value: Any, is_embedded: bool, address: Callable[[int | None], str]) -> list[str]:
        """Return what names the media of a row, as read."""
        if not is_embedded:
            values = value if isinstance(value, list) else [value]
            paths = (each.get("path") if isinstance(each, dict) else each for each in values)
            return [path for path in paths if isinstance(path, str) and path]
        if isinstance(value, list):
            return [address(item) for item in range(len(value))]
        return [] if value is None else [address(None)]


def _rows(file: Any, number: int, media: Sequence[_MediaColumn], path: str) -> Iterator[JsonObject]:
    """Yield the entries of a row group, whose embedded media are not read."""
    reads = {each: each.read(file, number) for each in media}
    names = {each.name for each in media}
    plain = [each.name for each in file.schema_arrow if _is_plain(each, names)]
    columns = [*plain, *(column for read, _ in reads.values() for column in read)]
    for row, values in enumerate(_values_of(file, number, columns)):
        # bytes without a path beside them are there, as far as is known before they are read
        found = [
            (each, values.pop(each.name, None) if read else True, is_embedded)
            for each, (read, is_embedded) in reads.items()
        ]
        yield _entry(path, number, row, values, found)


def _entry(
    path: str, number: int, row: int, values: JsonObject, found: Iterable[tuple[_MediaColumn, Any, bool]]
) -> JsonObject:
    """Return the entry of a row: its plain values, and what names its media."""
    media: dict[Modality, list[str]] = {}
    for each, value, is_embedded in found:
        address = partial(_address, path, number, row, each.name)
        media.setdefault(each.kind, []).extend(each.named(value, is_embedded, address))
    said = values
    if not _SIMPLE.issuperset(map(type, values.values())):  # dates and NaN, perhaps deep inside
        said = json.loads(json.dumps(values, default=str), parse_constant=lambda _: None)
    return {"id": f"{path}:{number}:{row}", **moved_aside(said), **_named(media)}


def _values_of(file: Any, row_group: int, columns: Sequence[str]) -> Iterator[JsonObject]:
    if not columns:
        yield from ({} for _ in range(file.metadata.row_group(row_group).num_rows))
        return
    for batch in file.iter_batches(_ROWS, row_groups=[row_group], columns=columns):
        yield from batch.to_pylist()


def _address(path: str, row_group: int, row: int, column: str, item: int | None) -> str:
    return f"{path}#{ParquetCell(row_group, row, column, item)}"
