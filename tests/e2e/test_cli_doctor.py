"""capflow-doctor as it is typed: what it finds, what it advises, and that it shows no password."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.database import connect
from tests import refusals
from tests.datasets import entries_with_pictures, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

Findings = dict[str, dict[str, Any]]


def examine(cli: Cli, *options: object) -> tuple[int, Findings]:
    """Exit code, and the findings by check; of several of one check the worst."""
    answer = cli.run("capflow-doctor", "--json", "--timeout", 0.2, *options)
    assert "Traceback" not in answer.stderr
    found = json.loads(answer.stdout)
    assert found["exit_code"] == answer.returncode
    order = ["ok", "warn", "fail"]
    findings = sorted(found["findings"], key=lambda finding: order.index(finding["level"]))
    return answer.returncode, {finding["check"]: finding for finding in findings}


def test_what_embeds_its_services_needs_none(cli: Cli) -> None:
    answer = cli.run("capflow-doctor")

    assert answer.returncode == 0, answer.stdout
    lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines()]
    checks = [check for _, check, _ in lines]
    assert checks == [
        "versions",
        "vllm",
        "ocr",
        "gpu",
        "model",
        "judge",
        "disk",
        "disk",
        "database",
        "broker",
    ]
    assert lines[-1][2] == "embedded: capflow caption starts it"


def test_what_waits_for_nobody_and_who_does_not_answer_is_reported(
    quick_cli: Cli, broker_url: str, database_url: str
) -> None:
    quick_cli.environment["CAPFLOW_BROKER_URL"] = broker_url
    engine = connect(database_url)
    WorkerStore(engine).beat("gpu0@far/1", [], 60)
    engine.dispose()
    with redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client:
        client.lpush("gpu:9", "message")
        client.lpush("gone@host.dq2", "message")

    code, found = examine(quick_cli)

    assert code == 0
    levels = {check: finding["level"] for check, finding in found.items()}
    assert levels["database"] == levels["schema"] == levels["broker"] == levels["broker policy"] == "ok"
    assert levels["workers"] == levels["queue"] == "warn"
    assert found["workers"]["said"].startswith("gpu0@far: no answer to Celery")
    assert found["queue"]["remedy"] == "celery -A capflow_tasks worker -Q gpu"
    assert "1 waiting, and no worker takes them" in found["queue"]["said"]


def test_an_empty_database_and_a_broker_that_forgets_fail_with_what_fixes_them(
    cli: Cli, broker_url: str, empty_database_url: str
) -> None:
    cli.environment |= {"CAPFLOW_DATABASE_URL": empty_database_url, "CAPFLOW_BROKER_URL": broker_url}
    with redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            code, found = examine(cli)
        finally:
            client.config_set("maxmemory-policy", "noeviction")

    assert code == 1
    assert (found["schema"]["level"], found["schema"]["remedy"]) == ("fail", "capflow db upgrade")
    assert found["broker policy"]["level"] == "fail"
    assert "noeviction" in found["broker policy"]["remedy"]


def test_servers_that_take_no_writes_fail_with_what_fixes_them(
    quick_cli: Cli, broker_url: str, database_url: str
) -> None:
    quick_cli.environment["CAPFLOW_BROKER_URL"] = broker_url
    with (
        redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client,
        refusals.read_only_database(database_url),
        refusals.replica(client),
    ):
        code, found = examine(quick_cli)

    assert code == 3
    assert "takes no writes" in found["database"]["said"]
    assert "CAPFLOW_DATABASE_URL to the primary" in found["database"]["remedy"]
    assert "read only replica" in found["broker"]["said"]
    assert "CAPFLOW_BROKER_URL to the primary" in found["broker"]["remedy"]


def test_services_that_cannot_be_reached_decide_the_exit_code_and_show_no_password(cli: Cli) -> None:
    cli.environment |= {
        "CAPFLOW_ENGINE": "vllm",
        "CAPFLOW_MODEL": "/models/gone",
        "CAPFLOW_DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/capflow?sslpassword=secret",
        "CAPFLOW_BROKER_URL": "redis://me:secret@127.0.0.1:1/0",
    }

    answer = cli.run("capflow-doctor")

    assert answer.returncode == 3
    failed = [line for line in answer.stdout.splitlines() if line.startswith("FAIL")]
    assert [line.split()[1] for line in failed] == ["model", "database", "broker"]
    assert "correct CAPFLOW_DATABASE_URL" in failed[1]
    assert "correct CAPFLOW_BROKER_URL" in failed[2]
    assert "secret" not in answer.stdout + answer.stderr


def test_media_that_are_not_here_are_reported_with_the_first_reason(cli: Cli) -> None:
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 3))
    (cli.folder / "media" / "1.png").unlink()

    code, found = examine(cli, "--plan", plan)

    assert code == 0
    assert found["media root"]["level"] == "ok"
    assert found["media"]["level"] == "warn"
    assert found["media"]["said"].startswith("2 of 3 sampled files can be read: ")
    assert "1.png does not exist" in found["media"]["said"]


def test_a_database_that_a_newer_capflow_has_made_is_one_sentence(quick_cli: Cli, database_url: str) -> None:
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'from_the_future'")
    engine.dispose()

    upgrade = quick_cli.run("capflow-db", "upgrade")
    code, found = examine(quick_cli)

    assert upgrade.returncode == 3
    assert "made by a newer Capflow" in upgrade.stderr
    assert "Traceback" not in upgrade.stderr
    assert code == 1
    assert "update the Capflow checkout" in found["schema"]["remedy"]
