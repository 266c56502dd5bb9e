"""Write files and folders that appear whole or not at all."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from capflow_tasks.errors import ServiceError
from capflow_tasks.records import JsonObject


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield an unused path next to `path`; what lies there in the end is removed.

    Raises ServiceError when the disk refuses something.
    """
    temporary = path.with_name(f".capflow-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        is_path = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
        remedy = "name another folder with --output" if is_path else "free or repair the disk, then run again"
        raise ServiceError(f"{path}: cannot be written: {error.strerror or error}; {remedy}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise ServiceError when no file can be written to the folder, or to where it would be made."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    with _replacing(there / "probe") as temporary:
        temporary.touch()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block succeeds, and is removed when it fails.

    Raises ServiceError when the disk refuses it.
    """
    with _replacing(path) as temporary:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        # Makes the new name survive a power cut, on file systems that can.
        with suppress(OSError):
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that replaces `folder` when the block succeeds, and is removed when it fails.

    Raises ServiceError when the disk refuses it.
    """
    with _replacing(folder) as temporary:
        temporary.mkdir()
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)


def json_line(record: JsonObject) -> bytes:
    """Encode the record as one line of a JSONL file."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_lines(path: Path, records: Iterable[JsonObject], *, keep_empty: bool = False) -> int:
    """Write one record per line and return their number; the file appears whole or not at all.

    Without records the file is removed, or left empty with `keep_empty`. Raises ServiceError when the disk
    refuses it.
    """
    remaining, count = iter(records), 0
    record = next(remaining, None)
    if record is None and not keep_empty:
        path.unlink(missing_ok=True)
        return 0
    with whole_file(path) as file:
        while record is not None:
            file.write(json_line(record))
            count += 1
            record = next(remaining, None)
    return count
