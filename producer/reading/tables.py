"""Read rows that name media in another way than annotation entries do: CSV, TSV, lists of paths, COCO."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capflow_tasks.entries import MEDIA_KEYS, printable
from capflow_tasks.errors import PlanError
from capflow_tasks.media.addresses import Part, with_part
from capflow_tasks.records import JsonObject, Span
from producer.reading.annotations import ENTRY_CHARACTERS, AnnotationFile

_SINGLE_KEYS = [key for key, _ in MEDIA_KEYS.values()]
#: The end of a part that names only its start.
_LAST_SECOND = 10**6
_MEDIA_KEYS = {key for keys in MEDIA_KEYS.values() for key in keys}
#: What `datasets` and COCO call a medium's path inside an object.
_PATH_KEYS = ("path", "file_name")


@dataclass(frozen=True, slots=True)
class Keys:
    """Which keys of a row name its media and its id; None for those of an annotation entry."""

    image: str | None = None
    id: str | None = None
    #: Whether `start` and `end`, `frame` or `bbox` say which part of its medium a row is about.
    parts: bool = False

    def __bool__(self) -> bool:
        return bool(self.image or self.id or self.parts)

    def entry(self, row: Any) -> Any:
        """Return the row as an annotation entry; what is none stays as it is, and fails alone."""
        if isinstance(row, str):
            return {"id": row, "image": row}
        if not isinstance(row, dict):
            return row
        entry = row
        if self.image and self.image not in _MEDIA_KEYS and self.image in row:
            entry = moved_aside(row) | {"image": paths_in(row[self.image])}
        if self.parts:
            entry = entry | _with_part(entry)
        return entry | {"id": row[self.id]} if self.id and self.id in row else entry


def moved_aside(entry: JsonObject) -> JsonObject:
    """Rename the keys that name media, so that others may."""
    return {f"source_{key}" if key in _MEDIA_KEYS else key: value for key, value in entry.items()}


def _with_part(entry: JsonObject) -> JsonObject:
    """Return the medium of an entry with the part that its other keys name; nothing if they name none."""
    key, path = next(((key, entry[key]) for key in _SINGLE_KEYS if isinstance(entry.get(key), str)), ("", ""))
    try:
        if entry.get("start") is not None or entry.get("end") is not None:
            part = Part(Span(float(entry.get("start") or 0), float(entry.get("end") or _LAST_SECOND)))
        elif entry.get("frame") is not None:
            part = Part(frame=int(entry["frame"]))
        else:
            left, top, width, height = (round(float(side)) for side in entry["bbox"])
            part = Part(box=(left, top, width, height))
    except (KeyError, TypeError, ValueError, OverflowError):
        return {}
    return {key: with_part(path, part)} if path else {}


def paths_in(value: Any) -> Any:
    """Return the path, or the paths, in a value that may wrap them into objects."""
    if isinstance(value, list):
        return [paths_in(each) for each in value]
    if isinstance(value, dict):
        return next((value[key] for key in _PATH_KEYS if key in value), value)
    return value


def json_rows(path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list or the values of JSONL; a broken line keeps its place as an object.

    Raises PlanError.
    """
    file = AnnotationFile(path)
    for element in file:
        if file.is_list:
            yield element
            continue
        try:
            yield json.loads(element)
        except (ValueError, RecursionError):
            yield {"unreadable": element[:200]}


def table_rows(path: Path) -> Iterator[JsonObject]:
    """Yield the rows of a CSV or TSV file with a header, as objects of texts; empty cells are null.

    Raises PlanError.
    """
    csv.field_size_limit(ENTRY_CHARACTERS)
    try:
        # bytes that are not UTF-8 become lone surrogates, so that they spoil their own row and no other
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            head = file.readline(ENTRY_CHARACTERS)
            file.seek(0)
            rows = csv.reader(file, delimiter=max(",\t;", key=head.count))
            columns = next(rows, [])
            yield from (_row(columns, cells) for cells in rows if cells)
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{path}: cannot be read: {printable(str(reason))}; fix the file there") from error


def _row(columns: list[str], cells: list[str]) -> JsonObject:
    row: JsonObject = {column: cell or None for column, cell in zip(columns, cells, strict=False)}
    if len(cells) > len(columns):
        row["further_cells"] = cells[len(columns) :]
    return row


def path_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, each the path of a medium. Raises PlanError."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from (text for line in file if (text := line.strip()))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; fix its permissions") from error


def coco_rows(value: JsonObject) -> Iterator[JsonObject]:
    """Yield an entry per picture of a COCO file, with its captions and boxes."""
    names = {each.get("id"): each.get("name") for each in _objects(value, "categories")}
    said: dict[Any, JsonObject] = {}
    for each in _objects(value, "annotations"):
        about = said.setdefault(each.get("image_id"), {})
        if isinstance(text := each.get("caption"), str):
            about.setdefault("captions", []).append(text)
        if "bbox" in each:
            box = {"bbox": each["bbox"], "category": names.get(each.get("category_id"))}
            about.setdefault("objects", []).append(box)
    for picture in _objects(value, "images"):
        yield picture | said.get(picture.get("id"), {}) | {"image": picture.get("file_name")}


def _objects(value: JsonObject, key: str) -> Iterable[JsonObject]:
    listed = value.get(key)
    return (each for each in (listed if isinstance(listed, list) else []) if isinstance(each, dict))
