"""What tells two checkpoints of one name apart: their revision. Imports no vLLM."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

#: The name of a snapshot's folder in the hub's cache.
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: Files up to this size are read whole; of larger ones, so many blocks at equal distances.
_BLOCK_BYTES, _BLOCKS = 1 << 16, 16


def revision_of(model: str, revision: str | None = None) -> str | None:
    """Return the revision of a model folder or hub name; None where its files are not on this machine.

    It is the commit of a snapshot from the hub, else `files:` and a digest of names, sizes and content. Of
    weights, 1 MiB in 16 places is read: another training changes all of them. `revision` is the branch, tag
    or commit that the engine loads.
    """
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except (OSError, ValueError, HfHubHTTPError):
            return None
    name = folder.resolve().name
    return name if _COMMIT.fullmatch(name) else f"files:{_digest(folder)}"


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            for block in _blocks(path):
                digest.update(block)
    return digest.hexdigest()[:16]


def _blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    if size <= _BLOCK_BYTES * _BLOCKS:
        yield path.read_bytes()
        return
    with path.open("rb") as file:
        for number in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
            yield file.read(_BLOCK_BYTES)
