"""Whether the broker is there, lets us in, and keeps what it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from celery import Celery
from celery.utils.nodenames import worker_direct
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from capflow_tasks.store.database import shown
from capflow_tasks.store.figures import WorkerFigures
from capflow_tasks.store.health import DatabaseHealth, health_of
from producer.broker import QueueLengths
from producer.doctor.findings import Finding, fail, ok, warn

#: Oldest that Celery's transport works with.
_OLDEST_REDIS = (6, 2)
_AWAY = (OperationalError, RedisError, OSError)


def check_broker(app: Celery) -> Iterator[Finding]:
    with app.connection_for_read(connect_timeout=5) as connection:
        try:
            facts = _facts(connection)
        except _AWAY as error:
            yield fail("broker", f"{_shown(connection)}: {error}", _remedy(error), is_service=True)
            return
        yield _redis_version(_shown(connection), facts)
        yield _policy(facts)
        if app.conf.broker_use_ssl and not app.conf.broker_use_ssl["ssl_cert_reqs"]:
            yield warn(
                "broker", "its certificate is not checked", "ssl_cert_reqs=required in CAPFLOW_BROKER_URL"
            )


def _facts(connection: Connection) -> dict[str, Any]:
    channel: Any = connection.default_channel
    facts: dict[str, Any] = channel.client.info()
    return facts


def _shown(connection: Connection) -> str:
    return str(connection.as_uri()).partition("?")[0]


def _remedy(error: BaseException) -> str:
    # kombu's own error names the one it comes from
    cause = error.__cause__ or error
    if isinstance(cause, NoPermissionError):
        return "give the user the rights in deploy/redis/users.acl"
    if isinstance(cause, AuthenticationError) or "WRONGPASS" in str(error) or "NOAUTH" in str(error):
        return "correct user and password in CAPFLOW_BROKER_URL"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "name its authority: ssl_ca_certs=/path/of/ca.crt in CAPFLOW_BROKER_URL"
    return "start Redis, or correct CAPFLOW_BROKER_URL"


def _redis_version(url: str, facts: dict[str, Any]) -> Finding:
    version = str(facts["redis_version"])
    said = f"{url}: Redis {version}, {facts['used_memory_human']} used"
    if tuple(map(int, version.split(".")[:2])) < _OLDEST_REDIS:
        return fail("broker", said, "upgrade Redis to 6.2 or newer")
    return ok("broker", said)


def _policy(facts: dict[str, Any]) -> Finding:
    policy = facts.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return ok("broker policy", "noeviction: no message is dropped when memory is short")
    return fail(
        "broker policy",
        f"{policy}: Redis drops messages when memory is short",
        "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
    )


_OLDEST_POSTGRES = 15
#: Share of its connections that a server may have in use.
_CROWDED = 0.8


def check_database(engine: Engine) -> Iterator[Finding]:
    # A password may stand among the options, too.
    url = shown(engine.url.render_as_string(hide_password=False)).partition("?")[0]
    try:
        health = health_of(engine)
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        yield fail(
            "database",
            f"{url}: {reason}",
            "start PostgreSQL, or correct CAPFLOW_DATABASE_URL",
            is_service=True,
        )
        return
    yield _postgres_version(url, health)
    yield _schema(health)
    yield _connections(health)


def _postgres_version(url: str, health: DatabaseHealth) -> Finding:
    said = f"{url}: PostgreSQL {health.server_version}"
    if health.server_version < _OLDEST_POSTGRES:
        return fail("database", said, f"upgrade the server to PostgreSQL {_OLDEST_POSTGRES} or newer")
    return ok("database", said)


def _schema(health: DatabaseHealth) -> Finding:
    if health.revision == health.head:
        return ok("schema", f"at revision {health.revision}, the newest")
    said = f"at revision {health.revision}, not at {health.head}"
    if not health.is_known:
        return fail("schema", f"{said}: a newer Capflow has made it", "pip install --upgrade capflow")
    return fail("schema", said, "capflow-db upgrade")


def _connections(health: DatabaseHealth) -> Finding:
    said = f"{health.connections} of {health.max_connections} are open"
    if health.connections > _CROWDED * health.max_connections:
        return warn("connections", said, "raise max_connections, or put PgBouncer before the server")
    return ok("connections", said)


_DIRECT = worker_direct("").name


def check_queues(
    lengths: QueueLengths | None, declared: Collection[str], consumed: Collection[str]
) -> Iterator[Finding]:
    """`consumed` are the queues that living workers take messages from."""
    if lengths is None:
        yield warn("queues", "cannot be looked at", "give the user the rights in deploy/redis/users.acl")
        return
    waiting = Counter(dict.fromkeys(declared, 0))
    for (queue, _), length in lengths.by_queue.items():
        waiting[queue] += length
    for queue, length in sorted(waiting.items()):
        yield _queue(queue, length, queue in consumed)


def _queue(queue: str, length: int, is_consumed: bool) -> Finding:
    said = f"{queue}: {length} waiting"
    if is_consumed or not length:
        return ok("queue", said)
    if queue.endswith(_DIRECT):
        remedy = "start that worker again, or capflow-produce --reconcile: its batches go to others"
    else:
        remedy = f"celery -A capflow_tasks worker -Q {queue}"
    return warn("queue", f"{said}, and nobody takes them", remedy)


START_A_WORKER = "celery -A capflow_tasks worker -Q gpu"


def queues_by_node(app: Celery, timeout_seconds: float) -> dict[str, set[str]]:
    """The queues that each worker takes messages from, of those that answer."""
    try:
        answers = app.control.inspect(timeout=timeout_seconds).active_queues() or {}
    except (OperationalError, RedisError):
        return {}
    return {node: {queue["name"] for queue in queues} for node, queues in answers.items()}


def check_workers(
    beating: Sequence[WorkerFigures], answering: Mapping[str, Collection[str]]
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
