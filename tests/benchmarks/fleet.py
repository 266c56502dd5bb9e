"""A real fleet to measure: embedded servers, real workers, and the real command, plan after plan."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic

import psutil
from sqlalchemy import Engine, func, select

from capflow_tasks.errors import EXIT_OK, EXIT_SAMPLES_FAILED
from capflow_tasks.records import JsonObject
from capflow_tasks.state import BatchState
from capflow_tasks.store.database import connect
from capflow_tasks.store.tables import Batch, Run, Shard
from tests.chaos.fleet import REPOSITORY, Service
from tests.chaos.services import postgres, running_redis

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 300.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Glance:
    """The fleet at one moment of a run."""

    at: float
    #: Samples that have come to their end.
    done: int
    #: Seconds of CPU so far, by kind of process.
    cpu: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A run between its first finished batch and its last: without start and stop of anything."""

    first: Glance
    last: Glance

    @property
    def samples(self) -> int:
        return self.last.done - self.first.done

    @property
    def samples_per_second(self) -> float:
        return self.samples / (self.last.at - self.first.at)

    def cpu_milliseconds_per_sample(self, kind: str) -> float:
        return 1000 * (self.last.cpu[kind] - self.first.cpu[kind]) / self.samples


class Fleet:
    """Workers that stay up while plans come and go."""

    def __init__(self, home: Path, engine: Engine, environment: Mapping[str, str]) -> None:
        self.engine = engine
        self._home = home
        self._environment = environment
        self.workers: list[Service] = []

    def add_workers(self, count: int) -> float:
        """Start so many more; seconds until all of them take work."""
        started = monotonic()
        command = [sys.executable, "-m", "celery", "-A", "capflow_tasks", "worker", "-Q", "gpu", "-l", "INFO"]
        new = [
            Service(f"w{number}", [*command, "-n", f"w{number}@%h"], self._home, self._environment)
            for number in range(len(self.workers), len(self.workers) + count)
        ]
        self.workers += new
        for worker in new:
            worker.start()
        _wait_until(lambda: all(b" ready." in worker.log() for worker in new), self._last_words)
        return monotonic() - started

    def run(self, plan: Path, *options: str) -> Stretch:
        """Caption the plan with the real command and watch it from the first batch to the last."""
        script = str(Path(sys.executable).parent / "capflow-produce")
        output = self._home / "captions" / plan.stem
        command = [script, str(plan), "--run", plan.stem, "--output", str(output), "--json", *options]
        producer = Service(f"producer-{plan.stem}", command, self._home, self._environment)
        producer.start()
        try:
            return self._watch(producer, plan.stem)
        finally:
            producer.end(_STOP_SECONDS)

    def _watch(self, producer: Service, run: str) -> Stretch:
        first = last = None
        while producer.code is None:
            glance = Glance(monotonic(), self._done(run), self._cpu(producer))
            if glance.done and first is None:
                first = glance
            if last is None or glance.done > last.done:
                last = glance
            Event().wait(_POLL_SECONDS)
        # Random weights now and then say what no caption may be: a sample fails, and all else goes on.
        if producer.code not in (EXIT_OK, EXIT_SAMPLES_FAILED) or first is None or last is None:
            raise RuntimeError(f"capflow-produce ended with {producer.code}: {self._last_words()}")
        return Stretch(first, last)

    def _done(self, run: str) -> int:
        statement = (
            select(func.coalesce(func.sum(Batch.done_count + Batch.failed_count), 0))
            .join(Shard, Shard.id == Batch.shard_id)
            .join(Run, Run.id == Shard.run_id)
            .where(Run.name == run, Batch.state == BatchState.DONE)
        )
        with self.engine.connect() as connection:
            return int(connection.execute(statement).scalar_one())

    def _cpu(self, producer: Service) -> dict[str, float]:
        children = psutil.Process().children()
        redis = [process.pid for process in children if "redis" in process.name()]
        postmaster = int((self._home / "postgres" / "postmaster.pid").read_text().partition("\n")[0])
        pids = {
            "worker": [worker.pid for worker in self.workers],
            "producer": [producer.pid],
            "Redis": redis,
            "PostgreSQL": [postmaster],
        }
        return {kind: sum(map(_cpu_seconds, found)) for kind, found in pids.items()}

    def _last_words(self) -> str:
        logs = [path.read_text(errors="replace") for path in (self._home / "logs").glob("*.log")]
        return " | ".join(log[-500:] for log in logs if log)

    def end(self) -> None:
        for worker in self.workers:
            worker.send(signal.SIGTERM)
        for worker in self.workers:
            worker.end(_STOP_SECONDS)


@contextmanager
def fleet(home: Path, environment: Mapping[str, str]) -> Iterator[Fleet]:
    """Servers of its own, no worker yet; all is stopped at the end."""
    with ExitStack() as stack:
        server = stack.enter_context(postgres(home))
        broker = stack.enter_context(running_redis(home))
        url = server.new_database()
        engine = connect(url)
        stack.callback(engine.dispose)
        surroundings = {
            **_clean_environment(),
            "CAPFLOW_DATABASE_URL": url,
            "CAPFLOW_BROKER_URL": broker.url,
            "CAPFLOW_HOME": str(home),
            **environment,
        }
        found = Fleet(home, engine, surroundings)
        stack.callback(found.end)
        yield found


def write_plan(
    path: Path, entries: Sequence[JsonObject], media: Path, shards: int = 1, **changes: str
) -> Path:
    """Annotations beside the plan, cut into so many shards, each a dataset of its own."""
    annotations = path.with_suffix(".entries.jsonl")
    annotations.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    size = len(entries) // shards
    lines = [
        {
            "data_name": f"bench{number}",
            "json_url": str(annotations),
            "root": str(media),
            "modality": "image",
            "start_idx": number * size,
            "end_idx": len(entries) if number == shards - 1 else (number + 1) * size,
            "shard_index": number,
            "num_shards": shards,
            "assign_rank": number,
            **changes,
        }
        for number in range(shards)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _cpu_seconds(pid: int) -> float:
    """Of a process and its living children; of children that ended, as far as it has waited for them."""
    try:
        parent = psutil.Process(pid)
        tree = [parent, *parent.children(recursive=True)]
        return sum(map(_own_cpu_seconds, tree)) + sum(parent.cpu_times()[2:4])
    except psutil.Error:
        return 0.0


def _own_cpu_seconds(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:
        return 0.0


def _clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAPFLOW_")}
    return kept | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}


def _wait_until(is_so: Callable[[], bool], explain: Callable[[], str]) -> None:
    deadline = monotonic() + _PATIENCE_SECONDS
    while not is_so():
        if monotonic() > deadline:
            raise TimeoutError(f"workers are not ready after {_PATIENCE_SECONDS:g} s: {explain()}")
        Event().wait(0.02)
