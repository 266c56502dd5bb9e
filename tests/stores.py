"""A run in a real database, and shorthands for what a producer and a worker do with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Engine, text

from capflow_tasks.captioning.stages import StageRunner
from capflow_tasks.errors import EngineDead, RequestTimeout, SampleError
from capflow_tasks.records import Failure, JsonObject, Modality, PlanShard, Result, Stage
from capflow_tasks.store.claims import BatchStore
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import Claim, NewBatch, NewSample, Outcome, ReadyBatch, RetryPolicy
from capflow_tasks.store.views import Views

LEASE_SECONDS = 60.0
RETRY = RetryPolicy(max_attempts=3, first_wait_seconds=60)


def a_shard(count: int, root: str = "/data", **changes: Any) -> PlanShard:
    fields: dict[str, Any] = {
        "dataset": "set",
        "annotation": "/data/set.json",
        "root": root,
        "task": None,
        "modality": Modality.IMAGE,
        "start_idx": 0,
        "end_idx": count,
        "shard_index": 0,
        "num_shards": 1,
        "assign_rank": 0,
        **changes,
    }
    return PlanShard(**fields)


def a_result(stage: Stage, agent: str = "agent", text: str = "said") -> Result:
    return Result(stage, agent, text, None, "model", "digest", 10, 5, 3, "stop", 0.5, "worker")


def a_failure(stage: Stage, error: SampleError | None = None) -> Failure:
    error = error or RequestTimeout("too slow")
    return Failure(stage, error.kind, str(error), error.is_retryable)


@dataclass
class Fleet:
    """One run with one shard, whose batches are all inserted."""

    engine: Engine
    entries: Sequence[JsonObject]
    batch_size: int = 4
    domain: str | None = None
    stages: tuple[Stage, ...] = tuple(Stage)
    root: str = "/data"
    min_confidence: float = 0
    run_id: int = 0
    shard_id: int = 0
    batch_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = RunStore(self.engine)
        self.batches = BatchStore(self.engine)
        self.views = Views(self.engine)
        self.run_id = self.open_run(self.stages, self.min_confidence)
        shard = a_shard(len(self.entries), self.root)
        (row,) = self.runs.add_shards(self.run_id, [shard])
        self.shard_id = row.id
        self.batch_ids = self.runs.expand(row.id, 0, self.new_batches()) or []

    def open_run(self, stages: Sequence[Stage], min_confidence: float = 0) -> int:
        return self.runs.open_run("run", "/plan.jsonl", "/out", stages, min_confidence)

    def new_batches(self) -> list[NewBatch]:
        samples = [NewSample(idx, entry, self.domain) for idx, entry in enumerate(self.entries)]
        first = self.stages[1] if self.domain and len(self.stages) > 1 else self.stages[0]
        starts = range(0, len(samples), self.batch_size)
        return [NewBatch(first, samples[start : start + self.batch_size]) for start in starts]

    def publish(self, queue_seconds: float = 3600) -> list[ReadyBatch]:
        with self.runs.publishing(1000, queue_seconds, self.run_id) as ready:
            return ready

    def claim(
        self, stage: Stage, owner: str = "worker", batch_id: int | None = None, seconds: float = LEASE_SECONDS
    ) -> Claim:
        """Claim a stage, by default of the first batch; it must be free."""
        claim = self.batches.claim(batch_id or self.batch_ids[0], stage, owner, seconds)
        assert isinstance(claim, Claim), claim
        return claim

    def finish(
        self, claim: Claim, outcomes: Sequence[Outcome] | None = None, retry: RetryPolicy = RETRY
    ) -> bool:
        if outcomes is None:
            samples = self.batches.pending_samples(claim.batch_id)
            outcomes = [Outcome(sample.id, (a_result(claim.stage),)) for sample in samples]
        return self.batches.finish_stage(claim, outcomes, handoff_seconds=60, retry=retry)

    def finish_all(self, batch_id: int | None = None, first: Stage = Stage.PERCEIVE) -> None:
        """Finish every stage from `first` on, with the same answer for every sample."""
        for stage in self.stages[self.stages.index(first) :]:
            assert self.finish(self.claim(stage, batch_id=batch_id))

    def sample_ids(self, batch_id: int | None = None) -> list[int]:
        return [sample.id for sample in self.batches.pending_samples(batch_id or self.batch_ids[0])]

    def batch(self, batch_id: int | None = None) -> Any:
        statement = text("SELECT *, lease_until > now() AS is_waiting FROM batches WHERE id = :id")
        with self.engine.connect() as connection:
            return connection.execute(statement, {"id": batch_id or self.batch_ids[0]}).one()

    def wait_seconds(self) -> float:
        """Return how long the run's only batch has to wait, and let the wait be over."""
        statement = "SELECT extract(epoch FROM lease_until - now()) FROM batches"
        with self.engine.connect() as connection:
            seconds = float(connection.exec_driver_sql(statement).scalar_one())
        self.let_leases_run_out()
        return seconds

    def count(self, table: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())

    def age(self, batch_id: int, seconds: float) -> None:
        """Let the batch have been queued or claimed so much earlier."""
        earlier = "UPDATE batches SET lease_until = lease_until - :by * interval '1 second' WHERE id = :id"
        with self.engine.begin() as connection:
            connection.execute(text(earlier), {"id": batch_id, "by": seconds})

    def let_leases_run_out(self) -> None:
        """Let all leases and waits be over."""
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE batches SET lease_until = now() - interval '1 second'"))


def some_entries(count: int) -> list[JsonObject]:
    return [{"image": f"{number}.png"} for number in range(count)]


def run_to_the_end(fleet: Fleet, runner: StageRunner) -> None:
    """Run what is ready until nothing is, as chains and the reconciler do."""
    for _ in range(100):
        fleet.let_leases_run_out()
        fleet.runs.requeue_stale(fleet.run_id)
        if not (ready := fleet.publish()):
            return
        for batch in ready:
            with suppress(EngineDead):
                runner.run(batch.id, batch.next_stage)
    pytest.fail("the run does not end")
