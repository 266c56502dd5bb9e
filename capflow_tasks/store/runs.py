"""What a producer writes: runs, shards, new batches, and batches to send for the first time or again.

Transitions are compare-and-set: each UPDATE names the state it leaves, and RETURNING tells who won.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as upsert

from capflow_tasks.errors import REFUSED_KINDS, UserError
from capflow_tasks.records import Failure, PlanShard, Stage, Workflow
from capflow_tasks.store import candidates, states, tables
from capflow_tasks.store.claims import insert_results
from capflow_tasks.store.states import (
    ONE_CANDIDATE,
    USUAL_TERMS,
    BatchState,
    CandidatePolicy,
    NewBatch,
    NewSample,
    ReadyBatch,
    SampleState,
    ShardRow,
    Terms,
)
from capflow_tasks.store.tables import AgentResult, Batch, Run, Sample, Shard, opened, unleased

# Arrays are faster to send than rows. A batch whose samples have all failed is done at once.
_INSERT_BATCHES = sa.text(f"""
    INSERT INTO batches (shard_id, start_idx, end_idx, next_stage, failed_count, state, finished_at)
    SELECT :shard_id, start_idx, end_idx, first_stage,
           CASE WHEN first_stage IS NULL THEN failed_count ELSE 0 END,
           CASE WHEN first_stage IS NULL THEN '{BatchState.DONE}' ELSE '{BatchState.READY}' END,
           CASE WHEN first_stage IS NULL THEN now() END
    FROM unnest(CAST(:starts AS bigint[]), CAST(:ends AS bigint[]),
                CAST(:first_stages AS text[]), CAST(:failed_counts AS bigint[]))
      AS new(start_idx, end_idx, first_stage, failed_count)
    RETURNING start_idx, id
""")

# A queue is first in, first out, so a message waits if it was sent after the one that is taken next. What was
# sent shortly before that may wait too, if several producers were sending.
_OUTSIDE_QUEUES = sa.text(f"""
    SELECT batches.id
    FROM batches
    JOIN shards ON shards.id = batches.shard_id
    JOIN runs ON runs.id = shards.run_id
    LEFT JOIN unnest(CAST(:stages AS text[]), CAST(:ranks AS bigint[]), CAST(:untils AS timestamptz[]))
           AS head(stage, rank, until)
           ON head.stage = batches.next_stage
          AND head.rank IS NOT DISTINCT FROM CASE WHEN runs.pin_ranks THEN shards.assign_rank END
    WHERE batches.state = '{BatchState.QUEUED}'
      AND (CAST(:run_id AS bigint) IS NULL OR shards.run_id = :run_id)
      AND CASE WHEN batches.lease_owner IS NULL
          THEN head.until IS NULL OR batches.lease_until < head.until - CAST(:slack AS interval)
          -- A worker that stops hands its batches on to the shared queue.
          ELSE head.until IS NULL AND split_part(batches.lease_owner, '/', 1) <> ALL (:nodes)
          END
""")

_COPY_SAMPLES = (
    "COPY samples (shard_id, batch_id, idx, entry, domain, state,"
    " error_stage, error_kind, error_text, attempts, failed_at) FROM STDIN"
)
_JSON = json.JSONEncoder(ensure_ascii=False)
#: Characters that COPY needs escaped.
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NULL = "\\N"
_NO_FAILURE = "\t".join([_NULL, _NULL, _NULL, "0", _NULL])


class RunStore(tables.Store):
    """What a producer reads and writes about runs. Thread-safe."""

    def open_run(
        self,
        name: str,
        plan: str,
        output: str,
        stages: Sequence[Stage],
        min_confidence: float = 0,
        *,
        pin_ranks: bool = False,
        workflow: str = Workflow.STANDARD,
        candidates: CandidatePolicy = ONE_CANDIDATE,
        terms: Terms = USUAL_TERMS,
    ) -> int:
        """Insert the run of this name, or update it and let it go on if it was stopped; return its id.

        `candidates` are for a new run; `allow_candidates` changes those of an earlier one. Raises UserError
        when the run has another workflow: captions of two would be mixed.
        """
        values = {
            "plan": plan,
            "output": output,
            "stages": list(stages),
            "min_confidence": min_confidence,
            "pin_ranks": pin_ranks,
            **asdict(terms),
            "stopped_at": None,
            "pause": None,
        }
        statement = upsert(Run).values(name=name, workflow=workflow, **values, **_policy_values(candidates))
        statement = statement.on_conflict_do_update(
            index_elements=[Run.name], set_=values, where=Run.workflow == workflow
        )
        with self.engine.begin() as connection:
            run_id = connection.execute(statement.returning(Run.id)).scalar_one_or_none()
            if run_id is None:
                other = connection.execute(sa.select(Run.workflow).where(Run.name == name)).scalar_one()
                raise UserError(
                    f"run {name} was started with --workflow {other}, not {workflow}: "
                    "go on with that, or give this one a --run of its own"
                )
            return run_id

    def allow_candidates(self, run_id: int, policy: CandidatePolicy) -> int:
        """Change when samples get another caption, and open those that are done with too little by now.

        Return how many these are. With the same policy nothing is read.
        """
        values = _policy_values(policy)
        known = sa.select(*(getattr(Run, name) for name in values), Run.stages).where(Run.id == run_id)
        with self.engine.begin() as connection:
            run = connection.execute(known.with_for_update()).one_or_none()
            if run is None or all(getattr(run, name) == value for name, value in values.items()):
                return 0
            connection.execute(sa.update(Run).where(Run.id == run_id).values(**values))
            has_stages = set(candidates.STAGES) <= set(run.stages)
            return candidates.reopen(connection, run_id, policy) if policy.most > 1 and has_stages else 0

    def stop(self, run_id: int, pause: str | None = None) -> states.StoppedRun:
        """Send no more batches of the run, and take back those that are queued.

        `pause` is why it pauses by itself; None when someone stops it.
        """
        is_queued = Batch.state == BatchState.QUEUED
        is_abandoned = sa.and_(Batch.state == BatchState.RUNNING, Batch.lease_until < sa.func.now())
        takes_back = (
            sa.update(Batch)
            .where(_is_of_run(run_id), sa.or_(is_queued, is_abandoned))
            .values(**unleased())
            .returning(Batch.id)
        )
        running = sa.select(sa.func.count(Batch.id)).where(
            _is_of_run(run_id), Batch.state == BatchState.RUNNING
        )
        stopped = {"stopped_at": sa.func.now(), "pause": pause}
        with self.engine.begin() as connection:
            connection.execute(sa.update(Run).where(Run.id == run_id).values(**stopped))
            taken_back = len(connection.execute(takes_back).all())
            return states.StoppedRun(taken_back, connection.execute(running).scalar_one())

    def is_stopped(self, run_id: int) -> bool:
        """Whether the run has been stopped or deleted."""
        return not self.rows(sa.select(Run.id).where(Run.id == run_id, Run.stopped_at.is_(None)))

    def begun_at(self, name: str) -> datetime | None:
        """Return when the run of this name was made; None if there is none."""
        found = self.rows(sa.select(Run.created_at).where(Run.name == name))
        return found[0].created_at if found else None

    def pause_of(self, run_id: int) -> str | None:
        """Return why the run paused by itself; None when it did not."""
        found = self.rows(sa.select(Run.pause).where(Run.id == run_id))
        return found[0].pause if found else None

    def accept_failures(self, run_id: int) -> None:
        """Let the kinds of failures that the run has no longer pause it, nor a worker."""
        kinds = sa.select(Sample.error_kind).where(Sample.shard_id == Shard.id, Shard.run_id == run_id)
        kinds = kinds.where(Sample.state == SampleState.FAILED).distinct()
        accepted = sa.func.array(kinds.scalar_subquery())
        self.change(sa.update(Run).where(Run.id == run_id).values(accepted_failures=accepted))

    def delete(self, run_id: int) -> None:
        """Delete the run with its shards, batches, samples and results."""
        self.change(sa.delete(Run).where(Run.id == run_id))

    def add_shards(self, run_id: int, shards: Sequence[PlanShard]) -> list[ShardRow]:
        """Insert the shards that the run lacks; return the rows of all, in the order given."""
        rows = [_shard_values(run_id, shard) for shard in shards]
        keys = [row["key"] for row in rows]
        known = sa.select(Shard.key, Shard.id, Shard.expanded_to).where(
            Shard.run_id == run_id, Shard.key.in_(keys)
        )
        with self.engine.begin() as connection:
            connection.execute(upsert(Shard).on_conflict_do_nothing(), rows)
            found = {row.key: row for row in connection.execute(known)}
        return [
            ShardRow(found[key].id, found[key].expanded_to, shard)
            for key, shard in zip(keys, shards, strict=True)
        ]

    def expand(self, shard_id: int, cursor: int, batches: Sequence[NewBatch]) -> list[int] | None:
        """Insert the shard's next batches; return their ids, None when another producer moved the cursor.

        That one may also have set the shard aside.
        """
        moves = (
            sa.update(Shard)
            .where(Shard.id == shard_id, Shard.expanded_to == cursor, Shard.run_id.is_not(None))
            .values(expanded_to=batches[-1].end_idx)
            .returning(Shard.id)
        )
        with self.engine.begin() as connection:
            if connection.execute(moves).first() is None:
                return None
            ids = _insert_batches(connection, shard_id, batches)
            _copy_samples(connection, shard_id, batches, ids)
            _insert_given(connection, shard_id, batches)
        return ids

    def forget_other_shards(self, run_id: int, shard_ids: Collection[int]) -> None:
        """Delete all other shards of the run; a worker that runs a batch of one writes nothing."""
        self.change(sa.delete(Shard).where(Shard.run_id == run_id, Shard.id.not_in(shard_ids)))

    @contextmanager
    def publishing(
        self, limit: int, queue_seconds: float, run_id: int | None = None
    ) -> Iterator[list[ReadyBatch]]:
        """Yield ready batches, in order, for the block to publish; after the block they are queued.

        If the process dies in the block they stay ready, and are published again; only one message of a batch
        can claim it.
        """
        due = sa.select(Batch.id).where(
            Batch.state == BatchState.READY, Batch.lease_until <= sa.func.now(), _is_going(run_id)
        )
        due = due.order_by(Batch.lease_until, Batch.id).limit(limit).correlate(None)
        takes = (
            sa.update(Batch)
            .where(Batch.id.in_(due.with_for_update(of=Batch, skip_locked=True)))
            .where(Batch.shard_id == Shard.id, Shard.run_id == Run.id)
            .values(state=BatchState.QUEUED, lease_owner=None, lease_until=tables.in_seconds(queue_seconds))
            .returning(Batch.id, Batch.next_stage, Batch.lease_until, Run.stages)
            .returning(Shard.dataset, Batch.start_idx, Batch.end_idx, Run.name.label("run"))
            .returning(sa.case((Run.pin_ranks, Shard.assign_rank)).label("pinned_to"))
        )
        with self.engine.begin() as connection:
            rows = sorted(connection.execute(takes).all(), key=lambda row: row.id)
            yield [_ready_batch(row) for row in rows]

    def requeue_stale(self, run_id: int | None = None) -> int:
        """Make ready what was queued or leased for too long, except in stopped runs; return the count."""
        # Not `IN (queued, running)`, which would not use the index on batches that are not done.
        is_held = sa.and_(Batch.state != BatchState.DONE, Batch.state != BatchState.READY)
        is_stale = sa.and_(is_held, Batch.lease_until < sa.func.now(), _is_going(run_id))
        return self.change(sa.update(Batch).where(is_stale).values(**unleased()))

    def requeue_lost(self, batch_ids: Collection[int]) -> int:
        """Make ready the queued ones of these batches, whose messages are gone; return their count."""
        is_lost = sa.and_(Batch.state == BatchState.QUEUED, tables.is_among(Batch.id, batch_ids))
        return self.change(sa.update(Batch).where(is_lost).values(**unleased()))

    def outside_queues(
        self, waiting: states.WaitingMessages, slack_seconds: float, run_id: int | None = None
    ) -> set[int]:
        """Return the queued batches whose message waits no longer: a worker has just taken it, or it is lost.

        In doubt a message waits. Producers that send at once may send in another order, up to the slack.
        """
        values = {
            "stages": [stage for stage, _ in waiting.next_until],
            "ranks": [rank for _, rank in waiting.next_until],
            "untils": list(waiting.next_until.values()),
            "nodes": list(waiting.nodes),
            "slack": timedelta(seconds=slack_seconds),
            "run_id": run_id,
        }
        with self.engine.connect() as connection:
            return set(connection.execute(_OUTSIDE_QUEUES, values).scalars())

    def continue_run(self, run_id: int, stages: Sequence[Stage], min_confidence: float) -> int:
        """Open batches that a run with more stages or a lower bar goes on with; return their count.

        These are finished batches with stages still to do, and batches with held samples above the bar now.
        """
        of_run = _is_of_run(run_id)
        # A batch that waits for `perceive` goes on with `summarize` where the run has only that.
        left = {stage.value: states.stages_from(stage, stages) for stage in Stage}
        follows = {stage: following[0].value for stage, following in left.items() if following}
        further = (
            sa.update(Batch)
            .where(of_run, Batch.state == BatchState.DONE, Batch.next_stage.in_(follows))
            .values(next_stage=sa.case(follows, value=Batch.next_stage), **opened())
            .returning(Batch.id)
        )
        held = (
            sa.update(Sample)
            .where(Sample.batch_id == Batch.id, of_run, Sample.state == SampleState.HELD)
            .where(Sample.confidence >= min_confidence)
            .values(state=SampleState.PENDING)
            .returning(Sample.batch_id)
        )
        with self.engine.begin() as connection:
            broader = set(connection.execute(further).scalars())
            again = sa.update(Sample).where(Sample.batch_id.in_(broader), Sample.state == SampleState.DONE)
            connection.execute(again.values(state=SampleState.PENDING))
            freed = set(connection.execute(held).scalars()) - broader
            # Without a later stage they are done after `route`, which asks nothing: they have a domain.
            after_route = states.stage_after(Stage.ROUTE, stages) or Stage.ROUTE
            reopens = sa.update(Batch).where(Batch.id.in_(freed))
            connection.execute(reopens.values(next_stage=after_route, **opened()))
        return len(broader | freed)

    def retry_failed(
        self,
        run_id: int,
        kinds: Sequence[str] = (),
        domains: Sequence[str] = (),
        except_ids: Collection[int] = (),
    ) -> int:
        """Open failed samples of these kinds and domains, or all, except some; return their count."""
        chosen = [
            Sample.state == SampleState.FAILED,
            Sample.error_kind.not_in(REFUSED_KINDS),
            # A batch that still runs is left to finish.
            Sample.batch_id == Batch.id,
            Batch.state == BatchState.DONE,
        ]
        chosen += [Sample.error_kind.in_(kinds)] if kinds else []
        chosen += [Sample.domain.in_(domains)] if domains else []
        chosen += [sa.not_(tables.is_among(Sample.id, except_ids))] if except_ids else []
        with self.engine.begin() as connection:
            reopened = connection.execute(
                sa.update(Sample)
                .where(*chosen, Sample.shard_id == Shard.id, Shard.run_id == run_id)
                .values(state=SampleState.PENDING, attempts=0)
                .returning(Sample.batch_id, Sample.error_stage)
            ).all()
            # A batch starts again at the earliest of its failed stages, which comes last.
            latest_first = sorted(reopened, key=lambda row: states.STAGE_ORDER[row.error_stage], reverse=True)
            for batch_id, stage in {row.batch_id: row.error_stage for row in latest_first}.items():
                reopens = sa.update(Batch).where(Batch.id == batch_id)
                connection.execute(reopens.values(next_stage=stage, **opened()))
        return len(reopened)

    def write_again(self, run_id: int, sample_ids: Collection[int]) -> int:
        """Open these finished samples, whose domain stays; all agents but the router are asked again.

        Return their count. A batch that still runs is left to finish.
        """
        is_finished = sa.and_(Sample.batch_id == Batch.id, Batch.state == BatchState.DONE)
        opens = (
            sa.update(Sample)
            .where(tables.is_among(Sample.id, sample_ids), is_finished, _is_of_run(run_id))
            .where(Sample.state != SampleState.HELD)
            .values(state=SampleState.PENDING, attempts=0, candidate=1)
            .returning(Sample.id, Sample.batch_id)
        )
        with self.engine.begin() as connection:
            opened_samples = connection.execute(opens).all()
            answers = tables.is_among(AgentResult.sample_id, [row.id for row in opened_samples])
            tables.forget_results(connection, answers, AgentResult.stage != Stage.ROUTE)
            stages = connection.execute(sa.select(Run.stages).where(Run.id == run_id)).scalar_one()
            batches = tables.is_among(Batch.id, {row.batch_id for row in opened_samples})
            connection.execute(sa.update(Batch).where(batches).values(next_stage=stages[0], **opened()))
        return len(opened_samples)


def _policy_values(policy: CandidatePolicy) -> dict[str, Any]:
    return {
        "candidates": policy.most,
        "min_overall": policy.min_overall,
        "token_budget": policy.token_budget,
    }


def _is_of_run(run_id: int) -> sa.ColumnElement[bool]:
    """The batch belongs to the run."""
    return sa.and_(Batch.shard_id == Shard.id, Shard.run_id == run_id)


def _is_going(run_id: int | None) -> sa.ColumnElement[bool]:
    """The batch belongs to this run, or to any, and the run is not stopped."""
    of_run = sa.and_(Batch.shard_id == Shard.id, Shard.run_id == Run.id, Run.stopped_at.is_(None))
    return of_run if run_id is None else sa.and_(of_run, Run.id == run_id)


def _ready_batch(row: sa.Row[*tuple[Any, ...]]) -> ReadyBatch:
    samples = f"{row.dataset}[{row.start_idx}-{row.end_idx - 1}]"
    stages = tuple(map(Stage, row.stages))
    return ReadyBatch(row.id, row.next_stage, stages, row.lease_until, row.pinned_to, samples, row.run)


def _shard_values(run_id: int, shard: PlanShard) -> dict[str, Any]:
    values = asdict(shard)
    values.pop("line_number")
    line = values.pop("line")
    # Without a version, a shard has the key from before there were versions.
    version = {"version": shard.version} if values.pop("version") else {}
    key = hashlib.sha256(json.dumps({**values, **version}, sort_keys=True).encode()).hexdigest()
    return {"run_id": run_id, "key": key, "line": line, "expanded_to": shard.start_idx, **values}


def _insert_batches(connection: sa.Connection, shard_id: int, batches: Sequence[NewBatch]) -> list[int]:
    """Insert the batches without their samples; return their ids, in order."""
    arrays = {
        "starts": [batch.start_idx for batch in batches],
        "ends": [batch.end_idx for batch in batches],
        "first_stages": [batch.first_stage for batch in batches],
        "failed_counts": [batch.failed_count for batch in batches],
    }
    rows = connection.execute(_INSERT_BATCHES, {"shard_id": shard_id, **arrays})
    id_by_start: dict[int, int] = dict(map(tuple, rows))
    return [id_by_start[batch.start_idx] for batch in batches]


def _copy_samples(
    connection: sa.Connection, shard_id: int, batches: Sequence[NewBatch], ids: Sequence[int]
) -> None:
    """Insert the samples of these batches by COPY, the fastest way in."""
    lines = [
        _line(f"{shard_id}\t{batch_id}\t", sample)
        for batch, batch_id in zip(batches, ids, strict=True)
        for sample in batch.samples
    ]
    driver = connection.connection.driver_connection
    assert driver is not None
    try:
        with driver.cursor() as cursor, cursor.copy(_COPY_SAMPLES) as copy:
            copy.write("".join(lines))
    except psycopg.Error as error:
        # As SQLAlchemy would raise it, for callers that wait for a server that is away.
        raise sa.exc.DBAPIError.instance(_COPY_SAMPLES, None, error, psycopg.Error) from error


def _line(place: str, sample: NewSample) -> str:
    # JSON has escaped tabs and newlines, so only backslashes need escaping.
    entry = _JSON.encode(sample.entry).replace("\\", "\\\\")
    domain = _NULL if sample.domain is None else sample.domain.translate(_ESCAPES)
    if sample.failure is None:
        return f"{place}{sample.idx}\t{entry}\t{domain}\t{SampleState.PENDING}\t{_NO_FAILURE}\n"
    return f"{place}{sample.idx}\t{entry}\t{domain}\t{SampleState.FAILED}\t{_failure(sample.failure)}\n"


def _failure(failure: Failure) -> str:
    message = tables.storable(failure.message).translate(_ESCAPES)
    # PostgreSQL reads `now` as the time of the transaction.
    return "\t".join([failure.stage, failure.kind, message, "1", "now"])


def _insert_given(connection: sa.Connection, shard_id: int, batches: Sequence[NewBatch]) -> None:
    """Insert the results that new samples bring along."""
    given = {new.idx: new.results for batch in batches for new in batch.samples if new.results}
    if not given:
        return
    inserted = sa.select(Sample.id, Sample.idx).where(Sample.shard_id == shard_id, Sample.idx.in_(given))
    rows = connection.execute(inserted).all()
    insert_results(connection, [states.Outcome(row.id, given[row.idx]) for row in rows])
