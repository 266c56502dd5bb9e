"""How fast annotation files become rows, and how much memory that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time

import psycopg

from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.fleet.embedded import embedded_postgres
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.runs import RunStore
from producer.reading.plan import read_plan
from producer.reading.samples import batches_of, read_samples
from tests.benchmarks.claims import Bench, Measured
from tests.benchmarks.fleet import write_plan
from tests.benchmarks.memory import peak_mib

_SAMPLES, _SHARDS = 200_000, 20
_FULL_SAMPLES, _FULL_SHARDS = 10_000_000, 1_000
#: Shards that the baseline copies.
_PLAIN_SHARDS = 20
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
    what = f"{samples:,} samples in {shards:,} shards"
    ours = samples / found["seconds"]
    plain = found["plain_samples"] / found["plain_seconds"]
    cpu = 1e6 * found["cpu"] / samples
    return {
        "producer_over_copy": Measured(
            ours / plain,
            f"json.loads and COPY of the same lines: {plain:,.0f} samples/s; "
            f"ours: {ours:,.0f} samples/s, {cpu:.0f} µs of CPU per sample",
        ),
        "producer_peak_mib": Measured(found["peak_mib"], f"none; {what}"),
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
    spent = {"seconds": perf_counter() - began, "cpu": process_time() - cpu, "peak_mib": peak_mib()}
    return {**spent, **copy_plainly(url, [Path(row.shard.annotation) for row in rows[:_PLAIN_SHARDS]])}


def copy_plainly(url: str, annotations: Sequence[Path]) -> JsonObject:
    """Parse each line and send it to a table without indexes: the least that any producer does."""
    began, count = perf_counter(), 0
    with psycopg.connect(url.replace("+psycopg", "")) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE plain (idx int, entry jsonb)")
        with cursor.copy("COPY plain FROM STDIN") as copy:
            for path in annotations:
                for line in path.open():
                    copy.write_row((count, json.dumps(json.loads(line))))
                    count += 1
    return {"plain_samples": count, "plain_seconds": perf_counter() - began}


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
