"""Decides which errors of PostgreSQL and Redis mean that the server is away, and says what to do about them.

A server is away while nobody answers, and while it answers that it cannot serve: a standby during a failover,
no memory, disk or connection left, starting, shutting down. The same call may succeed later, so callers keep
what they have and wait. Any other error is a fault of the call, which waiting does not cure.
"""

import re

from kombu.exceptions import OperationalError as BrokerAway
from redis import exceptions as redis
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

#: SQLSTATEs, or their classes (PostgreSQL's Appendix A): connection, read-only transaction, idle for too
#: long, deadlock, resources, locks, operator intervention, I/O. Without one the connection is at fault.
_AWAY_SQLSTATES = re.compile("08|25006|25P0[34]|40|53|55|57|58")
#: Redis' answers that have a class of their own ...
_AWAY_ANSWERS = (redis.ReadOnlyError, redis.OutOfMemoryError, redis.ClusterDownError, redis.TryAgainError)
#: ... and those that have none: no disk, too few replicas, a long script, a failover under a waiting client.
_AWAY_CODES = re.compile(r"\b(MISCONF|NOREPLICAS|BUSY|UNKILLABLE|UNBLOCKED)\b")

#: What an operator can do, by what the server says; libpq passes on a refusal's text without its SQLSTATE.
_REMEDIES = {
    r"^25006": "it is a standby: wait for the failover, or set CAPFLOW_DATABASE_URL to the primary",
    r"^53100|No space left": "free space on its disk",
    r"^53200": "give its machine memory",
    r"^53300|too many (clients|connections)|connection slots": "raise its max_connections, or stop workers",
    r"^57P|the database system is ": "wait until it has started",
    r"read only replica|UNBLOCKED": (
        "it is a replica: wait for the failover, or set CAPFLOW_BROKER_URL to the primary"
    ),
    r"maxmemory": "raise its maxmemory",
    r"MISCONF": "free space on its disk",
    r"loading the dataset": "wait until it has loaded its data",
    r"number of clients": "raise its maxclients",
}


def is_outage(error: BaseException) -> bool:
    """Return whether the server that raised this error is away."""
    if isinstance(error, DBAPIError):
        sqlstate = _sqlstate(error)
        if sqlstate is None:
            return isinstance(error, OperationalError | InterfaceError)
        return _AWAY_SQLSTATES.match(sqlstate) is not None
    if isinstance(error, redis.ResponseError):
        return isinstance(error, _AWAY_ANSWERS) or _AWAY_CODES.search(str(error)) is not None
    return isinstance(error, NoConnection | BrokerAway | redis.ConnectionError | redis.TimeoutError)


def reason(error: BaseException) -> str:
    """Return the first line of what the server says."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return next(iter(str(said).strip().splitlines()), type(said).__name__).rstrip(".")


def remedy(error: BaseException) -> str | None:
    """Return what an operator can do about what the server says; None where it says too little."""
    sqlstate = _sqlstate(error) if isinstance(error, DBAPIError) else None
    said = f"{sqlstate or ''} {error.orig if isinstance(error, DBAPIError) else error}".lstrip()
    return next((cure for pattern, cure in _REMEDIES.items() if re.search(pattern, said)), None)


def explained(error: BaseException) -> str:
    """Return reason and remedy."""
    return "; ".join(filter(None, (reason(error), remedy(error))))


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
