"""Listings: JSONL files that name the samples of a source where they lie, one per folder, tar and so on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from capflow_tasks.errors import PlanError, SampleError
from capflow_tasks.media import remote
from capflow_tasks.media.arrow_files import ARROW_HEAD
from capflow_tasks.records import JsonObject, Modality
from producer.planning.metafile import Dataset
from producer.reading.containers import arrow_entries, parquet_entries, tar_entries
from producer.reading.plan import file_name_part
from producer.reading.tables import Keys, json_rows
from producer.writing.whole import whole_file

#: Number of entries listed so far.
Listed = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SourceOrder:
    """How sources are read."""

    #: Folder of the listings, absolute.
    listings: Path
    keys: Keys = field(default_factory=Keys)
    #: Folder that media paths are relative to; None for that of the source.
    root: Path | None = None
    #: Tars and Parquet files listed at a time.
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Container:
    """A tar or Parquet file, which is listed in a process of its own."""

    #: Absolute path or URL.
    place: str
    #: Absolute path or URL of the folder that its name is relative to.
    root: str
    order: SourceOrder
    #: What changes when a remote file does; "" when that is not known.
    version: str = ""

    def open(self) -> BinaryIO:
        return remote.open_remote(self.place) if remote.is_remote(self.place) else Path(self.place).open("rb")

    def changed_ns(self) -> int | None:
        """Return when the file was changed, or a number that stands for its version; None if not known."""
        if not remote.is_remote(self.place):
            return Path(self.place).stat().st_mtime_ns
        return int.from_bytes(sha256(self.version.encode()).digest()[:7]) if self.version else None


def listing_path(place: str, order: SourceOrder, *also: str) -> Path:
    """Return where the listing of a source is kept; `also` names what else it depends on."""
    identity = [place if remote.is_remote(place) else os.path.realpath(place), order.keys, *also]
    name = place.rpartition("/")[2].partition("?")[0]
    digest = sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return order.listings / f"{file_name_part(name.split('.')[0] or 'media')}.{digest}.jsonl"


def write_listing(file: Path, entries: Iterable[Any], listed: Listed) -> int:
    """Write the entries as JSONL and return their number.

    In ASCII, so that half of a surrogate pair is written, and refused by the reader of the listing.
    """
    count = 0
    with whole_file(file) as output:
        for entry in entries:
            output.write(json.dumps(entry).encode() + b"\n")
            count += 1
            listed(count)
    return count


def list_container(container: Container) -> tuple[Dataset, list[str]]:
    """List a tar or Parquet file, unless it is as it was; return what cannot be read of it, too."""
    place, root, warnings = container.place, container.root, list[str]()
    if not place.startswith(f"{root.rstrip('/')}/"):
        raise PlanError(f"{place}: lies outside --root {root}; name a folder that holds it")
    file = listing_path(place, container.order, root)
    changed = container.changed_ns()
    if changed is not None and file.exists() and file.stat().st_mtime_ns == changed:
        with file.open("rb") as listing:
            count = sum(chunk.count(b"\n") for chunk in iter(partial(listing.read, 1 << 20), b""))
    else:
        keys = replace(container.order.keys, image=None)
        entries: Iterator[Any] = map(keys.entry, _entries(container))
        if not remote.is_remote(place):  # where a connection may have broken
            entries = _until_broken(entries, warnings)
        count = write_listing(file, entries, lambda _: None)
        if not warnings and changed is not None:
            os.utime(file, ns=(changed, changed))
    if not count:
        raise PlanError(f"{place}: holds no picture or video; leave it out")
    name = place.rpartition("/")[2].rpartition(".")[0] or "media"
    return Dataset(name, root, str(file), Modality.IMAGE, None, count, None, {}, True), warnings


def _entries(container: Container) -> Iterator[JsonObject]:
    """Yield the samples of a container. Raises PlanError."""
    place, where = container.place, container.place.removeprefix(container.root).lstrip("/")
    with plan_errors(place), container.open() as file:
        head, column = file.read(4), container.order.keys.image
        file.seek(0)
        if head == b"PAR1":
            source = file if remote.is_remote(place) else place  # which Arrow reads by itself
            yield from parquet_entries(source, place, where, column)
        elif head == ARROW_HEAD:
            if remote.is_remote(place):
                raise PlanError(f"{place}: is a remote Arrow file; write Parquet, or copy it to a disk")
            yield from arrow_entries(place, where, column)
        else:
            yield from tar_entries(file, place, where)


@contextmanager
def plan_errors(place: str) -> Iterator[None]:
    """Turn an error about a file, perhaps a remote one, into a PlanError."""
    try:
        with remote.named_errors(place) if remote.is_remote(place) else nullcontext():
            yield
    except SampleError as error:
        remedy = "" if "; " in str(error) else "; correct it, or try again later"
        where = "" if place in str(error) else f"{place}: "
        raise PlanError(f"{where}{str(error).rstrip('.')}{remedy}") from error
    except OSError as error:
        raise PlanError(f"{place}: cannot be read: {error.strerror}; fix its permissions") from error


def _until_broken(entries: Iterator[Any], warnings: list[str]) -> Iterator[Any]:
    """Yield what can be read; why there is no more becomes a warning, unless there is nothing at all."""
    is_empty = True
    try:
        for entry in entries:
            is_empty = False
            yield entry
    except PlanError as error:
        if is_empty:
            raise
        warnings.append(f"{error}; what stands before is planned")


def listed_before(listing: Path) -> Iterator[JsonObject]:
    if listing.exists():
        yield from json_rows(listing)


class Texts:
    """A set of texts in 8 bytes each."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._sorted = np.sort(np.fromiter(map(_digest, texts), np.uint64))

    def __contains__(self, text: str) -> bool:
        place = int(np.searchsorted(self._sorted, (digest := np.uint64(_digest(text)))))
        return place < len(self._sorted) and bool(self._sorted[place] == digest)


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest())
