"""What a worker writes: claims of batches, outcomes of stages, heartbeats.

Transitions are compare-and-set: each UPDATE names the state it leaves, and RETURNING tells who won.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert

from capflow_tasks import outages
from capflow_tasks.records import JsonObject, Stage
from capflow_tasks.store import candidates, states, tables
from capflow_tasks.store.states import (
    STAGE_ORDER,
    BatchState,
    Claim,
    Outcome,
    PendingSample,
    SampleState,
)
from capflow_tasks.store.tables import (
    AgentResult,
    Batch,
    Run,
    Sample,
    Shard,
    Worker,
    WorkerGpus,
    in_seconds,
    unleased,
)


class NotClaimed(StrEnum):
    """Why a stage of a batch was not claimed."""

    #: The stage is finished; the chain of the message goes on.
    PASSED = "passed"
    #: Another worker has the batch, its next stage is another one, or its run is stopped or deleted; the
    #: chain of the message ends.
    NOT_FREE = "not free"


class BatchStore(tables.Store):
    """What a worker reads and writes about batches. Thread-safe."""

    def claim(self, batch_id: int, stage: Stage, owner: str, lease_seconds: float) -> Claim | NotClaimed:
        """Claim the batch's next stage if it is this one, no live worker has it and its run goes on."""
        is_free = sa.or_(
            Batch.state.in_([BatchState.READY, BatchState.QUEUED]),
            sa.and_(Batch.state == BatchState.RUNNING, Batch.lease_until < sa.func.now()),
        )
        free = (
            sa.select(Batch.id, (Batch.tries + 1).label("tries"))
            .where(Batch.id == batch_id, Batch.next_stage == stage, is_free)
            .with_for_update()
            .cte("free")
        )
        takes = (
            sa.update(Batch)
            .where(Batch.id == free.c.id)
            .where(Batch.shard_id == Shard.id, Shard.run_id == Run.id, Run.stopped_at.is_(None))
            .values(
                state=BatchState.RUNNING,
                lease_owner=owner,
                lease_until=in_seconds(lease_seconds),
                attempt=Batch.attempt + 1,
                # `begin_try` counts further tries, once the batch runs alone.
                tries=sa.func.greatest(Batch.tries, 1),
            )
            .returning(Batch.attempt, free.c.tries, Batch.start_idx, Batch.end_idx, Shard.dataset)
            .returning(Shard.root, Shard.modality, Shard.run_id, Run.stages, Run.min_confidence)
            .returning(Run.name.label("run"), Shard.id.label("shard_id"), Run.workflow)
            .returning(Run.accepted_failures)
        )
        with self.engine.begin() as connection:
            row = connection.execute(takes).one_or_none()
            if row is None:
                return _not_claimed(connection, batch_id, stage)
        values = row._asdict() | {"stages": tuple(map(Stage, row.stages))}
        values["accepted_failures"] = frozenset(row.accepted_failures)
        return Claim(batch_id=batch_id, stage=stage, owner=owner, **values)

    def pending_samples(self, batch_id: int) -> list[PendingSample]:
        """Return the batch's unfinished samples, in order."""
        statement = (
            sa.select(Sample.id, Sample.idx, Sample.entry, Sample.domain, Sample.candidate)
            .add_columns(Sample.media_stamp)
            .where(Sample.batch_id == batch_id, Sample.state == SampleState.PENDING)
            .order_by(Sample.idx)
        )
        with self.engine.connect() as connection:
            rows = connection.execute(statement).all()
            results = tables.results_of(connection, [row.id for row in rows])
        found = []
        for row in rows:
            own, earlier = candidates.split_results(results[row.id], row.candidate)
            found.append(PendingSample(**row._asdict(), results=own, earlier=earlier))
        return found

    def begin_try(self, claim: Claim) -> None:
        """Count another try of the batch, now that it runs and no longer waits for the engine."""
        self.change(sa.update(Batch).where(*_is_mine(claim)).values(tries=claim.tries))

    def release(self, claim: Claim, wait_seconds: float = 0, *, is_blameless: bool = False) -> None:
        """Give the batch back, to be sent again after a wait; a blameless one keeps its tries."""
        values = unleased(wait_seconds) | {"tries": claim.tries - 1 if is_blameless else claim.tries}
        self.change(sa.update(Batch).where(*_is_mine(claim)).values(**values))

    def release_queued(self, owner: str) -> None:
        """Give back the batches that wait in the owner's own queue."""
        is_waiting = sa.and_(Batch.lease_owner == owner, Batch.state == BatchState.QUEUED)
        self.change(sa.update(Batch).where(is_waiting).values(**unleased()))

    def split(self, claim: Claim) -> None:
        """Give the batch back as two with one more try each, to find the sample that kills the engine."""
        middle = (claim.start_idx + claim.end_idx) // 2
        again = unleased() | {"tries": claim.tries - 2}
        shrinks = (
            sa.update(Batch).where(*_is_mine(claim)).values(end_idx=middle, **again).returning(Batch.shard_id)
        )
        with self.engine.begin() as connection:
            shard_id = connection.execute(shrinks).scalar_one_or_none()
            if shard_id is None:
                return
            half = sa.insert(Batch).values(
                shard_id=shard_id,
                start_idx=middle,
                end_idx=claim.end_idx,
                next_stage=claim.stage,
                **again,
            )
            new_id = connection.execute(half.returning(Batch.id)).scalar_one()
            connection.execute(
                sa.update(Sample)
                .where(Sample.batch_id == claim.batch_id, Sample.idx >= middle)
                .values(batch_id=new_id)
            )

    def finish_stage(
        self,
        claim: Claim,
        outcomes: Sequence[Outcome],
        handoff_seconds: float,
        retry: states.RetryPolicy,
        *,
        stays: bool = True,
    ) -> bool:
        """Write the outcomes and move the batch on, in one transaction.

        The batch `stays` with its owner when its next message goes to that worker's own queue. A lease that
        ran out while the database was away does not matter until another worker has claimed the batch: then
        return False, with nothing written.
        """
        with self.engine.begin() as connection:
            mine = (
                sa.select(Run.stopped_at)
                .where(*_is_newest(claim), Batch.shard_id == Shard.id, Shard.run_id == Run.id)
                .with_for_update(of=Batch)
            )
            batch = connection.execute(mine).one_or_none()
            if batch is None:
                return False
            insert_results(connection, outcomes)
            _insert_refused(connection, outcomes)
            _set_media_stamps(connection, outcomes)
            _set_routes(connection, claim, outcomes)
            _set_failures(connection, claim, outcomes)
            following = states.stage_after(claim.stage, claim.stages)
            pending = sa.select(Sample.id).where(
                Sample.batch_id == claim.batch_id, Sample.state == SampleState.PENDING
            )
            if following is None or connection.execute(pending.limit(1)).first() is None:
                _finish_batch(connection, claim, retry)
            elif batch.stopped_at is not None:
                _set_batch(connection, claim.batch_id, next_stage=following, **tables.opened())
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

    def refusal_of(self, outcome: Outcome) -> str | None:
        """Return why PostgreSQL refuses the results of this outcome; None when it takes them.

        Writes nothing. Raises errors that are not the results' fault: a server away, a missing table.
        """
        with self.engine.connect() as connection:
            try:
                insert_results(connection, [outcome])
            except (sa.exc.ProgrammingError, sa.exc.InternalError):
                raise
            except (sa.exc.StatementError, ValueError) as error:
                if outages.is_outage(error):
                    raise
                return f"the answer cannot be stored: {outages.reason(error)}"
        return None


def _is_mine(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    """The batch is still held by this claim."""
    return (
        Batch.id == claim.batch_id,
        Batch.state == BatchState.RUNNING,
        Batch.lease_owner == claim.owner,
        Batch.attempt == claim.attempt,
    )


def _is_newest(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    """The batch waits for this claim's stage, and has not been claimed since."""
    return (
        Batch.id == claim.batch_id,
        Batch.state != BatchState.DONE,
        Batch.next_stage == claim.stage,
        Batch.attempt == claim.attempt,
    )


def _not_claimed(connection: sa.Connection, batch_id: int, stage: Stage) -> NotClaimed:
    """Return why; make a queued batch of a stopped run ready: its message has arrived and led to nothing."""
    connection.execute(
        sa.update(Batch)
        .where(Batch.id == batch_id, Batch.state == BatchState.QUEUED)
        .where(Batch.shard_id == Shard.id, Shard.run_id == Run.id, Run.stopped_at.is_not(None))
        .values(**unleased())
    )
    batch = connection.execute(sa.select(Batch.next_stage).where(Batch.id == batch_id)).one_or_none()
    if batch is None or (batch.next_stage and STAGE_ORDER[batch.next_stage] <= STAGE_ORDER[stage]):
        return NotClaimed.NOT_FREE
    return NotClaimed.PASSED


def _finish_batch(connection: sa.Connection, claim: Claim, retry: states.RetryPolicy) -> None:
    """Open the batch again for samples to retry, to write or to grade again; without any, set it to done."""
    of_batch = Sample.batch_id == claim.batch_id
    going_on = candidates.settle(connection, claim, retry)
    done = sa.update(Sample).where(of_batch, Sample.state == SampleState.PENDING, Sample.id.not_in(going_on))
    connection.execute(done.values(state=SampleState.DONE))
    again = (
        sa.update(Sample)
        .where(of_batch, Sample.state == SampleState.FAILED, candidates.will_retry(retry))
        .values(state=SampleState.PENDING)
        .returning(Sample.error_stage, Sample.attempts)
    )
    rows = connection.execute(again).all()
    if rows or going_on:
        wait = retry.wait_seconds(max(row.attempts for row in rows)) if rows else 0
        stages = [*(row.error_stage for row in rows), *going_on.values()]
        first = min(stages, key=STAGE_ORDER.__getitem__)
        _set_batch(connection, claim.batch_id, next_stage=first, **tables.opened(wait))
        return
    tally = tables.tally_of(connection, of_batch)
    _set_batch(
        connection,
        claim.batch_id,
        state=BatchState.DONE,
        # The run may be opened again with further stages.
        next_stage=states.stage_after(claim.stages[-1], tuple(Stage)) if tally.done else None,
        lease_owner=None,
        done_count=tally.done,
        failed_count=tally.failed,
        held_count=tally.held,
        finished_at=sa.func.now(),
    )


def _set_batch(connection: sa.Connection, batch_id: int, **values: Any) -> None:
    connection.execute(sa.update(Batch).where(Batch.id == batch_id).values(**values))


def insert_results(connection: sa.Connection, outcomes: Sequence[Outcome]) -> None:
    """Insert the results among the outcomes; one that exists already stays as it is."""
    rows = [
        {"sample_id": outcome.sample_id, **asdict(result), "text": tables.storable(result.text)}
        for outcome in outcomes
        for result in outcome.results
    ]
    if rows:
        connection.execute(upsert(AgentResult).on_conflict_do_nothing(), rows)


def _insert_refused(connection: sa.Connection, outcomes: Sequence[Outcome]) -> None:
    names = [column.name for column in tables.Refused.__table__.columns]
    rows = [
        {name: value for name, value in asdict(answer).items() if name in names}
        | {"sample_id": outcome.sample_id, "rule": next(iter(answer.faults), None)}
        for outcome in outcomes
        for answer in outcome.refused
    ]
    if rows:
        connection.execute(sa.insert(tables.Refused), rows)


def _set_media_stamps(connection: sa.Connection, outcomes: Sequence[Outcome]) -> None:
    """Note the media that a sample was first answered about; later ones are seen to differ by it."""
    rows = [
        {"sample": outcome.sample_id, "stamp": outcome.media_stamp}
        for outcome in outcomes
        if outcome.media_stamp
    ]
    if rows:
        table = tables.Table.metadata.tables[Sample.__tablename__]
        unknown = sa.and_(table.c.id == sa.bindparam("sample"), table.c.media_stamp.is_(None))
        noted = sa.update(table).where(unknown).values(media_stamp=sa.bindparam("stamp"))
        connection.execute(noted, rows)


def _set_routes(connection: sa.Connection, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    rows = [
        {
            "sample": outcome.sample_id,
            "domain": outcome.route.domain,
            "confidence": outcome.route.confidence,
            "state": SampleState.HELD if claim.holds(outcome.route) else SampleState.PENDING,
        }
        for outcome in outcomes
        if outcome.route
    ]
    if rows:
        table = tables.Table.metadata.tables[Sample.__tablename__]
        connection.execute(sa.update(table).where(table.c.id == sa.bindparam("sample")), rows)


def _set_failures(connection: sa.Connection, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if failure := outcome.failure:
            connection.execute(
                sa.update(Sample)
                .where(Sample.id == outcome.sample_id)
                .values(
                    state=SampleState.FAILED,
                    error_stage=failure.stage,
                    error_kind=failure.kind,
                    error_text=tables.storable(failure.message),
                    is_retryable=failure.is_retryable,
                    attempts=Sample.attempts + 1,
                    failed_by=claim.owner,
                    failed_at=sa.func.now(),
                )
            )


@dataclass(frozen=True, slots=True)
class Rival:
    """The worker that was first on a queue, where another one differs from it."""

    node: str
    queue: str
    #: What it has in common with the other workers of the queue.
    traits: JsonObject


class WorkerStore(tables.Store):
    """What a worker's heartbeat writes: the list of workers, and their leases. Thread-safe."""

    def beat(
        self, owner: str, batch_ids: Sequence[int], lease_seconds: float, fault: str | None = None
    ) -> None:
        """Extend the owner's leases of the batches it runs and of those in its own queue.

        Lists the worker too, at its first beat and after it was removed by mistake, with the fault that keeps
        it from work. An owner is `node/...`.
        """
        said = fault and tables.storable(fault)
        lists = upsert(Worker).values(owner=owner, node=owner.partition("/")[0], fault=said)
        seen = {"seen_at": sa.func.now(), "fault": said}
        lists = lists.on_conflict_do_update(index_elements=[Worker.owner], set_=seen)
        is_kept = sa.or_(
            sa.and_(Batch.state == BatchState.RUNNING, Batch.id.in_(batch_ids)),
            Batch.state == BatchState.QUEUED,
        )
        extends = (
            sa.update(Batch)
            .where(Batch.lease_owner == owner, is_kept)
            .values(lease_until=in_seconds(lease_seconds))
        )
        with self.engine.begin() as connection:
            connection.execute(lists)
            connection.execute(extends)

    def rival_of(self, owner: str, broker: str, traits: JsonObject, silent_seconds: float) -> Rival | None:
        """Return the worker that was first on a queue of this one and differs from it; None without one.

        `traits` are this worker's by queue. Workers of other brokers, and silent ones, do not count.
        """
        with self.engine.connect() as connection:
            return _rival(connection, owner, broker, traits, silent_seconds)

    def register(self, owner: str, broker: str, traits: JsonObject, silent_seconds: float) -> Rival | None:
        """List the worker with its traits unless it has a rival, which is returned. One worker at a time."""
        listed = {"owner": owner, "node": owner.partition("/")[0], "traits": {"broker": broker, **traits}}
        with self.engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_REGISTRATION)))
            rival = _rival(connection, owner, broker, traits, silent_seconds)
            if rival is None:
                connection.execute(sa.insert(Worker).values(**listed))
            return rival

    def note_gpus(self, owner: str, gpus: float) -> None:
        """Note how many GPUs each of the worker's models holds, for costs."""
        with self.engine.begin() as connection:
            connection.execute(upsert(WorkerGpus).values(owner=owner, gpus=gpus).on_conflict_do_nothing())

    def resign(self, owner: str) -> None:
        """Give back all batches of a worker that ends, and mark it as silent."""
        gives_back = (
            sa.update(Batch)
            .where(Batch.lease_owner == owner, Batch.state.in_([BatchState.QUEUED, BatchState.RUNNING]))
            .values(**unleased())
        )
        # The next reconciler removes the worker, and its own queue too.
        long_ago = datetime(2000, 1, 1, tzinfo=UTC)
        with self.engine.begin() as connection:
            connection.execute(gives_back)
            connection.execute(sa.update(Worker).where(Worker.owner == owner).values(seen_at=long_ago))

    def remove_silent(self, silent_seconds: float) -> set[str]:
        """Remove workers without a heartbeat for so long; return the nodes that have no worker left."""
        silent = Worker.seen_at < sa.func.now() - timedelta(seconds=silent_seconds)
        removes = sa.delete(Worker).where(silent).returning(Worker.node)
        with self.engine.begin() as connection:
            removed = set(connection.execute(removes).scalars())
            return removed - set(connection.execute(sa.select(Worker.node)).scalars())


#: The key of the lock under which workers register, one after the other.
_REGISTRATION = 0x6361_7066


def _rival(
    connection: sa.Connection, owner: str, broker: str, traits: JsonObject, silent_seconds: float
) -> Rival | None:
    is_alive = Worker.seen_at > sa.func.now() - timedelta(seconds=silent_seconds)
    others = sa.select(Worker.node, Worker.traits).where(is_alive, Worker.owner != owner)
    found = connection.execute(others.where(Worker.traits.is_not(None)).order_by(Worker.started_at)).all()
    for queue, own in traits.items():
        for row in found:
            if row.traits.get("broker") == broker and queue in row.traits:
                if row.traits[queue] != own:
                    return Rival(row.node, queue, row.traits[queue])
                break
    return None
