"""The embedded PostgreSQL: a recovery that takes longer than the library waits."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from capflow_tasks.errors import ServiceError
from capflow_tasks.fleet.embedded import embedded_postgres

pytestmark = pytest.mark.integration


@pytest.fixture
def home() -> Iterator[Path]:
    # Not in pytest's own folder: PostgreSQL, which runs as another user than root, may not enter it.
    with tempfile.TemporaryDirectory(prefix="capflow-embedded-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def ask(url: str, query: str) -> str:
    bare = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(bare) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def test_a_recovery_that_takes_longer_than_the_library_waits_is_waited_for_and_told(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with embedded_postgres(home):
        pass
    data = home / "postgres"
    # It asks an archive for each file that it recovers from.
    with (data / "postgresql.conf").open("a") as settings:
        settings.write("restore_command = 'sleep 7; false'\n")
    (data / "recovery.signal").touch()

    with caplog.at_level(logging.WARNING), embedded_postgres(home) as url:
        assert ask(url, "SELECT 1") == "1"

    assert "embedded PostgreSQL recovers from a crash" in caplog.text


def test_a_recovery_syncs_the_file_system_once_instead_of_each_file(home: Path) -> None:
    with embedded_postgres(home):
        pass
    with embedded_postgres(home) as url:
        assert ask(url, "SHOW recovery_init_sync_method") == "syncfs"


def test_a_server_that_cannot_start_says_where_its_log_is(home: Path) -> None:
    with embedded_postgres(home):
        pass
    with (home / "postgres" / "postgresql.conf").open("a") as settings:
        settings.write("shared_buffers = 'no number'\n")

    with pytest.raises(ServiceError, match=str(home / "postgres" / "log")), embedded_postgres(home):
        pass
