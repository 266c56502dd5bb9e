"""Captions by a tiny model of one family, judged by one of another, in two real workers with vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine, select

from capflow_tasks.records import Stage
from capflow_tasks.store.tables import AgentResult
from tests.checkpoints import NOISE_RULES, tiny_checkpoint
from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


@pytest.fixture
def cli_with_judge(quick_cli: Cli, broker_url: str) -> Iterator[Cli]:
    """A worker that writes captions, and one with another model on the queue `judge`."""
    quick_cli.environment |= {
        "CAPFLOW_BROKER_URL": broker_url,
        "CAPFLOW_ENGINE": "vllm",
        "CAPFLOW_MODEL": str(tiny_checkpoint("qwen2.5-vl")),
        "CAPFLOW_STAGE_QUEUES": json.dumps({"score": "judge"}),
        "CAPFLOW_QUEUE_MODELS": json.dumps({"judge": str(tiny_checkpoint("gemma3"))}),
        "CAPFLOW_MAX_MODEL_LEN": "16384",
        "CAPFLOW_MAX_ANSWER_TOKENS": "16",
        "CAPFLOW_GUARD_OFF": NOISE_RULES,
        "CAPFLOW_GPU_MEMORY_UTILIZATION": "0.2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    with ExitStack() as stack:
        for queue in ("gpu", "judge"):
            name = ("-Q", queue, "-n", f"{queue}@%h", "--loglevel", "WARNING")
            worker = quick_cli.start("celery", "-A", "capflow_tasks", "worker", *name)
            stack.callback(worker.communicate)
            stack.callback(worker.terminate)
        yield quick_cli


def test_a_worker_with_another_model_judges_what_the_first_one_wrote(
    cli_with_judge: Cli, engine: Engine
) -> None:
    cli = cli_with_judge
    plan = write_plan(cli.folder, entries_with_pictures(cli.folder, 2), task="Natural")

    answer = cli.run("capflow-produce", plan, "--output", "out", "--run", "judged")

    assert answer.returncode == 0, answer.stderr
    records = read_lines(cli.folder / "out" / "Rank0_node0_set.jsonl")
    assert [record["overall"] in (1, 2, 3) for record in records] == [True, True]
    with engine.connect() as connection:
        done = connection.execute(select(AgentResult.stage, AgentResult.model, AgentResult.worker))
        by = {(stage, model, worker.partition("@")[0]) for stage, model, worker in done}
    writer, judge = str(tiny_checkpoint("qwen2.5-vl")), str(tiny_checkpoint("gemma3"))
    written = (Stage.PERCEIVE, Stage.REASON, Stage.SUMMARIZE)
    assert by == {(stage, writer, "gpu") for stage in written} | {(Stage.SCORE, judge, "judge")}
    status = cli.run("capflow-status", "judged", "--json")
    assert json.loads(status.stdout)["grades"]["own_judges"] == []
    doctor = cli.run("capflow-doctor", "--json")
    assert "own model" not in doctor.stdout
