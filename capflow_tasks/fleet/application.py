"""Celery's configuration and routing, the same for workers, producers and Flower.

Celery's Redis transport can lose, delay and repeat messages: it pops a message before it records it, counts
its visibility timeout from delivery and restores all messages when a connection breaks. So a message only
names a batch; PostgreSQL decides who runs it, and which messages were lost.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP, Queues
from celery.utils.nodenames import worker_direct
from celery.worker import state as worker_state
from kombu import Queue
from kombu.exceptions import KombuError
from kombu.utils.url import parse_url
from redis.exceptions import RedisError, ResponseError

from capflow_tasks import outages
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings

#: Redis priorities; 0 goes first. Later stages go first, to keep few samples open and their prefixes cached.
PRIORITIES = {Stage.ROUTE: 9, Stage.PERCEIVE: 6, Stage.REASON: 4, Stage.SUMMARIZE: 2, Stage.SCORE: 0}
PRIORITY_STEPS = sorted(PRIORITIES.values())

#: Message header with the rank that its batch is pinned to.
RANK_HEADER = "capflow_rank"
#: Celery's remote command by which a producer asks workers for their media.
ROOTS_COMMAND = "capflow_media_roots"
#: Message header with its batch's `queued_until`, in ISO format.
QUEUED_UNTIL_HEADER = "capflow_queued_until"


def make_app(settings: Settings, broker_url: str | None) -> Celery:
    """Configure Celery; with a `rediss://` URL, the broker's certificate is checked by default."""
    tls = None
    if broker_url and broker_url.startswith("rediss://"):
        # kombu alone would check nothing, and Flower reads this instead of the URL.
        tls = {"ssl_cert_reqs": ssl.CERT_REQUIRED, **parse_url(broker_url).get("ssl", {})}
    app = Celery("capflow", amqp=FleetAMQP, include=["capflow_tasks.fleet.worker"])
    app.conf.update(broker_url=broker_url, broker_use_ssl=tls, **_configuration(settings))
    return app


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A broker that answers with an error, as a replica does, is away like one that does not answer.
        "broker_channel_error_retry": True,
        "broker_pool_limit": 32,
        "broker_transport_options": {
            # Leases in PostgreSQL find lost messages long before Redis redelivers them.
            "visibility_timeout": 12 * 3600,
            "queue_order_strategy": "priority",
            "priority_steps": PRIORITY_STEPS,
            # List names such as gpu:9, which are easy to name in redis-cli and autoscalers.
            "sep": ":",
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            "health_check_interval": 25,
            "client_name": "capflow",
        },
        # One engine per process, shared by all its threads.
        "worker_pool": "threads",
        "worker_concurrency": settings.concurrency,
        # Take a message only when a thread is free, so that priorities hold until then.
        "worker_prefetch_multiplier": 0,
        "worker_disable_prefetch": True,
        "worker_direct": True,
        "worker_send_task_events": True,
        # Read by the worker's drain step.
        "capflow_drain_seconds": settings.drain_seconds,
        "worker_redirect_stdouts": False,
        "worker_hijack_root_logger": False,
        "task_acks_late": True,
        # No result backend: results are rows, and a chain passes nothing on.
        "task_ignore_result": True,
        "task_send_sent_event": True,
        "task_queues": [Queue(name) for name in settings.queues],
        "task_default_queue": "gpu",
        # A mistyped -Q is an error instead of a queue that nobody fills.
        "task_create_missing_queues": False,
        "task_routes": (StageRouter({stage: settings.queue_of(stage) for stage in Stage}),),
        # A short outage must not cost a finished stage the rest of its chain.
        "task_publish_retry_policy": {
            "max_retries": 60,
            "interval_start": 0.2,
            "interval_step": 0.5,
            "interval_max": 5,
        },
    }


def task_name(stage: Stage) -> str:
    return f"capflow.{stage}"


_STAGES_BY_TASK = {task_name(stage): stage for stage in Stage}


def queue_of_rank(queue: str, rank: int) -> str:
    return f"{queue}.rank{rank}"


def shared_queue(queue: str) -> str:
    """Return the queue that all ranks share: `gpu` for `gpu.rank4`, and for `gpu`."""
    return re.sub(r"\.rank\d+$", "", queue)


class FleetQueues(Queues):
    """The declared queues and the queues of their ranks; any other -Q is an error."""

    def __missing__(self, name: str) -> Queue:
        if shared_queue(name) not in self:
            raise KeyError(name)
        queue = self[name] = self.new_missing(name)
        return queue


class FleetAMQP(AMQP):
    queues_cls = FleetQueues


class StageRouter:
    """Chooses the queue of each message, in the process that publishes it; Celery's `task_routes`."""

    def __init__(self, queue_by_stage: Mapping[Stage, str]) -> None:
        self._queue_by_stage = queue_by_stage
        self._node: str | None = None
        self._served: frozenset[str] = frozenset()
        self._keeps: Callable[[], bool] = lambda: True

    def become_worker(
        self, node: str, served: frozenset[str], keeps: Callable[[], bool] = lambda: True
    ) -> None:
        """Send messages of the served queues to this node's own queue from now on, while it `keeps` them."""
        self._node, self._served, self._keeps = node, served, keeps

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
        if self._node and queue in self._served and self._keeps() and not is_stopping():
            return {"queue": worker_direct(self._node), "priority": PRIORITIES[stage]}
        return {"queue": queue, "priority": PRIORITIES[stage]}


def is_stopping() -> bool:
    """Return whether this worker stops, so that nothing may be sent to its own queue any more."""
    return worker_state.should_stop is not None or worker_state.should_terminate is not None


def refusal_of_broker(app: Celery) -> Exception | None:
    """Return why the broker takes no writes; None when it does, and when nobody answers."""
    try:
        with app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            # Under a name that Capflow's users of Redis may write.
            channel.client.set(f"{channel.unacked_key}.write_test", 1, px=1000)
    except ResponseError as error:
        return error if outages.is_outage(error) else None
    except (KombuError, RedisError, OSError):
        # Celery waits for a broker that does not answer.
        return None
    return None
