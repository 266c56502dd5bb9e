"""Which workers are alive, by their leases in the database and by their answers over the broker."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from capflow_tasks.store.health import WorkerHealth
from producer.doctor.finding import Finding, ok, warn

START_A_WORKER = "celery -A capflow_tasks worker -Q gpu"


def queues_by_node(app: Celery, timeout_seconds: float) -> dict[str, set[str]]:
    """The queues that each worker takes messages from, of those that answer."""
    try:
        answers = app.control.inspect(timeout=timeout_seconds).active_queues() or {}
    except (OperationalError, RedisError):
        return {}
    return {node: {queue["name"] for queue in queues} for node, queues in answers.items()}


def check_workers(
    beating: Sequence[WorkerHealth], answering: Mapping[str, Collection[str]]
) -> Iterator[Finding]:
    """`beating` keep leases in the database, `answering` reply over the broker."""
    if not beating and not answering:
        yield warn("workers", "none is there", START_A_WORKER)
        return
    running = sum(worker.running_batches for worker in beating)
    nodes = {worker.node for worker in beating}
    both = sorted(nodes & set(answering))
    if both:
        yield ok("workers", f"{len(both)} alive, {running} batches running: {_some(both)}")
    if silent := sorted(nodes - set(answering)):
        said = f"{_some(silent)} keep leases and do not answer Celery: stopping, or cut off from the broker"
        yield warn("workers", said, "look again in a minute, then at the worker's log")
    if leaseless := sorted(set(answering) - nodes):
        said = f"{_some(leaseless)} answer Celery and keep no lease: loading a model, or on another database"
        yield warn("workers", said, "compare CAPFLOW_DATABASE_URL there and here")


def _some(nodes: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(nodes) - shown} more" if len(nodes) > shown else ""
    return ", ".join(nodes[:shown]) + more
