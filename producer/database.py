"""The database for commands that only read; starts the embedded one for them where need be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from capflow_tasks.embedded import embedded_postgres, running_services, sole_use
from capflow_tasks.errors import ServiceError
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect, database_url, unreachable


def is_asleep(settings: Settings) -> bool:
    """Whether the database is the embedded one and nobody runs it: what is in it cannot change."""
    if settings.database_url is not None or not (settings.home / "postgres").is_dir():
        return False
    return running_services(settings.home) is None


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The database set or running, else the one that an earlier run has left under this home."""
    if is_asleep(settings):
        with sole_use(settings.home), embedded_postgres(settings.home) as url:
            yield url
    else:
        yield database_url(settings)


@contextmanager
def reading(url: str) -> Iterator[Engine]:
    """A pool for questions. Raises ServiceError when there is no server, or it lacks the tables."""
    engine = connect(url)
    try:
        yield engine
    except OperationalError as error:
        raise unreachable(engine, error) from error
    except ProgrammingError as error:
        raise ServiceError("the database lacks Capflow's tables; run capflow-db upgrade") from error
    finally:
        engine.dispose()
