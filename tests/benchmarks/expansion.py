"""How fast annotation files become rows, and how much memory that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.fleet.embedded import embedded_postgres
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.runs import RunStore
from producer.reading.plan import read_plan
from producer.run import batches_of, read_samples
from tests.benchmarks.claims import Bench, Measured
from tests.benchmarks.fleet import write_plan
from tests.benchmarks.memory import peak_mib

_SAMPLES, _SHARDS = 200_000, 20
_FULL_SAMPLES, _FULL_SHARDS = 10_000_000, 1_000
#: The producer's defaults.
_BATCH_SIZE, _BATCHES_AT_A_TIME = 8, 64


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Expand a plan in its own process without publishing, so that the peak memory is its own."""
    samples, shards = (_FULL_SAMPLES, _FULL_SHARDS) if bench.is_full else (_SAMPLES, _SHARDS)
    plan = write_repeating_plan(bench.folder / "expansion.jsonl", samples // shards, shards)
    with embedded_postgres(bench.folder) as url:
        command = [sys.executable, "-m", "tests.benchmarks.expansion", url, str(plan)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(answer.stdout)
    what = f"none; {samples:,} samples in {shards:,} shards"
    return {
        "producer_samples_per_second": Measured(
            samples / found["seconds"], f"{what}; own CPU {1e6 * found['cpu'] / samples:.0f} µs per sample"
        ),
        "producer_peak_mib": Measured(found["peak_mib"], what),
    }


def expand_plan(url: str, path: Path) -> JsonObject:
    """Insert the whole plan as the producer does, without waiting for workers."""
    engine = connect(url)
    upgrade(engine)
    runs, stages = RunStore(engine), tuple(Stage)
    catalogue = load_catalogue()
    began, cpu = perf_counter(), process_time()
    plan = read_plan(path, catalogue.resolve)
    rows = runs.add_shards(runs.open_run("bench", str(path), "out", stages), plan.shards)
    for row in rows:
        cursor, samples = row.expanded_to, read_samples(catalogue, row.shard, row.expanded_to)
        batches = batches_of(samples, _BATCH_SIZE, stages)
        while chunk := list(islice(batches, _BATCHES_AT_A_TIME)):
            runs.expand(row.id, cursor, chunk)
            cursor = chunk[-1].end_idx
    engine.dispose()
    return {"seconds": perf_counter() - began, "cpu": process_time() - cpu, "peak_mib": peak_mib()}


def write_repeating_plan(path: Path, size: int, shards: int) -> Path:
    """Write a plan of this many datasets whose annotation files are hard links to one."""
    media = path.parent / "media"
    media.mkdir()
    entries: list[JsonObject] = [
        {
            "id": f"sa_{number:07}",
            "image": f"part_{number % 100:03}/sa_{number:07}.jpg",
            "conversations": [{"from": "human", "value": "<image>\nDescribe the picture in detail."}],
        }
        for number in range(size)
    ]
    line = json.loads(write_plan(path, entries, media).read_text())
    lines = [{**line, "data_name": f"bench{number}"} for number in range(shards)]
    for each in lines:
        name = path.with_name(f"{each['data_name']}.jsonl")
        name.hardlink_to(line["json_url"])
        each["json_url"] = str(name)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


if __name__ == "__main__":
    print(json.dumps(expand_plan(sys.argv[1], Path(sys.argv[2]))))
