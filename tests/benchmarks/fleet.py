"""A real fleet to measure: embedded servers, real workers, and the real command, plan after plan."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from threading import Event
from time import monotonic, time

import psutil
from sqlalchemy import Engine, func, select

from capflow_tasks.errors import EXIT_OK, EXIT_SAMPLES_FAILED
from capflow_tasks.records import JsonObject
from capflow_tasks.store.database import connect
from capflow_tasks.store.states import BatchState
from capflow_tasks.store.tables import Batch, Run, Shard
from tests.chaos.fleet import Service, clean_environment
from tests.chaos.services import Message, Redis, postgres, running_redis

#: Between two readings of a run, seconds.
_READING_SECONDS = 0.5
_PATIENCE_SECONDS = 300.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Steady:
    """A run without its start: from the end of the first batch of every slot to that of the last batch."""

    #: Seconds on the clock that all processes of a machine share.
    start: float
    end: float
    #: Samples that finished in that time.
    samples: int

    @classmethod
    def of(cls, ends: Sequence[tuple[float, int]], slots: int) -> Steady:
        """Make it from the end and the sample count of each batch, of which `slots` run at a time."""
        return cls(ends[slots - 1][0], ends[-1][0], sum(count for _, count in ends[slots:]))

    @property
    def samples_per_second(self) -> float:
        return self.samples / (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A measured run."""

    steady: Steady
    #: From the end of the last batch to that of the command: the last export and the summary.
    closing_seconds: float
    #: CPU time per sample, by kind of process.
    cpu_milliseconds_per_sample: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Reading:
    """The fleet at one moment of a run."""

    #: Finished samples.
    done: int
    #: CPU seconds so far, by kind of process.
    cpu: Mapping[str, float]


class Fleet:
    """Workers that stay up while plans come and go."""

    def __init__(self, home: Path, engine: Engine, broker: Redis, environment: Mapping[str, str]) -> None:
        self.engine = engine
        self._broker = broker
        self._home = home
        self._environment = environment
        self.workers: list[Service] = []

    def add_workers(self, count: int) -> float:
        """Start this many more workers; return the seconds until all of them are ready."""
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

    def end_newest_worker(self) -> None:
        self.workers.pop().end(_STOP_SECONDS)

    def run(self, plan: Path, *options: str, slots: int = 1) -> Stretch:
        """Caption the plan with the real command; `slots` batches run at a time."""
        producer = self.start_producer(plan, *options)
        try:
            return self._watch(producer, plan.stem, slots)
        finally:
            producer.end(_STOP_SECONDS)

    def start_producer(self, plan: Path, *options: str) -> Service:
        """Start the real command."""
        script = str(Path(sys.executable).parent / "capflow")
        output = self._home / "captions" / plan.stem
        command = [
            script,
            "caption",
            str(plan),
            "--run",
            plan.stem,
            "--output",
            str(output),
            "--json",
            *options,
        ]
        producer = Service(f"producer-{plan.stem}", command, self._home, self._environment)
        producer.start()
        return producer

    def messages(self) -> list[Message]:
        """Return the messages that wait in the broker."""
        return self._broker.messages()

    def _watch(self, producer: Service, run: str, slots: int) -> Stretch:
        """Take readings rarely, because they cost CPU; the database knows when batches ended."""
        readings: list[_Reading] = []
        while producer.code is None:
            reading = _Reading(self._done(run), self._cpu(producer))
            if reading.done > (readings[-1].done if readings else 0):
                readings.append(reading)
            with suppress(TimeoutExpired):
                producer.wait(_READING_SECONDS)
        # Random weights write an unusable answer now and then: one sample fails and the others go on.
        if producer.code not in (EXIT_OK, EXIT_SAMPLES_FAILED):
            raise RuntimeError(f"capflow caption exited with {producer.code}: {self._last_words()}")
        closed = monotonic()
        steady = Steady.of(self._batch_ends(run), slots)
        return Stretch(steady, closed - steady.end, _spent(readings) if readings else {})

    def _done(self, run: str) -> int:
        return sum(count for _, count in self._batch_ends(run))

    def _batch_ends(self, run: str) -> list[tuple[float, int]]:
        """Return the end and the sample count of each finished batch, in the order of their ends."""
        statement = (
            select(func.extract("epoch", Batch.finished_at), Batch.done_count + Batch.failed_count)
            .join(Shard, Shard.id == Batch.shard_id)
            .join(Run, Run.id == Shard.run_id)
            .where(Run.name == run, Batch.state == BatchState.DONE)
            .order_by(Batch.finished_at)
        )
        with self.engine.connect() as connection:
            found = connection.execute(statement).all()
        shared_clock = monotonic() - time()
        return [(float(at) + shared_clock, count) for at, count in found]

    def _cpu(self, producer: Service) -> dict[str, float]:
        """Return the CPU seconds of processes and all their children, by kind of process."""
        redis = [child.pid for child in psutil.Process().children() if "redis" in child.name()]
        postmaster = int((self._home / "postgres" / "postmaster.pid").read_text().partition("\n")[0])
        kinds = {
            **{worker.pid: "worker" for worker in self.workers},
            producer.pid: "producer",
            **dict.fromkeys(redis, "Redis"),
            postmaster: "PostgreSQL",
        }
        spent = dict.fromkeys(("worker", "producer", "Redis", "PostgreSQL"), 0.0)
        processes = {each.pid: each.info for each in psutil.process_iter(["ppid", "cpu_times"])}
        for pid, info in processes.items():
            root: int | None = pid
            while root is not None and root not in kinds:
                root = processes[root]["ppid"] if root in processes else None
            if root is not None and info["cpu_times"]:
                # This includes children that have exited and been waited for.
                spent[kinds[root]] += sum(info["cpu_times"][:4] if pid == root else info["cpu_times"][:2])
        return spent

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
    """Start servers without a worker; stop everything at the end."""
    with ExitStack() as stack:
        server = stack.enter_context(postgres(home))
        broker = stack.enter_context(running_redis(home))
        url = server.new_database()
        engine = connect(url)
        stack.callback(engine.dispose)
        surroundings = {
            **clean_environment(),
            "CAPFLOW_DATABASE_URL": url,
            "CAPFLOW_BROKER_URL": broker.url,
            "CAPFLOW_HOME": str(home),
            # Its rivals read no text.
            "CAPFLOW_OCR_PROCESSES": "0",
            **environment,
        }
        found = Fleet(home, engine, broker, surroundings)
        stack.callback(found.end)
        yield found


def write_plan(
    path: Path, entries: Sequence[JsonObject], media: Path, shards: int = 1, **changes: str
) -> Path:
    """Write the annotations and a plan with this many shards, each a dataset of its own."""
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


def _spent(readings: Sequence[_Reading]) -> dict[str, float]:
    """Return the CPU milliseconds per sample between the first reading with finished samples and the last."""
    first, last = readings[0], readings[-1]
    samples = last.done - first.done
    return {kind: 1000 * (last.cpu[kind] - first.cpu[kind]) / samples for kind in last.cpu if samples}


def _wait_until(is_so: Callable[[], bool], explain: Callable[[], str]) -> None:
    deadline = monotonic() + _PATIENCE_SECONDS
    while not is_so():
        if monotonic() > deadline:
            raise TimeoutError(f"workers are not ready after {_PATIENCE_SECONDS:g} s: {explain()}")
        Event().wait(0.02)
