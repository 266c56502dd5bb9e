"""What a producer does to the database: runs, shards, new batches, and batches sent again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import BadEntry, MediaMissing
from capflow_tasks.records import Stage
from capflow_tasks.store.claims import NotClaimed
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import (
    NewBatch,
    NewSample,
    Outcome,
    ReadyBatch,
    Route,
    SampleState,
    WaitingMessages,
)
from capflow_tasks.store.views import Views
from tests.stores import Fleet, a_failure, a_shard, some_entries

pytestmark = pytest.mark.integration

NOTHING_WAITS = WaitingMessages({}, ())


def test_a_run_opened_again_is_the_same_run_with_what_is_asked_of_it_now(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), stages=(Stage.ROUTE,))

    assert fleet.open_run(tuple(Stage)) == fleet.run_id
    assert fleet.claim(Stage.ROUTE).stages == tuple(Stage)


def test_a_plan_line_is_one_shard_however_often_and_wherever_it_stands(engine: Engine) -> None:
    runs = RunStore(engine)
    run_id = runs.open_run("run", "/plan.jsonl", "/out", tuple(Stage))
    one, other = a_shard(4, line_number=1), a_shard(4, start_idx=2, shard_index=1, line_number=2)

    first = runs.add_shards(run_id, [one, other])
    again = runs.add_shards(run_id, [other, a_shard(4, line_number=7, line={"note": "moved"})])

    assert [row.id for row in again] == [first[1].id, first[0].id]
    assert [row.expanded_to for row in first] == [0, 2]


def test_two_producers_that_expand_a_shard_insert_each_sample_once(engine: Engine) -> None:
    runs = RunStore(engine)
    run_id = runs.open_run("run", "/plan.jsonl", "/out", tuple(Stage))
    (row,) = runs.add_shards(run_id, [a_shard(8)])
    batches = [
        NewBatch(Stage.ROUTE, [NewSample(idx, {"image": "a"}, None) for idx in range(start, start + 2)])
        for start in range(0, 8, 2)
    ]
    together = Barrier(4)

    def expand(_: int) -> list[int] | None:
        together.wait()
        return runs.expand(row.id, 0, batches)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(expand, range(4)))

    (ids,) = [answer for answer in answers if answer is not None]
    assert len(ids) == 4
    with engine.connect() as connection:
        counted = connection.exec_driver_sql("SELECT count(*), count(DISTINCT idx) FROM samples").one()
    assert tuple(counted) == (8, 8)
    assert runs.add_shards(run_id, [a_shard(8)])[0].expanded_to == 8


def test_entries_that_cannot_start_are_failed_samples_and_keys_keep_their_order(engine: Engine) -> None:
    runs = RunStore(engine)
    run_id = runs.open_run("run", "/plan.jsonl", "/out", tuple(Stage))
    (row,) = runs.add_shards(run_id, [a_shard(2)])
    failure = a_failure(Stage.ROUTE, BadEntry("no media"))
    bad = NewSample(0, {"z": "größe", "a": "\U0001f600"}, None, failure)
    views = Views(engine)

    runs.expand(row.id, 0, [NewBatch(None, [bad])])

    assert views.open_batches(run_id) == []
    (failed,) = views.failures(run_id)
    assert (failed.idx, failed.failure.kind, failed.attempts, failed.worker) == (0, "bad_entry", 1, None)
    (sample,) = views.finished_samples(row.id, SampleState.FAILED)
    assert list(sample.entry.items()) == [("z", "größe"), ("a", "\U0001f600")]


def test_batches_are_queued_once_they_have_been_published(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(6), batch_size=2)

    published = fleet.publish()

    assert [ready.id for ready in published] == fleet.batch_ids
    assert {ready.next_stage for ready in published} == {Stage.ROUTE}
    assert fleet.batch().state == "queued"
    assert fleet.publish() == []


def test_a_publisher_that_fails_leaves_its_batches_ready(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2), batch_size=2)

    def publish_and_fail() -> None:
        with fleet.runs.publishing(10, 60) as ready:
            raise ConnectionError(f"{len(ready)} batches, no broker")

    with pytest.raises(ConnectionError, match="1 batches"):
        publish_and_fail()

    assert [batch.id for batch in fleet.publish()] == fleet.batch_ids


def test_two_publishers_send_different_batches(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), batch_size=2)

    with fleet.runs.publishing(1, 60) as first, fleet.runs.publishing(10, 60) as second:
        assert [ready.id for ready in (*first, *second)] == fleet.batch_ids


def test_what_was_queued_or_leased_for_too_long_is_sent_again(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(6), batch_size=2)
    lost, dead, alive = (ready.id for ready in fleet.publish())
    fleet.claim(Stage.ROUTE, batch_id=dead)
    assert fleet.runs.requeue_stale(fleet.run_id) == 0
    fleet.let_leases_run_out()
    fleet.claim(Stage.ROUTE, batch_id=alive)

    assert fleet.runs.requeue_stale(fleet.run_id) == 2

    assert {ready.id for ready in fleet.publish()} == {lost, dead}
    assert fleet.batches.claim(alive, Stage.ROUTE, "other", 60) is NotClaimed.NOT_FREE


def test_a_wiped_broker_costs_no_batch_that_waits_and_stops_none_that_runs(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), batch_size=2)
    waiting, running = (ready.id for ready in fleet.publish())
    fleet.claim(Stage.ROUTE, batch_id=running)

    assert fleet.runs.outside_queues(NOTHING_WAITS, 60, fleet.run_id) == {waiting}
    assert fleet.runs.requeue_lost([waiting, running]) == 1

    assert [ready.id for ready in fleet.publish()] == [waiting]


def test_a_message_waits_behind_the_one_that_is_taken_next_and_not_before_it(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(6), batch_size=2)
    early, late, _ = fleet.publish()
    fleet.age(early.id, 100)

    def outside(queue: Stage, taken_next: ReadyBatch, slack_seconds: float) -> set[int]:
        waiting = WaitingMessages({(queue, None): taken_next.queued_until}, ())
        return fleet.runs.outside_queues(waiting, slack_seconds, fleet.run_id)

    assert outside(Stage.ROUTE, late, 60) == {early.id}
    assert outside(Stage.ROUTE, late, 200) == set()
    assert outside(Stage.SCORE, late, 200) == set(fleet.batch_ids)


def test_a_batch_in_the_own_queue_of_a_worker_waits_as_long_as_that_holds_messages(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2))
    (batch,) = fleet.publish()
    fleet.finish(fleet.claim(Stage.ROUTE, owner="w1@host/1"))

    assert fleet.runs.outside_queues(WaitingMessages({}, ["w1@host"]), 60) == set()
    assert fleet.runs.outside_queues(WaitingMessages({}, ["w2@host"]), 60) == {batch.id}
    handed_on = WaitingMessages({(Stage.PERCEIVE, None): batch.queued_until}, ())
    assert fleet.runs.outside_queues(handed_on, 60) == set()


def test_one_run_leaves_the_batches_of_another_alone(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2))
    fleet.publish()
    fleet.let_leases_run_out()

    assert fleet.runs.requeue_stale(fleet.run_id + 1) == 0
    assert fleet.runs.outside_queues(NOTHING_WAITS, 60, fleet.run_id + 1) == set()
    with fleet.runs.publishing(10, 60, fleet.run_id + 1) as ready:
        assert ready == []


def test_a_wider_run_goes_on_where_a_narrower_one_stopped(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2), stages=(Stage.ROUTE,))
    outcomes = [Outcome(each, route=Route("Natural", 0.9)) for each in fleet.sample_ids()]
    fleet.finish(fleet.claim(Stage.ROUTE), outcomes)
    assert fleet.batch().state == "done"
    fleet.open_run(tuple(Stage))

    assert fleet.runs.continue_run(fleet.run_id, tuple(Stage), 0) == 1

    (ready,) = fleet.publish()
    assert (ready.next_stage, ready.stages) == (Stage.PERCEIVE, tuple(Stage))
    assert len(fleet.sample_ids()) == 2
    assert fleet.runs.continue_run(fleet.run_id, tuple(Stage), 0) == 0


def test_a_held_sample_goes_on_when_a_run_asks_for_less(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(2), min_confidence=0.9)
    sure, unsure = fleet.sample_ids()
    routes = [Outcome(sure, route=Route("Natural", 0.95)), Outcome(unsure, route=Route("Natural", 0.6))]
    fleet.finish(fleet.claim(Stage.ROUTE), routes)
    fleet.finish_all()
    assert fleet.runs.continue_run(fleet.run_id, tuple(Stage), 0.7) == 0

    assert fleet.runs.continue_run(fleet.run_id, tuple(Stage), 0.6) == 1

    assert (fleet.batch().state, fleet.batch().next_stage) == ("ready", "perceive")
    assert fleet.sample_ids() == [unsure]


def test_held_samples_of_a_run_that_only_routes_are_done_when_it_asks_for_less(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1), stages=(Stage.ROUTE,), min_confidence=0.9)
    (unsure,) = fleet.sample_ids()
    fleet.finish(fleet.claim(Stage.ROUTE), [Outcome(unsure, route=Route("Natural", 0.6))])

    fleet.runs.continue_run(fleet.run_id, (Stage.ROUTE,), 0.5)

    assert all(ready.next_stage is not None for ready in fleet.publish())


def test_failed_samples_are_opened_again_by_kind_and_domain_but_never_bad_entries(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(3), domain="Natural")
    gone, slow, _ = fleet.sample_ids()
    failures = {
        gone: a_failure(Stage.PERCEIVE, MediaMissing("gone")),
        slow: a_failure(Stage.PERCEIVE, BadEntry()),
    }
    outcomes = [Outcome(each, failure=failures.get(each)) for each in fleet.sample_ids()]
    fleet.finish(fleet.claim(Stage.PERCEIVE), outcomes)
    fleet.finish_all(first=Stage.REASON)

    assert fleet.runs.retry_failed(fleet.run_id, kinds=["request_timeout"]) == 0
    assert fleet.runs.retry_failed(fleet.run_id, domains=["Medical & Bio-Imaging"]) == 0
    assert fleet.runs.retry_failed(fleet.run_id, kinds=["media_missing"], domains=["Natural"]) == 1

    assert fleet.sample_ids() == [gone]
    (ready,) = fleet.publish()
    assert ready.next_stage is Stage.PERCEIVE
    fleet.finish_all()
    assert (fleet.batch().done_count, fleet.batch().failed_count) == (2, 1)
