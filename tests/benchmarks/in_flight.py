"""What the producer's loop costs with 1,000 and with 64,000 batches in flight, and scripted workers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from time import monotonic, process_time
from typing import Any

import redis
from sqlalchemy import Engine, event, text

from capflow_tasks.fleet.embedded import embedded_postgres, embedded_redis
from capflow_tasks.records import JsonObject, PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.states import NewSample, ReadyBatch
from producer import services
from producer.run import OpenRun, Order
from tests.benchmarks.claims import Bench, Measured
from tests.stores import a_shard

#: Batches in flight: of a few workers, and of 1,000 with 64 batches each.
_FEW, _MANY = 1_000, 64_000
#: Batches that the workers finish in each round of theirs: 1,000 at 0.7 samples/s, batches of 8.
_FINISHED, _ROUND_SECONDS = 17, 0.2
_WARM_SECONDS, _MEASURED_SECONDS = 6.0, 24.0

# Every fourth batch runs; the others wait in Redis, in the order of their ids.
_FILL = """
    INSERT INTO batches (id, shard_id, start_idx, end_idx, state, next_stage, lease_owner, lease_until)
    SELECT number + 1, :shard, number, number + 1,
           CASE WHEN number % 4 = 0 THEN 'running' ELSE 'queued' END, 'route',
           CASE WHEN number % 4 = 0 THEN 'worker@host/1' END,
           now() + CASE WHEN number % 4 = 0 THEN interval '1 hour' ELSE interval '7 days' END
    FROM generate_series(0, :count - 1) AS number;
    SELECT setval('batches_id_seq', :count);
    UPDATE shards SET expanded_to = :count WHERE id = :shard
"""
_FINISH = text("""
    UPDATE batches
    SET state = 'done', next_stage = NULL, lease_owner = NULL, done_count = 1, finished_at = now()
    WHERE id = ANY (:ids)
""")


def measure(bench: Bench) -> Mapping[str, Measured]:
    """Compare the CPU of the real loop, in a process of its own, when as many batches finish per second."""
    few, many = (_run(bench.folder / str(count), count) for count in (_FEW, _MANY))
    shown = "; ".join(
        f"{count:,} in flight: {each['cpu_share']:.1%} of a core, "
        f"{each['statements_per_second']:.0f} statements/s"
        for count, each in ((_FEW, few), (_MANY, many))
    )
    return {"producer_cpu_many_over_few": Measured(many["cpu_share"] / few["cpu_share"], shown)}


def _run(folder: Path, count: int) -> JsonObject:
    folder.mkdir()
    folder.chmod(0o755)
    with embedded_postgres(folder) as url, embedded_redis(folder) as broker:
        engine = connect(url)
        upgrade(engine)
        stopping = Event()
        workers = Thread(target=_work, args=(engine, broker, stopping), daemon=True)
        command = [sys.executable, "-m", "tests.benchmarks.in_flight", url, broker, str(folder), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as producer:
            assert producer.stdout is not None
            assert producer.stdout.readline() == "filled\n"
            workers.start()
            found: JsonObject = json.loads(producer.stdout.read())
        stopping.set()
        workers.join()
        engine.dispose()
    return found


def _work(engine: Engine, broker: str, stopping: Event) -> None:
    """Take the oldest messages and finish their batches, always as many."""
    with redis.Redis(unix_socket_path=broker.removeprefix("redis+socket://")) as client:
        while not stopping.wait(_ROUND_SECONDS):
            taken: Any = client.rpop("gpu:9", _FINISHED) or []
            ids = [int(json.loads(message)["headers"]["id"].partition(".")[0]) for message in taken]
            with engine.begin() as connection:
                connection.execute(_FINISH, {"ids": ids})


def produce(url: str, broker_url: str, folder: Path, count: int) -> JsonObject:
    """Fill database and broker, then run the real loop for a while."""
    settings = Settings(database_url=url, broker_url=broker_url, home=folder)
    order = Order(folder / "plan.jsonl", folder, "bench", batch_size=1, window=count)
    shard = a_shard(100 * _MANY)
    with services.reach_fleet(settings) as fleet:
        run = OpenRun(fleet, order, [shard])
        _fill(fleet, run.shards[0].id, count)
        print("filled", flush=True)
        statements: list[str] = []
        event.listen(fleet.engine, "before_cursor_execute", lambda *heard: statements.append(heard[2]))
        stopping = Event()
        found: JsonObject = {}
        Thread(target=lambda: found.update(_watch(statements, stopping)), daemon=True).start()
        run.finish(_read, stopping)
    return found


def _watch(statements: list[str], stopping: Event) -> JsonObject:
    never = Event()
    never.wait(_WARM_SECONDS)
    statements.clear()
    began, cpu = monotonic(), process_time()
    never.wait(_MEASURED_SECONDS)
    seconds, cpu, heard = monotonic() - began, process_time() - cpu, len(statements)
    stopping.set()
    return {"cpu_share": cpu / seconds, "statements_per_second": heard / seconds}


def _read(_: PlanShard, start: int) -> Iterator[NewSample]:
    return (NewSample(idx, {"image": "a.png"}, None) for idx in range(start, 100 * _MANY))


def _fill(fleet: services.Fleet, shard_id: int, count: int) -> None:
    """Put batches in flight; their messages are copies of a real one, for other batches."""
    with fleet.engine.begin() as connection:
        for statement in _FILL.split(";\n"):
            connection.execute(text(statement), {"shard": shard_id, "count": count})
    with fleet.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    fleet.broker.publish(ReadyBatch(0, Stage.ROUTE, tuple(Stage), datetime.now(UTC) + timedelta(days=7)))
    with redis.Redis(unix_socket_path=fleet.services.broker_url.removeprefix("redis+socket://")) as client:
        real: Any = client.rpop("gpu:9")
        message = json.loads(real)
        queued = (number + 1 for number in range(count) if number % 4)
        headers = [message["headers"] | {"id": f"{batch_id}.route.copy"} for batch_id in queued]
        client.lpush("gpu:9", *(json.dumps(message | {"headers": each}) for each in headers))


if __name__ == "__main__":
    print(json.dumps(produce(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
