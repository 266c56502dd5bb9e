"""The eight tables, what may stand in them, and the parts of statements that several modules use."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, REAL, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from capflow_tasks.records import Modality, Result, Stage, Workflow
from capflow_tasks.store.states import STAGE_ORDER, BatchState, SampleState, Tally

#: Names of constraints, so that a migration can name what it drops.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def _words(enum: type) -> sa.Enum:
    """Store an enum as text with a CHECK, so that a new value needs no ALTER TYPE."""
    return sa.Enum(
        enum,
        native_enum=False,
        create_constraint=True,
        length=16,
        name=enum.__name__.lower(),
        values_callable=lambda members: [member.value for member in members],
    )


class Table(DeclarativeBase):
    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar = {
        str: sa.Text,
        int: sa.BigInteger,
        float: DOUBLE_PRECISION,
        datetime: TIMESTAMP(timezone=True),
        Stage: _words(Stage),
        Modality: _words(Modality),
        BatchState: _words(BatchState),
        SampleState: _words(SampleState),
    }


class Run(Table):
    """One plan being captioned; captioning the plan again goes on with its run."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    plan: Mapped[str]
    output: Mapped[str]
    stages: Mapped[list[str]] = mapped_column(ARRAY(sa.Text))
    #: Samples routed with less confidence are held.
    min_confidence: Mapped[float] = mapped_column(server_default="0")
    #: Whether only the workers of a shard's rank may take its batches.
    pin_ranks: Mapped[bool] = mapped_column(server_default="false")
    #: A name, or the folder of its domain files.
    workflow: Mapped[str] = mapped_column(server_default=Workflow.STANDARD)
    #: Most captions of one sample, the overall grade below which it gets another, and the tokens of its
    #: answers from which on it gets none.
    candidates: Mapped[int] = mapped_column(sa.SmallInteger, server_default="1")
    min_overall: Mapped[int] = mapped_column(sa.SmallInteger, server_default="3")
    token_budget: Mapped[int | None]
    #: Whether an entry whose task is no domain fails, and whether entries without media are passed over.
    strict: Mapped[bool] = mapped_column(server_default="false")
    skips_text_only: Mapped[bool] = mapped_column(server_default="false")
    #: The most that it may spend, in tokens and in USD, and the price table, if it is not the built-in one.
    max_tokens: Mapped[int | None]
    max_cost: Mapped[float | None]
    prices: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    #: When the run was stopped; None for a run whose batches may be sent.
    stopped_at: Mapped[datetime | None]
    #: Why it paused by itself; None for one that goes on, or that someone stopped.
    pause: Mapped[str | None]
    #: Kinds of failures that no longer pause it, since `capflow resume`.
    accepted_failures: Mapped[list[str]] = mapped_column(ARRAY(sa.Text), server_default="{}")


class Shard(Table):
    """One line of a plan."""

    __tablename__ = "shards"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: None for a shard that the run's plan no longer names.
    run_id: Mapped[int | None] = mapped_column(sa.ForeignKey("runs.id", ondelete="CASCADE"))
    #: The run whose plan no longer names the shard, but may name its samples again.
    set_aside_by: Mapped[int | None] = mapped_column(sa.ForeignKey("runs.id", ondelete="CASCADE"))
    #: Digest of what identifies the line, so that a line may move inside its plan.
    key: Mapped[str]
    dataset: Mapped[str]
    annotation: Mapped[str]
    root: Mapped[str]
    task: Mapped[str | None]
    modality: Mapped[Modality]
    start_idx: Mapped[int]
    end_idx: Mapped[int]
    shard_index: Mapped[int]
    num_shards: Mapped[int]
    assign_rank: Mapped[int]
    line: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    #: Samples before this index have been inserted.
    expanded_to: Mapped[int]
    #: Size and time of the annotation file when these were read; None where they are not known.
    annotation_stamp: Mapped[str | None]

    __table_args__ = (
        # Prevents a second row for a line when its plan is captioned again.
        sa.UniqueConstraint("run_id", "key"),
        # Prevents a shard that counts although no plan names it, and one that no `delete` would remove.
        sa.CheckConstraint("num_nonnulls(run_id, set_aside_by) = 1", name="has_one_run"),
        # Prevents a cursor outside the shard.
        sa.CheckConstraint("expanded_to BETWEEN start_idx AND end_idx", name="expanded_to_inside"),
    )


class Batch(Table):
    """A few contiguous samples of a shard, which go through the stages together."""

    __tablename__ = "batches"

    id: Mapped[int] = mapped_column(primary_key=True)
    shard_id: Mapped[int] = mapped_column(sa.ForeignKey("shards.id", ondelete="CASCADE"))
    start_idx: Mapped[int]
    end_idx: Mapped[int]
    state: Mapped[BatchState]
    #: None when nothing is left to do.
    next_stage: Mapped[Stage | None]
    #: Counts claims; the number of a claim is its fencing token.
    attempt: Mapped[int] = mapped_column(server_default="0")
    #: Claims of the next stage that did not finish it.
    tries: Mapped[int] = mapped_column(server_default="0")
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    done_count: Mapped[int] = mapped_column(server_default="0")
    failed_count: Mapped[int] = mapped_column(server_default="0")
    held_count: Mapped[int] = mapped_column(server_default="0")
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        # Prevents two producers from inserting the same samples as two batches.
        sa.UniqueConstraint("shard_id", "start_idx"),
        # Prevents an empty batch, which would never be done.
        sa.CheckConstraint("end_idx > start_idx", name="not_empty"),
        # Prevents a scan of millions of done batches for ready and stale ones.
        sa.Index("ix_batches_open", "lease_until", postgresql_where="state <> 'done'"),
        # Prevents a scan of millions of done batches for the rate of the last minutes.
        sa.Index("ix_batches_finished", "finished_at", postgresql_where="finished_at IS NOT NULL"),
        # Prevents a scan at each heartbeat for the batches of its worker.
        sa.Index("ix_batches_owner", "lease_owner", postgresql_where="lease_owner IS NOT NULL"),
    )


class Sample(Table):
    """One entry of an annotation file."""

    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(primary_key=True)
    shard_id: Mapped[int] = mapped_column(sa.ForeignKey("shards.id", ondelete="CASCADE"))
    batch_id: Mapped[int] = mapped_column(sa.ForeignKey("batches.id", ondelete="CASCADE"))
    idx: Mapped[int]
    #: JSON instead of JSONB, which would not keep the order of keys.
    entry: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    state: Mapped[SampleState]
    domain: Mapped[str | None]
    confidence: Mapped[float | None]
    error_stage: Mapped[Stage | None]
    error_kind: Mapped[str | None]
    error_text: Mapped[str | None]
    is_retryable: Mapped[bool] = mapped_column(server_default="false")
    attempts: Mapped[int] = mapped_column(server_default="0")
    failed_by: Mapped[str | None]
    failed_at: Mapped[datetime | None]
    #: Which of its captions is being written; once it is done, which was chosen.
    candidate: Mapped[int] = mapped_column(sa.SmallInteger, server_default="1")
    #: Sizes and times of its media when they were first answered about; None where they are not known.
    media_stamp: Mapped[str | None]

    __table_args__ = (
        # Prevents two rows for one entry, and a sort at export.
        sa.UniqueConstraint("shard_id", "idx"),
        # Prevents a scan when a worker loads its batch.
        sa.Index(None, "batch_id"),
        # Prevents a scan of millions of done samples for the failed ones.
        sa.Index("ix_samples_failed", "shard_id", "error_kind", postgresql_where="state = 'failed'"),
        # Prevents a failure without a reason.
        sa.CheckConstraint("state <> 'failed' OR error_kind IS NOT NULL", name="failed_has_kind"),
    )


class Worker(Table):
    """A worker process that sends heartbeats."""

    __tablename__ = "workers"

    #: Node name and a part that is new at every start, as in `batches.lease_owner`.
    owner: Mapped[str] = mapped_column(primary_key=True)
    #: Celery's node name, as in `celery@host`.
    node: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    #: Why it takes no work; None while it takes some.
    fault: Mapped[str | None]
    #: `broker`, and by queue what the worker must have in common with the others there.
    traits: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))


class WorkerGpus(Table):
    """The GPUs that a worker held; stays when the worker is gone, since costs are computed from it."""

    __tablename__ = "worker_gpus"

    #: As in `workers.owner` and `results.worker`.
    owner: Mapped[str] = mapped_column(primary_key=True)
    #: For each of its models: 4 with four GPUs per model, 0.5 where two models share one.
    gpus: Mapped[float] = mapped_column(REAL)


class AgentResult(Table):
    """One agent's answer about one sample."""

    __tablename__ = "results"

    # The primary key prevents a second row for a result that is delivered twice.
    sample_id: Mapped[int] = mapped_column(sa.ForeignKey("samples.id", ondelete="CASCADE"), primary_key=True)
    #: Which caption of the sample it wrote or graded; 1 for answers that all of them share.
    candidate: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, server_default="1")
    stage: Mapped[Stage] = mapped_column(primary_key=True)
    agent: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]
    data: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    model: Mapped[str]
    workflow: Mapped[str]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    finish_reason: Mapped[str]
    seconds: Mapped[float] = mapped_column(REAL)
    worker: Mapped[str]
    #: The agent's place in its workflow, from 0.
    position: Mapped[int] = mapped_column(sa.SmallInteger)
    guard: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    expected: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    revision: Mapped[str | None]
    engine: Mapped[str | None]
    sampling: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    checks: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


#: The outcome of an answer that was right, and thrown away to be asked for again.
FORGOTTEN = "forgotten"


class Refused(Table):
    """An answer of a failed sample that was thrown away, or a forgotten one; its tokens count for costs."""

    __tablename__ = "refused_answers"

    id: Mapped[int] = mapped_column(primary_key=True)
    # The index prevents a scan when samples are deleted.
    sample_id: Mapped[int] = mapped_column(sa.ForeignKey("samples.id", ondelete="CASCADE"), index=True)
    candidate: Mapped[int] = mapped_column(sa.SmallInteger)
    stage: Mapped[Stage]
    agent: Mapped[str]
    #: The worst rule that it broke; None for an answer that could not be parsed.
    rule: Mapped[str | None]
    outcome: Mapped[str]
    model: Mapped[str]
    worker: Mapped[str]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    seconds: Mapped[float] = mapped_column(REAL)
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


def forget_results(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> None:
    """Delete these results; what they cost stays, as refused answers that are FORGOTTEN."""
    kept = {column.name for column in Refused.__table__.columns}
    names = [column.name for column in AgentResult.__table__.columns if column.name in kept]
    costs = sa.select(*(getattr(AgentResult, name) for name in names), sa.literal(FORGOTTEN))
    # A tool takes no tokens.
    costs = costs.where(*which, AgentResult.prompt_tokens + AgentResult.completion_tokens > 0)
    connection.execute(sa.insert(Refused).from_select([*names, "outcome"], costs))
    connection.execute(sa.delete(AgentResult).where(*which))


def is_among(column: Any, ids: Iterable[int]) -> sa.ColumnElement[bool]:
    """The column is one of these ids, which are one parameter: PostgreSQL takes 65,535 at most."""
    return column == sa.any_(sa.literal(list(ids), ARRAY(sa.BigInteger)))  # type: ignore[no-any-return]


def in_seconds(seconds: float) -> sa.ColumnElement[Any]:
    return sa.func.now() + timedelta(seconds=seconds)


def storable(text: str) -> str:
    """Replace NUL and halves of surrogate pairs, which PostgreSQL cannot store."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def unleased(wait_seconds: float = 0) -> dict[str, Any]:
    """Values of a batch that may be sent again after a wait."""
    return {"state": BatchState.READY, "lease_owner": None, "lease_until": in_seconds(wait_seconds)}


def opened(wait_seconds: float = 0) -> dict[str, Any]:
    """Values of a batch that may be sent again after a wait, with all its tries."""
    return unleased(wait_seconds) | {"tries": 0, "finished_at": None}


def results_of(connection: sa.Connection, sample_ids: Sequence[int]) -> defaultdict[int, tuple[Result, ...]]:
    """Return the results of these samples by candidate, each in workflow order."""
    columns = (getattr(AgentResult, field.name) for field in fields(Result))
    statement = sa.select(AgentResult.sample_id, *columns).where(AgentResult.sample_id.in_(sample_ids))
    found: defaultdict[int, tuple[Result, ...]] = defaultdict(tuple)
    rows = connection.execute(statement).all()
    # The windows of one agent share its position; their names sort by time.
    for row in sorted(rows, key=lambda row: (row.candidate, STAGE_ORDER[row.stage], row.position, row.agent)):
        found[row.sample_id] += (Result(*row[1:]),)
    return found


def tally_of(connection: sa.Connection, are_counted: sa.ColumnElement[bool]) -> Tally:
    """Count the finished ones of these samples by state."""
    states = (SampleState.DONE, SampleState.FAILED, SampleState.HELD)
    counts = (sa.func.count().filter(Sample.state == state) for state in states)
    return Tally(*map(int, connection.execute(sa.select(*counts).where(are_counted)).one()))


class Store:
    """Statements on the tables. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def rows(self, statement: sa.Select[*tuple[Any, ...]]) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        with self.engine.connect() as connection:
            return connection.execute(statement).all()

    def change(self, statement: sa.UpdateBase) -> int:
        """Execute the statement in a transaction of its own; return the number of rows it changed."""
        with self.engine.begin() as connection:
            return connection.execute(statement).rowcount
