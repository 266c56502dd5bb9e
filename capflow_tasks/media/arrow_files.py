"""Reads record batches of Arrow streams, as `datasets.save_to_disk` writes them, where they lie."""

import os
import struct
from functools import lru_cache
from typing import Any, BinaryIO

from capflow_tasks.errors import MediaCorrupt, MediaMissing, MediaUnsupported

#: How an Arrow stream begins, and each of its messages.
ARROW_HEAD = b"\xff\xff\xff\xff"
#: Kinds of messages, as Arrow numbers them.
_DICTIONARY, _RECORDS = 2, 3
#: Longest description of a message, bytes.
_MOST_METADATA = 1 << 26


def is_arrow(file: str) -> bool:
    with open(file, "rb") as opened:  # noqa: PTH123 - its caller names errors
        return opened.read(len(ARROW_HEAD)) == ARROW_HEAD


@lru_cache(maxsize=256)
def batch_sizes(file: str, version: int) -> list[tuple[int, int]]:
    """Return (where it starts, its bytes) for each record batch. Raises MediaCorrupt and MediaUnsupported."""
    found, start = list[tuple[int, int]](), 0
    with open(file, "rb") as opened:  # noqa: PTH123
        end = os.fstat(opened.fileno()).st_size
        try:
            while start < end and (size := _metadata_size(opened, start)):
                kind, body = _message(opened.read(size))
                if kind == _DICTIONARY:
                    raise MediaUnsupported(f"{file} holds dictionaries; write it anew by `to_parquet`.")
                following = start + 8 + size + body
                if body < 0 or following > end:
                    raise MediaCorrupt(f"{file} is cut short at byte {end:,}.")
                found += [(start, following - start)] if kind == _RECORDS else []
                start = following
        except (struct.error, IndexError) as error:
            raise MediaCorrupt(f"{file} is no sound Arrow stream at byte {start:,}.") from error
    return found


def _metadata_size(file: BinaryIO, start: int) -> int:
    """Return how long the message's description is, which follows; 0 at the stream's end."""
    file.seek(start)
    head, size = struct.unpack("<4si", file.read(8))
    if head != ARROW_HEAD or not 0 <= size <= _MOST_METADATA:
        raise struct.error("no message starts here")
    return int(size)


def _message(table: bytes) -> tuple[int, int]:
    """Return the kind of a message, and the bytes of its body, from its description (a flatbuffer)."""
    (at,) = struct.unpack_from("<I", table)
    (back,) = struct.unpack_from("<i", table, at)
    fields = [0, 0, 0, 0]
    (room,) = struct.unpack_from("<H", table, at - back)
    for place in range(min(4, (room - 4) // 2)):
        (fields[place],) = struct.unpack_from("<H", table, at - back + 4 + 2 * place)
    kind = table[at + fields[1]] if fields[1] else 0
    (body,) = struct.unpack_from("<q", table, at + fields[3]) if fields[3] else (0,)
    return kind, int(body)


def read_column(file: str, version: int, number: int, column: str) -> Any:
    """Return a column of a record batch. Raises SampleError and OSError."""
    import pyarrow as pa

    start, _ = batch_sizes(file, version)[number]
    try:
        with pa.OSFile(file) as opened:
            schema = pa.ipc.read_schema(opened)
            opened.seek(start)
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(opened), schema)
    except (pa.ArrowException, EOFError) as error:
        raise MediaCorrupt(f"{file}: record batch {number} is damaged: {error}.") from error
    if column not in batch.schema.names:
        raise MediaMissing(f"{file} has changed: it has no column {column}; plan again.")
    return batch.column(column)
