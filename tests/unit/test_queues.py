from __future__ import annotations

import pytest
from celery.worker import state as worker_state

from capflow_tasks.queues import PRIORITY_STEPS, StageRouter, task_name
from capflow_tasks.records import Stage

QUEUES = dict.fromkeys(Stage, "gpu") | {Stage.SCORE: "judge"}


@pytest.fixture
def router() -> StageRouter:
    return StageRouter(QUEUES)


def test_a_producer_sends_every_stage_to_its_queue(router: StageRouter) -> None:
    routes = [router(task_name(stage)) for stage in Stage]

    assert [route and route["queue"] for route in routes] == ["gpu", "gpu", "gpu", "gpu", "judge"]


def test_later_stages_go_first_on_redis(router: StageRouter) -> None:
    priorities = [(router(task_name(stage)) or {})["priority"] for stage in Stage]

    # 0 is the highest.
    assert priorities == sorted(priorities, reverse=True)
    assert len(set(priorities)) == len(Stage)
    assert sorted(priorities) == PRIORITY_STEPS


def test_a_worker_keeps_what_belongs_to_the_queues_it_serves(router: StageRouter) -> None:
    router.become_worker("node@host", frozenset({"gpu"}))

    direct, served_elsewhere = router(task_name(Stage.REASON)), router(task_name(Stage.SCORE))

    assert direct is not None
    assert "node@host" in str(direct["queue"])
    assert served_elsewhere == {"queue": "judge", "priority": 0}


@pytest.mark.parametrize("flag", ["should_stop", "should_terminate"])
def test_a_worker_that_stops_keeps_nothing(
    router: StageRouter, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    router.become_worker("node@host", frozenset({"gpu"}))
    monkeypatch.setattr(worker_state, flag, 0)

    route = router(task_name(Stage.REASON))

    assert route is not None
    assert route["queue"] == "gpu"


def test_tasks_of_others_are_left_to_celery(router: StageRouter) -> None:
    assert router("celery.backend_cleanup") is None
