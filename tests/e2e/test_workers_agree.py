"""Workers of one queue that would caption differently: the later one is refused, with the difference."""

from __future__ import annotations

import subprocess

import pytest
from sqlalchemy import Engine

from capflow_tasks.store.statistics import Statistics
from tests.conftest import Eventually
from tests.e2e.conftest import Cli
from tests.e2e.test_nodes_at_fault import working

pytestmark = pytest.mark.e2e

OTHER = {"CAPFLOW_MAX_PIXELS": "501760", "CAPFLOW_MODEL": "Qwen/Qwen2.5-VL-72B-Instruct"}


def start(cli: Cli, queue: str = "gpu", **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a worker that is expected to end by itself."""
    worker = Cli(cli.folder, cli.environment | environment, cli.mark)
    return worker.run("celery", "-A", "capflow_tasks", "worker", "-Q", queue, "-n", "late@%h")


def test_a_worker_that_differs_is_refused_until_the_others_have_stopped(
    quick_cli: Cli, engine: Engine, broker_url: str, eventually: Eventually
) -> None:
    def are_alive(*nodes: str) -> None:
        workers = Statistics(engine).workers(lease_seconds=45)
        assert {each.node.partition("@")[0] for each in workers if each.is_alive} == set(nodes)

    cli = quick_cli
    domains = cli.folder / "domains"
    domains.mkdir()
    (domains / "_defaults.yaml").write_text("system: You see.\n")
    cli.environment |= {"CAPFLOW_BROKER_URL": broker_url}
    cli.environment["CAPFLOW_STAGE_QUEUES"] = '{"score": "judge"}'

    with working(cli, "first", cli.folder):
        eventually(lambda: are_alive("first"), 60)
        with working(cli, "alike", cli.folder):
            eventually(lambda: are_alive("first", "alike"), 60)
        refused = start(cli, **OTHER)
        refused_for_domains = start(cli, CAPFLOW_DOMAINS=str(domains))
        with working(cli, "mixed", cli.folder, CAPFLOW_MIXED_WORKERS="1", **OTHER):
            eventually(lambda: are_alive("first", "mixed"), 60)
    with working(cli, "next", cli.folder, **OTHER):
        eventually(lambda: are_alive("next"), 60)

    assert refused.returncode == 2, refused.stderr
    (sentence,) = [line for line in refused.stderr.splitlines() if line.startswith("capflow worker: error")]
    assert "this worker differs from first@" in sentence
    assert "was first on queue gpu: model is Qwen/Qwen2.5-VL-72B-Instruct, not Qwen/Qwen2.5-VL-7B" in sentence
    assert "CAPFLOW_MAX_PIXELS is 501760, not 1003520" in sentence
    assert "stop the others first" in sentence
    assert refused_for_domains.returncode == 2, refused_for_domains.stderr
    assert "domains is " in refused_for_domains.stderr
    assert "this worker differs from first@" in (cli.folder / "mixed.log").read_text()
