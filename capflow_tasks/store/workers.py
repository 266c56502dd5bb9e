"""Who is there and what they hold: workers enlist, beat and resign; one that falls silent is buried."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from capflow_tasks.state import BatchState
from capflow_tasks.store.clauses import in_seconds
from capflow_tasks.store.tables import Batch, Worker

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
            .values(state=BatchState.READY, lease_owner=None, lease_until=func.now())
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
