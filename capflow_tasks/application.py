"""Celery's configuration, the same for workers, producers and Flower.

Why each setting is as it is: Celery's Redis transport pops a message before it records it, counts its
visibility timeout from delivery and restores all messages at every broken connection. So Redis only
rings; which batch runs where, and what is lost, is PostgreSQL's to know.
"""

from __future__ import annotations

import ssl
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.utils.url import parse_url

from capflow_tasks.embedded import running_services
from capflow_tasks.queues import PRIORITY_STEPS, FleetAMQP, StageRouter
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings

_HALF_A_DAY_SECONDS = 12 * 3600


def find_broker(settings: Settings) -> str | None:
    """The broker set, else the embedded one that runs under this home, else None."""
    embedded = running_services(settings.home)
    return settings.broker_url or (embedded.broker_url if embedded else None)


def make_app(settings: Settings, broker_url: str | None) -> Celery:
    app = Celery("capflow", amqp=FleetAMQP, include=["capflow_tasks.tasks"])
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
