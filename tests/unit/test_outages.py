"""Which answers of PostgreSQL and Redis mean that the server is away."""

from __future__ import annotations

import psycopg
import pytest
import redis
from kombu.exceptions import OperationalError as BrokerAway
from redis._parsers import _RESP2Parser
from sqlalchemy.exc import DBAPIError

from capflow_tasks import outages


def database_error(sqlstate: str, text: str = "it says so") -> DBAPIError:
    """Return what SQLAlchemy raises for an answer with this SQLSTATE."""
    error = psycopg.errors.lookup(sqlstate)(text)
    wrapped = DBAPIError.instance("SELECT 1", {}, error, psycopg.Error)
    assert isinstance(wrapped, DBAPIError)
    return wrapped


def broker_error(answer: str) -> Exception:
    """Return what the Redis client raises for this answer."""
    error: Exception = _RESP2Parser.parse_error(answer)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(
    ("sqlstate", "remedy"),
    [
        ("25006", "standby"),
        ("53100", "disk"),
        ("53200", "memory"),
        ("53300", "max_connections"),
        ("57P01", "wait"),
        ("57P02", "wait"),
        ("57P03", "wait"),
        ("08006", None),
        ("40P01", None),
        ("55000", None),
        ("58030", None),
    ],
)
def test_a_database_that_cannot_serve_now_is_away(sqlstate: str, remedy: str | None) -> None:
    error = database_error(sqlstate)

    assert outages.is_outage(error)
    assert (outages.remedy(error) or "") == "" if remedy is None else remedy in (outages.remedy(error) or "")


@pytest.mark.parametrize("sqlstate", ["22P02", "22P05", "23505", "42P01", "42501", "54000", "0A000"])
def test_a_statement_that_is_at_fault_is_no_outage(sqlstate: str) -> None:
    assert not outages.is_outage(database_error(sqlstate))


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("FATAL:  sorry, too many clients already", "max_connections"),
        ("FATAL:  remaining connection slots are reserved for superusers", "max_connections"),
        ("FATAL:  the database system is shutting down", "wait"),
        ("FATAL:  the database system is in recovery mode", "wait"),
    ],
)
def test_a_refused_connection_has_a_remedy_though_it_has_no_sqlstate(said: str, remedy: str) -> None:
    error = psycopg.OperationalError(f"connection failed: {said}\nand more")
    wrapped = DBAPIError.instance(None, None, error, psycopg.Error)

    assert outages.is_outage(wrapped)
    assert remedy in (outages.remedy(wrapped) or "")
    assert outages.explained(wrapped).startswith(f"connection failed: {said}")
    assert "and more" not in outages.explained(wrapped)


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        ("READONLY You can't write against a read only replica.", "failover"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "maxmemory"),
        ("LOADING Redis is loading the dataset in memory", "loaded"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's unable to persist on disk.", "disk"),
        ("Command # 1 (HSET a) of pipeline caused error: MISCONF Errors writing to the AOF file", "disk"),
        ("ERR max number of clients reached", "maxclients"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", "failover"),
        ("NOREPLICAS Not enough good replicas to write.", ""),
        ("BUSY Redis is busy running a script.", ""),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", ""),
        ("CLUSTERDOWN The cluster is down", ""),
    ],
)
def test_a_broker_that_cannot_serve_now_is_away(answer: str, remedy: str) -> None:
    error = broker_error(answer)

    assert outages.is_outage(error)
    assert outages.is_outage(BrokerAway(str(error)))
    assert remedy in (outages.remedy(error) or "")


@pytest.mark.parametrize(
    "answer", ["NOPERM this user has no permissions to run the 'set' command", "ERR unknown command 'BRPOP'"]
)
def test_a_command_that_redis_will_never_run_is_no_outage(answer: str) -> None:
    assert not outages.is_outage(broker_error(answer))


def test_other_errors_are_no_outage() -> None:
    assert not outages.is_outage(ValueError("the database system is starting up"))
    assert outages.is_outage(redis.ConnectionError("refused"))
