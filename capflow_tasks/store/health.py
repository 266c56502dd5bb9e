"""What a doctor asks of the database: its version, its schema, and who is there. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, select, text

from capflow_tasks.store.database import alembic_config, revision_of
from capflow_tasks.store.states import BatchState
from capflow_tasks.store.tables import Batch, Worker


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    #: As in 15 or 18.
    server_version: int
    #: Of the schema; None before the first migration.
    revision: str | None
    #: The newest revision that this installation knows.
    head: str | None
    #: Whether this installation knows the schema's revision; else a newer one has made it.
    is_known: bool
    #: Connections that are open, and how many there may be.
    connections: int
    max_connections: int


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """A worker whose heart has beaten lately."""

    node: str
    seconds_since_beat: float
    running_batches: int


def health_of(engine: Engine) -> DatabaseHealth:
    with engine.connect() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))
        revision = revision_of(connection)
        known = {script.revision for script in scripts.walk_revisions()}
        return DatabaseHealth(
            server_version=_number(connection, "SELECT current_setting('server_version_num')") // 10_000,
            revision=revision,
            head=scripts.get_current_head(),
            is_known=revision is None or revision in known,
            connections=_number(connection, "SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL"),
            max_connections=_number(connection, "SELECT current_setting('max_connections')"),
        )


def workers_alive(engine: Engine, silent_seconds: float) -> list[WorkerHealth]:
    """Workers that are not silent for so long, by node."""
    running = (
        select(func.count())
        .where(Batch.lease_owner == Worker.owner, Batch.state == BatchState.RUNNING)
        .scalar_subquery()
    )
    age = func.extract("epoch", func.now() - Worker.seen_at)
    statement = (
        select(Worker.node, age, running)
        .where(Worker.seen_at > func.now() - timedelta(seconds=silent_seconds))
        .order_by(Worker.node)
    )
    with engine.connect() as connection:
        return [WorkerHealth(node, float(age), count) for node, age, count in connection.execute(statement)]


def _number(connection: Connection, question: str) -> int:
    return int(connection.execute(text(question)).scalar_one())
