"""Which batches a producer sends again, and which it finds finished, with a real database and broker."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, text

from capflow_tasks.fleet.application import make_app
from capflow_tasks.fleet.embedded import Services
from capflow_tasks.records import PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import BatchStore
from capflow_tasks.store.states import Claim, NewSample, Outcome, Tally
from producer import services
from producer.dispatch import Arrivals, Dispatcher
from producer.run import OpenRun, Order
from tests.conftest import Eventually
from tests.stores import RETRY, Fleet, a_shard, some_entries

pytestmark = pytest.mark.integration

_SETTINGS = Settings(lease_seconds=5)


@pytest.fixture
def client(broker_url: str) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://")) as client:
        yield client


@pytest.fixture
def reached(engine: Engine, database_url: str, broker_url: str) -> services.Fleet:
    broker = services.Broker(make_app(_SETTINGS, broker_url))
    return services.Fleet(_SETTINGS, Services(database_url, broker_url), engine, broker)


def waiting_batches(client: redis.Redis) -> Counter[int]:
    messages = client.lrange("gpu:9", 0, -1)
    ids = (json.loads(message)["headers"]["id"] for message in messages)
    return Counter(int(each.partition(".")[0]) for each in ids)


def test_what_waits_is_not_sent_again_and_what_was_lost_is(
    reached: services.Fleet, client: redis.Redis, eventually: Eventually
) -> None:
    fleet = Fleet(reached.engine, some_entries(12), batch_size=2)
    dispatcher = Dispatcher(reached, fleet.run_id)
    dispatcher.send()
    # The first two messages are lost on their way; they were sent some time before the others.
    lost = [client.rpop("gpu:9"), client.rpop("gpu:9")]
    for batch_id in fleet.batch_ids[:2]:
        fleet.age(batch_id, 60)
    assert all(lost)
    assert waiting_batches(client) == Counter(fleet.batch_ids[2:])

    def all_wait() -> None:
        dispatcher.send()
        assert waiting_batches(client) == Counter(fleet.batch_ids)

    eventually(all_wait)


def test_a_wiped_broker_is_filled_again(
    reached: services.Fleet, client: redis.Redis, eventually: Eventually
) -> None:
    fleet = Fleet(reached.engine, some_entries(8), batch_size=2)
    running, *others = fleet.batch_ids
    dispatcher = Dispatcher(reached)
    dispatcher.send()
    fleet.claim(Stage.ROUTE, batch_id=running)
    client.flushall()

    def others_wait() -> None:
        dispatcher.send()
        assert waiting_batches(client) == Counter(others)

    eventually(others_wait)


def test_a_message_that_a_worker_has_just_taken_is_not_lost(
    reached: services.Fleet, client: redis.Redis, eventually: Eventually
) -> None:
    fleet = Fleet(reached.engine, some_entries(4), batch_size=2)
    taken, lost = fleet.batch_ids
    dispatcher = Dispatcher(reached)
    dispatcher.send()
    # As kombu notes what is delivered and not acknowledged.
    message = json.loads(client.rpop("gpu:9"))  # type: ignore[arg-type]
    client.hset("unacked", "tag", json.dumps([message, "", "gpu"]))
    assert client.rpop("gpu:9")

    def only_the_lost_one_waits() -> None:
        dispatcher.send()
        assert waiting_batches(client) == Counter([lost])

    eventually(only_the_lost_one_waits)
    fleet.claim(Stage.ROUTE, batch_id=lost)
    assert client.rpop("gpu:9")

    def the_other_waits() -> None:
        # Its worker is dead by now: a lease has passed.
        dispatcher.send()
        assert waiting_batches(client) == Counter([taken])

    eventually(the_other_waits)


def test_finished_batches_are_found_among_many_even_when_their_time_is_long_past(engine: Engine) -> None:
    fleet = Fleet(engine, some_entries(1_200), batch_size=1, domain="Natural")
    arrivals, in_flight = Arrivals(fleet.views, fleet.run_id), set(fleet.batch_ids)
    *_, late, new = fleet.batch_ids
    fleet.finish_all(late)
    fleet.finish_all(new)
    with engine.begin() as connection:
        earlier = "UPDATE batches SET finished_at = now() - interval '1 hour' WHERE id = :id"
        connection.execute(text(earlier), {"id": late})

    assert arrivals.take_from(in_flight) == [Tally(done=1)]
    assert new not in in_flight
    found = [tally for _ in range(3) for tally in arrivals.take_from(in_flight)]

    assert found == [Tally(done=1)]
    assert in_flight == set(fleet.batch_ids) - {late, new}


def test_a_run_goes_on_with_new_batches_as_those_in_its_window_finish(
    reached: services.Fleet, client: redis.Redis, tmp_path: Path
) -> None:
    settings = Settings(database_url=reached.services.database_url, broker_url=reached.services.broker_url)
    fleet = services.Fleet(settings, reached.services, reached.engine, reached.broker)
    order = Order(tmp_path / "plan.jsonl", tmp_path, "run", batch_size=1, window=2, stages=(Stage.ROUTE,))
    run = OpenRun(fleet, order, [a_shard(12)])
    is_over, stopping = Event(), Event()
    worker = Thread(target=work, args=(BatchStore(reached.engine), client, is_over))
    worker.start()

    is_finished = run.finish(new_samples, stopping)
    is_over.set()
    worker.join()

    assert is_finished
    assert run.views.tally(run.id) == Tally(done=12)


def new_samples(_: PlanShard, start: int) -> Iterator[NewSample]:
    return (NewSample(idx, {"image": "a.png"}, None) for idx in range(start, 12))


def work(batches: BatchStore, client: redis.Redis, is_over: Event) -> None:
    """Do what a worker does with each message, until the run is over."""
    while not is_over.is_set():
        taken: Any = client.brpop(["gpu:9"], timeout=1)
        if taken is not None:
            batch_id = int(json.loads(taken[1])["headers"]["id"].partition(".")[0])
            claim = batches.claim(batch_id, Stage.ROUTE, "worker@host/1", 60)
            assert isinstance(claim, Claim)
            outcomes = [Outcome(sample.id) for sample in batches.pending_samples(batch_id)]
            assert batches.finish_stage(claim, outcomes, 60, RETRY)
