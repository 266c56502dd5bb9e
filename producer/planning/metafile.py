"""Reads a metafile, which names the datasets of a collection, and checks all of it first.

Knows nothing of how many entries an annotation file really has (`entry_count.py`) or of ranks (`balance.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capflow_tasks.entries import shown, type_name, unstorable
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from producer.reading.plan import VIDEO_TASKS, PlanLine, annotation_problem, file_name_part, root_problem

_REQUIRED_KEYS = ("root", "annotation", "modality")
_KNOWN_KEYS = frozenset({*_REQUIRED_KEYS, "length", "sample_count", "task"})


@dataclass(frozen=True, slots=True)
class Dataset:
    """One entry of a metafile."""

    #: The key that the entry stands under.
    name: str
    #: Folder that every media path is taken from, absolute.
    root: str
    #: JSON list or JSONL, absolute.
    annotation: str
    modality: Modality
    #: Domain for all samples, None when each is to be routed.
    task: str | None
    #: What the metafile says that the annotation file holds, None when it does not say.
    length: int | None
    #: How many of them are to be used, None for all.
    sample_count: int | None
    #: Keys that mean nothing here; the plan carries them on.
    extra: JsonObject


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys it was given twice."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self.repeated: list[str] = []
        super().__init__()
        for key, value in pairs:
            if key in self:
                self.repeated.append(key)
            self[key] = value


def read_metafile(
    path: Path, known_tasks: Callable[[str], str], video_tasks: Collection[str] = VIDEO_TASKS
) -> tuple[Dataset, ...]:
    """The datasets in the order of the file; PlanError holds every problem there is, one per line.

    `known_tasks` gives the canonical name of a task or raises WorkflowError.
    """
    entries = _read_object(path)
    datasets: list[Dataset] = []
    problems = [
        f"{shown(name)} is given twice; give each dataset a name of its own" for name in entries.repeated
    ]
    for name, values in entries.items():
        dataset, faults = _dataset(path, name, values, known_tasks, video_tasks)
        datasets += [dataset] if dataset else []
        problems += [f"dataset {shown(name)}: {fault}" for fault in faults]
    problems += _clashes(datasets)
    if problems:
        raise PlanError("\n".join(f"{path}: {problem}" for problem in problems))
    return tuple(datasets)


def _read_object(path: Path) -> _Object:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_Object)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; give the path of a metafile") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: byte {error.start} is not UTF-8; save the metafile as UTF-8") from error
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}; mend the metafile there"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: cannot be decoded: {error}; mend the metafile") from error
    if not isinstance(value, _Object):
        raise PlanError(f'{path}: is {type_name(value)}; write an object {{"dataset": {{"root": ...}}}}')
    if not value:
        raise PlanError(f'{path}: names no dataset; write {{"dataset": {{"root": ..., "annotation": ...}}}}')
    return value


def _dataset(
    path: Path, name: str, values: Any, known_tasks: Callable[[str], str], video_tasks: Collection[str]
) -> tuple[Dataset | None, list[str]]:
    """The dataset, or what is wrong with it."""
    if not isinstance(values, _Object):
        return None, [f"is {type_name(values)}, not an object; write {{{_listed(_REQUIRED_KEYS)}}}"]
    if (reason := unstorable({name: None}) or unstorable(values)) is not None:
        return None, [reason]
    fields = PlanLine(0, {"name": name, **values}, path.parent)
    fields.problems += [f"{shown(key)} is given twice; keep one of them" for key in values.repeated]
    fields.require(_REQUIRED_KEYS)
    modality, task = fields.modality(), fields.task(known_tasks)
    if task in video_tasks and modality is Modality.IMAGE:
        fields.refuse("task", 'is for videos, but "modality" is "image"; change one, or set "task" to ""')
    dataset = Dataset(
        name=fields.text("name") and name,
        root=fields.path("root", root_problem),
        annotation=fields.path("annotation", annotation_problem),
        modality=modality or Modality.IMAGE,
        task=task,
        length=_count(fields, "length"),
        sample_count=_count(fields, "sample_count"),
        extra={key: value for key, value in values.items() if key not in _KNOWN_KEYS},
    )
    return (None if fields.problems else dataset), fields.problems


def _count(fields: PlanLine, key: str) -> int | None:
    return None if fields.values.get(key) is None else fields.number(key, 0)


def _clashes(datasets: list[Dataset]) -> Iterator[str]:
    """Datasets that would be captioned twice, or into the same file."""
    names: dict[str, Dataset] = {}
    files: dict[str, Dataset] = {}
    for dataset in datasets:
        if (other := names.setdefault(file_name_part(dataset.name), dataset)) is not dataset:
            yield (
                f"dataset {shown(dataset.name)}: gets the same caption files as {shown(other.name)}; "
                "rename one"
            )
        if (other := files.setdefault(os.path.realpath(dataset.annotation), dataset)) is not dataset:
            yield (
                f'dataset {shown(dataset.name)}: "annotation" {shown(dataset.annotation)} is that of '
                f"{shown(other.name)} as well; leave it in one of them"
            )


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(f'"{key}": ...' for key in keys)
