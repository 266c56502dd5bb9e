"""Alembic, for whoever has something to migrate: it takes half a second to import."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from capflow_tasks.errors import ServiceError
from capflow_tasks.store.database import shown

_PACKAGE = Path(__file__).parent.parent


def migrate(connection: Connection) -> None:
    """Bring the schema to its newest revision. Raises ServiceError when a newer Capflow has made it."""
    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        url = shown(str(connection.engine.url))
        raise ServiceError(
            f"the database {url} was made by a newer Capflow: {error}; upgrade this one"
        ) from error


def alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_scripts()))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _scripts() -> Path:
    """Inside the package when installed from a wheel, beside it in a checkout."""
    packaged = _PACKAGE / "migrations"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "migrations"
