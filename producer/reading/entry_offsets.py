"""Remembers where entries begin in an annotation file, so that a shard of it begins where the last one ended.

Kept in memory while this process lives, one place per thousand entries that anybody has passed; forgotten
when the file changes. Without it, the shards of one file would each read all that precedes them.
"""

from __future__ import annotations

import gzip
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

#: Entries from one remembered place to the next.
EVERY = 1000
#: Files whose places are kept.
_FILES = 256


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry begins; line and column from 1."""

    index: int = 0
    byte: int = 0
    line: int = 1
    column: int = 1


START = Place()
#: What a reader tells the places to that it passes.
Note = Callable[[Place], None]


def forget(place: Place) -> None:
    """For who reads a file once."""


class EntryOffsets:
    """The known places of one file, in order. Thread-safe."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._lock = Lock()

    def note(self, place: Place) -> None:
        with self._lock:
            last = self._places[-1].index if self._places else 0
            if place.index >= last + EVERY:
                self._places.append(place)

    def before(self, index: int) -> Place | None:
        """The last known place that is not behind this entry."""
        with self._lock:
            count = bisect_right(self._places, index, key=attrgetter("index"))
            return self._places[count - 1] if count else None


def offsets_of(path: Path) -> EntryOffsets:
    """What is known of the file as it is now. Raises OSError."""
    found = path.stat()
    return _offsets(path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=_FILES)
def _offsets(path: Path, *version: int) -> EntryOffsets:
    return EntryOffsets()


def first_place(path: Path) -> Place:
    """Where the text begins: behind the byte order mark, if there is one."""
    with open_bytes(path) as file:
        has_mark = file.read(len(BOM_UTF8)) == BOM_UTF8
    return Place(byte=len(BOM_UTF8) if has_mark else 0)


def open_bytes(path: Path, byte: int = 0) -> BinaryIO:
    """The file from this byte on, unpacked; what is packed has to be unpacked up to there."""
    opened = gzip.open if path.suffix == ".gz" else open
    file = cast(BinaryIO, opened(path, "rb"))
    try:
        file.seek(byte)
    except BaseException:
        file.close()
        raise
    return file


def byte_length(text: str) -> int:
    """How long the text was before it was decoded."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
