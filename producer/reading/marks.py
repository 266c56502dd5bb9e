"""Marks that people gave captions on the page of a report: good, bad or unsure, with a note.

The page keeps them in the browser and exports one JSON file:

    {"capflow_marks": 1, "run": "photos-1a2b3c4d",
     "marks": [{"key": "5f0c...", "sample": "photos[12]", "mark": "bad", "note": "no van", "overall": 3}]}

A mark is about one caption of some media: it no longer counts once the caption has been written again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any

from capflow_tasks.entries import media_of, type_name
from capflow_tasks.errors import BadEntry, UserError
from capflow_tasks.records import FinishedSample, JsonObject, Modality, Stage

_VERSION = 1
_REMEDY = 'name a file that "Export marks" on the page of a report has written'


class Mark(StrEnum):
    GOOD = "good"
    BAD = "bad"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True)
class MarkedCaption:
    """A caption that someone has marked."""

    key: str
    #: `dataset[index]`, as in the report.
    sample: str
    mark: Mark
    note: str

    @property
    def place(self) -> tuple[str, int]:
        """Its dataset, and its index in the annotation file."""
        dataset, _, index = self.sample.removesuffix("]").rpartition("[")
        return dataset, int(index)


class Marks:
    """The marks of one file. Raises UserError when it holds none."""

    def __init__(self, path: Path) -> None:
        self._by_key = {each.key: each for each in _read(path)}

    def of(self, media: Iterable[str], caption: str | JsonObject | None) -> Mark | None:
        """Return the mark of this caption of these media; None without one."""
        marked = self._by_key.get(mark_key(media, caption))
        return None if marked is None else marked.mark

    def marked(self, mark: Mark) -> Mapping[str, MarkedCaption]:
        """Return what has this mark, by key."""
        return {key: each for key, each in self._by_key.items() if each.mark is mark}


def key_of_sample(sample: FinishedSample) -> str:
    """Name the caption that the sample has."""
    captions = [each.data or each.text for each in sample.results if each.stage is Stage.SUMMARIZE]
    return mark_key(media_in(sample.entry), captions[-1] if captions else None)


def mark_key(media: Iterable[str], caption: str | JsonObject | None) -> str:
    """Name a caption of these media, whatever run, shard or file holds it; one of JSON by what it says."""
    parts = json.dumps([sorted(set(media)), caption], sort_keys=True)
    return blake2b(parts.encode(), digest_size=8).hexdigest()


def _read(path: Path) -> Iterator[MarkedCaption]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {_REMEDY}") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); {_REMEDY}") from error
    if not isinstance(document, dict) or document.get("capflow_marks") != _VERSION:
        raise UserError(f'{path}: has no "capflow_marks": {_VERSION}; {_REMEDY}')
    marks = document.get("marks")
    if not isinstance(marks, list):
        raise UserError(f'{path}: "marks" is {type_name(marks)}, not a list; {_REMEDY}')
    for number, each in enumerate(marks):
        try:
            yield _marked(each)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: mark {number} is not one of a report's ({error}); {_REMEDY}") from error


def _marked(each: Any) -> MarkedCaption:
    if each["mark"] not in list(Mark):
        raise ValueError(f'"mark" is {each["mark"]!r}, not one of {", ".join(Mark)}')
    marked = MarkedCaption(
        str(each["key"]), str(each["sample"]), Mark(each["mark"]), str(each.get("note", ""))
    )
    _ = marked.place
    return marked


def media_in(record: JsonObject) -> list[str]:
    """Return the paths of an entry's or a record's media; none where it names none."""
    try:
        return [path for _, path in media_of(record, Modality.IMAGE)]
    except BadEntry:
        return []
