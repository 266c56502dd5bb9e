"""Read a folder of pictures and videos as entries: found by content, described by what lies beside them.

    photo.jpg       {"id": "photo.jpg", "image": "photo.jpg", "txt": what photo.txt says}
    clip            {"id": "clip", "video": "clip"}: names decide nothing that the content says
    metadata.jsonl  (or .csv) as in `datasets`' imagefolder: the keys of the line whose `file_name` it is

Memory holds the names, and the metadata, of one folder at a time.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from capflow_tasks.entries import MEDIA_KEYS
from capflow_tasks.errors import PlanError, SampleError
from capflow_tasks.media.addresses import split_address
from capflow_tasks.media.paths import content_of, head_of, kind_of, resolve_media
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import JsonObject, Modality
from producer.reading.tables import json_rows, moved_aside, table_rows

#: Files beside a medium of the same name whose text becomes a key.
SIDECARS = (".txt", ".caption")
#: Suffixes of files in a folder that are sources by themselves.
CONTAINERS = (".tar", ".parquet", ".arrow")
_METADATA = ("metadata.jsonl", "metadata.csv")
#: What a file is listed as when its content says nothing, so that damaged media fail and are not passed over.
_SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"), Modality.IMAGE),
    **dict.fromkeys((".avif", ".heic", ".jp2", ".ppm"), Modality.IMAGE),
    **dict.fromkeys((".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"), Modality.VIDEO),
    **dict.fromkeys((".flv", ".wmv", ".ogv", ".3gp"), Modality.VIDEO),
}
#: Longest text of a sidecar, bytes.
_SIDECAR_BYTES = 1 << 20
_MEDIA_KEYS = {key for keys in MEDIA_KEYS.values() for key in keys}


def named_kind(name: str) -> Modality | None:
    """Return the kind that a file's suffix promises."""
    return _SUFFIXES.get(os.path.splitext(name)[1].lower())  # noqa: PTH122 - on millions of names


def named_by_content(entry: JsonObject, root: str) -> JsonObject:
    """Return the entry with the videos that it calls pictures under `video` or `videos`.

    Only files whose names do not promise a picture are opened; what cannot be read is what its name promises.
    """
    kept, videos = dict(entry), list[str]()
    for key in MEDIA_KEYS[Modality.IMAGE]:
        value = entry.get(key)
        paths = value if isinstance(value, list) else [value]
        found = [path for path in paths if isinstance(path, str) and _is_video(path, root)]
        if not found:
            continue
        videos += found
        kept[key] = [path for path in paths if path not in found]
        if not kept[key]:
            del kept[key]
    if len(videos) == 1 and not entry.get("video"):
        return kept | {"video": videos[0]}
    if videos:
        named = entry.get("videos") or []
        return kept | {"videos": [*([named] if isinstance(named, str) else named), *videos]}
    return entry


def _is_video(path: str, root: str) -> bool:
    file, member = split_address(path)
    if is_remote(file) or is_remote(root):  # too slow to open for each sample
        return member is None and named_kind(urlsplit(file).path) is Modality.VIDEO
    if (named := named_kind(file)) is Modality.IMAGE or member is not None:
        return False
    try:
        return kind_of(head_of(resolve_media(root, path))) is Modality.VIDEO
    except SampleError:
        return named is Modality.VIDEO


def differs_by_guess(entry: JsonObject, stored: JsonObject, root: str) -> bool:
    """Whether an entry differs from an earlier one only in kinds that `named_by_content` had to guess."""
    media, earlier = set(_media(entry)), set(_media(stored))
    changed = media - earlier
    return (
        bool(changed)
        and {path for path, _ in media} == {path for path, _ in earlier}
        and _without_media(entry) == _without_media(stored)
        and all(_is_guess(path, kind, root) for path, kind in changed)
    )


def _without_media(entry: JsonObject) -> JsonObject:
    return {key: value for key, value in entry.items() if key not in _MEDIA_KEYS}


def _media(entry: JsonObject) -> Iterator[tuple[str, Modality]]:
    for kind, keys in MEDIA_KEYS.items():
        for value in map(entry.get, keys):
            paths = value if isinstance(value, list) else [value]
            yield from ((path, kind) for path in paths if isinstance(path, str))


def _is_guess(path: str, kind: Modality, root: str) -> bool:
    """Whether the file cannot be read, and the kind is the one that its name then gives it."""
    file, member = split_address(path)
    if is_remote(file) or is_remote(root):
        return False
    named = named_kind(file)
    if member is not None or named is Modality.IMAGE or kind is not (named or Modality.IMAGE):
        return False
    try:
        head_of(resolve_media(root, path))
    except SampleError:
        return True
    return False


def walk(folder: Path) -> Iterator[str]:
    """Yield every plain file below the folder as a path relative to it, each folder sorted.

    Links are followed inside the folder, never to a folder that is being walked; hidden names are left out.
    """
    yield from _walk(folder, "", (os.path.realpath(folder),))


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    for name, is_folder in _names(str(folder / prefix)):
        if not is_folder:
            yield prefix + name
            continue
        real = os.path.realpath(folder / prefix / name)
        if real not in above and Path(real).is_relative_to(above[0]):
            yield from _walk(folder, f"{prefix}{name}/", (*above, real))


@lru_cache(maxsize=8)
def _names(folder: str) -> tuple[tuple[str, bool], ...]:
    """Return (name, whether it is a folder) of the files and folders in a folder, sorted."""
    try:
        with os.scandir(folder) as found:
            kinds = [(each.name, each.is_dir()) for each in found if each.is_dir() or each.is_file()]
    except FileNotFoundError:  # it was removed while it was read
        return ()
    except OSError as error:
        raise PlanError(f"{folder}: cannot be read: {error.strerror}; fix its permissions") from error
    return tuple(sorted(pair for pair in kinds if not pair[0].startswith(".")))


def listed_name(entry: JsonObject) -> str:
    """Return the file that an entry of a folder's listing is about; its `id` may be from metadata."""
    return str(entry[MEDIA_KEYS[_listed_kind(entry)][0]])


def _listed_kind(entry: JsonObject) -> Modality:
    return Modality.VIDEO if MEDIA_KEYS[Modality.VIDEO][0] in entry else Modality.IMAGE


class MediaFolder:
    """Describes the media of a folder; counts what it leaves out by what it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out: Counter[str] = Counter()
        #: Tars and Parquet files, which hold samples of their own.
        self.containers: list[str] = []
        _names.cache_clear()
        _metadata.cache_clear()

    def entries(self, known: Iterable[JsonObject], is_known: Callable[[str], bool]) -> Iterator[JsonObject]:
        """Yield the entries of an earlier listing in its order, then those of files that are new.

        So no sample changes its place when files are added, and no file is opened twice for its kind.
        """
        for entry in known:
            yield self._entry(listed_name(entry), _listed_kind(entry))
        new = (name for name in walk(self.folder) if not is_known(name))
        yield from (self._entry(name, kind) for name in new if (kind := self._kind(name)))

    def _kind(self, name: str) -> Modality | None:
        base = name.rpartition("/")[2]
        if base in _METADATA or base.endswith(SIDECARS):
            return None
        if base.endswith(CONTAINERS):
            self.containers.append(name)
            return None
        try:
            head = head_of(str(self.folder / name))
        except SampleError:
            head = b""
        kind = kind_of(head) or named_kind(name)
        if kind is None:
            self.left_out[content_of(head) if head else "nothing"] += 1
        return kind

    def _entry(self, name: str, kind: Modality) -> JsonObject:
        parent, _, base = name.rpartition("/")
        stem, _ = os.path.splitext(base)  # noqa: PTH122
        beside = _names(str(self.folder / parent)) if (self.folder / parent).is_dir() else ()
        texts = {
            suffix[1:]: _text(self.folder / parent / f"{stem}{suffix}")
            for suffix in SIDECARS
            if (f"{stem}{suffix}", False) in _files(beside)
        }
        entry = {"id": name, **_described(self.folder, name), **texts}
        return moved_aside(entry) | {MEDIA_KEYS[kind][0]: name}


@lru_cache(maxsize=8)
def _files(names: tuple[tuple[str, bool], ...]) -> frozenset[tuple[str, bool]]:
    return frozenset(pair for pair in names if pair[0].endswith(SIDECARS))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_SIDECAR_BYTES).decode("utf-8", "replace").replace("\0", "").strip()
    except FileNotFoundError:  # it was removed while its folder was read
        return ""
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; fix its permissions") from error


def _described(folder: Path, name: str) -> JsonObject:
    """Return what the nearest metadata file above a medium says of it."""
    parents = name.split("/")[:-1]
    for depth in range(len(parents), -1, -1):
        place = folder.joinpath(*parents[:depth])
        if (lines := _metadata(place)) is not None:
            line = lines.get(name.removeprefix("".join(f"{parent}/" for parent in parents[:depth])))
            entry: JsonObject = json.loads(line) if line else {}
            return {key: value for key, value in entry.items() if key != "file_name"}
    return {}


@lru_cache(maxsize=8)
def _metadata(folder: Path) -> dict[str, str] | None:
    """Return the lines of a folder's metadata file by `file_name`; None without such a file."""
    found = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if found is None:
        return None
    values = table_rows(found) if found.suffix == ".csv" else json_rows(found)
    objects = (value for value in values if isinstance(value, dict) and "file_name" in value)
    lines = {str(value["file_name"]): json.dumps(value) for value in objects}
    if not lines:
        raise PlanError(f'{found}: names no "file_name"; name the media there, or rename the file')
    return lines
