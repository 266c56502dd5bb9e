"""What changes in a run when its plan or an annotation file was edited.

A shard that the plan no longer names is set aside: it counts no more, is sent no more, and keeps its samples
for a plan that names them again. A shard takes over batches from those set aside, in whatever state they are.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from capflow_tasks.errors import REFUSED_KINDS
from capflow_tasks.records import Stage
from capflow_tasks.store import tables
from capflow_tasks.store.states import STAGE_ORDER, BatchState, NewSample, SampleState, ShardRow
from capflow_tasks.store.tables import AgentResult, Batch, Sample, Shard, is_among, opened, unleased

#: Samples read at a time.
_PAGE = 2000

#: Values of a batch whose samples change: who claimed it before, even if its lease ran out, writes nothing.
_FENCED = {"attempt": Batch.attempt + 1}

# A sample that the producer refused, which no worker has seen.
_IS_REFUSED = sa.and_(
    Sample.state == SampleState.FAILED, Sample.error_kind.in_(REFUSED_KINDS), Sample.failed_by.is_(None)
)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A sample's entry as it was read."""

    sample_id: int
    batch_id: int
    entry: Any
    #: Why the producer refused it; None when it did not.
    refusal: str | None


class EditStore(tables.Store):
    """What an edited plan or annotation file changes in a run. Thread-safe."""

    def set_aside_others(self, run_id: int, kept_ids: Collection[int]) -> set[int]:
        """Set aside all other shards of the run; return their ids. Workers write nothing for them."""
        others = sa.and_(Shard.run_id == run_id, sa.not_(is_among(Shard.id, kept_ids)))
        moves = sa.update(Shard).where(others).values(run_id=None, set_aside_by=run_id)
        with self.engine.begin() as connection:
            return set(connection.execute(moves.returning(Shard.id)).scalars())

    def drop_emptied(self, run_id: int) -> None:
        """Delete shards that were set aside and have no batch left."""
        is_empty = ~sa.exists().where(Batch.shard_id == Shard.id)
        self.change(sa.delete(Shard).where(Shard.set_aside_by == run_id, is_empty))

    def take_over(self, row: ShardRow, earlier_ids: Collection[int]) -> int:
        """Move to the shard the samples that earlier ones hold, from its cursor on; return their count.

        A gap ends it. Batches that reach beyond the shard are cut in two.
        """
        end, moved = row.shard.end_idx, []
        held = sa.select(Batch.id, Batch.start_idx, Batch.end_idx, Shard.annotation_stamp)
        held = held.where(is_among(Batch.shard_id, earlier_ids), Batch.shard_id == Shard.id)
        with self.engine.begin() as connection:
            locked = sa.select(Shard.expanded_to).where(Shard.id == row.id).with_for_update()
            cursor = first = connection.execute(locked).scalar_one()
            inside = held.where(Batch.end_idx > first, Batch.start_idx < end).order_by(Batch.start_idx)
            stamps = set()
            for batch in connection.execute(inside).all():
                if batch.start_idx > cursor:
                    break
                if batch.end_idx <= cursor:
                    continue
                batch_id = _cut(connection, batch.id, cursor) if batch.start_idx < cursor else batch.id
                if batch.end_idx > end:
                    _cut(connection, batch_id, end)
                moved.append(batch_id)
                stamps.add(batch.annotation_stamp)
                cursor = min(batch.end_idx, end)
            if moved:
                _move(connection, moved, row.id, cursor, stamps.pop() if len(stamps) == 1 else None)
        return int(cursor - first)

    def gap_before(self, shard_id: int, earlier_ids: Collection[int]) -> range | None:
        """The samples between the shard's cursor and the first that earlier shards hold of its range."""
        held = sa.select(sa.func.min(Batch.start_idx)).where(is_among(Batch.shard_id, earlier_ids))
        held = held.where(Batch.end_idx > Shard.expanded_to, Batch.start_idx < Shard.end_idx)
        next_held = held.correlate(Shard).scalar_subquery()
        cursors = sa.select(Shard.expanded_to, next_held.label("start")).where(Shard.id == shard_id)
        (row,) = self.rows(cursors)
        return None if row.start is None else range(row.expanded_to, row.start)

    def stamps(self, run_id: int) -> dict[int, str | None]:
        """Size and time of the file that each shard of the run was read from, as noted."""
        noted = sa.select(Shard.id, Shard.annotation_stamp).where(Shard.run_id == run_id)
        return {row.id: row.annotation_stamp for row in self.rows(noted)}

    def note_stamps(self, stamps: Mapping[int, str]) -> None:
        """Note the stamps of files by shard."""
        if stamps:
            rows = [{"shard": shard_id, "stamp": stamp} for shard_id, stamp in stamps.items()]
            table = tables.Table.metadata.tables[Shard.__tablename__]
            noted = sa.update(table).where(table.c.id == sa.bindparam("shard"))
            with self.engine.begin() as connection:
                connection.execute(noted.values(annotation_stamp=sa.bindparam("stamp")), rows)

    def with_refused(self, run_id: int) -> set[int]:
        """The shards with entries that were refused."""
        refused = sa.select(Sample.shard_id).distinct()
        refused = refused.where(_IS_REFUSED, Sample.shard_id == Shard.id, Shard.run_id == run_id)
        return {shard_id for (shard_id,) in self.rows(refused)}

    def entries(self, shard_id: int) -> Iterator[StoredEntry]:
        """The entries of the shard's samples, in index order, read a page at a time."""
        refusal = sa.case((_IS_REFUSED, Sample.error_text)).label("refusal")
        of_shard = sa.select(Sample.id, Sample.batch_id, Sample.entry, refusal, Sample.idx)
        of_shard = of_shard.where(Sample.shard_id == shard_id).order_by(Sample.idx).limit(_PAGE)
        page = self.rows(of_shard)
        while page:
            for row in page:
                yield StoredEntry(row.id, row.batch_id, row.entry, row.refusal)
            page = self.rows(of_shard.where(Sample.idx > page[-1].idx))

    def correct(self, batch_id: int, samples: Mapping[int, NewSample], stage: Stage | None) -> bool:
        """Replace samples of the batch, by id, and open it at the stage; None leaves it as it is.

        Return False, with nothing changed, when a worker has the batch.
        """
        free = sa.select(Batch.state, Batch.next_stage).where(
            Batch.id == batch_id, Batch.lease_owner.is_(None)
        )
        with self.engine.begin() as connection:
            batch = connection.execute(free.with_for_update()).one_or_none()
            if batch is None:
                return False
            for sample_id, new in samples.items():
                connection.execute(sa.update(Sample).where(Sample.id == sample_id).values(**_values(new)))
            tables.forget_results(connection, is_among(AgentResult.sample_id, samples))
            if stage is not None:
                if batch.state is not BatchState.DONE:
                    stage = min(stage, batch.next_stage, key=STAGE_ORDER.__getitem__)
                reopens = sa.update(Batch).where(Batch.id == batch_id)
                connection.execute(reopens.values(next_stage=stage, **_FENCED, **opened()))
        return True


def _cut(connection: sa.Connection, batch_id: int, at: int) -> int:
    """Cut the batch in two at this index, and return the id of the second; who runs it writes nothing."""
    copied = [Batch.shard_id, Batch.end_idx, Batch.state, Batch.next_stage, Batch.finished_at]
    rest = sa.select(*copied, sa.literal(at, sa.BigInteger)).where(Batch.id == batch_id)
    names = [*(column.name for column in copied), "start_idx"]
    inserted = sa.insert(Batch).from_select(names, rest).returning(Batch.id)
    new_id: int = connection.execute(inserted).scalar_one()
    behind = sa.update(Sample).where(Sample.batch_id == batch_id, Sample.idx >= at)
    connection.execute(behind.values(batch_id=new_id))
    connection.execute(sa.update(Batch).where(Batch.id == batch_id).values(end_idx=at))
    for half in (batch_id, new_id):
        of_half = sa.update(Batch).where(Batch.id == half)
        connection.execute(of_half.where(Batch.state != BatchState.DONE).values(**_FENCED, **unleased()))
        tally = tables.tally_of(connection, Sample.batch_id == half)
        counts = {"done_count": tally.done, "failed_count": tally.failed, "held_count": tally.held}
        connection.execute(of_half.where(Batch.state == BatchState.DONE).values(**counts))
    return new_id


def _move(
    connection: sa.Connection, batch_ids: Collection[int], shard_id: int, cursor: int, stamp: str | None
) -> None:
    """Give the batches with their samples to the shard, whose cursor moves behind them."""
    moves = sa.update(Batch).where(is_among(Batch.id, batch_ids)).values(shard_id=shard_id)
    connection.execute(moves)
    connection.execute(
        sa.update(Sample).where(is_among(Sample.batch_id, batch_ids)).values(shard_id=shard_id)
    )
    now = {"expanded_to": cursor, "annotation_stamp": stamp}
    connection.execute(sa.update(Shard).where(Shard.id == shard_id).values(**now))


def _values(new: NewSample) -> dict[str, Any]:
    """Return the columns of a sample that nobody has worked on."""
    failure = new.failure
    return {
        "entry": new.entry,
        "domain": new.domain,
        "confidence": None,
        "state": SampleState.FAILED if failure else SampleState.PENDING,
        "error_stage": failure and failure.stage,
        "error_kind": failure and failure.kind,
        "error_text": failure and tables.storable(failure.message),
        "is_retryable": False,
        "attempts": 1 if failure else 0,
        "failed_by": None,
        "failed_at": sa.func.now() if failure else None,
        "candidate": 1,
        "media_stamp": None,
    }
