"""Claims, leases and the ends of stages, in a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import MediaMissing
from capflow_tasks.records import Stage
from capflow_tasks.store.claims import NotClaimed, WorkerStore
from capflow_tasks.store.states import Claim, Outcome, RetryPolicy, Route
from tests.stores import Fleet, a_failure, a_result, some_entries

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(engine: Engine) -> Fleet:
    """One batch of four samples whose domain is known, waiting for its agents."""
    return Fleet(engine, some_entries(4), domain="Natural")


def test_of_many_that_claim_a_batch_one_wins(fleet: Fleet) -> None:
    def claim(number: int) -> Claim | NotClaimed:
        return fleet.batches.claim(fleet.batch_ids[0], Stage.PERCEIVE, f"worker {number}", 60)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(claim, range(24)))

    (won,) = [answer for answer in answers if isinstance(answer, Claim)]
    assert answers.count(NotClaimed.NOT_FREE) == 23
    assert (won.attempt, won.tries, won.dataset, won.stages) == (1, 1, "set", tuple(Stage))
    assert fleet.batch().lease_owner == won.owner


def test_a_batch_is_claimed_for_its_next_stage_only(fleet: Fleet) -> None:
    (batch_id,) = fleet.batch_ids

    assert fleet.batches.claim(batch_id, Stage.ROUTE, "w", 60) is NotClaimed.PASSED
    assert fleet.batches.claim(batch_id, Stage.SCORE, "w", 60) is NotClaimed.NOT_FREE
    assert fleet.batches.claim(-1, Stage.ROUTE, "w", 60) is NotClaimed.NOT_FREE


def test_a_batch_whose_lease_ran_out_goes_to_the_next_and_its_old_owner_writes_nothing(fleet: Fleet) -> None:
    late = fleet.claim(Stage.PERCEIVE, "first")
    fleet.let_leases_run_out()
    new = fleet.claim(Stage.PERCEIVE, "second")

    assert (new.attempt, new.tries) == (2, 2)
    assert not fleet.finish(late)
    assert fleet.count("results") == 0
    assert fleet.finish(new)
    assert fleet.count("results") == 4


def test_a_stage_that_is_written_late_is_kept_when_nobody_has_claimed_the_batch_since(fleet: Fleet) -> None:
    late = fleet.claim(Stage.PERCEIVE, "slow")
    fleet.let_leases_run_out()
    assert fleet.runs.requeue_stale() == 1

    assert fleet.finish(late)

    assert fleet.count("results") == 4
    assert fleet.batch().next_stage == Stage.REASON
    assert not fleet.finish(late)
    assert fleet.batches.claim(fleet.batch_ids[0], Stage.PERCEIVE, "other", 60) is NotClaimed.PASSED


def test_a_node_that_claims_again_is_not_mistaken_for_its_earlier_self(fleet: Fleet) -> None:
    first = fleet.claim(Stage.PERCEIVE, "same")
    fleet.let_leases_run_out()
    fleet.claim(Stage.PERCEIVE, "same")

    assert not fleet.finish(first)


def test_a_heartbeat_keeps_the_lease_of_its_owner_only(fleet: Fleet) -> None:
    fleet.claim(Stage.PERCEIVE, "mine", seconds=0)

    workers = WorkerStore(fleet.engine)

    workers.beat("somebody else", fleet.batch_ids, 60)
    assert not fleet.batch().is_waiting
    workers.beat("mine", fleet.batch_ids, 60)
    assert fleet.batch().is_waiting


def test_a_finished_stage_hands_the_batch_on_and_the_last_one_ends_it(fleet: Fleet) -> None:
    fleet.finish(fleet.claim(Stage.PERCEIVE))
    batch = fleet.batch()
    assert (batch.state, batch.next_stage, batch.tries, batch.is_waiting) == ("queued", "reason", 0, True)
    assert fleet.batches.claim(fleet.batch_ids[0], Stage.PERCEIVE, "w", 60) is NotClaimed.PASSED

    fleet.finish_all(first=Stage.REASON)

    batch = fleet.batch()
    assert (batch.state, batch.next_stage, batch.done_count, batch.failed_count) == ("done", None, 4, 0)
    assert batch.finished_at is not None
    assert fleet.sample_ids() == []


def test_a_result_exists_once_however_often_it_is_delivered(fleet: Fleet) -> None:
    sample_id = fleet.sample_ids()[0]
    twice = Outcome(sample_id, (a_result(Stage.PERCEIVE), a_result(Stage.PERCEIVE, text="another")))

    fleet.finish(fleet.claim(Stage.PERCEIVE), [twice])

    (result,) = fleet.batches.pending_samples(fleet.batch_ids[0])[0].results
    assert result == a_result(Stage.PERCEIVE)


def test_a_sample_that_fails_for_good_leaves_the_chain_and_the_others_go_on(fleet: Fleet) -> None:
    failed, *others = fleet.sample_ids()
    outcomes = [Outcome(failed, failure=a_failure(Stage.PERCEIVE, MediaMissing("gone")))]
    fleet.finish(fleet.claim(Stage.PERCEIVE), [*outcomes, *(Outcome(other) for other in others)])

    assert fleet.sample_ids() == others
    fleet.finish_all(first=Stage.REASON)

    assert (fleet.batch().done_count, fleet.batch().failed_count) == (3, 1)
    (failure,) = fleet.views.failures(fleet.run_id)
    assert (failure.dataset, failure.idx, failure.attempts, failure.worker) == ("set", 0, 1, "worker")
    assert (failure.failure.kind, failure.failure.message) == ("media_missing", "gone")


def test_a_batch_whose_samples_all_failed_ends_at_once(fleet: Fleet) -> None:
    failure = a_failure(Stage.PERCEIVE, MediaMissing("gone"))

    fleet.finish(fleet.claim(Stage.PERCEIVE), [Outcome(each, failure=failure) for each in fleet.sample_ids()])

    batch = fleet.batch()
    assert (batch.state, batch.done_count, batch.failed_count) == ("done", 0, 4)


def test_a_failure_that_may_pass_opens_the_batch_again_after_a_wait_that_doubles(fleet: Fleet) -> None:
    retry = RetryPolicy(max_attempts=3, first_wait_seconds=60)
    failed = fleet.sample_ids()[0]

    def run_and_fail(stages: list[Stage]) -> None:
        for stage in stages:
            claim = fleet.claim(stage)
            failure = a_failure(Stage.REASON) if stage is Stage.REASON else None
            outcomes = [
                Outcome(each, failure=failure if each == failed else None) for each in fleet.sample_ids()
            ]
            assert fleet.finish(claim, outcomes, retry)

    run_and_fail(list(Stage)[1:])
    assert (fleet.batch().state, fleet.batch().next_stage, fleet.batch().is_waiting) == (
        "ready",
        "reason",
        True,
    )
    assert fleet.sample_ids() == [failed]
    assert fleet.publish() == []
    assert 50 < fleet.wait_seconds() <= 60

    run_and_fail([Stage.REASON])
    assert 110 < fleet.wait_seconds() <= 120

    run_and_fail([Stage.REASON])
    assert (fleet.batch().state, fleet.batch().done_count, fleet.batch().failed_count) == ("done", 3, 1)
    assert fleet.views.failures(fleet.run_id)[0].attempts == 3


def test_a_sample_routed_with_too_little_confidence_is_held(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2), min_confidence=0.5)
    sure, unsure = fleet.sample_ids()

    outcomes = [Outcome(sure, route=Route("Natural", 0.5)), Outcome(unsure, route=Route("Natural", 0.49))]
    fleet.finish(fleet.claim(Stage.ROUTE), outcomes)

    assert fleet.sample_ids() == [sure]
    fleet.finish_all()
    assert (fleet.batch().done_count, fleet.batch().held_count) == (1, 1)


def test_a_stage_given_back_can_be_sent_again_after_its_wait(fleet: Fleet) -> None:
    fleet.batches.release(fleet.claim(Stage.PERCEIVE), wait_seconds=60)
    assert (fleet.batch().state, fleet.batch().lease_owner, fleet.batch().tries) == ("ready", None, 1)
    assert fleet.publish() == []

    fleet.let_leases_run_out()
    fleet.batches.release(fleet.claim(Stage.PERCEIVE), is_blameless=True)

    assert fleet.batch().tries == 1
    (ready,) = fleet.publish()
    assert (ready.id, ready.next_stage) == (fleet.batch_ids[0], Stage.PERCEIVE)


def test_a_batch_split_in_two_keeps_every_sample_and_its_results(fleet: Fleet) -> None:
    fleet.finish(fleet.claim(Stage.PERCEIVE))
    fleet.batches.split(fleet.claim(Stage.REASON))

    first, second = fleet.publish()
    assert [ready.next_stage for ready in (first, second)] == [Stage.REASON, Stage.REASON]
    halves = [fleet.batches.pending_samples(ready.id) for ready in (first, second)]
    assert [[sample.idx for sample in half] for half in halves] == [[0, 1], [2, 3]]
    assert all(len(sample.results) == 1 for half in halves for sample in half)
    for ready in (first, second):
        fleet.finish_all(ready.id, Stage.REASON)
    assert fleet.views.tally(fleet.run_id).done == 4


def test_a_batch_lost_to_another_cannot_be_split_or_given_back(fleet: Fleet) -> None:
    late = fleet.claim(Stage.PERCEIVE, "first")
    fleet.let_leases_run_out()
    fleet.claim(Stage.PERCEIVE, "second")

    fleet.batches.split(late)
    fleet.batches.release(late)

    assert fleet.count("batches") == 1
    assert (fleet.batch().state, fleet.batch().lease_owner) == ("running", "second")
