"""Reads the media and the task that one annotation entry names, and checks that it can be stored."""

import json
import re
from collections.abc import Callable
from typing import Any

from capflow_tasks.errors import BadEntry, TextOnly, WorkflowError
from capflow_tasks.records import JsonObject, Modality

#: The keys that name media, in the order in which they are read.
MEDIA_KEYS = {Modality.IMAGE: ("image", "images"), Modality.VIDEO: ("video", "videos")}

_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}

#: (Kind, key) pairs by the shard's modality, whose keys come first; built once for millions of entries.
_KEYS = {
    modality: [
        (kind, key)
        for kind in sorted(Modality, key=lambda kind: kind is not modality)
        for key in MEDIA_KEYS[kind]
    ]
    for modality in Modality
}

#: Refuses NaN; bytes that are not UTF-8 are found when its text is encoded.
_STRICT = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
#: A NUL as JSON writes it; after an escaped backslash, `u0000` is plain text.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def type_name(value: Any) -> str:
    """Name the JSON type of a value."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    """Format a value for a message: short, printable, on one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return printable(text if len(text) <= 80 else f"{text[:77]}...")


def printable(text: str) -> str:
    """Replace each unprintable character, such as a newline, by its escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def unstorable(entry: JsonObject) -> str | None:
    """Return why PostgreSQL cannot store the object as JSON, with the key; None when it can."""
    if _unstorable(entry) is None:
        return None
    for key, value in entry.items():
        if (reason := _unstorable({key: value})) is not None:
            return f"{shown(key)} {reason}"
    return "the entry is nested too deeply; flatten it"


def _unstorable(entry: JsonObject) -> str | None:
    try:
        text = _STRICT.encode(entry)
        text.encode()
    except UnicodeEncodeError:
        return "holds bytes that are not UTF-8, or half of a surrogate pair; save the text as UTF-8"
    except ValueError:
        return "holds NaN or an infinite number; write null or a finite number"
    except RecursionError:
        return "is nested too deeply; flatten it"
    # The plain search comes first because the pattern takes four times as long as all the rest.
    has_nul = "\\u0000" in text and _NUL.search(text) is not None
    return "holds a NUL character (\\u0000); remove it" if has_nul else None


def media_of(
    entry: JsonObject, modality: Modality, *, keep_repeats: bool = False
) -> tuple[tuple[Modality, str], ...]:
    """Return the pictures and videos of a sample as (kind, path as written). Raises BadEntry.

    The entry's own keys decide the kind. An entry with both kinds gives both, the shard's modality first.
    A key that is null, "" or [] counts as absent; a path under two keys counts once. So does one that a key
    lists twice, except with `keep_repeats`.
    """
    keys = _KEYS[modality]
    media: list[tuple[Modality, str]] = []
    for kind, key in keys:
        earlier = set(media)
        media += [medium for path in _paths(entry, key) if (medium := (kind, path)) not in earlier]
    if not media:
        expected = ", ".join(f'"{key}"' for _, key in keys)
        raise TextOnly(
            f"the entry names no media; expected {expected} with a path or a list of paths; "
            "--skip-text-only lets a run pass over such entries"
        )
    return tuple(media if keep_repeats else dict.fromkeys(media))


def _paths(entry: JsonObject, key: str) -> list[str]:
    value = entry.get(key)
    if value is None:
        return []
    if not isinstance(value, str | list):
        raise BadEntry(f'"{key}" is {type_name(value)}; write a path or a list of paths')
    paths = [value] if isinstance(value, str) else value
    for position, path in enumerate(paths):
        if not isinstance(path, str):
            raise BadEntry(f'"{key}" holds {type_name(path)} at position {position}; write a path')
        if isinstance(value, list) and not path.strip():
            raise BadEntry(f'"{key}" holds an empty path at position {position}; remove it')
    return [path for path in paths if path.strip()]


def task_of(entry: JsonObject, known_tasks: Callable[[str], str | None]) -> str | None:
    """Return the canonical name of the entry's own task, None without one. Raises BadEntry."""
    task = entry.get("task")
    if task is None or task == "":
        return None
    if not isinstance(task, str):
        raise BadEntry(f'"task" is {type_name(task)}; write a domain\'s name, or leave the key out')
    try:
        return known_tasks(task)
    except WorkflowError as error:
        raise BadEntry(f'"task": {error}') from error
