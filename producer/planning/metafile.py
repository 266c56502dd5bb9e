"""Read a metafile, which names the datasets of a collection, and check all of it first."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capflow_tasks.entries import shown, type_name, unstorable
from capflow_tasks.errors import PlanError
from capflow_tasks.records import JsonObject, Modality
from producer.reading.plan import Fields, Resolve, file_name_part

_KNOWN_KEYS = frozenset({"root", "annotation", "modality", "length", "sample_count", "task"})


@dataclass(frozen=True, slots=True)
class Dataset:
    """One entry of a metafile."""

    #: The key of the entry.
    name: str
    #: Folder that media paths are relative to, absolute.
    root: str
    #: JSON list or JSONL, absolute.
    annotation: str
    modality: Modality
    #: Domain of all samples, None when each is routed.
    task: str | None
    #: Entries of the annotation file according to the metafile, None when it does not say.
    length: int | None
    #: How many of them to use, None for all.
    sample_count: int | None
    #: Keys without a meaning here, which the plan keeps.
    extra: JsonObject
    #: Whether `length` was counted, and need not be counted again.
    is_counted: bool = False


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys are given twice."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        self.repeated: list[str] = []
        super().__init__()
        for key, value in pairs:
            if key in self:
                self.repeated.append(key)
            self[key] = value


def read_metafile(path: Path, resolve: Resolve) -> tuple[Dataset, ...]:
    """Read the datasets in the order of the file. Raises PlanError with every problem, one per line."""
    entries = _read_object(path)
    datasets: list[Dataset] = []
    problems = [
        f"{shown(name)} is given twice; give each dataset a name of its own" for name in entries.repeated
    ]
    for name, values in entries.items():
        dataset, found = _dataset(path, name, values, resolve)
        if dataset is not None and not found:
            datasets.append(dataset)
        problems += [f"dataset {shown(name)}: {problem}" for problem in found]
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
            f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}; fix the metafile there"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: cannot be decoded: {error}; fix the metafile") from error
    if not isinstance(value, _Object):
        raise PlanError(f'{path}: is {type_name(value)}; write an object {{"dataset": {{"root": ...}}}}')
    if not value:
        raise PlanError(f'{path}: names no dataset; write {{"dataset": {{"root": ..., "annotation": ...}}}}')
    return value


def _dataset(path: Path, name: str, values: Any, resolve: Resolve) -> tuple[Dataset | None, list[str]]:
    """Return the dataset and its problems; it is not usable when it has any."""
    if not isinstance(values, _Object):
        example = '{"root": ..., "annotation": ..., "modality": ...}'
        return None, [f"is {type_name(values)}, not an object; write {example}"]
    if (reason := unstorable({name: None}) or unstorable(values)) is not None:
        return None, [reason]
    fields = Fields({"name": name, **values}, path.parent)
    fields.problems += [f"{shown(key)} is given twice; keep one of them" for key in values.repeated]
    fields.require(("root", "annotation", "modality"))
    modality, task = fields.modality_and_task(resolve)
    dataset = Dataset(
        name=fields.text("name") and name,
        root=fields.path("root", is_folder=True),
        annotation=fields.path("annotation", is_folder=False),
        modality=modality,
        task=task,
        length=_count(fields, "length"),
        sample_count=_count(fields, "sample_count"),
        extra={key: value for key, value in values.items() if key not in _KNOWN_KEYS},
    )
    return dataset, fields.problems


def _count(fields: Fields, key: str) -> int | None:
    return None if fields.values.get(key) is None else fields.number(key, 0)


def _clashes(datasets: list[Dataset]) -> Iterator[str]:
    """Find datasets that would be captioned twice, or into the same file."""
    names: dict[str, Dataset] = {}
    files: dict[str, Dataset] = {}
    for dataset in datasets:
        where = f"dataset {shown(dataset.name)}"
        if (other := names.setdefault(file_name_part(dataset.name), dataset)) is not dataset:
            yield f"{where}: gets the same caption files as {shown(other.name)}; rename one"
        if (other := files.setdefault(os.path.realpath(dataset.annotation), dataset)) is not dataset:
            yield (
                f'{where}: "annotation" {shown(dataset.annotation)} is that of {shown(other.name)} as well; '
                "leave it in one of them"
            )
