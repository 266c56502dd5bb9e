"""Find caption files and read their lines one at a time, whatever program wrote them."""

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

log = logging.getLogger(__name__)

#: Longer lines are not read, so that a file without line ends cannot fill the memory.
LINE_BYTES = 1 << 26

_NAME = re.compile(r"Rank\d+_node\d+_(?P<dataset>.+)\.jsonl", re.DOTALL)
_WITHOUT_CAPTIONS = (".failed.jsonl", ".held.jsonl")
#: Ends the names of the files that `capflow score` writes.
_SCORED = ".scored.jsonl"


@dataclass(frozen=True, slots=True)
class CaptionLine:
    """One line of a caption file: a record, or the reason why it is none."""

    #: From 1.
    number: int
    #: As in the file, but without a byte order mark and always with a line end.
    raw: bytes
    #: None when there is a problem.
    record: JsonObject | None
    problem: str | None = None

    @property
    def digest(self) -> str:
        return blake2b(self.raw, digest_size=16).hexdigest()


def caption_files(folder: Path) -> list[Path]:
    """List the folder's `Rank*_node*_*.jsonl` by name, without those of failed and held samples.

    A file that `capflow score` wrote replaces the file that it scored. Raises UserError when there are none.
    """
    found = dict.fromkeys(_find(folder))
    for source in found:
        scored = scored_beside(source)
        if scored in found and source.stat().st_mtime > scored.stat().st_mtime:
            log.warning("%s has changed since it was scored; run capflow score again", source)
    return [path for path in found if scored_beside(path) not in found]


def unscored_files(folder: Path) -> list[Path]:
    """List the folder's caption files without those that `capflow score` wrote. Raises UserError if none."""
    return _find(folder, (*_WITHOUT_CAPTIONS, _SCORED))


def scored_beside(path: Path, part: str = "") -> Path:
    """Return the path of a caption file's scored version, or of a further `part` such as "failed"."""
    suffix = f".scored.{part}.jsonl" if part else _SCORED
    return path.with_name(path.name.removesuffix(".jsonl") + suffix)


def plain_name(path: Path) -> str:
    """Return the file's name without the mark of a scored file."""
    return f"{path.name.removesuffix(_SCORED).removesuffix('.jsonl')}.jsonl"


def dataset_of(path: Path) -> str:
    """Return the dataset's name as it stands in the name of a caption file."""
    match = _NAME.fullmatch(plain_name(path))
    return match["dataset"] if match else path.stem


def read_captions(path: Path) -> Iterator[CaptionLine]:
    """Yield every line that is not blank. Raises UserError when the file cannot be read."""
    number = 0
    try:
        with path.open("rb") as file:
            while raw := file.readline(LINE_BYTES):
                number += 1
                raw = raw.removeprefix(BOM_UTF8) if number == 1 else raw
                if _skip_rest(file, raw):
                    yield CaptionLine(number, raw, None, f"is longer than {LINE_BYTES} bytes")
                elif raw.strip():
                    yield _parse(number, raw if raw.endswith(b"\n") else raw + b"\n")
    except OSError as error:
        place = f" beyond line {number}" if number else ""
        raise UserError(
            f"{path}: cannot be read{place}: {error.strerror}; fix the disk or the file's permissions"
        ) from error


def _find(folder: Path, skipped: tuple[str, ...] = _WITHOUT_CAPTIONS) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read: {error.strerror}; name the folder of the caption files"
        ) from error
    found = [path for path in paths if _NAME.fullmatch(path.name) and not path.name.endswith(skipped)]
    if not found:
        remedy = "name the folder that capflow caption wrote its files to"
        raise UserError(f"{folder}: holds no Rank*_node*_*.jsonl; {remedy}")
    return found


def _skip_rest(file: BinaryIO, line: bytes) -> bool:
    """Skip the rest of a line that is longer than LINE_BYTES; return whether it was."""
    if line.endswith(b"\n") or not (rest := file.readline(LINE_BYTES)):
        return False
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(LINE_BYTES)
    return True


def _parse(number: int, raw: bytes) -> CaptionLine:
    try:
        record = json.loads(raw.decode().rstrip(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        problem = f"is not JSON at column {error.pos + 1}: {error.msg}"
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON: {error}"
    else:
        if isinstance(record, dict):
            return CaptionLine(number, raw, record)
        problem = f"is {type_name(record)}, not an object"
    return CaptionLine(number, raw, None, problem)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
