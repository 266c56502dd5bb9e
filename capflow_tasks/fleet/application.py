"""Celery's configuration, the same for workers, producers and Flower.

Why each setting is as it is: Celery's Redis transport pops a message before it records it, counts its
visibility timeout from delivery and restores all messages at every broken connection. So Redis only
rings; which batch runs where, and what is lost, is PostgreSQL's to know.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP, Queues
from celery.utils.nodenames import worker_direct
from celery.worker import state as worker_state
from kombu import Queue
from kombu.utils.url import parse_url

from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings

_HALF_A_DAY_SECONDS = 12 * 3600


def make_app(settings: Settings, broker_url: str | None) -> Celery:
    app = Celery("capflow", amqp=FleetAMQP, include=["capflow_tasks.fleet.tasks"])
    app.conf.update(broker_url=broker_url, broker_use_ssl=tls_of(broker_url), **_configuration(settings))
    return app


def tls_of(broker_url: str | None) -> dict[str, Any] | None:
    """What a `rediss://` URL says of TLS; the certificate is checked, unless it says otherwise."""
    if broker_url is None or not broker_url.startswith("rediss://"):
        return None
    # kombu alone would check nothing, and Flower reads this instead of the URL.
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, **parse_url(broker_url).get("ssl", {})}


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_limit": 32,
        "broker_transport_options": {
            # Redelivery by Redis is only a late second chance behind the leases in PostgreSQL.
            "visibility_timeout": _HALF_A_DAY_SECONDS,
            "queue_order_strategy": "priority",
            "priority_steps": PRIORITY_STEPS,
            # Plain list names such as gpu:9, which redis-cli and autoscalers can name.
            "sep": ":",
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            "health_check_interval": 25,
            "client_name": "capflow",
        },
        # One engine per process, shared by all its slots.
        "worker_pool": "threads",
        "worker_concurrency": settings.concurrency,
        # Take a message only when a slot is free, so that priorities decide late.
        "worker_prefetch_multiplier": 0,
        "worker_disable_prefetch": True,
        "worker_direct": True,
        "worker_enable_remote_control": True,
        "worker_send_task_events": True,
        # How long a worker that was told to stop goes on with what it has; read by its drain step.
        "capflow_drain_seconds": settings.drain_seconds,
        "worker_redirect_stdouts": False,
        "worker_hijack_root_logger": False,
        "task_acks_late": True,
        # No result backend: results are rows, and a chain passes nothing on.
        "task_ignore_result": True,
        "task_send_sent_event": True,
        "task_queues": [Queue(name) for name in settings.queues],
        "task_default_queue": "gpu",
        # A mistyped -Q is an error, not a queue that nobody fills.
        "task_create_missing_queues": False,
        "task_routes": (StageRouter({stage: settings.queue_of(stage) for stage in Stage}),),
        # A finished stage must not lose the rest of its chain to a short outage.
        "task_publish_retry_policy": {
            "max_retries": 60,
            "interval_start": 0.2,
            "interval_step": 0.5,
            "interval_max": 5,
        },
        "accept_content": ["json"],
        "task_serializer": "json",
        "event_serializer": "json",
        "result_serializer": "json",
    }


#: Later stages first, so that few samples are open at a time and their prefixes stay cached.
PRIORITIES = {Stage.ROUTE: 9, Stage.PERCEIVE: 6, Stage.REASON: 4, Stage.SUMMARIZE: 2, Stage.SCORE: 0}
PRIORITY_STEPS = sorted(PRIORITIES.values())

#: Message header with the rank that its batch is pinned to.
RANK_HEADER = "capflow_rank"

_RANKED = re.compile(r"(?P<shared>.+)\.rank\d+")

_STAGES_BY_TASK = {f"capflow.{stage}": stage for stage in Stage}


def task_name(stage: Stage) -> str:
    return f"capflow.{stage}"


def queue_of_rank(queue: str, rank: int) -> str:
    return f"{queue}.rank{rank}"


def shared_queue(queue: str) -> str:
    """The queue that all ranks share: `gpu` for `gpu.rank4`, and for itself."""
    match = _RANKED.fullmatch(queue)
    return match["shared"] if match else queue


class FleetQueues(Queues):
    """Celery's queues: those declared and the ranks of each; a mistyped -Q stays an error."""

    def __missing__(self, name: str) -> Queue:
        if shared_queue(name) not in self:
            raise KeyError(name)
        queue = self[name] = self.new_missing(name)
        return queue


class FleetAMQP(AMQP):
    queues_cls = FleetQueues


class StageRouter:
    """Celery's `task_routes`: asked for every message, in the process that publishes it."""

    def __init__(self, queue_by_stage: Mapping[Stage, str]) -> None:
        self._queue_by_stage = queue_by_stage
        self._node: str | None = None
        self._served: frozenset[str] = frozenset()

    def become_worker(self, node: str, served: frozenset[str]) -> None:
        """From now on keep at this node what belongs to the queues it serves."""
        self._node, self._served = node, served

    def __call__(
        self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], *_: Any, **__: Any
    ) -> dict[str, Any] | None:
        stage = _STAGES_BY_TASK.get(name)
        if stage is None:
            return None
        queue = self._queue_by_stage[stage]
        rank = (options.get("headers") or {}).get(RANK_HEADER)
        if rank is not None:
            queue = queue_of_rank(queue, rank)
        if self._node and queue in self._served and not is_stopping():
            return {"queue": worker_direct(self._node), "priority": PRIORITIES[stage]}
        return {"queue": queue, "priority": PRIORITIES[stage]}


def is_stopping() -> bool:
    """Whether this worker has been told to stop; nothing may be sent to its own queue any more."""
    return worker_state.should_stop is not None or worker_state.should_terminate is not None
