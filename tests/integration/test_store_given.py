"""Samples that bring results along, and shards with a version of their file."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from capflow_tasks.records import Stage
from capflow_tasks.store.claims import BatchStore
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import Claim, NewBatch, NewSample
from capflow_tasks.store.views import Views
from tests.stores import RETRY, a_result, a_shard

pytestmark = pytest.mark.integration

STAGES = (Stage.ROUTE, Stage.SCORE)


def test_a_stage_gets_what_a_sample_brought_with_it(engine: Engine) -> None:
    runs = RunStore(engine)
    (row,) = runs.add_shards(runs.open_run("run", "/folder", "/out", STAGES), [a_shard(2)])
    given = (a_result(Stage.SUMMARIZE, "general_summary", "NUL \0"), a_result(Stage.PERCEIVE, "natural"))
    samples = [NewSample(0, {}, "Natural", results=given), NewSample(1, {}, "Natural")]

    (batch_id,) = runs.expand(row.id, 0, [NewBatch(Stage.SCORE, samples)]) or []

    first, second = BatchStore(engine).pending_samples(batch_id)
    assert [(result.stage, result.text) for result in first.results] == [
        (Stage.PERCEIVE, "said"),
        (Stage.SUMMARIZE, "NUL \N{REPLACEMENT CHARACTER}"),
    ]
    assert second.results == ()


def test_another_version_is_another_shard_and_the_old_one_is_forgotten(engine: Engine) -> None:
    runs, views, batches = RunStore(engine), Views(engine), BatchStore(engine)
    run_id = runs.open_run("run", "/folder", "/out", STAGES)
    old, kept = runs.add_shards(run_id, [a_shard(2, version="1"), a_shard(2, annotation="/b", version="1")])
    new_batch = [NewBatch(Stage.SCORE, [NewSample(0, {}, "Natural")])]
    (old_batch,) = runs.expand(old.id, 0, new_batch) or []
    (kept_batch,) = runs.expand(kept.id, 0, new_batch) or []
    with runs.publishing(10, 60, run_id):
        pass
    claim = batches.claim(old_batch, Stage.SCORE, "worker", 60)
    assert isinstance(claim, Claim)
    other_run = runs.open_run("other", "/plan.jsonl", "/out", tuple(Stage))
    (other,) = runs.add_shards(other_run, [a_shard(2)])

    shards = [a_shard(2, version="2"), a_shard(2, annotation="/b", version="1")]
    new, same = runs.add_shards(run_id, shards)
    runs.forget_other_shards(run_id, [new.id, same.id])

    assert (new.id != old.id, same.id) == (True, kept.id)
    assert views.open_batches(run_id) == [kept_batch]
    # A worker with a forgotten batch finds it gone, and its message leads to nothing.
    assert not batches.finish_stage(claim, [], handoff_seconds=60, retry=RETRY)
    assert not isinstance(batches.claim(old_batch, Stage.SCORE, "worker", 60), Claim)
    with engine.connect() as connection:
        left = connection.exec_driver_sql("SELECT id FROM shards ORDER BY id").scalars().all()
    assert left == [kept.id, other.id, new.id]
