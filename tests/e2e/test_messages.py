"""How many messages a batch costs the broker: counted by Redis itself, under a real worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.conftest import Eventually
from tests.datasets import entries_with_pictures, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

#: A task that the plan names spares the route.
STAGES = ["perceive", "reason", "summarize", "score"]


@pytest.fixture
def client(broker_url: str) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client:
        yield client


@pytest.mark.parametrize(("samples", "batch_size"), [(6, 1), (6, 6), (24, 6)])
def test_a_batch_takes_one_message_per_stage_however_many_samples_it_has(
    quick_cli: Cli,
    client: redis.Redis,
    broker_url: str,
    eventually: Eventually,
    samples: int,
    batch_size: int,
) -> None:
    plan = write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, samples), task="Natural")
    quick_cli.environment["CAPFLOW_BROKER_URL"] = broker_url

    with quick_cli.start("celery", "-A", "capflow_tasks", "worker", "-Q", "gpu") as worker:
        eventually(lambda: _assert_listens(client), 60)
        client.config_resetstat()
        answer = quick_cli.run("capflow-produce", plan, "--output", "out", "--batch-size", batch_size)
        pushed = client.info("commandstats")["cmdstat_lpush"]["calls"]
        worker.terminate()
        worker.communicate(timeout=60)

    assert answer.returncode == 0, answer.stderr
    # One more asks the workers, once a run, whether they see the media.
    assert pushed == samples // batch_size * len(STAGES) + 1


def _assert_listens(client: redis.Redis) -> None:
    """The worker waits for messages."""
    assert any("brpop" in str(each["cmd"]) for each in client.client_list())
