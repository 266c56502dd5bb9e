"""What anybody may ask of the database. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select

from capflow_tasks.records import Failure, FinishedSample, PlanShard, Stage
from capflow_tasks.store.clauses import results_of, tally_of
from capflow_tasks.store.rows import ShardRow, Tally
from capflow_tasks.store.states import BatchState, SampleState
from capflow_tasks.store.tables import AgentResult, Batch, Sample, Shard

#: Samples read at a time when a shard is exported.
PAGE = 500

#: Bars of the histogram of confidences.
_STEPS = 10


@dataclass(frozen=True, slots=True)
class DomainCounts:
    """One row of the closing table."""

    #: None for samples that failed before they had a domain.
    domain: str | None
    tally: Tally
    #: Samples with a result of each stage.
    by_stage: dict[Stage, int]


@dataclass(frozen=True, slots=True)
class FailedSample:
    dataset: str
    idx: int
    failure: Failure
    attempts: int
    #: Worker that saw it fail; None when the producer did.
    worker: str | None


class Views:
    """Questions about runs. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def shards(self, run_id: int) -> list[ShardRow]:
        """The run's shards in the order in which they were added."""
        names = [field.name for field in fields(PlanShard) if field.name in Shard.__table__.columns]
        columns = [getattr(Shard, name) for name in names]
        statement = select(Shard.id, Shard.expanded_to, *columns).where(Shard.run_id == run_id)
        with self.engine.connect() as connection:
            return [
                ShardRow(shard_id, expanded_to, PlanShard(**dict(zip(names, values, strict=True))))
                for shard_id, expanded_to, *values in connection.execute(statement.order_by(Shard.id))
            ]

    def ended(self, shard_ids: Collection[int]) -> Tally:
        """How the samples of these shards ended; reads all of them."""
        counts = select(Sample.state, func.count()).where(Sample.shard_id.in_(shard_ids))
        with self.engine.connect() as connection:
            return tally_of(connection, counts.group_by(Sample.state))

    def open_batches(self, run_id: int) -> list[int]:
        """Batches that have been inserted and have not come to their end."""
        statement = _of_run(select(Batch.id), run_id).where(Batch.state != BatchState.DONE)
        with self.engine.connect() as connection:
            return list(connection.execute(statement).scalars())

    def finished_among(self, batch_ids: Iterable[int]) -> dict[int, Tally]:
        """How those of these batches ended that have come to their end."""
        statement = select(Batch.id, Batch.done_count, Batch.failed_count, Batch.held_count).where(
            Batch.id.in_(list(batch_ids)), Batch.state == BatchState.DONE
        )
        with self.engine.connect() as connection:
            return {batch_id: Tally(*counts) for batch_id, *counts in connection.execute(statement)}

    def running_now(self, run_id: int) -> int:
        """Batches that a worker holds at this moment."""
        statement = _of_run(select(func.count(Batch.id)), run_id).where(Batch.state == BatchState.RUNNING)
        with self.engine.connect() as connection:
            return int(connection.execute(statement).scalar_one())

    def stages_under_way(self, run_id: int) -> set[Stage]:
        """The next stages of all batches that have not come to their end."""
        statement = _of_run(select(Batch.next_stage).distinct(), run_id).where(Batch.state != BatchState.DONE)
        with self.engine.connect() as connection:
            return set(connection.execute(statement).scalars())

    def confidence_histogram(self, run_id: int) -> list[int]:
        """Routed samples by the router's confidence, in ten equal steps from 0 to 1."""
        step = func.least(func.floor(Sample.confidence * _STEPS), _STEPS - 1)
        statement = (
            select(step, func.count())
            .join(Shard, Shard.id == Sample.shard_id)
            .where(Shard.run_id == run_id, Sample.confidence.is_not(None))
            .group_by(step)
        )
        with self.engine.connect() as connection:
            counts = {int(number): count for number, count in connection.execute(statement)}
        return [counts.get(number, 0) for number in range(_STEPS)]

    def tally(self, run_id: int) -> Tally:
        """How the samples of the run's finished batches ended."""
        counts = (Batch.done_count, Batch.failed_count, Batch.held_count)
        sums = _of_run(select(*(func.coalesce(func.sum(count), 0) for count in counts)), run_id)
        with self.engine.connect() as connection:
            row = connection.execute(sums.where(Batch.state == BatchState.DONE)).one()
        return Tally(*map(int, row))

    def domain_counts(self, run_id: int) -> list[DomainCounts]:
        """The run by domain, in alphabetical order, samples without a domain last."""
        of_run = select(Shard.id).where(Shard.run_id == run_id)
        states = (
            select(Sample.domain, Sample.state, func.count())
            .where(Sample.shard_id.in_(of_run))
            .group_by(Sample.domain, Sample.state)
        )
        stages = (
            select(Sample.domain, AgentResult.stage, func.count(AgentResult.sample_id.distinct()))
            .join(Sample, Sample.id == AgentResult.sample_id)
            .where(Sample.shard_id.in_(of_run))
            .group_by(Sample.domain, AgentResult.stage)
        )
        with self.engine.connect() as connection:
            by_state = {(domain, state): count for domain, state, count in connection.execute(states)}
            by_stage = {(domain, stage): count for domain, stage, count in connection.execute(stages)}
        domains = sorted({domain for domain, _ in by_state}, key=lambda domain: (domain is None, domain))
        return [_domain_counts(domain, by_state, by_stage) for domain in domains]

    def failures(self, run_id: int, limit: int | None = None) -> list[FailedSample]:
        """Failed samples by shard and index."""
        statement = (
            select(Shard.dataset, Sample)
            .join(Shard, Shard.id == Sample.shard_id)
            .where(Shard.run_id == run_id, Sample.state == SampleState.FAILED)
            .order_by(Sample.shard_id, Sample.idx)
            .limit(limit)
        )
        with self.engine.connect() as connection:
            return [
                FailedSample(row.dataset, row.idx, _failure(row), row.attempts, row.failed_by)
                for row in connection.execute(statement)
            ]

    def finished_samples(
        self, shard_id: int, state: SampleState, page_size: int = PAGE
    ) -> Iterator[FinishedSample]:
        """The shard's samples that ended so, in index order, read a page at a time."""
        last = -1
        while page := self._page(shard_id, state, last, page_size):
            yield from page
            last = page[-1].index

    def _page(self, shard_id: int, state: SampleState, last: int, page_size: int) -> list[FinishedSample]:
        statement = (
            select(Sample.__table__)
            .where(Sample.shard_id == shard_id, Sample.idx > last, Sample.state == state)
            .order_by(Sample.idx)
            .limit(page_size)
        )
        with self.engine.connect() as connection:
            rows = connection.execute(statement).all()
            return _finished(connection, rows)


def _of_run(statement: Any, run_id: int) -> Any:
    return statement.join(Shard, Shard.id == Batch.shard_id).where(Shard.run_id == run_id)


def _finished(connection: Connection, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[FinishedSample]:
    results = results_of(connection, [row.id for row in rows])
    return [
        FinishedSample(
            index=row.idx,
            entry=row.entry,
            domain=row.domain,
            confidence=row.confidence,
            results=results[row.id],
            failure=_failure(row) if row.state == SampleState.FAILED else None,
            attempts=row.attempts,
        )
        for row in rows
    ]


def _failure(row: Row[*tuple[Any, ...]]) -> Failure:
    return Failure(row.error_stage, row.error_kind, row.error_text or "", row.is_retryable)


def _domain_counts(
    domain: str | None,
    by_state: dict[tuple[str | None, SampleState], int],
    by_stage: dict[tuple[str | None, Stage], int],
) -> DomainCounts:
    tally = Tally(
        *(
            by_state.get((domain, state), 0)
            for state in (SampleState.DONE, SampleState.FAILED, SampleState.HELD)
        )
    )
    return DomainCounts(domain, tally, {stage: by_stage.get((domain, stage), 0) for stage in Stage})
