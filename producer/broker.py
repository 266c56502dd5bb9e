"""The producer's side of the broker: publishes chains, and sees whether messages were lost."""

from __future__ import annotations

from typing import Any

from celery import Celery, chain
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from capflow_tasks.errors import ServiceError
from capflow_tasks.queues import task_name
from capflow_tasks.state import stages_from
from capflow_tasks.store.rows import ReadyBatch


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
        tasks = [
            self._app.signature(task_name(stage), kwargs={"batch_id": batch.id}, immutable=True)
            for stage in stages_from(batch.next_stage, batch.stages)
        ]
        chain(*tasks, app=self._app).apply_async()

    def is_empty(self) -> bool:
        """Whether the broker holds no message at all, neither waiting nor delivered and unfinished."""
        with self._app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            try:
                if channel.client.hlen(channel.unacked_key):
                    return False
                return not any(channel.client.scan_iter(count=1000, _type="LIST"))
            except RedisError:
                # Away: what it holds is not known.
                return False
