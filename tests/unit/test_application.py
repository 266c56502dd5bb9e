"""Routing of messages, queues of ranks, TLS to the broker."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from celery.worker import state as worker_state

from capflow_tasks.fleet.application import PRIORITY_STEPS, RANK_HEADER, StageRouter, make_app, task_name
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings

QUEUES = dict.fromkeys(Stage, "gpu") | {Stage.SCORE: "judge"}


def route(router: StageRouter, task: str, **headers: Any) -> dict[str, Any]:
    """Call the router as Celery does."""
    return router(task, (), {"batch_id": 1}, {"headers": headers}, None) or {}


@pytest.fixture
def router() -> StageRouter:
    return StageRouter(QUEUES)


def test_a_producer_sends_every_stage_to_its_queue(router: StageRouter) -> None:
    routes = [route(router, task_name(stage)) for stage in Stage]

    assert [way["queue"] for way in routes] == ["gpu", "gpu", "gpu", "gpu", "judge"]


def test_later_stages_go_first_on_redis(router: StageRouter) -> None:
    priorities = [route(router, task_name(stage))["priority"] for stage in Stage]

    # 0 is the highest.
    assert priorities == sorted(priorities, reverse=True)
    assert len(set(priorities)) == len(Stage)
    assert sorted(priorities) == PRIORITY_STEPS


def test_a_worker_keeps_what_belongs_to_the_queues_it_serves(router: StageRouter) -> None:
    router.become_worker("node@host", frozenset({"gpu"}))

    direct, served_elsewhere = route(router, task_name(Stage.REASON)), route(router, task_name(Stage.SCORE))

    assert "node@host" in str(direct["queue"])
    assert served_elsewhere == {"queue": "judge", "priority": 0}


@pytest.mark.parametrize("flag", ["should_stop", "should_terminate"])
def test_a_worker_that_stops_keeps_nothing(
    router: StageRouter, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    router.become_worker("node@host", frozenset({"gpu"}))
    monkeypatch.setattr(worker_state, flag, 0)

    assert route(router, task_name(Stage.REASON))["queue"] == "gpu"


def test_tasks_of_others_are_left_to_celery(router: StageRouter) -> None:
    assert route(router, "celery.backend_cleanup") == {}


def test_a_pinned_batch_goes_to_the_queue_of_its_rank(router: StageRouter) -> None:
    assert route(router, task_name(Stage.PERCEIVE), **{RANK_HEADER: 4})["queue"] == "gpu.rank4"
    assert route(router, task_name(Stage.PERCEIVE), **{RANK_HEADER: 0})["queue"] == "gpu.rank0"


def test_a_worker_keeps_what_is_pinned_to_a_rank_it_serves(router: StageRouter) -> None:
    router.become_worker("node@host", frozenset({"gpu.rank4"}))

    queues = [route(router, task_name(Stage.REASON), **headers)["queue"] for headers in PINNED_TO_4_5_ALL]

    assert "node@host" in str(queues[0])
    assert queues[1:] == ["gpu.rank5", "gpu"]


PINNED_TO_4_5_ALL: list[dict[str, Any]] = [{RANK_HEADER: 4}, {RANK_HEADER: 5}, {}]


def test_a_worker_may_take_ranks_of_known_queues_only() -> None:
    queues = make_app(Settings(), "memory://").amqp.queues

    queues.select(["gpu.rank4", "gpu.rank11"])

    assert set(queues.consume_from) == {"gpu.rank4", "gpu.rank11"}
    for unknown in ("gpuu", "gpu.rank", "gpu.rankx", "cpu.rank1"):
        with pytest.raises(KeyError):
            queues.select([unknown])


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("redis://redis/0", None),
        ("rediss://redis/0", ssl.CERT_REQUIRED),
        ("rediss://redis/0?ssl_ca_certs=/ca.crt", ssl.CERT_REQUIRED),
        ("rediss://redis/0?ssl_cert_reqs=none", ssl.CERT_NONE),
    ],
)
def test_a_certificate_is_checked_unless_the_url_says_otherwise(url: str, checked: object) -> None:
    tls = make_app(Settings(), url).conf.broker_use_ssl

    assert (tls and tls["ssl_cert_reqs"]) == checked
