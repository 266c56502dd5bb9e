"""Databases and brokers that are there and refuse to serve, while a run goes on and for every command."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import redis

from tests import refusals
from tests.conftest import Eventually
from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e import engines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def _assert_judges_wait(requests: Path) -> None:
    assert requests.exists()
    assert "score" in requests.read_text()


def _assert_logged(cli: Cli, pattern: str) -> None:
    """The broker's refusal is said where it connects, or where a message is sent on again."""
    assert re.search(pattern, cli.worker_log)


def broker_of(cli: Cli) -> redis.Redis:
    """The embedded Redis."""
    url = json.loads((cli.home / "services.json").read_text())["broker_url"]
    return redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"))


@pytest.mark.parametrize(
    ("refuse_database", "refuse_broker", "database_says", "broker_says"),
    [
        (refusals.read_only_database, refusals.replica, "it is a standby", "it is a replica|ReadOnlyError"),
        (
            refusals.no_connections,
            refusals.no_memory,
            "raise its max_connections",
            "raise its maxmemory|OutOfMemoryError",
        ),
    ],
)
def test_a_run_waits_for_servers_that_refuse_and_keeps_what_is_finished(
    quick_cli: Cli,
    eventually: Eventually,
    refuse_database: Callable[[str], AbstractContextManager[None]],
    refuse_broker: Callable[[redis.Redis], AbstractContextManager[None]],
    database_says: str,
    broker_says: str,
) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 6))
    requests, gate = quick_cli.folder / "requests", quick_cli.folder / "speak"
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.engines:build",
        "CAPFLOW_LEASE_SECONDS": "2",
        engines.REQUESTS: str(requests),
        engines.JUDGES_MAY_SPEAK: str(gate),
    }

    with quick_cli.start("capflow", "caption", plan, "-o", "out", "--batch-size", 2) as process:
        eventually(lambda: _assert_judges_wait(requests), 60)
        client = broker_of(quick_cli)
        with refuse_broker(client):
            with refuse_database(quick_cli.environment["CAPFLOW_DATABASE_URL"]):
                gate.touch()
                eventually(lambda: _assert_logged(quick_cli, database_says), 30)
            # what is written now cannot be sent on
            eventually(lambda: _assert_logged(quick_cli, broker_says), 30)
        client.close()
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert len(read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")) == 6
    assert set(Counter(requests.read_text().splitlines()).values()) == {1}
    assert quick_cli.worker_log.count(" ready.") == 1
    assert "CRITICAL" not in quick_cli.worker_log


def test_a_command_that_a_database_refuses_is_one_sentence(quick_cli: Cli) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, 1))

    with refusals.read_only_database(quick_cli.environment["CAPFLOW_DATABASE_URL"]):
        answer = quick_cli.run("capflow", "caption", plan)

    assert answer.returncode == 3, answer.stderr
    (sentence,) = answer.stderr.splitlines()
    assert "capflow caption: error: a server cannot be reached: cannot execute" in sentence
    assert "CAPFLOW_DATABASE_URL" in sentence
