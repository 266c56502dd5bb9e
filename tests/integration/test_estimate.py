"""What earlier runs tell about a plan's cost and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from capflow_tasks.records import PlanShard, Stage
from capflow_tasks.store.states import ONE_CANDIDATE, CandidatePolicy, Outcome
from capflow_tasks.store.statistics import Statistics
from producer.cost import read_prices
from producer.estimate import PlanEstimate, estimate
from tests.stores import Fleet, a_result, a_shard, some_entries

pytestmark = pytest.mark.integration

#: Of the four stages of a sample whose domain is known.
TOKENS = 4 * 13
STANDARD = ("standard", tuple(Stage), ONE_CANDIDATE)


def estimated(
    engine: Engine,
    shards: Sequence[PlanShard],
    asked: tuple[str, Sequence[Stage], CandidatePolicy] = STANDARD,
    models: set[str] | None = None,
) -> PlanEstimate | None:
    left = sum(shard.sample_count for shard in shards)
    return estimate(Statistics(engine), shards, left, asked, models, read_prices())


@pytest.fixture
def finished(engine: Engine) -> Fleet:
    fleet = Fleet(engine, some_entries(4), domain="Natural")
    fleet.finish_all()
    return fleet


@pytest.mark.parametrize("task", [None, "Natural", "Medical"])
def test_a_run_of_the_same_kind_tells_tokens_and_time(
    engine: Engine, finished: Fleet, task: str | None
) -> None:
    found = estimated(engine, [a_shard(1000, task=task)], models={"model"})

    assert found is not None
    assert found.tokens == 1000 * TOKENS
    assert found.seconds > 0
    assert found.usd is None
    assert "1,000 samples may take " in str(found)
    assert "52k tokens, as run run did (model; 1 worker)" in str(found)


@pytest.mark.parametrize(
    ("asked", "models"),
    [
        (STANDARD, {"another"}),
        (("fast", tuple(Stage), ONE_CANDIDATE), None),
        (("standard", (Stage.ROUTE,), ONE_CANDIDATE), None),
        (("standard", tuple(Stage), CandidatePolicy(3)), None),
    ],
)
def test_a_run_of_another_kind_tells_nothing(
    engine: Engine,
    finished: Fleet,
    asked: tuple[str, Sequence[Stage], CandidatePolicy],
    models: set[str] | None,
) -> None:
    assert estimated(engine, [a_shard(10)], asked, models) is None


def test_a_run_that_has_captioned_nothing_tells_nothing(engine: Engine) -> None:
    Fleet(engine, some_entries(4), domain="Natural")

    assert estimated(engine, [a_shard(10)]) is None


def test_text_that_a_tool_reads_takes_no_model_and_no_tokens(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), domain="Natural")
    read = replace(
        a_result(Stage.PERCEIVE, "recognized_text"), model="rapidocr", prompt_tokens=0, completion_tokens=0
    )
    outcomes = [Outcome(each, (a_result(Stage.PERCEIVE), read)) for each in fleet.sample_ids()]
    fleet.finish(fleet.claim(Stage.PERCEIVE), outcomes)
    fleet.finish_all(first=Stage.REASON)

    found = estimated(engine, [a_shard(1000)], models={"model"})

    assert found is not None
    assert found.tokens == 1000 * TOKENS
