"""Finds caption files and reads their lines, whoever wrote them. Knows nothing of what scores mean.

Memory holds one line. A line that is no record says so itself and the next one follows.
"""

from __future__ import annotations

import json
import logging
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NoReturn

from capflow_tasks.entries import type_name
from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject

#: The longest line that is read, bytes; what is longer is a file gone wrong.
LINE_BYTES = 1 << 26

_NAME = re.compile(r"Rank\d+_node\d+_(?P<dataset>.+)\.jsonl", re.DOTALL)
#: Parts of a shard's output that hold no captions.
_OTHER_PARTS = (".failed.jsonl", ".held.jsonl")
#: Ends the name of a file that capflow-score wrote.
_SCORED = ".scored.jsonl"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaptionLine:
    """One line of a caption file."""

    #: From 1.
    number: int
    #: As it stands in the file, without a byte order mark and always with an end of line.
    raw: bytes
    #: None when the line is no record.
    record: JsonObject | None
    #: Why the line is no record.
    problem: str | None = None

    @property
    def digest(self) -> str:
        """The same for the same text."""
        return blake2b(self.raw, digest_size=16).hexdigest()


def caption_files(folder: Path) -> list[Path]:
    """The folder's `Rank*_node*_*.jsonl` in order of their names, without failed and held samples.

    A file that capflow-score wrote takes the place of the one that it was made from.
    """
    found = dict.fromkeys(_find(folder))
    for scored in filter(is_scored, found):
        source = scored.with_name(plain_name(scored))
        if source in found and source.stat().st_mtime > scored.stat().st_mtime:
            log.warning("%s has changed since it was scored; run capflow-score again", source)
    return [path for path in found if scored_beside(path) not in found]


def unscored_files(folder: Path) -> list[Path]:
    """The folder's caption files without those that capflow-score wrote."""
    found = [path for path in _find(folder) if not is_scored(path)]
    return found or _refuse(folder)


def is_scored(path: Path) -> bool:
    """Whether capflow-score wrote it, as its name says."""
    return path.name.endswith(_SCORED)


def scored_beside(path: Path, part: str = "") -> Path:
    """Where the scores of a caption file go, or a further `part` such as "failed"."""
    suffix = _SCORED.replace(".jsonl", f".{part}.jsonl") if part else _SCORED
    return path.with_name(path.name.removesuffix(".jsonl") + suffix)


def plain_name(path: Path) -> str:
    """The name of the caption file that a scored one was made from; a plain one's own."""
    return f"{path.name.removesuffix(_SCORED)}.jsonl" if is_scored(path) else path.name


def dataset_of(path: Path) -> str:
    """The dataset as the name of a caption file has it."""
    match = _NAME.fullmatch(plain_name(path))
    return match["dataset"] if match else path.stem


def _find(folder: Path) -> list[Path]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read: {error.strerror}; name the folder of the caption files"
        ) from error
    found = [name for name in names if _NAME.fullmatch(name) and not name.endswith(_OTHER_PARTS)]
    return [folder / name for name in found] or _refuse(folder)


def _refuse(folder: Path) -> NoReturn:
    raise UserError(
        f"{folder}: holds no Rank*_node*_*.jsonl; name the folder that capflow-produce wrote its files to"
    )


def read_captions(path: Path) -> Iterator[CaptionLine]:
    """Every line that is not blank. Raises UserError where the file cannot be read on."""
    number = 0
    try:
        with path.open("rb") as file:
            while raw := file.readline(LINE_BYTES):
                number += 1
                raw = raw.removeprefix(BOM_UTF8) if number == 1 else raw
                if _skip_rest(file, raw):
                    yield CaptionLine(number, raw, None, f"is longer than {LINE_BYTES} bytes")
                elif raw.strip():
                    yield _line(number, raw if raw.endswith(b"\n") else raw + b"\n")
    except OSError as error:
        place = f" beyond line {number}" if number else ""
        raise UserError(
            f"{path}: cannot be read{place}: {error.strerror}; mend the disk or its permissions"
        ) from error


def _skip_rest(file: BinaryIO, line: bytes) -> bool:
    """Go to the end of a line that is too long to be read, if this begins one."""
    if line.endswith(b"\n") or not (rest := file.readline(LINE_BYTES)):
        return False
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(LINE_BYTES)
    return True


def _line(number: int, raw: bytes) -> CaptionLine:
    try:
        record = json.loads(raw.decode().rstrip(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return CaptionLine(number, raw, None, f"is not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return CaptionLine(number, raw, None, f"is not JSON at column {error.pos + 1}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return CaptionLine(number, raw, None, f"is not JSON: {error}")
    if not isinstance(record, dict):
        return CaptionLine(number, raw, None, f"is {type_name(record)}, not an object")
    return CaptionLine(number, raw, record)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
