"""Who is there and what they hold: workers enlist, beat and resign; one that falls silent is buried."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Engine, and_, delete, func, insert, or_, select, update

from capflow_tasks.state import BatchState
from capflow_tasks.store.clauses import in_seconds
from capflow_tasks.store.tables import Batch, Worker


class WorkerStore:
    """The list of workers, and the leases that go with them. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def enlist(self, owner: str, node: str, queues: Sequence[str]) -> None:
        """Let it be known that this worker is there."""
        with self.engine.begin() as connection:
            connection.execute(insert(Worker).values(owner=owner, node=node, queues=list(queues)))

    def beat(self, owner: str, batch_ids: Sequence[int], lease_seconds: float) -> None:
        """The heartbeat: what this owner really runs, or has in its own queue, stays its own."""
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
            connection.execute(update(Worker).where(Worker.owner == owner).values(seen_at=func.now()))
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
            connection.execute(delete(Worker).where(Worker.owner == owner))

    def bury(self, silent_seconds: float) -> set[str]:
        """Strike off the workers that have been silent for so long; the nodes that have no worker now."""
        silent = Worker.seen_at < func.now() - timedelta(seconds=silent_seconds)
        with self.engine.begin() as connection:
            buried = set(connection.execute(delete(Worker).where(silent).returning(Worker.node)).scalars())
            return buried - set(connection.execute(select(Worker.node)).scalars())
