"""Connects to PostgreSQL and migrates its schema."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from capflow_tasks import outages
from capflow_tasks.errors import ServiceError

if TYPE_CHECKING:
    from alembic.config import Config

#: The newest revision of the schema.
SCHEMA_REVISION = "2026_11_26_checks"


#: How long a thread waits for its turn with a connection: as long as for a database that is away.
_POOL_SECONDS = 600


def connect(url: str, pool_size: int = 5) -> Engine:
    """Create a pool of at most so many connections, which survives a restart of the server.

    The URL may have psycopg's `prepare_threshold`. `none` is for a PgBouncer in transaction mode, where the
    next statement may come to another connection than the one that prepared it.
    """
    location = make_url(url)
    arguments: dict[str, Any] = {"connect_timeout": 10, "application_name": "capflow"}
    if isinstance(threshold := location.query.get("prepare_threshold"), str):
        arguments["prepare_threshold"] = None if threshold == "none" else int(threshold)
    return create_engine(
        location.difference_update_query(["prepare_threshold"]),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_SECONDS,
        pool_pre_ping=True,
        pool_recycle=1800,
        # Otherwise the message of a failed statement writes captions to the log.
        hide_parameters=True,
        connect_args=arguments,
    )


def shown(url: str) -> str:
    """Format the URL without its password."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=True)


def upgrade(engine: Engine) -> str:
    """Migrate the schema to its newest revision, if it is older, and return the revision.

    Waits for a server that answers that it cannot serve yet. Raises ServiceError when it still cannot after
    30 s or nobody answers, and when a newer Capflow made the schema.
    """
    try:
        _upgrade(engine)
    except DBAPIError as error:
        raise unavailable(engine, error) from error
    return SCHEMA_REVISION


def _has_answered(error: BaseException) -> bool:
    """Return whether a server is there that may serve in a moment."""
    return outages.is_outage(error) and outages.remedy(error) is not None


@retry(retry=retry_if_exception(_has_answered), stop=stop_after_delay(30), wait=wait_fixed(0.5), reraise=True)
def _upgrade(engine: Engine) -> None:
    with engine.begin() as connection:
        if revision_of(connection) == SCHEMA_REVISION:
            return
        # Imported here because Alembic takes half a second, and there is rarely anything to migrate.
        from alembic import command
        from alembic.util.exc import CommandError

        # Processes that start together migrate one after the other.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7321405)")
        try:
            command.upgrade(alembic_config(connection), "head")
        except CommandError as error:
            url = shown(str(engine.url))
            raise ServiceError(
                f"the database {url} was made by a newer Capflow: {error}; upgrade this one"
            ) from error


def revision_of(connection: Connection) -> str | None:
    """Return the schema's revision; None before the first migration."""
    if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar() is None:
        return None
    revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return revision


def unavailable(engine: Engine, error: DBAPIError) -> ServiceError:
    """Say why the database is away. Raises the error itself when it is not."""
    if not outages.is_outage(error):
        raise error
    remedy = outages.remedy(error) or "start it, or correct CAPFLOW_DATABASE_URL"
    return ServiceError(
        f"the database {shown(str(engine.url))} cannot be reached: {outages.reason(error)}; {remedy}"
    )


def alembic_config(connection: Connection) -> "Config":
    from alembic.config import Config

    # A wheel has the migrations inside the package, a checkout has them beside it.
    package = Path(__file__).parent.parent
    packaged = package / "migrations"
    config = Config()
    scripts = packaged if packaged.is_dir() else package.parent / "migrations"
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


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
    #: Whether it takes no writes, as a standby.
    is_read_only: bool
    #: Open connections, and how many the server allows.
    connections: int
    max_connections: int


def health_of(engine: Engine) -> DatabaseHealth:
    """Return what `capflow doctor` checks of the server."""
    from alembic.script import ScriptDirectory

    with engine.connect() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))
        revision = revision_of(connection)
        known = {None, *(script.revision for script in scripts.walk_revisions())}
        numbers = connection.exec_driver_sql(
            "SELECT current_setting('server_version_num')::int / 10000, count(*),"
            " current_setting('max_connections')::int, current_setting('transaction_read_only')::bool"
            " FROM pg_stat_activity WHERE datid IS NOT NULL"
        )
        version, used, most, is_read_only = numbers.one()
        head, is_known = scripts.get_current_head(), revision in known
        return DatabaseHealth(version, revision, head, is_known, is_read_only, used, most)
