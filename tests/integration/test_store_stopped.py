"""A run that is stopped, goes on, or is deleted."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from capflow_tasks.records import Stage
from capflow_tasks.store.claims import NotClaimed
from capflow_tasks.store.figures import RunState
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import Claim, Outcome, StoppedRun
from capflow_tasks.store.statistics import Statistics
from tests.stores import Fleet, a_failure, some_entries

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(engine: Engine) -> Fleet:
    """Three batches of two samples whose domain is known."""
    return Fleet(engine, some_entries(6), batch_size=2, domain="Natural")


def test_stopping_a_run_takes_back_what_is_queued_and_counts_what_runs(fleet: Fleet) -> None:
    running, waiting, _ = (ready.id for ready in fleet.publish())
    fleet.claim(Stage.PERCEIVE, batch_id=running)

    assert fleet.runs.stop(fleet.run_id) == StoppedRun(taken_back=2, running=1)

    assert (fleet.batch(waiting).state, fleet.batch(running).state) == ("ready", "running")
    assert fleet.publish() == []
    assert fleet.runs.stop(fleet.run_id) == StoppedRun(taken_back=0, running=1)


def test_a_stopped_run_is_shown_as_stopped_although_batches_are_left(fleet: Fleet) -> None:
    fleet.publish()
    fleet.runs.stop(fleet.run_id)

    (run,) = Statistics(fleet.engine).runs(run_id=fleet.run_id)

    assert (run.state, run.open_batches) == (RunState.STOPPED, 3)


def test_a_message_of_a_stopped_run_leads_to_nothing(fleet: Fleet) -> None:
    fleet.publish()
    fleet.runs.stop(fleet.run_id)

    claim = fleet.batches.claim(fleet.batch_ids[0], Stage.PERCEIVE, "worker", 60)

    assert claim is NotClaimed.NOT_FREE
    assert (fleet.batch().state, fleet.batch().attempt) == ("ready", 0)


def test_a_batch_published_while_its_run_was_stopped_is_ready_when_its_message_arrives(fleet: Fleet) -> None:
    with fleet.runs.publishing(1, 3600, fleet.run_id) as (batch,):
        RunStore(fleet.engine).stop(fleet.run_id)
    assert fleet.batch(batch.id).state == "queued"

    assert fleet.batches.claim(batch.id, Stage.PERCEIVE, "worker", 60) is NotClaimed.NOT_FREE

    assert (fleet.batch(batch.id).state, fleet.batch(batch.id).lease_owner) == ("ready", None)


def test_a_stage_that_runs_when_its_run_is_stopped_is_written_and_goes_no_further(fleet: Fleet) -> None:
    claim = fleet.claim(Stage.PERCEIVE)
    fleet.runs.stop(fleet.run_id)

    assert fleet.finish(claim)

    assert fleet.count("results") == 2
    batch = fleet.batch()
    assert (batch.state, batch.next_stage, batch.lease_owner, batch.tries) == ("ready", "reason", None, 0)
    assert fleet.batches.claim(batch.id, Stage.REASON, "worker", 60) is NotClaimed.NOT_FREE


def test_the_last_stage_of_a_stopped_run_ends_its_batch(fleet: Fleet) -> None:
    for stage in list(Stage)[1:-1]:
        fleet.finish(fleet.claim(stage))
    claim = fleet.claim(Stage.SCORE)
    fleet.runs.stop(fleet.run_id)

    assert fleet.finish(claim)

    assert (fleet.batch().state, fleet.batch().done_count) == ("done", 2)


def test_a_worker_whose_lease_ran_out_in_a_stopped_run_can_still_write(fleet: Fleet) -> None:
    claim = fleet.claim(Stage.PERCEIVE)
    fleet.runs.stop(fleet.run_id)
    fleet.let_leases_run_out()

    assert fleet.runs.requeue_stale(fleet.run_id) == fleet.runs.requeue_stale() == 0
    assert fleet.batches.claim(claim.batch_id, Stage.PERCEIVE, "other", 60) is NotClaimed.NOT_FREE
    assert fleet.finish(claim)


def test_a_second_stop_takes_back_what_a_dead_worker_had(fleet: Fleet) -> None:
    fleet.claim(Stage.PERCEIVE)
    assert fleet.runs.stop(fleet.run_id) == StoppedRun(taken_back=0, running=1)
    fleet.let_leases_run_out()

    assert fleet.runs.stop(fleet.run_id) == StoppedRun(taken_back=1, running=0)


def test_the_same_command_goes_on_with_a_stopped_run(fleet: Fleet) -> None:
    fleet.publish()
    fleet.runs.stop(fleet.run_id)
    assert fleet.runs.is_stopped(fleet.run_id)

    assert fleet.open_run(tuple(Stage)) == fleet.run_id

    assert not fleet.runs.is_stopped(fleet.run_id)
    assert [batch.id for batch in fleet.publish()] == fleet.batch_ids
    for batch_id in fleet.batch_ids:
        fleet.finish_all(batch_id)
    assert fleet.views.tally(fleet.run_id).done == 6


def test_other_runs_go_on(fleet: Fleet) -> None:
    other = fleet.runs.open_run("other", "/plan.jsonl", "/out", tuple(Stage))

    fleet.runs.stop(other)

    assert [batch.id for batch in fleet.publish()] == fleet.batch_ids
    assert isinstance(fleet.batches.claim(fleet.batch_ids[0], Stage.PERCEIVE, "worker", 60), Claim)


def test_a_deleted_run_is_gone_with_its_rows_and_its_workers_write_nothing(fleet: Fleet) -> None:
    fleet.finish(fleet.claim(Stage.PERCEIVE))
    claim = fleet.claim(Stage.REASON)
    kept = fleet.runs.open_run("kept", "/plan.jsonl", "/out", tuple(Stage))

    fleet.runs.delete(fleet.run_id)

    assert {name: fleet.count(name) for name in ("shards", "batches", "samples", "results")} == dict.fromkeys(
        ("shards", "batches", "samples", "results"), 0
    )
    assert not fleet.finish(claim)
    assert fleet.batches.claim(claim.batch_id, Stage.REASON, "worker", 60) is NotClaimed.NOT_FREE
    assert (fleet.runs.is_stopped(fleet.run_id), fleet.runs.is_stopped(kept)) == (True, False)


def test_a_sample_that_failed_in_a_stopped_run_waits_for_the_run_to_go_on(fleet: Fleet) -> None:
    claim = fleet.claim(Stage.PERCEIVE)
    fleet.runs.stop(fleet.run_id)

    fleet.finish(claim, [Outcome(each, failure=a_failure(Stage.PERCEIVE)) for each in fleet.sample_ids()])
    fleet.let_leases_run_out()

    assert (fleet.batch().state, fleet.publish()) == ("ready", [])
