"""`python -m tests.benchmarks.gpu.unpack FOLDER STORE`: put parts aside, and join them once all are there.

Runs on the GPU machine before anything is installed there, so it needs Python alone. One call carries one
part and the manifest; STORE outlives the call. Prints the folder of the wheels. Exit codes: 0 they are there,
4 parts are missing, 2 a part is damaged.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

MANIFEST = "manifest.json"
_EXIT_DAMAGED, _EXIT_MISSING = 2, 4


@dataclass(frozen=True, slots=True)
class Part:
    """A file as the manifest describes it."""

    name: str
    sha256: str
    #: Bytes.
    size: int

    def as_json(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which parts there are, in the order in which they are joined, and what that gives."""

    archive: Part
    parts: tuple[Part, ...]


class Damaged(Exception):
    """A file is not what the manifest says."""


class PartsMissing(Exception):
    """Some parts have not arrived yet."""


def read_manifest(path: Path) -> Manifest:
    found = json.loads(path.read_text())
    return Manifest(Part(**found["archive"]), tuple(Part(**part) for part in found["parts"]))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        found = sha256()
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()


def collect(folder: Path, manifest: Manifest, store: Path) -> list[str]:
    """Put the parts in `folder` aside in `store`; their names. Raises Damaged."""
    store.mkdir(parents=True, exist_ok=True)
    carried = [part for part in manifest.parts if (folder / part.name).exists()]
    for part in carried:
        _check(folder / part.name, part)
        # Copied, then renamed: a call may be cut off at any time.
        shutil.copyfile(folder / part.name, store / f"{part.name}.aside")
        (store / f"{part.name}.aside").rename(store / part.name)
    return [part.name for part in carried]


def join(manifest: Manifest, store: Path) -> Path:
    """The folder of the wheels, made of the parts if it is not there. Raises Damaged, PartsMissing."""
    wheels = store / "wheels"
    if wheels.exists():
        return wheels
    missing = [part.name for part in manifest.parts if not (store / part.name).exists()]
    if missing:
        total = len(manifest.parts)
        raise PartsMissing(f"{', '.join(missing)}, of {total} parts: carry them in further calls")
    archive = _joined(manifest, store)
    aside = store / "wheels.aside"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            _extract(tar, member, aside)
    aside.rename(wheels)
    archive.unlink()
    return wheels


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """By hand, since the safe way to extract all came with Python 3.11.4."""
    source = tar.extractfile(member)
    assert source is not None
    with source, (folder / Path(member.name).name).open("wb") as target:
        shutil.copyfileobj(source, target)


def _joined(manifest: Manifest, store: Path) -> Path:
    archive = store / manifest.archive.name
    with archive.open("wb") as whole:
        for part in manifest.parts:
            with (store / part.name).open("rb") as file:
                shutil.copyfileobj(file, whole)
    _check(archive, manifest.archive)
    return archive


def _check(path: Path, expected: Part) -> None:
    size = path.stat().st_size
    if size != expected.size:
        raise Damaged(f"{path} has {size:,} bytes, not {expected.size:,}: pack and carry it anew")
    if digest(path) != expected.sha256:
        raise Damaged(f"{path} has another sha256 than {MANIFEST} says: pack and carry it anew")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Put parts aside, and join them once all are there.")
    parser.add_argument("folder", type=Path, help="where this call's parts are")
    parser.add_argument("store", type=Path, help="where parts wait for the others")
    given = parser.parse_args(arguments)
    try:
        manifest = read_manifest(given.folder / MANIFEST)
        # By content, so that parts of two packings never meet.
        store = given.store / manifest.archive.sha256[:12]
        print(f"put aside: {', '.join(collect(given.folder, manifest, store)) or 'nothing'}", file=sys.stderr)
        print(join(manifest, store))
    except PartsMissing as error:
        print(f"missing: {error}", file=sys.stderr)
        return _EXIT_MISSING
    except Damaged as error:
        print(error, file=sys.stderr)
        return _EXIT_DAMAGED
    except FileNotFoundError as error:
        print(f"missing: {error.filename}: carry it with every part", file=sys.stderr)
        return _EXIT_MISSING
    return 0


if __name__ == "__main__":
    sys.exit(main())
