"""Streams the entries of an annotation file: a JSON list or JSONL, plain or gzip, of any size.

Memory holds one window of the file, never the file. The window is decoded by the standard library's JSON
scanner and not by ijson, whose C backend turns half a surrogate pair into "?" without a word, and gives up
the file at an integer beyond 64 bits, a NaN or one byte that is not UTF-8. Here those cost one entry at most.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from capflow_tasks.entries import type_name, unstorable
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject
from producer.reading.entry_offsets import (
    EVERY,
    START,
    Note,
    Place,
    byte_length,
    first_place,
    forget,
    offsets_of,
    open_bytes,
)

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
