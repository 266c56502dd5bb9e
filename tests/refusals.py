"""Servers that are there and refuse: what a failover, a full memory or too many clients look like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import redis
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"


@contextmanager
def read_only_database(url: str) -> Iterator[None]:
    """Have this database refuse writes, as a standby does, also on connections that are open."""
    name = make_url(url).database
    _administer(
        url, f"ALTER DATABASE {name} SET default_transaction_read_only = on", _END_SESSIONS.format(name)
    )
    try:
        yield
    finally:
        _administer(
            url, f"ALTER DATABASE {name} RESET default_transaction_read_only", _END_SESSIONS.format(name)
        )


@contextmanager
def no_connections(url: str) -> Iterator[None]:
    """End the sessions of this database, and hold every connection that the server allows."""
    name = make_url(url).database
    engine = create_engine(_administrator(url), pool_size=0, isolation_level="AUTOCOMMIT")
    try:
        with ExitStack() as held:
            first = held.enter_context(engine.connect())
            # whoever is ended connects again, until all connections are taken
            while first.exec_driver_sql(_END_SESSIONS.format(name)).rowcount:
                with suppress(OperationalError):
                    while True:
                        held.enter_context(engine.connect())
            yield
    finally:
        engine.dispose()


@contextmanager
def replica(client: redis.Redis) -> Iterator[None]:
    """Make Redis the replica of a server that is not there, as in the middle of a failover."""
    client.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


@contextmanager
def no_memory(client: redis.Redis) -> Iterator[None]:
    """Have Redis use more memory than it may."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def _administer(url: str, *statements: str) -> None:
    engine = create_engine(_administrator(url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def _administrator(url: str) -> str:
    """Return the URL of the server's own database."""
    return make_url(url).set(database="postgres").render_as_string(hide_password=False)
