"""Make datasets of what users have: folders, files of media, annotations, tables, metafiles.

A source that is no annotation file becomes one: a listing, JSONL whose entries name the media where they lie.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from capflow_tasks.entries import MEDIA_KEYS
from capflow_tasks.errors import PlanError
from capflow_tasks.media.arrow_files import ARROW_HEAD
from capflow_tasks.media.paths import HEAD_BYTES, kind_of
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import JsonObject, Modality
from producer.console import counted
from producer.parallel import ProgressLines, call_all
from producer.planning.listings import (
    Container,
    Listed,
    SourceOrder,
    Texts,
    list_container,
    listed_before,
    listing_path,
    write_listing,
)
from producer.planning.metafile import Dataset, read_metafile
from producer.planning.remote_sources import read_remote
from producer.reading.containers import is_tar
from producer.reading.folders import MediaFolder, listed_name
from producer.reading.plan import Resolve, file_name_part
from producer.reading.tables import coco_rows, json_rows, path_lines, table_rows

_BRACES = re.compile(r"^(.*)\{(\d+)\.\.(\d+)\}(.*)$")


@dataclass(slots=True)
class Found:
    """The datasets of all sources, and what is worth saying about them."""

    datasets: list[Dataset] = field(default_factory=list)
    #: Those whose listings are not written yet.
    containers: list[Container] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_sources(sources: Sequence[str], order: SourceOrder, resolve: Resolve, listed: Listed) -> Found:
    """List the media of each source, in order. Raises PlanError."""
    found, loose = Found(), dict[Path, Modality]()
    for place in _expanded(sources):
        if is_remote(place):
            datasets, containers = read_remote(place, order, listed)
            found.datasets += datasets
            found.containers += containers
            continue
        path = Path(place)
        if path.is_dir():
            _read_folder(path, order, found, listed)
            continue
        head = _head(path)
        if (kind := kind_of(head)) is not None:
            loose[path] = kind
        elif is_tar(head) or head.startswith((b"PAR1", ARROW_HEAD)):
            found.containers.append(Container(str(path), str(order.root or path.parent), order))
        elif _is_metafile(path, head):
            found.datasets += read_metafile(path, resolve)
        else:
            found.datasets.append(_read_file(path, head, order, listed))
    if loose:
        found.datasets.append(_loose_files(loose, order, listed))
    progress = ProgressLines("files listed")
    for dataset, warnings in call_all(list_container, found.containers, order.processes, progress):
        found.datasets.append(dataset)
        found.warnings += warnings
    found.datasets = list(_with_own_names(found.datasets))
    return found


def _expanded(sources: Sequence[str]) -> Iterator[str]:
    """Yield the absolute paths of the files of `shard-{000..123}.tar`, and of any other source; URLs, too.

    Raises PlanError.
    """
    for source in sources:
        braces = _BRACES.match(source)
        if braces is None or Path(source).exists():
            names = [source]
        else:
            before, first, last, after = braces.groups()
            names = [f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)]
        for name in names:
            if not is_remote(name) and not Path(name).exists():
                raise PlanError(f"{name}: there is no such file or folder; correct the path")
            yield name if is_remote(name) else str(Path(name).absolute())


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16 * HEAD_BYTES)
    except OSError as error:
        raise PlanError(
            f"{path}: cannot be read: {error.strerror}; fix the path or its permissions"
        ) from error


def _first_object(head: bytes) -> str:
    text = head.decode("utf-8-sig", "replace").lstrip()
    return text[: text.find("}") + 1 or None] if text.startswith("{") else ""


def _is_metafile(path: Path, head: bytes) -> bool:
    text = _first_object(head)
    return re.match(r'\{\s*"[^"]*"\s*:\s*\{', text) is not None and '"annotation"' in text


def _read_file(path: Path, head: bytes, order: SourceOrder, listed: Listed) -> Dataset:
    text = head.decode("utf-8-sig", "replace").lstrip()
    if head.startswith(b"\x1f\x8b") and _holds_tar(path):
        raise PlanError(f"{path}: is a compressed tar, whose members have no place to be read at; gunzip it")
    if b"\0" in head and not head.startswith(b"\x1f\x8b"):
        raise PlanError(
            f"{path}: is no annotation file, table, picture or video; name one of those, or a folder of them"
        )
    if _is_coco(text):
        return _listing(path, coco_rows(_object(path)), order, listed)
    if text.startswith("{") or re.match(r"\[\s*\{", text) or path.name.endswith(".gz"):
        return _listing(path, json_rows(path), order, listed) if order.keys else _annotations(path, order)
    if text.startswith("["):
        return _listing(path, json_rows(path), order, listed)
    header = text.partition("\n")[0].strip()
    is_column = header in {order.keys.image, *(key for keys in MEDIA_KEYS.values() for key in keys)}
    is_table = is_column or re.search(r"[,;\t]", header) is not None
    return _listing(path, table_rows(path) if is_table else path_lines(path), order, listed)


def _holds_tar(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            return is_tar(file.read(512))
    except (OSError, EOFError, zlib.error):
        return False


def _is_coco(text: str) -> bool:
    """Whether one object holds a list of pictures; in JSONL, the first line is an object without one."""
    if not text.startswith("{") or re.search(r'"(images|annotations)"\s*:\s*\[\s*\{', text) is None:
        return False
    with suppress(ValueError):
        return bool({"images", "annotations"} <= json.loads(text.partition("\n")[0]).keys())
    return True


def _object(path: Path) -> JsonObject:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: is not JSON: {error}; fix the file") from error
    if not isinstance(value, dict):
        raise PlanError(f"{path}: is no JSON object; fix the file")
    return value


def _dataset(path: Path, annotation: Path, order: SourceOrder, length: int | None = None) -> Dataset:
    root = order.root or (path if path.is_dir() else path.parent)
    name = path.name if path.is_dir() else path.name.removesuffix(".gz").rsplit(".", 1)[0]
    return Dataset(name or "media", str(root), str(annotation), Modality.IMAGE, None, length, None, {})


def _annotations(path: Path, order: SourceOrder) -> Dataset:
    return _dataset(path, path, order)


def _listing(path: Path, rows: Iterable[Any], order: SourceOrder, listed: Listed) -> Dataset:
    file = listing_path(str(path), order)
    count = write_listing(file, map(order.keys.entry, rows), listed)
    return replace(_dataset(path, file, order, count), is_counted=True)


def _read_folder(path: Path, order: SourceOrder, found: Found, listed: Listed) -> None:
    order = replace(order, root=None)  # names in a folder are relative to it
    media, file = MediaFolder(path), listing_path(str(path), order)
    count = write_listing(file, _folder_entries(media, file), listed)
    if media.left_out:
        held = ", ".join(f"{what} ({number:,})" for what, number in media.left_out.most_common(5))
        found.warnings.append(f"{path}: leaves out {counted(media.left_out.total(), 'file')}: {held}")
    found.containers += [Container(str(path / name), str(path), order) for name in media.containers]
    if count:
        found.datasets.append(replace(_dataset(path, file, order, count), is_counted=True))
    elif not media.containers:
        raise PlanError(f"{path}: holds no picture or video; name the folder of the media")


def _folder_entries(media: MediaFolder, listing: Path) -> Iterator[JsonObject]:
    """Yield the entries of an earlier listing first, so that samples keep their places."""
    known = Texts(listed_name(entry) for entry in listed_before(listing))
    return media.entries(listed_before(listing), known.__contains__)


def _loose_files(kinds: Mapping[Path, Modality], order: SourceOrder, listed: Listed) -> Dataset:
    """Return a dataset of single pictures and videos; those that were listed before keep their places."""
    root = order.root or Path(os.path.commonpath([path.parent for path in kinds]))
    names = {os.path.relpath(path, root): kind for path, kind in kinds.items()}
    file = _loose_listing(root, order, names)
    earlier = list(listed_before(file))
    held = set(map(listed_name, earlier))
    new = ({"id": name, MEDIA_KEYS[kind][0]: name} for name, kind in names.items() if name not in held)
    count = write_listing(file, chain(earlier, new), listed)
    return Dataset(root.name or "media", str(root), str(file), Modality.IMAGE, None, count, None, {}, True)


def _loose_listing(root: Path, order: SourceOrder, names: Collection[str]) -> Path:
    """Return the longest listing whose files are all named again, or gone; else where a new one goes."""
    first = listing_path(str(root / "files"), order)
    kept = {
        file: [listed_name(entry) for entry in listed_before(file)]
        for file in sorted(order.listings.glob(f"{first.stem}*.jsonl"))
    }
    fitting = [
        file
        for file, held in kept.items()
        if all(name in names or not (root / name).exists() for name in held)
    ]
    if fitting:
        return max(fitting, key=lambda file: len(kept[file]))
    return first.with_stem(f"{first.stem}-{len(kept) + 1}") if kept else first


def _with_own_names(datasets: Iterable[Dataset]) -> Iterator[Dataset]:
    """Number the datasets whose caption files would have the same name."""
    taken: dict[str, int] = {}
    for dataset in datasets:
        name = file_name_part(dataset.name)
        taken[name] = taken.get(name, 0) + 1
        yield dataset if taken[name] == 1 else replace(dataset, name=f"{dataset.name}-{taken[name]}")
