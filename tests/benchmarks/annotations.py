"""What reading a long annotation file costs: memory, and the time to start a late shard."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from producer.reading.annotations import read_entries

_SCRIPT = """
import sys
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.records import Stage
from producer.reading.samples import batches_of, read_samples
from tests.benchmarks.memory import peak_mib
from tests.stores import a_shard
shard = a_shard(int(sys.argv[2]), annotation=sys.argv[1], task="Natural")
for batch in batches_of(read_samples(load_catalogue(), shard, 0), 8, tuple(Stage)):
    pass
assert batch.end_idx == shard.end_idx
print(peak_mib())
"""


def measure_annotation_peak_mib(folder: Path, entries: int) -> float:
    """Return the peak memory of making batches from this many entries, as a JSON list or as JSONL."""
    return max(_peak_mib(folder, entries, is_list) for is_list in (True, False))


def measure_shards_seconds(folder: Path, entries: int, shards: int) -> float:
    """Return the seconds that reading a JSON list as this many shards takes, one after the other."""
    path = _write(folder, entries, is_list=True)
    size = entries // shards
    began = perf_counter()
    for number in range(shards):
        for entry in read_entries(path, number * size, (number + 1) * size):
            assert entry.index // size == number
    seconds = perf_counter() - began
    path.unlink()
    return seconds


def _peak_mib(folder: Path, entries: int, is_list: bool) -> float:
    path = _write(folder, entries, is_list)
    command = [sys.executable, "-c", _SCRIPT, str(path), str(entries)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    path.unlink()
    return float(done.stdout)


def _write(folder: Path, entries: int, is_list: bool) -> Path:
    path = folder / ("entries.json" if is_list else "entries.jsonl")
    separator, ends = (",\n", "[]") if is_list else ("\n", ("", "\n"))
    with path.open("w") as file:
        file.write(ends[0])
        file.writelines(_lines(entries, separator))
        file.write(ends[1])
    return path


def _lines(entries: int, separator: str) -> Iterator[str]:
    for number in range(entries):
        entry = {"id": number, "image": f"train/{number // 1000:06}/{number:09}.jpg", "width": 1024}
        yield f"{separator if number else ''}{json.dumps(entry)}"
