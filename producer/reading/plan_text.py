"""The JSON values of a split plan with the lines they start at. Knows nothing of what they mean.

One value a line, or spread over several lines as in the format's own example; blank lines anywhere. A broken
value costs itself and not the ones after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capflow_tasks.errors import PlanError

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
#: After a broken object: the line that opens the next one, or the end of the line that closes this one.
_RESTART = re.compile(r"^(?=[{\[])|^\}[ \t\r,]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Found:
    """One value of the plan, or why there is none."""

    line: int
    value: Any = None
    problem: str | None = None


def read_values(path: Path) -> Iterator[Found]:
    """Every value of the file, in order."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; give the path of a split plan") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PlanError(f"{path}: is UTF-16; save it as UTF-8")
    # Bytes that are not UTF-8 become lone surrogates, so that they spoil their own line and no other.
    return _values(data.decode("utf-8-sig", "surrogateescape"))


def _values(text: str) -> Iterator[Found]:
    line, counted, at = 1, 0, _skip_blanks(text, 0)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, next_at = _DECODER.raw_decode(text, at)
            yield Found(line, value)
        except json.JSONDecodeError as error:
            next_at = _after_broken(text, at)
            yield _broken(text, line, at, next_at, error)
        except (ValueError, RecursionError) as error:
            next_at = _after_broken(text, at)
            yield Found(line, problem=f"cannot be decoded: {error}; mend it")
        at = _skip_blanks(text, next_at)


def _skip_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _after_broken(text: str, at: int) -> int:
    line_end = text.find("\n", at)
    if line_end < 0:
        return len(text)
    first_line = text[at:line_end].rstrip()
    if not first_line.startswith("{") or first_line.endswith("}"):
        return line_end
    restart = _RESTART.search(text, line_end + 1)
    return restart.end() if restart else len(text)


def _broken(text: str, line: int, at: int, next_at: int, error: json.JSONDecodeError) -> Found:
    if error.pos >= next_at and text.startswith("{", at):
        return Found(line, problem='the object is cut short; end it with "}", one object per line')
    problem = f"no JSON at column {error.colno}: {error.msg}; write one JSON object per line"
    return Found(error.lineno, problem=problem)
