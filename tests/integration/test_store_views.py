"""What can be asked of a run."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from capflow_tasks.errors import MediaMissing
from capflow_tasks.records import Stage
from capflow_tasks.store import views
from capflow_tasks.store.states import Outcome, Route, SampleState, Tally
from capflow_tasks.store.statistics import Statistics
from tests.stores import Fleet, a_failure, a_result, some_entries

pytestmark = pytest.mark.integration


def test_samples_are_counted_by_domain_and_stage(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4))
    first, second, third, last = fleet.sample_ids()
    routed = {first: "UI & Interaction", second: "Natural", third: "Natural"}
    outcomes = [
        Outcome(each, (a_result(Stage.ROUTE, "router"),), Route(domain, 0.9))
        for each, domain in routed.items()
    ]
    gone = Outcome(last, failure=a_failure(Stage.ROUTE, MediaMissing("gone")))
    fleet.finish(fleet.claim(Stage.ROUTE), [*outcomes, gone])
    fleet.finish_all()

    counts = Statistics(engine).domains(fleet.run_id, with_stages=True)

    assert [(row.domain, row.tally.done, row.tally.failed) for row in counts] == [
        ("Natural", 2, 0),
        ("UI & Interaction", 1, 0),
        (None, 0, 1),
    ]
    assert counts[0].by_stage == dict.fromkeys(Stage, 2)
    assert counts[2].by_stage == dict.fromkeys(Stage, 0)
    assert fleet.views.tally(fleet.run_id) == Tally(done=3, failed=1)


def test_progress_is_read_from_the_batches(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4), batch_size=2, domain="Natural")
    one, other = fleet.batch_ids
    fleet.finish_all(one)
    fleet.claim(Stage.PERCEIVE, batch_id=other)

    assert fleet.views.open_batches(fleet.run_id) == [other]
    assert fleet.views.finished(fleet.run_id, 60, []) == {one: Tally(done=2)}
    assert fleet.views.finished(fleet.run_id, 0, [one, other]) == {one: Tally(done=2)}
    assert fleet.views.finished(fleet.run_id, 0, range(10**6, 10**6 + 70_000)) == {}
    assert fleet.views.running(fleet.run_id) == 1
    assert fleet.views.running(fleet.run_id + 1) == 0


def test_finished_samples_come_in_order_whole_and_over_many_pages(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE", 3)
    fleet = Fleet(engine, some_entries(8), batch_size=3, domain="Natural")
    for batch_id in reversed(fleet.batch_ids):
        fleet.finish_all(batch_id)

    samples = list(fleet.views.finished_samples(fleet.shard_id, SampleState.DONE))

    assert [sample.index for sample in samples] == list(range(8))
    for sample in samples:
        assert sample.entry == {"image": f"{sample.index}.png"}
        assert [result.stage for result in sample.results] == list(Stage)[1:]
        assert (sample.domain, sample.confidence, sample.failure) == ("Natural", None, None)
    assert list(fleet.views.finished_samples(fleet.shard_id, SampleState.FAILED)) == []


def test_failures_are_listed_up_to_a_limit(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(4))
    failure = a_failure(Stage.ROUTE, MediaMissing("gone"))
    fleet.finish(fleet.claim(Stage.ROUTE), [Outcome(each, failure=failure) for each in fleet.sample_ids()])

    assert [row.idx for row in fleet.views.failures(fleet.run_id)] == [0, 1, 2, 3]
    assert [row.idx for row in fleet.views.failures(fleet.run_id, 2)] == [0, 1]
    failed = list(fleet.views.finished_samples(fleet.shard_id, SampleState.FAILED))
    assert [sample.failure for sample in failed] == [failure] * 4
