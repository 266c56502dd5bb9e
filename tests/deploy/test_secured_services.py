"""A whole fleet with passwords, Redis's users and TLS; only the model is scripted."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from tests.conftest import Eventually
from tests.datasets import entries_with_pictures, write_plan
from tests.deploy.conftest import Secured, free_port, has_tls_servers
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


@pytest.fixture(params=["password_only", "with_tls"])
def secured(request: pytest.FixtureRequest) -> Secured:
    if request.param == "password_only" and has_tls_servers():
        pytest.skip("the TLS variant covers this")
    services: Secured = request.getfixturevalue(request.param)
    return services


def test_a_fleet_works_with_no_more_rights_than_it_is_given(
    cli: Cli, secured: Secured, eventually: Eventually
) -> None:
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 10))
    cli.environment["CAPFLOW_DATABASE_URL"] = secured.database_url
    cli.environment["FLOWER_BASIC_AUTH"] = "user:password"
    flower = Flower(free_port())

    with (
        running(cli, secured.watcher_url, "flower", "--read_only=True", f"--port={flower.port}"),
        running(cli, secured.broker_url, "worker", "-Q", "gpu", "-n", "gpu0@%h", "-l", "WARNING"),
    ):
        # What happens before it listens, Flower never learns.
        eventually(lambda: flower.assert_knows("gpu0@"), 60)
        answer = cli.run("capflow-produce", plan, "--output", "out", "--batch-size", 2, "--json")
        eventually(lambda: flower.assert_shows("capflow.score"))
        figures = cli.run("capflow-metrics", "--once")
        health = cli.run("capflow-doctor", "--json")

    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["done"] == 10
    assert "capflow_broker_up 1.0" in figures.stdout
    levels = {finding["check"]: finding["level"] for finding in json.loads(health.stdout)["findings"]}
    assert {
        levels[check] for check in ("database", "schema", "broker", "broker policy", "workers", "queue")
    } == {"ok"}
    # redis-py reports its version and ignores the refusal.
    assert {entry["object"] for entry in secured.admin.acl_log()} <= {"client", "client|setinfo"}


def test_flowers_user_of_redis_looks_and_cannot_put_work_into_a_queue(password_only: Secured) -> None:
    with redis.Redis.from_url(password_only.watcher_url) as watcher:
        assert watcher.llen("gpu:9") == 0
        for write in (watcher.lpush, watcher.rpush):
            with pytest.raises(redis.exceptions.NoPermissionError):
                write("gpu:9", "work")


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "CONFIG GET *", "KEYS *", "SHUTDOWN", "ACL LIST", "SET other 1"]
)
def test_workers_have_no_rights_beyond_their_queues(password_only: Secured, command: str) -> None:
    with (
        redis.Redis.from_url(password_only.broker_url) as worker,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        worker.execute_command(*command.split())


def test_nobody_is_let_in_without_a_password(password_only: Secured) -> None:
    url = password_only.broker_url
    stranger = redis.Redis.from_url(f"redis://{url.partition('@')[2]}")
    with stranger, pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()


@contextmanager
def running(cli: Cli, broker_url: str, *command: str) -> Iterator[None]:
    """Run a Celery process until the block ends."""
    cli.environment["CAPFLOW_BROKER_URL"] = broker_url
    with cli.start("celery", "-A", "capflow_tasks", *command) as process:
        try:
            yield
        finally:
            process.terminate()
            process.communicate(timeout=60)


@dataclass(frozen=True, slots=True)
class Flower:
    """The dashboard, read with its password."""

    port: int

    def assert_knows(self, worker: str) -> None:
        assert worker in str(self._ask("/workers?json=1"))

    def assert_shows(self, task: str) -> None:
        assert task in str(self._ask("/api/tasks"))
        assert self._ask("/api/queues/length")["active_queues"][0] == {"name": "gpu", "messages": 0}

    def _ask(self, path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Basic {base64.b64encode(b'user:password').decode()}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except OSError as error:
            raise AssertionError(error) from error
