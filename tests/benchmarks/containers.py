"""How fast pictures are read from tars and Parquet, compared with the same pictures as files."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from capflow_tasks.media.addresses import ParquetCell, TarMember
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.loader import load_media
from capflow_tasks.records import MediaRef, Modality
from tests.benchmarks.claims import Bench, Measured

_PICTURES, _SIZE = 200, (640, 480)
#: As `datasets` writes pictures.
_ROW_GROUP = 100
_ROUNDS = 3


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Compare pictures per second of CPU, by the best of a few alternating rounds."""
    files = _draw(bench.folder)
    paths = {"folder": [str(file) for file in files], **_packed(bench.folder, files)}
    rates = dict.fromkeys(paths, 0.0)
    for _ in range(_ROUNDS):
        for name, listed in paths.items():
            rates[name] = max(rates[name], _rate(listed))
    baseline = f"the files: {rates['folder']:.0f} pictures per CPU second"
    return {
        f"{name}_over_folder": Measured(rates[name] / rates["folder"], f"{baseline}, here {rates[name]:.0f}")
        for name in ("tar", "parquet")
    }


def _rate(paths: Sequence[str]) -> float:
    budget = MediaBudget()
    began = process_time()
    for path in paths:
        load_media(MediaRef(Modality.IMAGE, path), budget)
    return len(paths) / (process_time() - began)


def _draw(folder: Path) -> list[Path]:
    random = np.random.default_rng(0)
    files = [folder / f"{number:06}.jpg" for number in range(_PICTURES)]
    for file in files:
        blocks = random.integers(0, 255, (_SIZE[1] // 16, _SIZE[0] // 16, 3), dtype=np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))).save(file, quality=90)
    return files


def _packed(folder: Path, files: Sequence[Path]) -> dict[str, list[str]]:
    tar_file, parquet_file = folder / "set.tar", folder / "set.parquet"
    with tarfile.open(tar_file, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    with tarfile.open(tar_file) as tar:
        members = [TarMember(each.offset_data, each.size, each.name) for each in tar.getmembers()]
    pictures = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(pa.table({"image": pictures}), parquet_file, row_group_size=_ROW_GROUP)
    cells = [ParquetCell(number // _ROW_GROUP, number % _ROW_GROUP, "image") for number in range(len(files))]
    return {
        "tar": [f"{tar_file}#{member}" for member in members],
        "parquet": [f"{parquet_file}#{cell}" for cell in cells],
    }
