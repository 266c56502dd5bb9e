"""Asks the database what is captioned already, and starts the embedded one for it where need be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError, ProgrammingError

from capflow_tasks.embedded import embedded_postgres, running_services, sole_use
from capflow_tasks.errors import ServiceError
from capflow_tasks.settings import Settings
from capflow_tasks.store.coverage import coverage_of
from capflow_tasks.store.database import connect, database_url, unreachable
from producer.planning.remaining import Captioned


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The database set or running, else the one that an earlier run has left under this home."""
    is_asleep = (settings.home / "postgres").is_dir() and not running_services(settings.home)
    if settings.database_url is None and is_asleep:
        with sole_use(settings.home), embedded_postgres(settings.home) as url:
            yield url
    else:
        yield database_url(settings)


def captioned_in(url: str, files: Sequence[str]) -> dict[str, Captioned]:
    """What any run has captioned of these annotation files, given and answered by real path."""
    asked = frozenset(files)

    def name_of(annotation: str) -> str | None:
        file = os.path.realpath(annotation)
        return file if file in asked else None

    engine = connect(url)
    try:
        covered = coverage_of(engine, name_of)
    except OperationalError as error:
        raise unreachable(engine, error) from error
    except ProgrammingError as error:
        raise ServiceError("the database lacks Capflow's tables; run capflow-db upgrade") from error
    finally:
        engine.dispose()
    return {file: Captioned(found.captioned, found.next_shard_index) for file, found in covered.items()}
