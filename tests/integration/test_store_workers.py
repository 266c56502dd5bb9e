"""Workers in the list: who was first on a queue, and who differs from that one."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from capflow_tasks.store.claims import Rival, WorkerStore

pytestmark = pytest.mark.integration

SMALL, LARGE = {"model": "small"}, {"model": "large"}
SILENT_SECONDS = 90


@pytest.fixture
def store(engine: Engine) -> WorkerStore:
    return WorkerStore(engine)


def test_the_first_worker_of_a_queue_decides(store: WorkerStore) -> None:
    assert store.register("w1@a/1", "redis", {"gpu": SMALL}, SILENT_SECONDS) is None
    assert store.register("w2@b/2", "redis", {"gpu": SMALL, "judge": LARGE}, SILENT_SECONDS) is None

    assert store.register("w3@c/3", "redis", {"gpu": LARGE}, SILENT_SECONDS) == Rival("w1@a", "gpu", SMALL)
    assert store.rival_of("w4@d/4", "redis", {"judge": SMALL}, SILENT_SECONDS) == Rival(
        "w2@b", "judge", LARGE
    )
    assert store.rival_of("w4@d/4", "redis", {"judge": LARGE}, SILENT_SECONDS) is None


def test_workers_of_another_broker_and_those_that_are_gone_do_not_count(
    store: WorkerStore, engine: Engine
) -> None:
    store.register("w1@a/1", "redis", {"gpu": SMALL}, SILENT_SECONDS)

    assert store.register("w2@b/2", "other", {"gpu": LARGE}, SILENT_SECONDS) is None
    store.resign("w1@a/1")
    assert store.register("w3@c/3", "redis", {"gpu": LARGE}, SILENT_SECONDS) is None
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE workers SET seen_at = now() - interval '91 s' WHERE owner = 'w3@c/3'")
        )
    assert store.register("w4@d/4", "redis", {"gpu": SMALL}, SILENT_SECONDS) is None


def test_a_heartbeat_keeps_what_the_worker_registered_with(store: WorkerStore) -> None:
    store.register("w1@a/1", "redis", {"gpu": SMALL}, SILENT_SECONDS)
    store.beat("w1@a/1", [], 45, "its mount is away")

    assert store.rival_of("w2@b/2", "redis", {"gpu": LARGE}, SILENT_SECONDS) is not None
