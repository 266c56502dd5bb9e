"""Write one text file per picture or video, in a tree like that of the media."""

import os
from collections.abc import Iterable
from pathlib import Path

from capflow_tasks.errors import UserError
from capflow_tasks.media.addresses import readable_name
from producer.writing.captions import Captioned
from producer.writing.conversations import media_listed
from producer.writing.whole import whole_file


def write_sidecars(samples: Iterable[Captioned], folder: Path, *, has_roots: bool, overwrites: bool) -> int:
    """Write `sub/photo.txt` for `sub/photo.jpg` and return the number of files.

    A sample's file is named after its first medium; where `photo.png` is captioned as well, that becomes
    `photo.png.txt`, and a second caption of it `photo.png.<key>.txt`. With `has_roots` each dataset has a
    folder of its own. Raises UserError for a file with another text that is there already, unless it
    `overwrites`, and ServiceError when the disk refuses one.
    """
    written = set[int]()
    for each in samples:
        path = next(name for name in _names(each, folder, has_roots) if hash(name) not in written)
        text = f"{each.caption}\n".encode()
        if not overwrites and path.exists() and path.read_bytes() != text:
            raise UserError(f"{path}: is there already; choose another --output, or replace with --overwrite")
        written.add(hash(path))
        with whole_file(path) as file:
            file.write(text)
    return len(written)


def _names(each: Captioned, folder: Path, has_roots: bool) -> tuple[Path, ...]:
    """Return where a sample's text may go, inside the folder whatever the medium's path is."""
    listed = readable_name(media_listed(each.sample.entry)[0][1])
    if Path(listed).is_absolute():
        listed = os.path.relpath(listed, each.shard.root)
    inside = f"/{each.shard.dataset}/{listed}" if has_roots else f"/{listed}"
    medium = folder / os.path.normpath(inside).lstrip("/")
    return (
        medium.with_suffix(".txt"),
        medium.with_name(f"{medium.name}.txt"),
        medium.with_name(f"{medium.name}.{each.key}.txt"),
    )
