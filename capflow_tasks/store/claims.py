"""What a worker writes: the claim of a batch's next stage, and what came of it.

Transitions are compare-and-set: each UPDATE names the state it leaves, RETURNING tells who won.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from capflow_tasks.records import Stage
from capflow_tasks.store.clauses import (
    earliest_stages,
    in_seconds,
    opened,
    results_of,
    stages_of,
    storable,
    tally_of,
    unleased,
)
from capflow_tasks.store.rows import Claim, Outcome, PendingSample, RetryPolicy
from capflow_tasks.store.states import STAGE_ORDER, BatchState, SampleState, stage_after
from capflow_tasks.store.tables import AgentResult, Batch, Run, Sample, Shard, Table, Worker


class NotClaimed(StrEnum):
    """Why a stage of a batch was not claimed."""

    #: The stage is finished; the chain may go on.
    PASSED = "passed"
    #: Somebody else runs it, or it is not due; this chain ends.
    TAKEN = "taken"


class BatchStore:
    """The database as a worker speaks to it. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def claim(self, batch_id: int, stage: Stage, owner: str, lease_seconds: float) -> Claim | NotClaimed:
        """Take the batch's next stage, if it is this one and nobody alive has it."""
        is_free = or_(
            Batch.state.in_([BatchState.READY, BatchState.QUEUED]),
            and_(Batch.state == BatchState.RUNNING, Batch.lease_until < func.now()),
        )
        free = (
            select(Batch.id, (Batch.tries + 1).label("tries"))
            .where(Batch.id == batch_id, Batch.next_stage == stage, is_free)
            .with_for_update()
            .cte("free")
        )
        takes = (
            update(Batch)
            .where(Batch.id == free.c.id)
            .where(Batch.shard_id == Shard.id, Shard.run_id == Run.id, Run.stopped_at.is_(None))
            .values(
                state=BatchState.RUNNING,
                lease_owner=owner,
                lease_until=in_seconds(lease_seconds),
                attempt=Batch.attempt + 1,
                # A suspect's further tries are counted by `begin_try`, when its turn has come.
                tries=func.greatest(Batch.tries, 1),
            )
            .returning(
                Batch.attempt,
                free.c.tries,
                Batch.start_idx,
                Batch.end_idx,
                Shard.dataset,
                Shard.root,
            )
            .returning(Shard.modality, Shard.run_id, Run.stages, Run.min_confidence)
            .returning(Run.name.label("run"), Shard.id.label("shard_id"))
        )
        looks = select(Batch.next_stage, Batch.state).where(Batch.id == batch_id)
        with self.engine.begin() as connection:
            row = connection.execute(takes).one_or_none()
            if row is None:
                _take_back_if_stopped(connection, batch_id)
                return _why_not_claimed(connection.execute(looks).one_or_none(), stage)
        values = row._asdict() | {"stages": stages_of(row.stages)}
        return Claim(batch_id=batch_id, stage=stage, owner=owner, **values)

    def pending_samples(self, batch_id: int) -> list[PendingSample]:
        """The batch's samples that have come to no end yet, in order."""
        statement = (
            select(Sample.id, Sample.idx, Sample.entry, Sample.domain)
            .where(Sample.batch_id == batch_id, Sample.state == SampleState.PENDING)
            .order_by(Sample.idx)
        )
        with self.engine.connect() as connection:
            rows = connection.execute(statement).all()
            results = results_of(connection, [row.id for row in rows])
        return [PendingSample(row.id, row.idx, row.entry, row.domain, results[row.id]) for row in rows]

    def begin_try(self, claim: Claim) -> None:
        """Count the try of a suspect; one that only waits its turn while its worker dies is not to blame."""
        with self.engine.begin() as connection:
            connection.execute(update(Batch).where(*_is_mine(claim)).values(tries=claim.tries))

    def release(self, claim: Claim, wait_seconds: float = 0, *, is_blameless: bool = False) -> None:
        """Give the stage back, to be sent again after a wait; a blameless batch has not used up a try."""
        statement = (
            update(Batch)
            .where(*_is_mine(claim))
            .values(
                state=BatchState.READY,
                tries=claim.tries - 1 if is_blameless else claim.tries,
                lease_owner=None,
                lease_until=in_seconds(wait_seconds),
            )
        )
        with self.engine.begin() as connection:
            connection.execute(statement)

    def split(self, claim: Claim) -> None:
        """Give the stage back as two batches with one try each, to find the sample that ends every try."""
        middle = (claim.start_idx + claim.end_idx) // 2
        again = {"state": BatchState.READY, "lease_owner": None, "lease_until": func.now()}
        shrinks = (
            update(Batch)
            .where(*_is_mine(claim))
            .values(end_idx=middle, tries=claim.tries - 2, **again)
            .returning(Batch.shard_id)
        )
        with self.engine.begin() as connection:
            shard_id = connection.execute(shrinks).scalar_one_or_none()
            if shard_id is None:
                return
            half = insert(Batch).values(
                shard_id=shard_id,
                start_idx=middle,
                end_idx=claim.end_idx,
                next_stage=claim.stage,
                tries=claim.tries - 2,
                **again,
            )
            new_id = connection.execute(half.returning(Batch.id)).scalar_one()
            connection.execute(
                update(Sample)
                .where(Sample.batch_id == claim.batch_id, Sample.idx >= middle)
                .values(batch_id=new_id)
            )

    def finish_stage(
        self,
        claim: Claim,
        outcomes: Sequence[Outcome],
        handoff_seconds: float,
        retry: RetryPolicy,
        *,
        stays: bool = True,
    ) -> bool:
        """Write all that the stage made and move the batch on, in one transaction.

        The batch `stays` with its owner when the next stage goes to that worker's own queue.
        False when the lease was lost to another worker; then nothing is written.
        """
        with self.engine.begin() as connection:
            mine = (
                select(Run.stopped_at)
                .where(*_is_mine(claim), Batch.shard_id == Shard.id, Shard.run_id == Run.id)
                .with_for_update(of=Batch)
            )
            batch = connection.execute(mine).one_or_none()
            if batch is None:
                return False
            write_outcomes(connection, claim, outcomes)
            following = stage_after(claim.stage, claim.stages)
            if following is None or not _has_pending(connection, claim.batch_id):
                _finish_batch(connection, claim, retry)
            elif batch.stopped_at is not None:
                _set_batch(connection, claim.batch_id, **opened() | {"next_stage": following})
            else:
                _set_batch(
                    connection,
                    claim.batch_id,
                    state=BatchState.QUEUED,
                    next_stage=following,
                    tries=0,
                    lease_owner=claim.owner if stays else None,
                    lease_until=in_seconds(handoff_seconds),
                )
        return True


def _is_mine(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """The batch is still held by this very claim."""
    return (
        Batch.id == claim.batch_id,
        Batch.state == BatchState.RUNNING,
        Batch.lease_owner == claim.owner,
        Batch.attempt == claim.attempt,
    )


def _take_back_if_stopped(connection: Connection, batch_id: int) -> None:
    """Make a queued batch of a stopped run ready: its message has arrived and led to nothing."""
    connection.execute(
        update(Batch)
        .where(Batch.id == batch_id, Batch.state == BatchState.QUEUED)
        .where(Batch.shard_id == Shard.id, Shard.run_id == Run.id, Run.stopped_at.is_not(None))
        .values(**unleased())
    )


def _why_not_claimed(row: Row[*tuple[Any, ...]] | None, stage: Stage) -> NotClaimed:
    if row is None or row.next_stage == stage:
        return NotClaimed.TAKEN
    is_behind = row.next_stage is None or STAGE_ORDER[row.next_stage] > STAGE_ORDER[stage]
    return NotClaimed.PASSED if is_behind else NotClaimed.TAKEN


def _has_pending(connection: Connection, batch_id: int) -> bool:
    pending = select(Sample.id).where(Sample.batch_id == batch_id, Sample.state == SampleState.PENDING)
    return connection.execute(pending.limit(1)).first() is not None


def _finish_batch(connection: Connection, claim: Claim, retry: RetryPolicy) -> None:
    """At the end of its chain: open it again for what may be retried, or count how it ended."""
    of_batch = Sample.batch_id == claim.batch_id
    done = update(Sample).where(of_batch, Sample.state == SampleState.PENDING)
    connection.execute(done.values(state=SampleState.DONE))
    again = (
        update(Sample)
        .where(of_batch, Sample.state == SampleState.FAILED, Sample.is_retryable)
        .where(Sample.attempts < retry.max_attempts)
        .values(state=SampleState.PENDING)
        .returning(Sample.batch_id, Sample.error_stage, Sample.attempts)
    )
    if rows := connection.execute(again).all():
        wait = retry.first_wait_seconds * 2 ** (max(row.attempts for row in rows) - 1)
        stage = earliest_stages([(row.batch_id, row.error_stage) for row in rows])[claim.batch_id]
        _set_batch(
            connection, claim.batch_id, **opened() | {"next_stage": stage, "lease_until": in_seconds(wait)}
        )
        return
    tally = tally_of(connection, select(Sample.state, func.count()).where(of_batch).group_by(Sample.state))
    _set_batch(
        connection,
        claim.batch_id,
        state=BatchState.DONE,
        # A later run of the plan may ask for stages that this one did not.
        next_stage=stage_after(claim.stages[-1], tuple(Stage)) if tally.done else None,
        lease_owner=None,
        done_count=tally.done,
        failed_count=tally.failed,
        held_count=tally.held,
        finished_at=func.now(),
    )


def _set_batch(connection: Connection, batch_id: int, **values: Any) -> None:
    connection.execute(update(Batch).where(Batch.id == batch_id).values(**values))


def write_outcomes(connection: Connection, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    """Write them all; the caller holds the claim and the transaction."""
    insert_results(connection, outcomes)
    _set_routes(connection, outcomes, claim.min_confidence)
    _set_failures(connection, outcomes, claim.owner)


def insert_results(connection: Connection, outcomes: Sequence[Outcome]) -> None:
    """Write the results among them; one that is there already stays as it is."""
    rows = [
        {"sample_id": outcome.sample_id, **asdict(result), "text": storable(result.text)}
        for outcome in outcomes
        for result in outcome.results
    ]
    if rows:
        connection.execute(upsert(AgentResult).on_conflict_do_nothing(), rows)


def _set_routes(connection: Connection, outcomes: Sequence[Outcome], min_confidence: float) -> None:
    rows = [
        {
            "sample": outcome.sample_id,
            "domain": outcome.route.domain,
            "confidence": outcome.route.confidence,
            "state": SampleState.HELD if outcome.route.confidence < min_confidence else SampleState.PENDING,
        }
        for outcome in outcomes
        if outcome.route
    ]
    if rows:
        table = Table.metadata.tables[Sample.__tablename__]
        connection.execute(update(table).where(table.c.id == bindparam("sample")), rows)


def _set_failures(connection: Connection, outcomes: Sequence[Outcome], owner: str) -> None:
    for outcome in outcomes:
        if failure := outcome.failure:
            connection.execute(
                update(Sample)
                .where(Sample.id == outcome.sample_id)
                .values(
                    state=SampleState.FAILED,
                    error_stage=failure.stage,
                    error_kind=failure.kind,
                    error_text=storable(failure.message),
                    is_retryable=failure.is_retryable,
                    attempts=Sample.attempts + 1,
                    failed_by=owner,
                    failed_at=func.now(),
                )
            )


_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class WorkerStore:
    """The list of workers, and the leases that go with them. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def beat(self, owner: str, batch_ids: Sequence[int], lease_seconds: float) -> None:
        """The heartbeat: what this owner, a `node/...`, really runs or has in its own queue stays its own.

        The first beat enlists the worker, and so does one after it has been buried by mistake.
        """
        is_here = upsert(Worker).values(owner=owner, node=owner.partition("/")[0])
        is_here = is_here.on_conflict_do_update(index_elements=[Worker.owner], set_={"seen_at": func.now()})
        is_kept = or_(
            and_(Batch.state == BatchState.RUNNING, Batch.id.in_(batch_ids)),
            Batch.state == BatchState.QUEUED,
        )
        extends = (
            update(Batch)
            .where(Batch.lease_owner == owner, is_kept)
            .values(lease_until=in_seconds(lease_seconds))
        )
        with self.engine.begin() as connection:
            connection.execute(is_here)
            connection.execute(extends)

    def resign(self, owner: str) -> None:
        """Give back, at a worker's end, what waits in its own queue or was not finished in time."""
        gives_back = (
            update(Batch)
            .where(Batch.lease_owner == owner, Batch.state.in_([BatchState.QUEUED, BatchState.RUNNING]))
            .values(**unleased())
        )
        with self.engine.begin() as connection:
            connection.execute(gives_back)
            # Buried by the next who looks, and its own queue with it.
            connection.execute(update(Worker).where(Worker.owner == owner).values(seen_at=_LONG_AGO))

    def bury(self, silent_seconds: float) -> set[str]:
        """Strike off the workers that have been silent for so long; the nodes that have no worker now."""
        silent = Worker.seen_at < func.now() - timedelta(seconds=silent_seconds)
        with self.engine.begin() as connection:
            buried = set(connection.execute(delete(Worker).where(silent).returning(Worker.node)).scalars())
            return buried - set(connection.execute(select(Worker.node)).scalars())
