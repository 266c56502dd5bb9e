"""How many entries an annotation file has, and which of them stand where. Knows nothing of what they mean."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from capflow_tasks.errors import PlanError
from producer.reading.annotations import (
    CHUNK_CHARACTERS,
    ENTRY_CHARACTERS,
    list_elements,
    open_text,
    opens_list,
    text_lines,
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
