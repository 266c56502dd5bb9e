"""List what lies in S3, Google Cloud Storage, on Hugging Face or on the web; media are not opened for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from capflow_tasks.entries import MEDIA_KEYS
from capflow_tasks.errors import PlanError
from capflow_tasks.media import remote
from capflow_tasks.records import JsonObject, Modality
from producer.planning.listings import (
    Container,
    Listed,
    SourceOrder,
    Texts,
    listed_before,
    listing_path,
    plan_errors,
    write_listing,
)
from producer.planning.metafile import Dataset
from producer.reading.folders import CONTAINERS, listed_name, named_kind


def read_remote(url: str, order: SourceOrder, listed: Listed) -> tuple[list[Dataset], list[Container]]:
    """Return the dataset of a remote folder's or file's media, and its tars and Parquet files.

    Raises PlanError.
    """
    url = url.rstrip("/")
    if order.root is not None:
        raise PlanError(f"{url}: is remote, and starts at its own folder; leave out --root")
    with plan_errors(url):
        remote.check_allowed(url)
        folder, _, name = url.rpartition("/")
        if urlsplit(url).path.endswith(CONTAINERS):
            return [], [Container(url, folder, order, remote.version_of(url))]
        if named_kind(urlsplit(url).path):
            return [_dataset(url, folder, [name], order, listed)], []
        return _read_folder(url, order, listed)


def _read_folder(url: str, order: SourceOrder, listed: Listed) -> tuple[list[Dataset], list[Container]]:
    if urlsplit(url).scheme.startswith("http"):
        raise PlanError(f"{url}: the web has no folders; name a tar, a Parquet file, a picture or a video")
    media, containers = list[str](), list[Container]()
    for name, version in remote.find_remote(url):
        if not name or any(part.startswith(".") for part in name.split("/")):
            continue
        if name.endswith(CONTAINERS):
            containers.append(Container(f"{url}/{name}", url, order, version))
        elif named_kind(name):
            media.append(name)
    if not media and not containers:
        raise PlanError(
            f"{url}: holds no file that is named as a picture, video, tar or Parquet file; name another "
            "folder, or fetch an annotation file, whose entries may name URLs"
        )
    return [_dataset(url, url, media, order, listed)] if media else [], containers


def _dataset(url: str, root: str, names: Sequence[str], order: SourceOrder, listed: Listed) -> Dataset:
    file = listing_path(url, order)
    known = Texts(listed_name(entry) for entry in listed_before(file))
    count = write_listing(file, _entries(listed_before(file), names, known), listed)
    title = url.rpartition("/")[2].partition("?")[0]
    return Dataset(title or "media", root, str(file), Modality.IMAGE, None, count, None, {}, is_counted=True)


def _entries(earlier: Iterator[JsonObject], names: Sequence[str], known: Texts) -> Iterator[JsonObject]:
    """Yield the entries of an earlier listing first, so that samples keep their places."""
    yield from earlier
    for name in names:
        kind = named_kind(urlsplit(name).path)
        if kind is not None and name not in known:
            yield {"id": name, MEDIA_KEYS[kind][0]: name}
