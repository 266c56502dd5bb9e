"""Reads the plan of every statement that the store runs, as it runs it: what is indexed, what is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event, text

from capflow_tasks.records import Stage
from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.states import Outcome, Route, SampleState, WaitingMessages
from tests.stores import Fleet, a_failure, a_shard

_PLANNED = ("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a plan."""

    kind: str
    table: str | None
    index: str | None


@dataclass(frozen=True, slots=True)
class Explained:
    """A statement and how PostgreSQL goes about it."""

    statement: str
    nodes: tuple[Node, ...]

    def scans(self, *tables: str) -> bool:
        """Whether it reads all of one of these tables."""
        return any(node.kind == "Seq Scan" and node.table in tables for node in self.nodes)


@contextmanager
def explained(engine: Engine) -> Iterator[list[Explained]]:
    """The statements that are run in the block, each explained just before, with the same values."""
    found: list[Explained] = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if not statement.lstrip().upper().startswith(_PLANNED):
            return
        values = parameters[0] if isinstance(parameters, list) else parameters
        with cursor.connection.cursor() as other:
            other.execute(f"EXPLAIN (FORMAT JSON) {statement}", values)
            (plan,) = other.fetchone()
        found.append(Explained(statement, tuple(_nodes(plan[0]["Plan"]))))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", explain)


def _nodes(plan: dict[str, Any]) -> Iterator[Node]:
    yield Node(plan["Node Type"], plan.get("Relation Name"), plan.get("Index Name"))
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


# On the server, without foreign keys and triggers: a million rows in seconds.
_FILL = """
    SET LOCAL session_replication_role = replica;
    INSERT INTO batches (id, shard_id, start_idx, end_idx, state, next_stage, done_count, finished_at)
    SELECT {first} + number, :shard, number * 8, number * 8 + 8, 'done', NULL, 8, now()
    FROM generate_series(0, :count / 8 - 1) AS number;
    INSERT INTO samples (id, shard_id, batch_id, idx, entry, state, domain)
    SELECT {first} + number, :shard, {first} + number / 8, number, '{{"image": "a.png"}}',
           'done', 'Natural'
    FROM generate_series(0, :count - 1) AS number;
    INSERT INTO results (sample_id, stage, agent, text, model, workflow, prompt_tokens, cached_tokens,
                         completion_tokens, finish_reason, seconds, worker, position)
    SELECT {first} + number, stage, stage, 'said', 'model', 'digest', 1, 1, 1, 'stop', 1, 'worker', 0
    FROM generate_series(0, :count - 1) AS number, unnest(ARRAY['reason', 'score']) AS stage;
"""
#: Ids from here on are of rows that no sequence has given out.
_FIRST_ID = 1_000_000_000


def fill(fleet: Fleet, samples: int) -> None:
    """Put a shard of so many finished samples into the run, with two results each, and tell the planner."""
    engine = fleet.engine
    (shard,) = fleet.runs.add_shards(fleet.run_id, [a_shard(samples, dataset="much")])
    with engine.begin() as connection:
        for statement in _FILL.format(first=_FIRST_ID).split(";\n"):
            if statement.strip():
                connection.execute(text(statement), {"shard": shard.id, "count": samples})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def everyday(fleet: Fleet) -> list[Explained]:
    """All that producer and worker say to the database while samples go through, explained."""
    worker = WorkerStore(fleet.engine)
    with explained(fleet.engine) as found:
        first, second, third, *_ = fleet.publish()
        worker.beat("worker", fleet.batch_ids, 60)
        fleet.finish_all(first.id, Stage.ROUTE)
        claim = fleet.claim(Stage.ROUTE, batch_id=second.id)
        samples = fleet.sample_ids(second.id)
        routed = [Outcome(sample, route=Route("Natural", 0.9)) for sample in samples]
        fleet.finish(claim, routed)
        claim = fleet.claim(Stage.PERCEIVE, batch_id=second.id)
        failed = [Outcome(sample, failure=a_failure(Stage.PERCEIVE)) for sample in samples]
        fleet.finish(claim, failed)
        claim = fleet.claim(Stage.ROUTE, batch_id=third.id)
        fleet.batches.begin_try(claim)
        fleet.batches.split(claim)
        fleet.batches.release(claim)
        fleet.runs.requeue_stale(fleet.run_id)
        fleet.runs.requeue_lost(fleet.runs.outside_queues(WaitingMessages({}, ()), 60, fleet.run_id))
        fleet.views.finished(fleet.run_id, 1.0, fleet.batch_ids)
        fleet.views.running(fleet.run_id)
        fleet.runs.retry_failed(fleet.run_id)
        next(fleet.views.finished_samples(fleet.shard_id, SampleState.DONE))
    return found
