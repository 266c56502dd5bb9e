"""Streams the entries of an annotation file: a JSON list or JSONL, plain or gzip, of any size.

Memory holds one window of the file, never the file. The window is decoded by the standard library's JSON
scanner and not by ijson, whose C backend turns half a surrogate pair into "?" without a word, and gives up
the file at an integer beyond 64 bits, a NaN or one byte that is not UTF-8. Here those cost one entry at most.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import TextIOWrapper
from itertools import islice
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NoReturn, TextIO, cast

from capflow_tasks.entries import type_name, unstorable
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject

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


#: Characters read at a time.
CHUNK_CHARACTERS = 1 << 18
#: The longest entry that is read; what is longer is a file gone wrong, such as a quote left open.
ENTRY_CHARACTERS = 1 << 26

#: A scanner that ends or fails this close to the window's edge may only have missed what comes next.
_EDGE = 32
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of an annotation file, or why it cannot be one."""

    #: Position in the file, from 0.
    index: int
    value: JsonObject | None
    #: Place and remedy, None when the value can be used.
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What stood at one position, before anyone asked whether it can be a sample."""

    line: int
    value: Any = None
    #: Why there is no value.
    problem: str | None = None


def read_entries(path: Path, start_idx: int, end_idx: int) -> Iterator[Entry]:
    """Yield the entries [start_idx, end_idx).

    An entry that cannot be used says so itself and the next one follows. A file that cannot be read on raises
    PlanError, after every entry before that place was yielded. Blank lines of a JSONL file are not entries.
    """
    if start_idx >= end_idx:
        return
    index = 0
    try:
        offsets = offsets_of(path)
        place = offsets.before(start_idx) or first_place(path)
        with open_text(path, place.byte) as stream:
            if opens_list(path):
                elements = list_elements(path, stream, place, offsets.note)
            else:
                elements = text_lines(path, stream, start_idx, place, offsets.note)
            index = place.index
            wanted = islice(elements, end_idx - place.index)
            for index, found in enumerate(wanted, start=place.index + 1):
                if index > start_idx:
                    yield _entry(path, index - 1, found)
    except (OSError, EOFError, zlib.error) as error:
        where = f" beyond entry {index - 1}" if index else ""
        reason = getattr(error, "strerror", None) or error
        raise PlanError(
            f"{path}: cannot be read{where}: {reason}; mend the file or its permissions"
        ) from error
    if index < end_idx:
        entries = "1 entry" if index == 1 else f"{index} entries"
        raise PlanError(
            f"{path}: has {entries}, but the plan takes {start_idx} up to {end_idx}; "
            f'set "end_idx" to {index} at most, or complete the file'
        )


def _entry(path: Path, index: int, found: _Found) -> Entry:
    problem = found.problem
    if problem is None and not isinstance(found.value, dict):
        problem = f'is {type_name(found.value)}, not an object; write {{"image": ...}} or {{"video": ...}}'
    elif problem is None and (reason := unstorable(found.value)) is not None:
        problem = f"cannot be stored: {reason}"
    if problem is None:
        return Entry(index, found.value, None)
    return Entry(index, None, f"{path}:{found.line}: entry {index} {problem}")


def open_text(path: Path, byte: int = 0) -> TextIO:
    """The file's text from this byte on, which must begin a character."""
    # Bytes that are not UTF-8 become lone surrogates, so that they spoil their own entry and no other.
    return TextIOWrapper(
        open_bytes(path, byte),
        encoding="utf-8" if byte else "utf-8-sig",
        errors="surrogateescape",
        newline="\n",
    )


def opens_list(path: Path) -> bool:
    with open_text(path) as stream:
        head = " "
        while head and not head.strip():
            head = stream.read(CHUNK_CHARACTERS)
    if head.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise PlanError(f"{path}: is UTF-16; save it as UTF-8")
    return head.lstrip().startswith("[")


def text_lines(
    path: Path, stream: TextIO, start_idx: int, place: Place = START, note: Note = forget
) -> Iterator[_Found]:
    """The lines of a JSONL file from this place on; those before `start_idx` are counted, not decoded."""
    line_number, index, begins = place.line - 1, place.index, place.byte
    while line := stream.readline(ENTRY_CHARACTERS):
        line_number += 1
        ends = begins + byte_length(line)
        is_cut = len(line) == ENTRY_CHARACTERS and not line.endswith("\n")
        while is_cut and (rest := stream.readline(ENTRY_CHARACTERS)):
            ends += byte_length(rest)
            if rest.endswith("\n"):
                break
        line = line.strip()
        if line and index % EVERY == 0:
            note(Place(index, begins, line_number))
        begins = ends
        if not line:
            continue
        if index == 0 and line == "{":
            raise PlanError(
                f"{path}:{line_number}: object over several lines; write a JSON list or one sample per line"
            )
        index += 1
        if index <= start_idx:
            yield _Found(line_number)
        elif is_cut:
            yield _Found(line_number, problem=f"is longer than {ENTRY_CHARACTERS} characters; shorten it")
        else:
            yield _decode_line(line, line_number)


def _decode_line(line: str, line_number: int) -> _Found:
    try:
        return _Found(line_number, json.loads(line))
    except json.JSONDecodeError as error:
        return _Found(
            line_number, problem=f"is not JSON at column {error.pos + 1}: {error.msg}; mend the line"
        )
    except (ValueError, RecursionError) as error:
        return _Found(line_number, problem=f"cannot be decoded: {error}; mend the line")


def list_elements(path: Path, stream: TextIO, place: Place = START, note: Note = forget) -> Iterator[_Found]:
    window = _Window(path, stream, place)
    if place.index == 0:
        window.take("[")
        if window.peek() == "]":
            return
    while True:
        window.peek()
        if window.entries % EVERY == 0:
            note(window.place)
        yield _Found(window.line, window.value())
        window.entries += 1
        if window.peek() == "]":
            return
        window.take(",")


class _Window:
    """The stretch of a text that is being decoded; only ever moves forward."""

    def __init__(self, path: Path, stream: TextIO, place: Place) -> None:
        self._path = path
        self._stream = stream
        self._text = ""
        self._at = 0
        self._is_last = False
        #: An offset whose place is known; both only grow, so nothing is counted twice.
        self._marked_at = 0
        self._byte, self._line, self._column = place.byte, place.line, place.column
        #: Complete entries so far.
        self.entries = place.index

    @property
    def line(self) -> int:
        self._mark(self._at)
        return self._line

    @property
    def place(self) -> Place:
        self._mark(self._at)
        return Place(self.entries, self._byte, self._line, self._column)

    def peek(self) -> str:
        """The next character that is not blank; "" at the end of the text."""
        while True:
            self._at = cast(re.Match[str], _BLANK.match(self._text, self._at)).end()
            if self._at < len(self._text) or self._is_last:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def take(self, character: str) -> None:
        if self.peek() != character:
            self._refuse(self._at, f'"{character}" or "]" expected')
        self._at += 1

    def value(self) -> Any:
        while True:
            value, end, failure = self._scan()
            if self._is_last or end + _EDGE <= len(self._text):
                break
            if len(self._text) - self._at > ENTRY_CHARACTERS:
                self._refuse(self._at, f"longer than {ENTRY_CHARACTERS} characters, or a quote left open")
            self._read_on()
        if failure is not None:
            self._refuse(failure.pos, failure.msg)
        self._at = end
        return value

    def _scan(self) -> tuple[Any, int, json.JSONDecodeError | None]:
        """The value at hand, how far the scanner looked, and what it did not like."""
        try:
            return *_DECODER.raw_decode(self._text, self._at), None
        except json.JSONDecodeError as error:
            is_open = error.msg.startswith("Unterminated string")
            return None, len(self._text) if is_open else error.pos, error
        except (ValueError, RecursionError) as error:
            self._refuse(self._at, str(error))

    def _read_on(self) -> None:
        self._mark(self._at)
        rest = self._text[self._at :]
        # Doubling, so that a long entry is not scanned once per chunk.
        more = self._stream.read(max(CHUNK_CHARACTERS, len(rest)))
        self._is_last = not more
        self._text, self._at, self._marked_at = rest + more, 0, 0

    def _mark(self, at: int) -> None:
        newlines = self._text.count("\n", self._marked_at, at)
        self._line += newlines
        self._column = (
            at - self._text.rindex("\n", 0, at) if newlines else self._column + at - self._marked_at
        )
        self._byte += byte_length(self._text[self._marked_at : at])
        self._marked_at = at

    def _refuse(self, at: int, reason: str) -> NoReturn:
        self._mark(at)
        if at >= len(self._text):
            reason = "the file ends inside the list; it is cut short"
        raise PlanError(
            f"{self._path}:{self._line}:{self._column}: entry {self.entries} is not JSON: {reason}; "
            "mend the file there, nothing after it can be read"
        )


_OPENING = re.compile(r"[ \t\r\n]*\[[ \t\r\n]*(\]?)")
_DELIMITER = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
_BLANKS = " \t\r\n"
#: As `raw_decode`, without its checks.
_scan = json.scanner.make_scanner(json.JSONDecoder())  # type: ignore[attr-defined]

#: How much is kept of what cannot be an entry.
_SHOWN_CHARACTERS = 200


def count_entries(path: Path) -> int:
    """The number of entries that `read_entries` finds, unusable ones included, in one pass and flat memory.

    A list is decoded all the way, so that PlanError names the place where it breaks.
    """
    with _readable(path):
        is_list = opens_list(path)
        with open_text(path) as stream:
            count = _count_elements(stream) if is_list else sum(1 for _ in _filled_lines(path, stream))
        if count is not None:
            return count
        with open_text(path) as stream:
            return sum(1 for _ in list_elements(path, stream))


def _count_elements(stream: TextIO) -> int | None:
    """The number of a list's elements; None when anything is odd, which the slower way finds the place of."""
    text, at, count = stream.read(CHUNK_CHARACTERS), 0, 0
    delimiter = _OPENING.match(text)
    while delimiter is not None and delimiter[1] != "]":
        at = delimiter.end()
        # Only a delimiter behind the element shows that the window's edge has not cut it.
        while (delimiter := _next_delimiter(text, at)) is None:
            rest = text[at:]
            if len(rest) > ENTRY_CHARACTERS or not (more := stream.read(max(CHUNK_CHARACTERS, len(rest)))):
                return None
            text, at = (rest + more).lstrip(_BLANKS), 0
        count += 1
    return count if delimiter is not None else None


def _next_delimiter(text: str, at: int) -> re.Match[str] | None:
    """What ends the element that begins here; None when it is cut or broken."""
    try:
        _, end = _scan(text, at)
    except (StopIteration, ValueError, RecursionError):
        return None
    return _DELIMITER.match(text, end)


def entry_texts(path: Path) -> Iterator[str]:
    """Each entry as a line of JSONL, without its end. Raises PlanError where the file breaks.

    What cannot be an entry becomes a string, so that it fails alone wherever it stands.
    """
    with _readable(path), open_text(path) as stream:
        if opens_list(path):
            # ASCII, so that half of a surrogate pair survives the way out and is refused by who reads it.
            texts = (json.dumps(found.value) for found in list_elements(path, stream))
        else:
            texts = (line.strip() for line in _filled_lines(path, stream))
        for text in texts:
            yield text if text.startswith("{") and text != "{" else json.dumps(text[:_SHOWN_CHARACTERS])


def _filled_lines(path: Path, stream: TextIO) -> Iterator[str]:
    with open_text(path) as head:
        # Refuses an object spread over several lines.
        next(text_lines(path, head, 1), None)
    is_continued = False
    while line := stream.readline(ENTRY_CHARACTERS):
        if not is_continued and line.strip():
            yield line
        is_continued = not line.endswith("\n")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{path}: cannot be read: {reason}; mend the file or its permissions") from error
