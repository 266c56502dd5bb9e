"""Whether the broker is there, lets us in, and keeps what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from producer.doctor.finding import Finding, fail, ok, warn

#: Oldest that Celery's transport works with.
_OLDEST_SERVER = (6, 2)
_AWAY = (OperationalError, RedisError, OSError)


def check_broker(app: Celery) -> Iterator[Finding]:
    with app.connection_for_read(connect_timeout=5) as connection:
        try:
            facts = _facts(connection)
        except _AWAY as error:
            yield fail("broker", f"{_shown(connection)}: {error}", _remedy(error), is_service=True)
            return
        yield _version(_shown(connection), facts)
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


def _version(url: str, facts: dict[str, Any]) -> Finding:
    version = str(facts["redis_version"])
    said = f"{url}: Redis {version}, {facts['used_memory_human']} used"
    if tuple(map(int, version.split(".")[:2])) < _OLDEST_SERVER:
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
