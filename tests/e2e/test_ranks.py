"""Shards shared by all workers, or pinned to those of their rank: real workers, one of them slow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from capflow_tasks.store.tables import AgentResult, Run, Sample, Shard
from tests.datasets import entries_with_pictures, write_plan
from tests.e2e import engines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

SAMPLES_PER_RANK = 8


def plan_of_two_ranks(folder: Path) -> Path:
    """Equal shards for ranks 0 and 1."""
    entries = [entry | {"task": "Natural"} for entry in entries_with_pictures(folder, 2 * SAMPLES_PER_RANK)]
    plan = write_plan(folder, entries)
    line = json.loads(plan.read_text())
    shards = (
        line
        | {"start_idx": start, "end_idx": start + SAMPLES_PER_RANK, "assign_rank": rank, "shard_index": rank}
        for rank, start in enumerate((0, SAMPLES_PER_RANK))
    )
    plan.write_text("".join(json.dumps(shard | {"num_shards": 2}) + "\n" for shard in shards))
    return plan


@pytest.fixture
def cli_with_workers(quick_cli: Cli, broker_url: str) -> Iterator[Cli]:
    """A worker for rank 0 and a slow one for rank 1; both take what is for all."""
    quick_cli.environment |= {"CAPFLOW_BROKER_URL": broker_url, "CAPFLOW_CONCURRENCY": "1"}
    slow = {"CAPFLOW_ENGINE": "tests.e2e.engines:build_slow", engines.ANSWER_SECONDS: "0.2"}
    with ExitStack() as stack:
        for rank, environment in enumerate(({}, slow)):
            cli = Cli(quick_cli.folder, quick_cli.environment | environment, quick_cli.mark)
            worker = cli.start(
                "celery", "-A", "capflow_tasks", "worker", "-Q", f"gpu,gpu.rank{rank}", "-n", f"rank{rank}@%h"
            )
            stack.callback(worker.communicate)
            stack.callback(worker.terminate)
        yield quick_cli


def samples_by_worker(engine: Engine, run: str) -> Counter[str]:
    """Judged samples of the run by the worker that judged them."""
    statement = (
        select(AgentResult.worker)
        .join(Sample, Sample.id == AgentResult.sample_id)
        .join(Shard, Shard.id == Sample.shard_id)
        .join(Run, Run.id == Shard.run_id)
        .where(Run.name == run, AgentResult.agent == "judge")
    )
    with engine.connect() as connection:
        return Counter(worker.partition("@")[0] for worker in connection.execute(statement).scalars())


def test_pinned_ranks_keep_their_shards_and_shared_ones_spare_the_slow_worker(
    cli_with_workers: Cli, engine: Engine
) -> None:
    plan = plan_of_two_ranks(cli_with_workers.folder)

    def produce(run: str, *flags: str) -> Counter[str]:
        answer = cli_with_workers.run(
            "capflow-produce", plan, "--run", run, "-o", run, "--batch-size", 1, *flags
        )
        assert answer.returncode == 0, answer.stderr
        return samples_by_worker(engine, run)

    assert produce("pinned", "--pin-ranks") == {"rank0": SAMPLES_PER_RANK, "rank1": SAMPLES_PER_RANK}
    shared = produce("shared")
    assert shared["rank0"] > shared["rank1"]
    assert shared.total() == 2 * SAMPLES_PER_RANK


def test_the_embedded_worker_takes_the_plans_ranks(quick_cli: Cli) -> None:
    plan = plan_of_two_ranks(quick_cli.folder)

    answer = quick_cli.run("capflow-produce", plan, "--pin-ranks", "--output", "out", "--json")

    assert json.loads(answer.stdout)["done"] == 2 * SAMPLES_PER_RANK, answer.stderr
    assert sorted(path.name for path in (quick_cli.folder / "out").glob("[!.]*")) == [
        "Rank0_node0_set.jsonl",
        "Rank1_node1_set.jsonl",
    ]
