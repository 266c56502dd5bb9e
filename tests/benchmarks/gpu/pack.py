"""`python -m tests.benchmarks.gpu.pack FOLDER`: the wheels that the GPU machine lacks, cut into parts.

Run where there is a network. Run again, it goes on where it stopped: wheels that are there are not fetched
again, and the same wheels give the same parts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import click
from packaging.utils import canonicalize_name, parse_wheel_filename

from capflow_tasks.errors import ServiceError
from producer.cli.options import Command
from tests.benchmarks.gpu.unpack import MANIFEST, Part, digest

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
#: pip takes these word by word: manylinux_2_28 does not stand for what came before it.
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
)
_PART_MB = 56
_READ_BYTES = 2**20


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--part-mb",
    default=_PART_MB,
    show_default=True,
    type=click.IntRange(1, 60),
    help="Size of a part, megabytes.",
)
@click.option("--python", default="3.12", show_default=True, help="Python on the GPU machine.")
def main(folder: Path, part_mb: int, python: str) -> None:
    """Download the wheels of requirements.txt, and leave them in FOLDER as parts that can be carried."""
    wheels = folder / f"wheels-{python}"
    for part in pack(download(REQUIREMENTS, wheels, python), folder, part_mb * 10**6):
        click.echo(f"{folder / part.name}  {part.size / 1e6:.1f} MB")


def download(requirements: Path, wheels: Path, python: str) -> list[Path]:
    """Exactly the wheels that are named, none of what they ask for; pip keeps those that are there."""
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *target, *platforms]
    answer = subprocess.run(
        [*command, "--dest", str(wheels), "--requirement", str(requirements)], check=False
    )
    if answer.returncode:
        raise ServiceError(f"pip cannot fetch all of {requirements}; what it fetched is kept in {wheels}")
    named = set(pinned(requirements))
    # A wheel of an earlier version beside the named one would stop the installation.
    return sorted(path for path in wheels.glob("*.whl") if name_and_version(path) in named)


def pinned(requirements: Path) -> Iterator[tuple[str, str]]:
    """Name and version of each line, the name as wheels' names are compared."""
    for line in requirements.read_text().splitlines():
        name, is_pin, version = line.partition("==")
        if is_pin and not line.startswith("#"):
            yield canonicalize_name(name), version


def name_and_version(wheel: Path) -> tuple[str, str]:
    name, version, *_ = parse_wheel_filename(wheel.name)
    return name, str(version)


def pack(files: Sequence[Path], folder: Path, part_bytes: int) -> list[Part]:
    """One archive of the files, written as parts, and the manifest that names them."""
    archive = folder / "wheels.tar"
    with tarfile.open(archive, "w") as tar:
        for file in files:
            tar.add(file, file.name, filter=_without_times)
    parts = list(_cut(archive, folder, part_bytes))
    whole = {"name": archive.name, "sha256": digest(archive), "size": archive.stat().st_size}
    archive.unlink()
    manifest = {"archive": whole, "parts": [part.as_json() for part in parts]}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return parts


def _without_times(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def _cut(archive: Path, folder: Path, part_bytes: int) -> Iterator[Part]:
    for old in folder.glob("part-*"):
        old.unlink()
    with archive.open("rb") as file:
        number = 0
        while file.peek(1):
            yield _write_part(file, folder / f"part-{number:02}", part_bytes)
            number += 1


def _write_part(file: BinaryIO, path: Path, part_bytes: int) -> Part:
    found, left = sha256(), part_bytes
    with path.open("wb") as part:
        while left and (piece := file.read(min(left, _READ_BYTES))):
            part.write(piece)
            found.update(piece)
            left -= len(piece)
    return Part(path.name, found.hexdigest(), part_bytes - left)


if __name__ == "__main__":
    main()
