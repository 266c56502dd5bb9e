"""Stream the entries of an annotation file: a JSON list or JSONL, plain or gzip, of any size.

Memory holds one stretch of the file, never the file. The stretch is decoded by the standard library's JSON
scanner rather than ijson, whose C backend silently turns half a surrogate pair into "?", and gives up the
whole file at an integer beyond 64 bits, a NaN or one byte that is not UTF-8. Here those spoil one entry.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO, cast

from capflow_tasks.entries import type_name, unstorable
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject

#: Entries from one remembered place to the next.
PLACE_ENTRIES = 1000
#: Characters read at a time.
CHUNK_CHARACTERS = 1 << 18
#: The longest entry that is read; a longer one is damage, such as a quote left open.
ENTRY_CHARACTERS = 1 << 26

#: A scanner that stops this close to the end of the text may only lack what comes next.
_EDGE = 32
_BLANKS = re.compile(r"[ \t\r\n]*")
#: What stands between two elements whose second begins in the text at hand.
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^ \t\r\n])")
_DECODER = json.JSONDecoder()

#: Where an entry begins, with line and column from 1: (is_list, byte, line, column).
_Place = tuple[bool, int, int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of an annotation file, or why it cannot be one."""

    #: Position in the file, from 0.
    index: int
    value: JsonObject | None
    #: Place and remedy; None when the value can be used.
    problem: str | None


def read_entries(path: Path, start_idx: int, end_idx: int) -> Iterator[Entry]:
    """Yield the entries [start_idx, end_idx); those that cannot be used say why.

    Raises PlanError where the file cannot be read on, after every entry before that place.
    """
    if start_idx >= end_idx:
        return
    file = AnnotationFile(path, start_idx)
    for element in file:
        if file.index >= start_idx:
            yield file.entry(element)
        if file.index == end_idx - 1:
            return
    entries = "1 entry" if file.index == 1 else f"{file.index} entries"
    raise PlanError(
        f"{path}: has {entries}, but the plan takes {start_idx} up to {end_idx}; "
        f'set "end_idx" to {file.index} at most, or complete the file'
    )


class AnnotationFile:
    """Iterates once over the entries of a file, from the last remembered place at or before `start_idx`.

    Yields the value of each element of a JSON list, or the undecoded text of each line of JSONL that is not
    blank. Every pass remembers where entries begin, for as long as the file does not change.
    """

    def __init__(self, path: Path, start_idx: int = 0) -> None:
        self.path = path
        #: Of the entry that was yielded last; the number of entries after the last one.
        self.index = 0
        self.is_list = False
        self._start_idx = start_idx
        self._places: dict[int, _Place] = {}
        self._stream: TextIO
        #: The part of the file at hand, and the position in it of the entry that was yielded last.
        self._text, self._at = "", 0
        self._is_last = False
        #: A position in the text whose place is known.
        self._marked_at = 0
        self._byte, self._line, self._column = 0, 1, 1

    def __iter__(self) -> Iterator[Any]:
        try:
            opened = gzip.open if _is_gzip(self.path) else open
            found = self.path.stat()
            self._places = _places(self.path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns)
            with opened(self.path, "rb") as file:
                self._start(cast(BinaryIO, file))
                yield from self._elements() if self.is_list else self._lines()
        except (OSError, EOFError, zlib.error) as error:
            where = f" beyond entry {self.index - 1}" if self.index else ""
            reason = getattr(error, "strerror", None) or error
            raise PlanError(
                f"{self.path}: cannot be read{where}: {reason}; fix the file or its permissions"
            ) from error

    def entry(self, element: Any) -> Entry:
        """Check whether the element that was yielded last can be a sample."""
        problem = None
        if not self.is_list:
            element, problem = _decode_line(element)
        if problem is None and not isinstance(element, dict):
            problem = f'is {type_name(element)}, not an object; write {{"image": ...}} or {{"video": ...}}'
        elif problem is None and (reason := unstorable(element)) is not None:
            problem = f"cannot be stored: {reason}"
        if problem is None:
            return Entry(self.index, element, None)
        self._mark(self._at)
        return Entry(self.index, None, f"{self.path}:{self._line}: entry {self.index} {problem}")

    def _start(self, file: BinaryIO) -> None:
        # Readers remember without gaps, so the number of places says which is the last.
        number = min(self._start_idx // PLACE_ENTRIES, len(self._places) - 1)
        place = self._places.get(number)
        if place is not None:
            self.index = number * PLACE_ENTRIES
            self.is_list, self._byte, self._line, self._column = place
            file.seek(self._byte)
        # Bytes that are not UTF-8 become lone surrogates, so that they spoil their own entry and no other.
        self._stream = TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="\n")
        if place is not None:
            return
        self._read_on()
        if self._text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
            raise PlanError(f"{self.path}: is UTF-16; save it as UTF-8")
        if self._text.startswith("\ufeff"):
            self._text, self._byte = self._text[1:], 3
        self.is_list = self._peek() == "["
        if self.is_list:
            self._at += 1
        elif _is_table(self._text):
            raise PlanError(f"{self.path}: is a table, not JSON; convert it to one JSON object per line")

    def _elements(self) -> Iterator[Any]:
        delimiter = self._peek()
        while delimiter != "]":
            value, end = self._scan()
            self._remember()
            yield value
            self.index += 1
            comma = _COMMA.match(self._text, end)
            if comma is not None:
                self._at = comma.end()
                continue
            self._at = end
            delimiter = self._peek()
            if delimiter == ",":
                self._at += 1
                self._peek()
            elif delimiter != "]":
                self._refuse(self._at, '"," or "]" expected')

    def _lines(self) -> Iterator[str]:
        while line := self._next_line():
            if text := line.strip():
                if self.index == 0 and text == "{":
                    self._mark(self._at)
                    raise PlanError(
                        f"{self.path}:{self._line}: object over several lines; "
                        "write a JSON list or one sample per line"
                    )
                self._remember()
                yield text
                self.index += 1
            self._at += len(line)
            # Skip the rest of a line that is too long.
            while not line.endswith("\n") and (line := self._next_line()):
                self._at += len(line)

    def _next_line(self) -> str:
        """Return the line at hand with its newline, cut when it is too long; "" at the end of the file."""
        while (end := self._text.find("\n", self._at) + 1) == 0:
            if self._is_last or len(self._text) - self._at > ENTRY_CHARACTERS:
                return self._text[self._at :]
            self._read_on()
        return self._text[self._at : end]

    def _peek(self) -> str:
        """Move to the next character that is not blank, and return it; "" at the end of the file."""
        while True:
            self._at = cast(re.Match[str], _BLANKS.match(self._text, self._at)).end()
            if self._at < len(self._text) or self._is_last:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def _scan(self) -> tuple[Any, int]:
        """Decode the element at hand; return its value and where it ends."""
        while True:
            value, failure = None, None
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                failure = error
                is_open = error.msg.startswith("Unterminated string")
                end = len(self._text) if is_open else error.pos
            except (ValueError, RecursionError) as error:
                self._refuse(self._at, str(error))
            if self._is_last or end + _EDGE <= len(self._text):
                break
            if len(self._text) - self._at > ENTRY_CHARACTERS:
                self._refuse(self._at, f"longer than {ENTRY_CHARACTERS} characters, or a quote left open")
            self._read_on()
        if failure is not None:
            self._refuse(failure.pos, failure.msg)
        return value, end

    def _read_on(self) -> None:
        """Drop the text before the current position, and read more."""
        self._mark(self._at)
        rest = self._text[self._at :]
        # Doubling, so that a long entry is not scanned once per chunk.
        more = self._stream.read(max(CHUNK_CHARACTERS, len(rest)))
        self._is_last = not more
        self._text, self._at, self._marked_at = rest + more, 0, 0

    def _remember(self) -> None:
        if self.index % PLACE_ENTRIES == 0:
            self._mark(self._at)
            place = (self.is_list, self._byte, self._line, self._column)
            self._places[self.index // PLACE_ENTRIES] = place

    def _mark(self, at: int) -> None:
        """Find out the byte, line and column of a position, which is never before the last one."""
        text = self._text[self._marked_at : at]
        newlines = text.count("\n")
        self._line += newlines
        self._column = len(text) - text.rindex("\n") if newlines else self._column + len(text)
        self._byte += len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
        self._marked_at = at

    def _refuse(self, at: int, reason: str) -> NoReturn:
        self._mark(at)
        if at >= len(self._text):
            reason = "the file ends inside the list; it is cut short"
        raise PlanError(
            f"{self.path}:{self._line}:{self._column}: entry {self.index} is not JSON: {reason}; "
            "fix the file there, nothing after it can be read"
        )


def _is_gzip(path: Path) -> bool:
    """Tell by content: downloads and copies lose the ending of their names."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _is_table(text: str) -> bool:
    """Return whether the first two lines are cells that commas or tabs separate, as in CSV, and not JSON."""
    lines = [line for line in text.split("\n", 3) if line.strip()][:2]
    if len(lines) < 2 or any(line.lstrip()[0] in '{["' for line in lines):
        return False
    return any(0 < lines[0].count(sign) == lines[1].count(sign) for sign in ",\t")


@lru_cache(maxsize=256)
def _places(path: Path, *version: int) -> dict[int, _Place]:
    """Return what is remembered of a version of a file: where every PLACE_ENTRIES-th entry begins."""
    return {}


def _decode_line(text: str) -> tuple[Any, str | None]:
    """Return the value of a line of JSONL, and why it has none."""
    if len(text) > ENTRY_CHARACTERS:
        return None, f"is longer than {ENTRY_CHARACTERS} characters; shorten it"
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        return None, f"is not JSON at column {error.pos + 1}: {error.msg}; fix the line"
    except (ValueError, RecursionError) as error:
        return None, f"cannot be decoded: {error}; fix the line"
