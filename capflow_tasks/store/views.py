"""What the producer's loop and the exporters ask of the database. Reads only."""

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, Text, func, literal, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from capflow_tasks.records import Failure, FinishedSample, JsonObject, PlanShard, Result, Stage
from capflow_tasks.store.candidates import split_results
from capflow_tasks.store.states import BatchState, SampleState, ShardRow, Tally
from capflow_tasks.store.statistics import query
from capflow_tasks.store.tables import Batch, Sample, Shard, Store, is_among, results_of, tally_of

#: Samples read at a time when a shard is exported.
PAGE = 500

_COUNTS = (Batch.done_count, Batch.failed_count, Batch.held_count)


@dataclass(frozen=True, slots=True)
class FailedSample:
    dataset: str
    idx: int
    failure: Failure
    attempts: int
    #: The worker where it failed; None when the producer refused it.
    worker: str | None


@dataclass(frozen=True, slots=True)
class PlacedSample:
    """A sample with its shard and what became of it."""

    id: int
    shard_id: int
    state: SampleState
    sample: FinishedSample


class Views(Store):
    """Questions about runs. Thread-safe."""

    def shards(self, run_id: int) -> list[ShardRow]:
        """The run's shards in the order in which they were added."""
        return self._shards(Shard.run_id == run_id)

    def set_aside(self, run_id: int) -> list[ShardRow]:
        """The shards that the run's plan no longer names."""
        return self._shards(Shard.set_aside_by == run_id)

    def _shards(self, are_wanted: ColumnElement[bool]) -> list[ShardRow]:
        names = [field.name for field in fields(PlanShard) if field.name in Shard.__table__.columns]
        columns = [getattr(Shard, name) for name in names]
        statement = select(Shard.id, Shard.expanded_to, *columns).where(are_wanted)
        return [
            ShardRow(shard_id, expanded_to, PlanShard(**dict(zip(names, values, strict=True))))
            for shard_id, expanded_to, *values in self.rows(statement.order_by(Shard.id))
        ]

    def has_shards(self, run_id: int, shard_ids: Collection[int]) -> bool:
        """Whether all of these shards are the run's, and none was set aside or deleted."""
        theirs = select(func.count(Shard.id)).where(Shard.run_id == run_id, is_among(Shard.id, shard_ids))
        ((count,),) = self.rows(theirs)
        return bool(count == len(shard_ids))

    def ended(self, shard_ids: Collection[int]) -> Tally:
        """How the samples of these shards ended; reads all of them."""
        with self.engine.connect() as connection:
            return tally_of(connection, Sample.shard_id.in_(shard_ids))

    def open_batches(self, run_id: int) -> list[int]:
        """Batches that have been inserted and are not finished."""
        statement = _of_run(select(Batch.id), run_id).where(Batch.state != BatchState.DONE)
        return [batch_id for (batch_id,) in self.rows(statement)]

    def finished(self, run_id: int, seconds: float, batch_ids: Iterable[int]) -> dict[int, Tally]:
        """How the run's batches ended that finished in the last seconds or are among these."""
        is_recent = Batch.finished_at > func.now() - timedelta(seconds=seconds)
        statement = _of_run(select(Batch.id, *_COUNTS), run_id).where(
            Batch.state == BatchState.DONE, or_(is_recent, is_among(Batch.id, batch_ids))
        )
        return {batch_id: Tally(*counts) for batch_id, *counts in self.rows(statement)}

    def running(self, run_id: int) -> int:
        """Count the batches that workers hold at this moment."""
        held = _of_run(select(func.count(Batch.id)), run_id).where(Batch.state == BatchState.RUNNING)
        ((count,),) = self.rows(held)
        return int(count)

    def open_stages(self, run_id: int) -> set[Stage]:
        """The next stages of all unfinished batches."""
        statement = _of_run(select(Batch.next_stage).distinct(), run_id).where(Batch.state != BatchState.DONE)
        return {stage for (stage,) in self.rows(statement)}

    def tally(self, run_id: int) -> Tally:
        """How the samples of the run's finished batches ended."""
        sums = _of_run(select(*(func.coalesce(func.sum(count), 0) for count in _COUNTS)), run_id)
        (row,) = self.rows(sums.where(Batch.state == BatchState.DONE))
        return Tally(*map(int, row))

    def failures(self, run_id: int, limit: int | None = None) -> list[FailedSample]:
        """Failed samples by shard and index."""
        statement = (
            select(Shard.dataset, Sample)
            .join(Shard, Shard.id == Sample.shard_id)
            .where(Shard.run_id == run_id, Sample.state == SampleState.FAILED)
            .order_by(Sample.shard_id, Sample.idx)
            .limit(limit)
        )
        return [
            FailedSample(row.dataset, row.idx, _failure(row), row.attempts, row.failed_by)
            for row in self.rows(statement)
        ]

    def finished_samples(
        self, shard_id: int, state: SampleState, page_size: int = PAGE
    ) -> Iterator[FinishedSample]:
        """The shard's samples in this state, in index order, read a page at a time."""
        in_state = select(Sample.__table__).where(Sample.shard_id == shard_id, Sample.state == state)
        last = -1
        while True:
            with self.engine.connect() as connection:
                following = in_state.where(Sample.idx > last).order_by(Sample.idx).limit(page_size)
                page = connection.execute(following).all()
                results = results_of(connection, [row.id for row in page])
            if not page:
                return
            yield from (_finished(row, results[row.id]) for row in page)
            last = page[-1].idx

    def captioned_ids(self, shard_ids: Collection[int]) -> "array[int]":
        """The captioned samples of these shards by shard and index; 8 bytes each."""
        captioned = Sample.shard_id.in_(shard_ids), Sample.state == SampleState.DONE
        statement = select(Sample.id).where(*captioned).order_by(Sample.shard_id, Sample.idx)
        with self.engine.connect() as connection:
            found = connection.execution_options(yield_per=PAGE * 100).execute(statement)
            return array("q", found.scalars())

    def failed_as(self, shard_id: int, kind: str) -> Iterator[tuple[int, JsonObject]]:
        """The shard's samples that failed so, as (id, entry)."""
        failed = Sample.shard_id == shard_id, Sample.state == SampleState.FAILED, Sample.error_kind == kind
        with self.engine.connect() as connection:
            statement = select(Sample.id, Sample.entry).where(*failed).execution_options(yield_per=PAGE)
            for row in connection.execute(statement):
                yield row.id, row.entry

    def ids_at(self, run_id: int, places: Sequence[tuple[str, int]]) -> list[int]:
        """The run's samples at these places: dataset and index."""
        datasets, indexes = zip(*places, strict=True) if places else ((), ())
        wanted = (
            func.unnest(literal(list(datasets), ARRAY(Text)), literal(list(indexes), ARRAY(BigInteger)))
            .table_valued("dataset", "idx", name="wanted")
            .render_derived()
        )
        statement = select(Sample.id).join(Shard, Shard.id == Sample.shard_id)
        statement = statement.join(wanted, (wanted.c.dataset == Shard.dataset) & (wanted.c.idx == Sample.idx))
        return [row.id for row in self.rows(statement.where(Shard.run_id == run_id).order_by(Sample.id))]

    def shown_ids(self, run_id: int, most: int) -> "array[int]":
        """At most so many samples, in plan order: failures and the worst first, the rest spread evenly.

        Reads all samples and scores of the run; 8 bytes each.
        """
        with self.engine.connect() as connection:
            found = connection.execute(query("shown_samples"), {"run_id": run_id, "most": most})
            return array("q", found.scalars())

    def samples(self, ids: Sequence[int]) -> list[PlacedSample]:
        """These samples in the order asked for."""
        statement = select(Sample.__table__).where(Sample.id.in_(ids))
        with self.engine.connect() as connection:
            rows = {row.id: row for row in connection.execute(statement)}
            results = results_of(connection, list(rows))
        found = (rows[each] for each in ids if each in rows)
        return [
            PlacedSample(row.id, row.shard_id, row.state, _finished(row, results[row.id])) for row in found
        ]


def _finished(row: Row[*tuple[Any, ...]], results: tuple[Result, ...]) -> FinishedSample:
    failure = _failure(row) if row.state is SampleState.FAILED else None
    own, others = split_results(results, row.candidate)
    return FinishedSample(row.idx, row.entry, row.domain, row.confidence, own, failure, row.attempts, others)


def _of_run(statement: Any, run_id: int) -> Any:
    return statement.join(Shard, Shard.id == Batch.shard_id).where(Shard.run_id == run_id)


def _failure(row: Row[*tuple[Any, ...]]) -> Failure:
    return Failure(row.error_stage, row.error_kind, row.error_text or "", row.is_retryable)
