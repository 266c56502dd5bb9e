"""The metrics of a real database and broker, and how often they are read."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, event

from capflow_tasks.errors import MediaMissing
from capflow_tasks.fleet.application import make_app
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.database import connect
from capflow_tasks.store.states import Outcome
from capflow_tasks.store.statistics import Statistics
from producer.fleet_metrics import FleetCollector
from producer.services import Broker
from tests.stores import Fleet, a_failure, some_entries

pytestmark = pytest.mark.integration

NOWHERE = "redis://127.0.0.1:1/0"


def a_broker(url: str) -> Broker:
    return Broker(make_app(Settings(), url))


def a_registry(engine: Engine, broker: Broker, lease_seconds: float = 45, cache_seconds: float = 0) -> Any:
    registry = CollectorRegistry()
    registry.register(FleetCollector(Statistics(engine), broker, ["gpu"], lease_seconds, cache_seconds))
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"capflow_{name}", labels)


def test_backlog_queues_workers_and_failures_are_counted(engine: Engine, broker_url: str) -> None:
    fleet, broker = Fleet(engine, some_entries(6), batch_size=2, domain="Natural"), a_broker(broker_url)
    for batch in fleet.publish():
        broker.publish(batch)
    fleet.claim(Stage.PERCEIVE, "gone@host/1")
    failing = fleet.claim(Stage.PERCEIVE, "here@host/2", fleet.batch_ids[1])
    failed, well = fleet.sample_ids(fleet.batch_ids[1])
    failure = a_failure(Stage.PERCEIVE, MediaMissing("gone.png"))
    fleet.finish(failing, [Outcome(failed, failure=failure), Outcome(well)])
    WorkerStore(engine).beat("here@host/2", [], 45)
    registry = a_registry(engine, broker)

    assert value(registry, "database_up") == value(registry, "broker_up") == 1
    assert value(registry, "runs", state="running") == 1
    assert value(registry, "run_samples", run="run", state="in_flight") == 6
    assert value(registry, "backlog_samples", run="run", stage="perceive", state="queued") == 2
    assert value(registry, "backlog_samples", run="run", stage="perceive", state="running") == 2
    assert value(registry, "backlog_samples", run="run", stage="reason", state="queued") == 2
    assert value(registry, "queue_messages", queue="gpu", priority="6") == 3
    assert value(registry, "queue_messages", queue="gpu", priority="0") == 0
    assert value(registry, "unacked_messages") == 0
    assert value(registry, "workers", state="alive") == 1


def test_what_silent_workers_hold_is_counted(engine: Engine, broker_url: str) -> None:
    fleet = Fleet(engine, some_entries(2), batch_size=2, domain="Natural")
    fleet.claim(Stage.PERCEIVE, "gone@host/1")
    WorkerStore(engine).beat("gone@host/1", fleet.batch_ids, 45)

    registry = a_registry(engine, a_broker(broker_url), lease_seconds=0)

    assert value(registry, "workers", state="silent") == 1
    assert value(registry, "stale_batches") == 1


def test_services_that_are_away_are_reported_as_down() -> None:
    away = connect("postgresql+psycopg://capflow:secret@127.0.0.1:1/capflow")
    registry = a_registry(away, a_broker(NOWHERE))

    assert value(registry, "database_up") == value(registry, "broker_up") == 0
    assert value(registry, "run_samples", run="run", state="done") is None
    away.dispose()


def test_scrapes_that_follow_one_another_ask_once(engine: Engine, broker_url: str) -> None:
    registry = a_registry(engine, a_broker(broker_url), cache_seconds=60)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    assert value(registry, "database_up") == 1
    asked = len(statements)
    assert value(registry, "database_up") == 1
    assert len(statements) == asked > 0
