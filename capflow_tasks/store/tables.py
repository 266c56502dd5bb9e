"""The six tables. What may stand in them is said here; what is done with them, in `store`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, REAL, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from capflow_tasks.records import Modality, Stage
from capflow_tasks.store.states import BatchState, SampleState

#: Names of constraints, so that a migration can name what it drops.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def _words(enum: type) -> Enum:
    """Stored as text with a CHECK: a new word needs no ALTER TYPE, and psql shows it as it is."""
    return Enum(
        enum,
        native_enum=False,
        create_constraint=True,
        length=16,
        name=enum.__name__.lower(),
        values_callable=lambda members: [member.value for member in members],
    )


class Table(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar = {
        str: Text,
        int: BigInteger,
        float: DOUBLE_PRECISION,
        datetime: TIMESTAMP(timezone=True),
        Stage: _words(Stage),
        Modality: _words(Modality),
        BatchState: _words(BatchState),
        SampleState: _words(SampleState),
    }


class Run(Table):
    """One plan being captioned; running the same plan again goes on with its run."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    plan: Mapped[str]
    output: Mapped[str]
    stages: Mapped[list[str]] = mapped_column(ARRAY(Text))
    #: Samples routed with less confidence are held; 0 holds none.
    min_confidence: Mapped[float] = mapped_column(server_default="0")
    #: Whether only the workers of a shard's rank may take it.
    pin_ranks: Mapped[bool] = mapped_column(server_default="false")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    #: When the run was stopped; None for a run whose batches may be sent.
    stopped_at: Mapped[datetime | None]


class Shard(Table):
    """One line of a plan."""

    __tablename__ = "shards"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    #: Digest of what identifies the line, so that a line moved inside its plan stays itself.
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
    line: Mapped[dict[str, Any]] = mapped_column(JSON)
    #: Samples before this index have been inserted.
    expanded_to: Mapped[int]

    __table_args__ = (
        # One row per line, however often the plan is run.
        UniqueConstraint("run_id", "key"),
        # The cursor cannot leave the shard.
        CheckConstraint("expanded_to BETWEEN start_idx AND end_idx", name="expanded_to_inside"),
    )


class Batch(Table):
    """A short contiguous run of a shard's samples: what one chain carries."""

    __tablename__ = "batches"

    id: Mapped[int] = mapped_column(primary_key=True)
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"))
    start_idx: Mapped[int]
    end_idx: Mapped[int]
    state: Mapped[BatchState]
    #: The stage to run next; None when nothing is left to do.
    next_stage: Mapped[Stage | None]
    #: Counts claims; the number of a claim is its fencing token.
    attempt: Mapped[int] = mapped_column(server_default="0")
    #: Claims of the next stage that came to nothing so far; finishing a stage sets it to 0.
    tries: Mapped[int] = mapped_column(server_default="0")
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime] = mapped_column(server_default=func.now())
    done_count: Mapped[int] = mapped_column(server_default="0")
    failed_count: Mapped[int] = mapped_column(server_default="0")
    held_count: Mapped[int] = mapped_column(server_default="0")
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        # Two producers cannot insert the same samples as two batches.
        UniqueConstraint("shard_id", "start_idx"),
        # An empty batch would never be found done.
        CheckConstraint("end_idx > start_idx", name="not_empty"),
        # Keeps looking for ready and stale batches as quick at 10 million batches as at ten.
        Index("ix_batches_open", "lease_until", postgresql_where="state <> 'done'"),
        # The rate of the last minutes must not read the millions that ended before.
        Index("ix_batches_finished", "finished_at", postgresql_where="finished_at IS NOT NULL"),
        # A heartbeat finds what its worker holds; NULL for all that nobody holds.
        Index("ix_batches_owner", "lease_owner", postgresql_where="lease_owner IS NOT NULL"),
    )


class Sample(Table):
    """One entry of an annotation file."""

    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(primary_key=True)
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"))
    batch_id: Mapped[int] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    idx: Mapped[int]
    #: As text (JSON, not JSONB), so that the order of keys comes out as it went in.
    entry: Mapped[dict[str, Any]] = mapped_column(JSON)
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

    __table_args__ = (
        # One row per entry; also the exporter's order.
        UniqueConstraint("shard_id", "idx"),
        # A worker loads its batch by this.
        Index(None, "batch_id"),
        # Listing failures must not read the millions that are done.
        Index("ix_samples_failed", "shard_id", "error_kind", postgresql_where="state = 'failed'"),
        # A failure without a reason is a mystery.
        CheckConstraint("state <> 'failed' OR error_kind IS NOT NULL", name="failed_has_kind"),
    )


class Worker(Table):
    """A worker process that has been seen; one that is not seen any more has died."""

    __tablename__ = "workers"

    #: Node name and a part that is new at every start: what batches name as their lease's owner.
    owner: Mapped[str] = mapped_column(primary_key=True)
    #: Celery's node name, as in `celery@host`.
    node: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AgentResult(Table):
    """What one agent said about one sample."""

    __tablename__ = "results"

    # The key that makes a result exist once, whoever delivers it how often.
    sample_id: Mapped[int] = mapped_column(ForeignKey("samples.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[Stage] = mapped_column(primary_key=True)
    agent: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    model: Mapped[str]
    workflow: Mapped[str]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    finish_reason: Mapped[str]
    seconds: Mapped[float] = mapped_column(REAL)
    worker: Mapped[str]
    #: The agent's place in its workflow: the order in which reports are shown.
    position: Mapped[int] = mapped_column(SmallInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
