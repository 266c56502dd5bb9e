"""Try the first and some random entries of each dataset, and some of their media, before anything starts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from capflow_tasks.entries import MEDIA_KEYS, media_of, shown
from capflow_tasks.errors import BadEntry, PlanError, SampleError
from capflow_tasks.media.addresses import ParquetCell, split_address
from capflow_tasks.media.paths import head_of, resolve_media
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import JsonObject
from producer.planning.metafile import Dataset
from producer.reading.annotations import Entry, read_entries
from producer.reading.folders import named_kind
from producer.reading.tables import paths_in

#: Entries of a dataset that are tried: the first, and as many at random.
_TRIED = 20
#: Those at random are among so many, as finding the last of millions takes minutes.
_REACH = 100_000
#: Media of a dataset that are opened.
_OPENED = 5


def check_datasets(datasets: Sequence[Dataset], lengths: Sequence[int]) -> list[str]:
    """Return what looks wrong. Raises PlanError for a dataset of which no entry or no medium can be used."""
    problems, warnings = list[str](), list[str]()
    for dataset, length in zip(datasets, lengths, strict=True):
        entries = list(_tried(dataset, length))
        media, refused = _media(dataset, entries)
        where = f"dataset {shown(dataset.name)}"
        if entries and not media:
            problems.append(f"{where}: none of {len(entries)} entries that were tried names media: {refused}")
            continue
        reasons = [reason for path in media[:_OPENED] if (reason := _unreadable(dataset.root, path))]
        if reasons:
            count = len(media[:_OPENED])
            text = f"{where}: {len(reasons)} of {count} media that were tried cannot be opened: {reasons[0]}"
            is_hopeless = len(reasons) == count and dataset.is_counted
            if is_hopeless and not (is_remote(media[0]) or is_remote(dataset.root)):
                text += "; name their folder with --root"
            (problems if is_hopeless else warnings).append(text)
    if problems:
        raise PlanError("\n".join(problems))
    return warnings


def _tried(dataset: Dataset, length: int) -> Iterator[Entry]:
    rest = range(_TRIED, min(length, _REACH))
    places = Random(dataset.name).sample(rest, min(_TRIED, len(rest)))
    yield from read_entries(Path(dataset.annotation), 0, min(_TRIED, length))
    for place in sorted(places):
        yield from read_entries(Path(dataset.annotation), place, place + 1)


def _media(dataset: Dataset, entries: Sequence[Entry]) -> tuple[list[str], str]:
    """Return the paths of media that the entries name, and what is wrong with those that name none."""
    paths, reasons, values = list[str](), Counter[str](), list[JsonObject]()
    for entry in entries:
        try:
            paths += [path for _, path in media_of(entry.value or {}, dataset.modality)]
        except BadEntry as error:
            reasons[entry.problem or str(error)] += 1
            values += [entry.value] if entry.value else []
    reason = next((text for text, _ in reasons.most_common(1)), "")
    keys = Counter(key for value in values for key in _keys_of_media(dataset.root, value))
    if keys:
        found, _ = keys.most_common(1)[0]
        reason += f"; found {shown(found)}: say --image-key {found}"
    return paths, reason


def _keys_of_media(root: str, entry: JsonObject) -> Iterator[str]:
    """Yield the keys whose value may be the path of a medium."""
    known = {key for keys in MEDIA_KEYS.values() for key in keys}
    for key, value in entry.items():
        first = paths_in(value[0] if isinstance(value, list) and value else value)
        if key not in known and isinstance(first, str) and (named_kind(first) or _is_file(root, first)):
            yield key


def _is_file(root: str, path: str) -> bool:
    try:
        return "\0" not in path and Path(root, path).is_file()
    except (OSError, ValueError):
        return False


def _unreadable(root: str, path: str) -> str | None:
    """Return why a medium cannot be opened; None when it can, or when a whole remote file must be fetched."""
    try:
        found = resolve_media(root, path)
        if not is_remote(found) or not isinstance(split_address(found)[1], ParquetCell):
            head_of(found)
    except SampleError as error:
        return str(error).rstrip(".")
    return None
