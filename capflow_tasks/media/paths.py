"""Finds a sample's media file and checks it before it is decoded. Imports no codec and no torch."""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unicodedata import normalize

from capflow_tasks import errors
from capflow_tasks.media import remote
from capflow_tasks.media.addresses import located, open_media, part_of, split_address, with_part
from capflow_tasks.records import Modality


def resolve_media(root: str, address: str) -> str:
    """Return the address with the absolute path, links resolved, of an existing file inside `root`.

    Of remote media, or below a remote root, it is the URL, which has not been tried.

    A name is found in any Unicode normal form. Links of a Hugging Face snapshot may lead to its blobs. Raises
    SampleError.
    """
    if not isinstance(address, str) or not address.strip() or "\0" in address:
        raise errors.BadEntry(f"A media path must be a non-empty string without NUL, not {address!r:.80}.")
    relative, member = split_address(address)
    if remote.is_remote(relative) or remote.is_remote(root):
        url = remote.url_below(root, relative)
        return with_part(url if member is None else f"{url}#{member}", part_of(address))
    try:
        real_root = Path(root or "/").resolve()
        path = (real_root / relative).resolve()
        with file_errors(str(path)):
            path = path if path.exists() else _as_spelt_on_disk(real_root / relative).resolve()
    except RuntimeError as error:  # Python 3.11 and 3.12, for a loop of links
        raise errors.MediaMissing(f"{relative:.500} is a link that leads back to itself.") from error
    except UnicodeEncodeError as error:
        raise errors.BadEntry(f"The media path {relative!r:.200} names no file: {error.reason}.") from error
    blobs = _blobs_of(real_root)
    if not (path.is_relative_to(real_root) or (blobs and path.is_relative_to(blobs))):
        raise errors.MediaOutsideRoot(
            f"The media path {relative!r:.200} leads to {path}, outside {real_root}; "
            "name a root that holds both, or copy the files that links lead to."
        )
    with file_errors(str(path)):
        if not path.exists() and (near := _near_match(path)):
            raise errors.MediaMissing(f"{path} does not exist, but {near!r} does; correct the entry.")
        path.stat()
    return with_part(str(path) if member is None else f"{path}#{member}", part_of(address))


def root_problem(root: str) -> str | None:
    """Return what is wrong with a folder of media that no single file explains; None when nothing is.

    A mount that is away leaves an empty folder, none, or one that cannot be listed.
    """
    try:
        with os.scandir(root or "/") as entries:
            return None if next(entries, None) else "is empty"
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be listed ({error.strerror})"


def _blobs_of(root: Path) -> Path | None:
    """Return the folder that holds the files of a Hugging Face snapshot, None for any other root.

    Layout: `REPOSITORY/snapshots/REVISION/...` holds links to `REPOSITORY/blobs/...`.
    """
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and (blobs := folder.parent.parent / "blobs").is_dir():
            return blobs.resolve()
    return None


def _as_spelt_on_disk(path: Path) -> Path:
    """Return the path with each name in the Unicode normal form that exists, else as it is.

    macOS and some archives decompose "é" into "e" and an accent, which are other bytes on Linux.
    """
    found = Path(path.anchor)
    for name in path.parts[1:]:
        forms = (name, normalize("NFC", name), normalize("NFD", name))
        found /= next((form for form in forms if (found / form).exists()), name)
    return found


#: How many names of a folder are compared with one that is missing.
_NAMES = 10_000


def _near_match(path: Path) -> str | None:
    """Return a name in the folder that differs only by case, blanks at its ends, Unicode form, or "jpeg"."""
    if not path.parent.is_dir():
        return None
    wanted = _folded(path.name)
    with os.scandir(path.parent) as entries:
        return next((entry.name for entry in islice(entries, _NAMES) if _folded(entry.name) == wanted), None)


def _folded(name: str) -> str:
    return re.sub(r"\.jpeg$", ".jpg", normalize("NFKC", name).casefold().strip())


@contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turn an error of the operating system about the file into a SampleError."""
    try:
        yield
    except MemoryError as error:
        raise errors.MediaTooLarge(f"{path} needs more memory than there is.") from error
    except OSError as error:
        if error.errno is None:  # raised by Pillow: about the file's content, not the disk
            raise errors.MediaCorrupt(f"{path} is damaged or cut short: {error}.") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise errors.MediaMissing(f"{path} does not exist.") from error
        if error.errno == errno.ENOMEM:
            raise errors.MediaTooLarge(f"{path} needs more memory than there is.") from error
        raise errors.MediaUnreadable(f"{path} could not be read: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class FileState:
    """What changes when a medium does."""

    #: Bytes of the medium; of a cell of Parquet, those of its column in the row group.
    size: int
    #: When the file was changed, nanoseconds.
    mtime_ns: int


def check_file(path: str, max_bytes: int) -> FileState:
    """Refuse a medium without reading it: missing, in no plain file, empty, or larger than `max_bytes`."""
    file, member = located(path)
    with file_errors(path):
        found = Path(file).stat()
        if not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a plain file"
            raise errors.MediaUnsupported(f"{file} is {what}.")
        size = member.size_in(file) if member and found.st_size else found.st_size
    if size == 0:
        raise errors.MediaCorrupt(f"{path} is empty: zero bytes.")
    if size > max_bytes:
        raise errors.MediaTooLarge(
            f"{path} has {size:,} bytes; the limit is {max_bytes:,} (CAPFLOW_MAX_MEDIA_MIB)."
        )
    return FileState(size, found.st_mtime_ns)


def stamp_of(files: Iterable[str]) -> str | None:
    """Return what changes when one of these files does, without opening any; None where one cannot be found.

    For a part of a container it is the container that counts.
    """
    try:
        found = [Path(split_address(path)[0]).stat() for path in files]
    except (OSError, ValueError):
        return None
    return " ".join(f"{each.st_size}:{each.st_mtime_ns}" for each in found) or None


#: (offset, bytes there, what the file is); a file type that ends in "picture" or "video" can be decoded.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftyphei", "a HEIF image"),
    (4, b"ftypmif1", "a HEIF image"),
    (4, b"ftypM4A", "an M4A sound file"),
    (4, b"ftyp", "an MP4 or MOV video"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (8, b"AVI ", "an AVI video"),
    (0, b"FLV\x01", "an FLV video"),
    (0, b"\0\0\x01\xba", "an MPEG video"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMV video"),
    (8, b"WAVE", "a WAV sound file"),
    (0, b"ID3", "an MP3 sound file"),
    (0, b"fLaC", "a FLAC sound file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"version https://git-lfs", "a Git LFS pointer instead of the file"),
)


#: Bytes by which the content of a file is known.
HEAD_BYTES = 4096
_NOUNS = {Modality.IMAGE: "picture", Modality.VIDEO: "video"}


def content_of(head: bytes) -> str:
    """Name what a file holds by its first bytes; "... picture" or "... video" can be decoded here."""
    for offset, magic, name in _SIGNATURES:
        if head.startswith(magic, offset):
            return name
    # what has a short signature, or repeats one
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "a BMP picture"
    if re.match(rb"P[1-6]\s[\d\s#]", head):
        return "a PPM picture"
    if head[:1] == head[188:189] == head[376:377] == b"G":
        return "an MPEG-TS video"
    if head.startswith(b"OggS") and b"theora" in head:
        return "an Ogg video"
    if not head.strip(b"\0"):
        return "only zero bytes"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page"
    control_bytes = set(range(32)) - set(b"\t\n\f\r\x1b")
    return "unknown data" if control_bytes.intersection(head) else "text"


def head_of(path: str) -> bytes:
    """Return the medium's first bytes. Raises SampleError."""
    with file_errors(path), open_media(path) as file:
        return file.read(HEAD_BYTES)


def kind_of(head: bytes) -> Modality | None:
    """Return the kind of a medium by its first bytes; None for what is neither."""
    content = content_of(head)
    return next((kind for kind, noun in _NOUNS.items() if content.endswith(noun)), None)


def unrecognised(path: str, wanted: str) -> errors.SampleError:
    """Return the error for a file that no decoder recognised; `wanted` is "picture" or "video"."""
    found = content_of(head_of(path))
    if found.endswith(wanted):
        return errors.MediaCorrupt(f"{path} begins as {found}, but is damaged or cut short.")
    return errors.MediaUnsupported(f"{path} holds {found}, not a {wanted} that can be decoded here.")
