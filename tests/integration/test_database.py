"""Migrations, and a database that cannot be reached."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import make_url

from capflow_tasks.errors import ServiceError
from capflow_tasks.store.database import SCHEMA_REVISION, alembic_config, connect, upgrade

pytestmark = pytest.mark.integration

TABLES = {"runs", "shards", "batches", "samples", "results"}


def upgrade_elsewhere(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "producer.cli", "db", "upgrade"],
        env=os.environ | {"CAPFLOW_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_migrations_make_what_the_models_say(engine: Engine) -> None:
    with engine.begin() as connection:
        command.check(alembic_config(connection))


def test_the_newest_migration_is_the_expected_revision(engine: Engine) -> None:
    with engine.connect() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))

    assert scripts.get_current_head() == SCHEMA_REVISION


def test_capflow_db_upgrade_makes_the_tables_and_may_be_repeated(empty_database_url: str) -> None:
    first, again = upgrade_elsewhere(empty_database_url), upgrade_elsewhere(empty_database_url)

    assert first.returncode == again.returncode == 0, first.stderr
    assert "is at revision" in first.stdout
    assert first.stdout == again.stdout
    engine = connect(empty_database_url)
    assert set(inspect(engine).get_table_names()) >= TABLES
    engine.dispose()


def test_processes_that_start_together_migrate_one_after_the_other(empty_database_url: str) -> None:
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(upgrade_elsewhere, [empty_database_url] * 3))

    assert [answer.returncode for answer in answers] == [0, 0, 0], answers
    assert len({answer.stdout for answer in answers}) == 1


@pytest.mark.parametrize(("threshold", "prepared"), [("", True), ("none", False), ("0", True)])
def test_a_pooler_between_gets_no_prepared_statements_when_the_url_says_so(
    database_url: str, threshold: str, prepared: bool
) -> None:
    url = make_url(database_url)
    url = url.update_query_dict({"prepare_threshold": threshold} if threshold else {})
    engine = connect(url.render_as_string(hide_password=False))
    with engine.connect() as connection:
        for _ in range(20):
            connection.execute(text("SELECT count(*) FROM batches"))
        names = connection.execute(text("SELECT name FROM pg_prepared_statements")).all()
    engine.dispose()

    assert bool(names) is prepared


def test_threads_take_turns_with_the_connections_of_a_pool(database_url: str) -> None:
    engine = connect(database_url, pool_size=3)
    meet = Barrier(3)

    def ask(number: int) -> int:
        with engine.connect() as connection:
            # Three threads hold a connection at a time, no fewer.
            meet.wait(10)
            count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            return int(connection.exec_driver_sql(count).scalar_one())

    with ThreadPoolExecutor(12) as threads:
        counts = list(threads.map(ask, range(12)))
    engine.dispose()

    assert max(counts) == 3


def turn_away(server: socket.socket, times: int) -> None:
    """Answer as PostgreSQL does while it starts, then be gone."""
    fields = (b"SFATAL", b"VFATAL", b"C57P03", b"Mthe database system is starting up")
    body = b"".join(field + b"\0" for field in fields) + b"\0"
    with server:
        for _ in range(times):
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"E" + struct.pack("!i", len(body) + 4) + body)


def test_a_database_that_is_starting_is_waited_for() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    url = f"postgresql+psycopg://user@127.0.0.1:{port}/capflow?sslmode=disable&gssencmode=disable"
    with ThreadPoolExecutor(1) as thread:
        turned_away = thread.submit(turn_away, server, times=3)
        with pytest.raises(ServiceError, match="refused"):
            upgrade(connect(url))

    assert turned_away.done()


def test_an_unreachable_database_is_named_without_its_password() -> None:
    engine = connect("postgresql+psycopg://user:secret@127.0.0.1:1/capflow")

    with pytest.raises(ServiceError) as refused:
        upgrade(engine)

    (sentence,) = str(refused.value).splitlines()
    assert "127.0.0.1:1/capflow" in sentence
    assert "refused" in sentence
    assert "CAPFLOW_DATABASE_URL" in sentence
    assert "secret" not in sentence
