"""Whether the database is there, new enough, and migrated."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from capflow_tasks.store.database import shown
from capflow_tasks.store.health import DatabaseHealth, health_of
from producer.doctor.finding import Finding, fail, ok, warn

_OLDEST_SERVER = 15
#: Share of its connections that a server may have in use.
_CROWDED = 0.8


def check_database(engine: Engine) -> Iterator[Finding]:
    # A password may stand among the options, too.
    url = shown(engine.url.render_as_string(hide_password=False)).partition("?")[0]
    try:
        health = health_of(engine)
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        yield fail(
            "database",
            f"{url}: {reason}",
            "start PostgreSQL, or correct CAPFLOW_DATABASE_URL",
            is_service=True,
        )
        return
    yield _version(url, health)
    yield _schema(health)
    yield _connections(health)


def _version(url: str, health: DatabaseHealth) -> Finding:
    said = f"{url}: PostgreSQL {health.server_version}"
    if health.server_version < _OLDEST_SERVER:
        return fail("database", said, f"upgrade the server to PostgreSQL {_OLDEST_SERVER} or newer")
    return ok("database", said)


def _schema(health: DatabaseHealth) -> Finding:
    if health.revision == health.head:
        return ok("schema", f"at revision {health.revision}, the newest")
    said = f"at revision {health.revision}, not at {health.head}"
    if not health.is_known:
        return fail("schema", f"{said}: a newer Capflow has made it", "pip install --upgrade capflow")
    return fail("schema", said, "capflow-db upgrade")


def _connections(health: DatabaseHealth) -> Finding:
    said = f"{health.connections} of {health.max_connections} are open"
    if health.connections > _CROWDED * health.max_connections:
        return warn("connections", said, "raise max_connections, or put PgBouncer before the server")
    return ok("connections", said)
