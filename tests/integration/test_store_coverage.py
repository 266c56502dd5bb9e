"""What is captioned already, over all runs."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import MediaMissing
from capflow_tasks.records import Stage
from capflow_tasks.store.states import NewBatch, NewSample, Outcome
from capflow_tasks.store.statistics import Coverage, coverage_of
from tests.stores import Fleet, a_failure, a_result, a_shard, some_entries

pytestmark = pytest.mark.integration

FILE = "/data/set.json"


def covered(engine: Engine) -> Coverage:
    return coverage_of(engine, lambda annotation: annotation)[FILE]


def test_finished_batches_that_touch_become_one_range(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(10), batch_size=2, domain="Natural")
    for batch_id in (fleet.batch_ids[0], fleet.batch_ids[1], fleet.batch_ids[4]):
        fleet.finish_all(batch_id)

    assert covered(engine) == Coverage([range(4), range(8, 10)], next_shard_index=1)


def test_a_sample_that_failed_or_waits_leaves_a_gap(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), domain="Natural")
    first, second, third, last = fleet.sample_ids()
    spoken = [Outcome(each, (a_result(Stage.PERCEIVE),)) for each in (first, third, last)]
    gone = Outcome(second, failure=a_failure(Stage.PERCEIVE, MediaMissing("gone")))
    fleet.finish(fleet.claim(Stage.PERCEIVE), [*spoken, gone])

    assert covered(engine).captioned == []

    fleet.finish_all(first=Stage.REASON)

    assert covered(engine).captioned == [range(1), range(2, 4)]


def test_a_run_that_only_routes_captions_nothing(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), stages=(Stage.ROUTE,))
    fleet.finish_all(first=Stage.ROUTE)

    assert covered(engine).captioned == []

    # The run is asked for more, and has not got to it yet.
    fleet.open_run(tuple(Stage))

    assert covered(engine).captioned == []


def test_a_run_without_judge_captions(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), domain="Natural", stages=tuple(Stage)[:4])
    fleet.finish_all()

    assert covered(engine).captioned == [range(4)]


def test_runs_add_up_and_files_nobody_asks_about_are_left_out(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), batch_size=2, domain="Natural")
    fleet.finish_all(fleet.batch_ids[1])
    other_run = fleet.runs.open_run("other", "/other.jsonl", "/out", tuple(Stage))
    shards = [a_shard(4, shard_index=3), a_shard(4, annotation="/data/other.json")]
    mine, other = fleet.runs.add_shards(other_run, shards)
    samples = [NewSample(index, {}, "Natural") for index in range(3)]
    (batch_id,) = fleet.runs.expand(mine.id, 0, [NewBatch(Stage.PERCEIVE, samples)]) or []
    fleet.finish_all(batch_id)
    fleet.runs.expand(other.id, 0, [NewBatch(Stage.PERCEIVE, samples)])

    found = coverage_of(engine, lambda annotation: "asked" if annotation == FILE else None)

    assert found == {"asked": Coverage([range(4)], next_shard_index=4)}


def test_a_database_without_runs_covers_nothing(engine: Engine) -> None:
    assert coverage_of(engine, lambda annotation: annotation) == {}
