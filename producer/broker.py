"""The producer's side of the broker: publishes chains, and sees whether messages were lost."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from celery import Celery, Signature, chain
from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError
from kombu.utils.json import loads
from redis.exceptions import RedisError

from capflow_tasks.errors import ServiceError
from capflow_tasks.fleet.application import RANK_HEADER, task_name
from capflow_tasks.records import Stage
from capflow_tasks.store.rows import ReadyBatch
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import stages_from

log = logging.getLogger(__name__)

#: Batches published in one transaction, at most.
_PUBLISH_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Held:
    """Ids of the batches that have a message in the broker."""

    #: In a queue.
    waiting: set[int]
    #: Taken by a worker, which has not acknowledged it or died before that.
    delivered: set[int]


@dataclass(frozen=True, slots=True)
class QueueLengths:
    """How many messages there are."""

    #: In the queues that hold some, by name and priority.
    by_queue: dict[tuple[str, int], int]
    #: Taken and not acknowledged.
    unacked: int


class Broker:
    """Redis as a producer uses it: a doorbell."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def check(self) -> None:
        """Raise ServiceError when the broker cannot be reached."""
        with self._app.connection_for_write() as connection:
            try:
                connection.ensure_connection(max_retries=2, interval_start=0, interval_step=1)
            except OperationalError as error:
                raise ServiceError(
                    f"the broker {connection.as_uri()} cannot be reached: {error}; "
                    "start it, or correct CAPFLOW_BROKER_URL"
                ) from error

    def publish(self, batch: ReadyBatch) -> None:
        """Send what is left of the batch's chain. The messages carry the batch's id only."""
        chain(*map(partial(self._task, batch), stages_from(batch.next_stage, batch.stages))).apply_async()

    def _task(self, batch: ReadyBatch, stage: Stage) -> Signature[Any]:
        # The task's id tells the batch, to people in Flower and to `look`.
        return self._app.signature(
            task_name(stage),
            kwargs={"batch_id": batch.id},
            immutable=True,
            task_id=f"{batch.id}.{stage}.{uuid4().hex[:12]}",
            # What Flower and the worker's log show in place of the arguments.
            argsrepr=batch.samples,
            kwargsrepr=f"batch {batch.id}",
            headers={} if batch.pinned_to is None else {RANK_HEADER: batch.pinned_to},
        )

    def look(self) -> Held | None:
        """Batches that have a message in the broker; None while it is away."""
        with self._app.connection_for_read() as connection:
            try:
                channel: Any = connection.default_channel
                waiting = [
                    message for key in _lists(channel) for message in channel.client.lrange(key, 0, -1)
                ]
                delivered = [loads(entry)[0] for entry in channel.client.hvals(channel.unacked_key)]
            except (RedisError, OperationalError):
                return None
        return Held(_batch_ids(map(loads, waiting)), _batch_ids(delivered))

    def lengths(self) -> QueueLengths | None:
        """How many messages wait, and how many are with workers; None while the broker is away."""
        with self._app.connection_for_read() as connection:
            try:
                connection.ensure_connection(max_retries=1)
                channel: Any = connection.default_channel
                lists = {key.decode(): channel.client.llen(key) for key in _lists(channel)}
                unacked = channel.client.hlen(channel.unacked_key)
            except (RedisError, OperationalError):
                return None
        # Priority 0 has no suffix; a reply to Celery's remote control is no message of ours.
        queues = {_queue_of(name): count for name, count in lists.items() if "pidbox" not in name}
        return QueueLengths(queues, unacked)

    def drop_queues_of(self, nodes: Collection[str]) -> None:
        """Remove the own queues of dead workers; what they held is sent again to the living."""
        for node in nodes:
            log.warning("worker %s is gone; its queue is removed", node)
            with self._app.connection_for_write() as connection:
                worker_direct(node)(connection.default_channel).purge()


def publish_ready(runs: RunStore, broker: Broker, queue_seconds: float, run_id: int | None = None) -> None:
    """Publish every batch that is ready, of one run or of all."""
    while True:
        with runs.publishing(_PUBLISH_CHUNK, queue_seconds, run_id) as ready:
            for batch in ready:
                broker.publish(batch)
        if len(ready) < _PUBLISH_CHUNK:
            return


def _batch_ids(messages: Iterable[Any]) -> set[int]:
    ids = (message["headers"].get("id", "").partition(".")[0] for message in messages)
    return {int(batch_id) for batch_id in ids if batch_id.isdecimal()}


def _queue_of(name: str) -> tuple[str, int]:
    """Queue and priority of a Redis list: `gpu:9`, or `gpu` for priority 0."""
    queue, separator, priority = name.rpartition(":")
    return (queue, int(priority)) if separator and priority.isdecimal() else (name, 0)


def _lists(channel: Any) -> Iterator[bytes]:
    return channel.client.scan_iter(count=1000, _type="LIST")  # type: ignore[no-any-return]
