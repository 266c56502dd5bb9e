"""Sends batches to the fleet, and finds those that were lost. One lease, in PostgreSQL, decides.

A batch is lost when its lease ran out, because its worker died or its message waited too long, or when it
should have a message in the broker and two checks in a row find none.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any
from uuid import uuid4

from celery import Celery, Signature, chain
from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError
from kombu.utils.json import loads
from redis.exceptions import RedisError
from sqlalchemy import Engine

from capflow_tasks.errors import ServiceError
from capflow_tasks.fleet.application import RANK_HEADER, task_name
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import ReadyBatch, stages_from

log = logging.getLogger(__name__)

#: Between two checks. One check may miss a message that is being delivered, two don't.
CHECK_SECONDS = 2.0
#: Batches published in one transaction, at most.
_PUBLISH_CHUNK = 256


@dataclass(frozen=True, slots=True)
class QueueLengths:
    """Numbers of messages."""

    #: In the queues that hold some, by name and priority.
    by_queue: dict[tuple[str, int], int]
    #: Taken by workers and not acknowledged.
    unacked: int


class Broker:
    """Redis as a producer uses it. Its messages carry the ids of batches, nothing else."""

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
        """Send the stages that are left of the batch's chain."""
        stages = stages_from(batch.next_stage, batch.stages)
        chain(*(self._task(batch, stage) for stage in stages)).apply_async()

    def _task(self, batch: ReadyBatch, stage: Stage) -> Signature[Any]:
        # The task's id names the batch, for people in Flower and for `held_batches`.
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

    def held_batches(self) -> tuple[set[int], set[int]] | None:
        """Find the batches whose message waits in a queue, and those whose message a worker has taken.

        A taken message is not acknowledged yet; its worker may have died. None while the broker is away.
        """
        with self._app.connection_for_read() as connection:
            try:
                channel: Any = connection.default_channel
                waiting = [
                    message for key in _lists(channel) for message in channel.client.lrange(key, 0, -1)
                ]
                taken = [loads(entry)[0] for entry in channel.client.hvals(channel.unacked_key)]
            except (RedisError, OperationalError):
                return None
        return _batch_ids(map(loads, waiting)), _batch_ids(taken)

    def lengths(self) -> QueueLengths | None:
        """Count the messages that wait and those that workers hold; None while the broker is away."""
        with self._app.connection_for_read() as connection:
            try:
                connection.ensure_connection(max_retries=1)
                channel: Any = connection.default_channel
                lists = {key.decode(): channel.client.llen(key) for key in _lists(channel)}
                unacked = channel.client.hlen(channel.unacked_key)
            except (RedisError, OperationalError):
                return None
        # Priority 0 has no suffix; replies to Celery's remote control are not batches.
        queues = {_queue_of(name): count for name, count in lists.items() if "pidbox" not in name}
        return QueueLengths(queues, unacked)

    def drop_queues_of(self, nodes: Collection[str]) -> None:
        """Remove the personal queues of dead workers; their batches are sent again to others."""
        for node in nodes:
            log.warning("worker %s is gone; removing its queue", node)
            with self._app.connection_for_write() as connection:
                worker_direct(node)(connection.default_channel).purge()


class Dispatcher:
    """Sends the batches of one run, or of all; any number of dispatchers may work at once."""

    def __init__(self, engine: Engine, broker: Broker, settings: Settings, run_id: int | None = None) -> None:
        self._runs = RunStore(engine)
        self._workers = WorkerStore(engine)
        self._broker = broker
        self._settings = settings
        self._run_id = run_id
        #: Since when no message of a queued batch has waited in the broker.
        self._silent_since: dict[int, float] = {}
        self._checked_at = -CHECK_SECONDS

    def send(self) -> None:
        """Publish every batch that is ready, after making lost ones ready again when a check is due."""
        if monotonic() - self._checked_at >= CHECK_SECONDS:
            self._checked_at = monotonic()
            self._broker.drop_queues_of(self._workers.remove_silent(2 * self._settings.lease_seconds))
            if lost := self._runs.requeue_stale(self._run_id) + self._requeue_missing():
                batches = "1 batch was lost and is" if lost == 1 else f"{lost} batches were lost and are"
                log.warning("%s sent again", batches)
        is_more = True
        while is_more:
            with self._runs.publishing(_PUBLISH_CHUNK, self._settings.queue_seconds, self._run_id) as ready:
                for batch in ready:
                    self._broker.publish(batch)
            is_more = len(ready) == _PUBLISH_CHUNK

    def _requeue_missing(self) -> int:
        queued = self._runs.queued(self._run_id)
        held = self._broker.held_batches() if queued else (set(), set())
        if held is None:
            # The broker is away: nobody knows what it holds.
            return 0
        waiting, taken = held
        now = monotonic()
        self._silent_since = {each: self._silent_since.get(each, now) for each in queued - waiting}
        gone = {
            each
            for each, since in self._silent_since.items()
            # A delivered message starts its batch at once, unless its worker dies before that.
            if now - since >= (self._settings.lease_seconds if each in taken else CHECK_SECONDS)
        }
        for each in gone:
            del self._silent_since[each]
        return self._runs.requeue_lost(gone) if gone else 0


def _batch_ids(messages: Iterable[Any]) -> set[int]:
    ids = (message["headers"].get("id", "").partition(".")[0] for message in messages)
    return {int(batch_id) for batch_id in ids if batch_id.isdecimal()}


def _queue_of(name: str) -> tuple[str, int]:
    """Split the name of a Redis list into queue and priority: `gpu:9`, or `gpu` for priority 0."""
    queue, separator, priority = name.rpartition(":")
    return (queue, int(priority)) if separator and priority.isdecimal() else (name, 0)


def _lists(channel: Any) -> Iterator[bytes]:
    return channel.client.scan_iter(count=1000, _type="LIST")  # type: ignore[no-any-return]
