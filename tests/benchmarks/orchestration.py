"""What everything around the engine can carry, with a scripted engine that answers at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from capflow_tasks.domains import load_catalogue
from capflow_tasks.embedded import embedded_postgres
from capflow_tasks.records import Modality, Shard, Stage
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.runs import RunStore
from producer.expansion import Expansion

_EXPANDED, _CAPTIONED = 50_000, 2_000
_BATCHES_AT_A_TIME = 64


def measure_expansion(folder: Path) -> float:
    """Samples per second from an annotation file into PostgreSQL."""
    shard = _shard(folder, _EXPANDED)
    with embedded_postgres(folder / "expansion") as url:
        engine = connect(url)
        upgrade(engine)
        runs = RunStore(engine)
        run_id = runs.open_run("bench", "plan.jsonl", "out", tuple(Stage))
        (row,) = runs.add_shards(run_id, [shard])
        batches = Expansion(load_catalogue(), 8, tuple(Stage)).batches(shard, 0)
        began, cursor = perf_counter(), 0
        while chunk := [batch for batch, _ in zip(batches, range(_BATCHES_AT_A_TIME), strict=False)]:
            runs.expand(row.id, cursor, chunk)
            cursor = chunk[-1].end_idx
        seconds = perf_counter() - began
        engine.dispose()
    return cursor / seconds


def measure_fleet(folder: Path) -> float:
    """Samples per second of the real command, from the start of its clock to the last caption file."""
    shard = _shard(folder, _CAPTIONED)
    line = {
        "data_name": "bench",
        "json_url": shard.annotation,
        "root": shard.root,
        "task": "Natural",
        "modality": "image",
        "start_idx": 0,
        "end_idx": _CAPTIONED,
    }
    plan = folder / "plan.jsonl"
    plan.write_text(json.dumps(line) + "\n")
    environment = {
        **os.environ,
        "CAPFLOW_HOME": str(folder / "fleet"),
        "CAPFLOW_ENGINE": "capflow_tasks.testing:build",
        "CAPFLOW_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "producer.cli", str(plan), "--output", str(folder / "out"), "--json"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    summary = json.loads(done.stdout)
    return float(summary["done"] / summary["seconds"])


def _shard(folder: Path, count: int) -> Shard:
    root = folder / "media"
    root.mkdir(exist_ok=True)
    (root / "a.png").touch()
    annotation = folder / f"{count}.jsonl"
    annotation.write_text("".join(json.dumps({"id": n, "image": "a.png"}) + "\n" for n in range(count)))
    return Shard(
        dataset="bench",
        annotation=str(annotation),
        root=str(root),
        task="Natural",
        modality=Modality.IMAGE,
        start_idx=0,
        end_idx=count,
        shard_index=0,
        num_shards=1,
        assign_rank=0,
    )
