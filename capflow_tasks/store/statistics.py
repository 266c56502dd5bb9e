"""Figures of runs: how far, how fast, at what expense, how good. Reads only.

Where a question can be answered from the batches, it is: they are eight times fewer than the samples and
forty times fewer than the results. A question that reads all samples or all results of a run says so.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, Row, Select, Text, and_, cast, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from capflow_tasks.records import Stage
from capflow_tasks.store.clauses import stages_of
from capflow_tasks.store.figures import (
    Bucket,
    DomainFigures,
    FailureKind,
    GradeCount,
    PromptEconomy,
    RunFigures,
    ShardFigures,
    StageFigures,
    Throughput,
    Tokens,
    Usage,
    WorkerFigures,
)
from capflow_tasks.store.result_sums import (
    economy_of_latest,
    grades_by_domain,
    latest_tokens,
    shards_of,
    usage_by_worker,
)
from capflow_tasks.store.rows import Tally
from capflow_tasks.store.states import STAGE_ORDER, BatchState, SampleState
from capflow_tasks.store.tables import Batch, Run, Sample, Shard, Worker

_IS_DONE = Batch.state == BatchState.DONE
_IS_OPEN = Batch.state != BatchState.DONE
_BATCH_SIZE = Batch.end_idx - Batch.start_idx
_ENDED = Batch.done_count + Batch.failed_count + Batch.held_count

#: Sums over batches: how their samples ended, as `Tally` has it.
_TALLY = tuple(
    func.coalesce(func.sum(count).filter(_IS_DONE), 0).label(name)
    for name, count in (
        ("done", Batch.done_count),
        ("failed", Batch.failed_count),
        ("held", Batch.held_count),
    )
)


class Statistics:
    """Questions about runs. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def runs(
        self, name: str | None = None, plan: str | None = None, run_id: int | None = None
    ) -> list[RunFigures]:
        """All runs, or those of this name, plan or id, the newest first; from the batches."""
        planned = (
            select(
                func.count().label("shards"),
                func.coalesce(func.sum(Shard.end_idx - Shard.start_idx), 0).label("samples"),
                func.coalesce(func.sum(Shard.expanded_to - Shard.start_idx), 0).label("expanded"),
            )
            .where(Shard.run_id == Run.id)
            .lateral()
        )
        sent = (
            select(
                *_TALLY,
                func.count().filter(_IS_OPEN).label("open_batches"),
                func.count().filter(Batch.state == BatchState.RUNNING).label("running_batches"),
            )
            .join(Shard, Shard.id == Batch.shard_id)
            .where(Shard.run_id == Run.id)
            .lateral()
        )
        statement = select(Run.__table__, planned, sent).order_by(Run.created_at.desc(), Run.id.desc())
        asked = ((Run.name, name), (Run.plan, plan), (Run.id, run_id))
        if conditions := [column == value for column, value in asked if value is not None]:
            statement = statement.where(or_(*conditions))
        return [_run_figures(row) for row in self._rows(statement)]

    def shards(self, run_id: int) -> list[ShardFigures]:
        """The run by line of its plan; from the batches."""
        columns = (Shard.dataset, Shard.annotation, Shard.shard_index, Shard.num_shards, Shard.assign_rank)
        in_flight = func.coalesce(func.sum(_BATCH_SIZE).filter(_IS_OPEN), 0).label("in_flight")
        statement = (
            select(*columns, (Shard.end_idx - Shard.start_idx).label("samples"), in_flight, *_TALLY)
            .join(Batch, Batch.shard_id == Shard.id, isouter=True)
            .where(Shard.run_id == run_id)
            .group_by(Shard.id)
            .order_by(Shard.id)
        )
        return [_shard_figures(row) for row in self._rows(statement)]

    def domains(self, run_id: int) -> list[DomainFigures]:
        """The run by domain, in alphabetical order, samples without a domain last. Reads all samples."""
        statement = (
            select(Sample.domain, Sample.state, func.count())
            .where(Sample.shard_id.in_(shards_of(run_id)))
            .group_by(Sample.domain, Sample.state)
        )
        found: defaultdict[str | None, dict[SampleState, int]] = defaultdict(
            lambda: dict.fromkeys(SampleState, 0)
        )
        for domain, state, count in self._rows(statement):
            found[domain][state] = count
        names = sorted(found, key=lambda domain: (domain is None, domain))
        return [DomainFigures(name, found[name]) for name in names]

    def stages(self, run_id: int) -> list[StageFigures]:
        """Samples that have not come to their end, by the stage before them; from the open batches."""
        statement = (
            select(Batch.next_stage, Batch.state, func.sum(_BATCH_SIZE))
            .where(Batch.shard_id.in_(shards_of(run_id)), _IS_OPEN)
            .group_by(Batch.next_stage, Batch.state)
        )
        counts = {(stage, state): int(count) for stage, state, count in self._rows(statement)}
        states = [state for state in BatchState if state is not BatchState.DONE]
        return [
            StageFigures(stage, {state: counts.get((stage, state), 0) for state in states}) for stage in Stage
        ]

    def usage(self, run_id: int) -> list[Usage]:
        """Tokens and time by stage, model and worker; from them follow all sums. Reads all results.

        An answer that was thrown away, since its worker died or lost its lease, is in no table.
        """
        rows = self._rows(usage_by_worker(run_id))
        found = [
            Usage(stage, model, worker, count, Tokens(int(prompt), int(cached), int(completion)), *times)
            for stage, model, worker, count, prompt, cached, completion, *times in rows
        ]
        return sorted(found, key=lambda usage: (STAGE_ORDER[usage.stage], usage.model, usage.worker))

    def prompt_economy(self, run_id: int, batches: int = 1000) -> PromptEconomy:
        """Prompt tokens computed per sample, and the least possible, in the batches that finished last.

        Less than the least is computed where samples share media, or their prefix was cached before the
        first call; what stands for the least is told in `economy_of_latest`.
        """
        (counts,) = self._rows(economy_of_latest(run_id, batches))
        return PromptEconomy(*map(int, counts))

    def failures(self, run_id: int) -> list[FailureKind]:
        """Failed samples by kind, the most frequent first. Reads the failed samples only."""
        statement = (
            select(
                Sample.error_kind,
                func.count().label("count"),
                func.array_agg(cast(Sample.error_stage, Text).distinct(), type_=ARRAY(Text)),
                func.bool_or(Sample.is_retryable),
                func.min(Sample.error_text),
            )
            .where(Sample.shard_id.in_(shards_of(run_id)), Sample.state == SampleState.FAILED)
            .group_by(Sample.error_kind)
            .order_by(func.count().desc(), Sample.error_kind)
        )
        return [
            FailureKind(kind, count, _in_order(stages), is_retryable, example or "")
            for kind, count, stages, is_retryable, example in self._rows(statement)
        ]

    def grades(self, run_id: int) -> list[GradeCount]:
        """Every combination of grades there is, and how many captions have it. Reads all scores.

        There are few: histograms, and how many captions pass what minimums, are sums over them.
        """
        return [_grades(*row) for row in self._rows(grades_by_domain(run_id))]

    def throughput(self, run_id: int, bucket_seconds: float = 60) -> list[Bucket]:
        """Samples that came to their end, by stretches of time, empty ones left out; from the batches.

        A batch that was opened again counts where it came to its last end.
        """
        number = func.floor(func.extract("epoch", Batch.finished_at) / bucket_seconds)
        begins_at = func.to_timestamp(number * bucket_seconds).label("begins_at")
        statement = (
            select(begins_at, func.sum(_ENDED))
            .where(Batch.shard_id.in_(shards_of(run_id)), _IS_DONE)
            .group_by(begins_at)
            .order_by(begins_at)
        )
        return [Bucket(begins_at, int(count)) for begins_at, count in self._rows(statement)]

    def pace(self, run_id: int, seconds: float = 120) -> Throughput:
        """What came to its end within the last seconds; reads the batches, and the results of the latest."""
        is_late = and_(_IS_DONE, Batch.finished_at > func.now() - timedelta(seconds=seconds))
        samples = select(func.coalesce(func.sum(_ENDED), 0)).where(
            Batch.shard_id.in_(shards_of(run_id)), is_late
        )
        ((count,),) = self._rows(samples)
        ((elapsed, *counts),) = self._rows(latest_tokens(run_id, seconds))
        return Throughput(float(elapsed), int(count), Tokens(*map(int, counts)))

    def workers(self, lease_seconds: float) -> list[WorkerFigures]:
        """The workers that have not been struck off, by name; silent for a lease means dead."""
        silent = func.extract("epoch", func.now() - Worker.seen_at)
        running = (
            select(func.count())
            .where(Batch.lease_owner == Worker.owner, Batch.state == BatchState.RUNNING)
            .scalar_subquery()
        )
        statement = select(
            Worker.owner, Worker.node, Worker.started_at, silent, silent < lease_seconds, running
        )
        rows = self._rows(statement.order_by(Worker.owner))
        return [
            WorkerFigures(owner, node, started_at, float(silent), is_alive, count)
            for owner, node, started_at, silent, is_alive, count in rows
        ]

    def _rows(self, statement: Select[*tuple[Any, ...]]) -> list[Row[*tuple[Any, ...]]]:
        with self.engine.connect() as connection:
            return list(connection.execute(statement))


def _in_order(words: Iterable[str]) -> tuple[Stage, ...]:
    return tuple(sorted(stages_of(words), key=STAGE_ORDER.__getitem__))


def _grades(domain: str | None, judgement: str, count: int) -> GradeCount:
    dimensions = json.loads(judgement)
    return GradeCount(domain, overall=dimensions.pop("overall"), dimensions=dimensions, count=count)


def _run_figures(row: Row[*tuple[Any, ...]]) -> RunFigures:
    return RunFigures(
        id=row.id,
        name=row.name,
        plan=row.plan,
        output=row.output,
        stages=stages_of(row.stages),
        min_confidence=row.min_confidence,
        pin_ranks=row.pin_ranks,
        created_at=row.created_at,
        shards=row.shards,
        samples=int(row.samples),
        expanded=int(row.expanded),
        tally=_tally(row),
        open_batches=row.open_batches,
        running_batches=row.running_batches,
    )


def _shard_figures(row: Row[*tuple[Any, ...]]) -> ShardFigures:
    return ShardFigures(
        dataset=row.dataset,
        annotation=row.annotation,
        shard_index=row.shard_index,
        num_shards=row.num_shards,
        assign_rank=row.assign_rank,
        samples=row.samples,
        in_flight=int(row.in_flight),
        tally=_tally(row),
    )


def _tally(row: Row[*tuple[Any, ...]]) -> Tally:
    return Tally(int(row.done), int(row.failed), int(row.held))
