"""--max-tokens and --max-cost pause a run; a higher limit goes on with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from capflow_tasks.store.states import BatchState
from capflow_tasks.store.tables import AgentResult, Batch
from tests.datasets import entries_with_pictures, read_lines, write_plan
from tests.e2e import engines
from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

SAMPLES = 24


@pytest.fixture
def plan(quick_cli: Cli) -> Path:
    """A plan that takes the slow engine some ten seconds."""
    quick_cli.environment |= {
        "CAPFLOW_ENGINE": "tests.e2e.engines:build_slow",
        engines.ANSWER_SECONDS: "0.3",
        "CAPFLOW_CONCURRENCY": "2",
    }
    (quick_cli.folder / "prices.yaml").write_text("models: {scripted: {prompt: 10, completion: 100}}")
    (quick_cli.folder / "none.yaml").write_text("models: {other: {prompt: 10, completion: 100}}")
    return write_plan(quick_cli.folder, entries_with_pictures(quick_cli.folder, SAMPLES))


@pytest.mark.parametrize(
    ("low", "reached", "high"),
    [
        (["--max-tokens", 10_000], "tokens of --max-tokens 10,000", ["--max-tokens", 10_000_000]),
        (
            ["--max-cost", 0.05, "--prices", "prices.yaml"],
            "of --max-cost 0.05",
            ["--max-cost", 1000, "--prices", "prices.yaml"],
        ),
        (["--max-cost", 1, "--prices", "none.yaml"], "a price of scripted", []),
    ],
)
def test_a_run_that_has_spent_its_budget_pauses_and_goes_on_with_a_higher_one(
    quick_cli: Cli, plan: Path, engine: Engine, low: Sequence[object], reached: str, high: Sequence[object]
) -> None:
    command = ("capflow", "caption", plan, "--output", "out", "--batch-size", 2)

    paused = quick_cli.run(*command, *low)

    assert paused.returncode == 5, paused.stderr
    assert "is paused: " in paused.stderr
    assert reached in paused.stderr
    assert "higher limit goes on from here" in paused.stderr
    with engine.connect() as connection:
        states = set(connection.execute(select(Batch.state)).scalars())
        before = connection.execute(select(func.count()).select_from(AgentResult)).scalar_one()
    # nothing is queued or cut off
    assert BatchState.READY in states
    assert states <= {BatchState.READY, BatchState.DONE}

    still = quick_cli.run("capflow", "resume", plan, "--json")
    assert still.returncode == 5
    assert reached in json.loads(still.stdout)["pause"]
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(AgentResult)).scalar_one() == before

    done = quick_cli.run(*command, *high)
    assert done.returncode == 0, done.stderr
    assert len(read_lines(quick_cli.folder / "out" / "Rank0_node0_set.jsonl")) == SAMPLES
    finished = quick_cli.run(*command, *low)
    assert finished.returncode == 0, finished.stderr


def test_a_scoring_pauses_too(quick_cli: Cli, plan: Path) -> None:
    stages = "route,perceive,reason,summarize"
    quick_cli.environment["CAPFLOW_ENGINE"] = "capflow_tasks.testing:build"
    quick_cli.run("capflow", "caption", plan, "--output", "out", "--stages", stages)
    quick_cli.environment["CAPFLOW_ENGINE"] = "tests.e2e.engines:build_slow"
    command = ("capflow", "score", "out", "--plan", plan, "--batch-size", 1)

    paused = quick_cli.run(*command, "--max-tokens", 1000)

    assert paused.returncode == 5, paused.stderr
    assert "of --max-tokens 1,000" in paused.stderr
    done = quick_cli.run(*command)
    assert done.returncode == 0, done.stderr
