"""What `capflow doctor` asks of the database server: version, schema and connections. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from capflow_tasks.store.database import alembic_config, revision_of


@dataclass(frozen=True, slots=True)
class DatabaseHealth:
    #: As in 15 or 18.
    server_version: int
    #: The schema's revision; None before the first migration.
    revision: str | None
    #: The newest revision that this installation knows.
    head: str | None
    #: Whether this installation knows the schema's revision; if not, a newer Capflow made it.
    is_known: bool
    #: Open connections, and how many the server allows.
    connections: int
    max_connections: int


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


def _number(connection: Connection, question: str) -> int:
    return int(connection.execute(text(question)).scalar_one())
