"""The embedded fleet: PostgreSQL, Redis and one worker for a producer that was given none."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from capflow_tasks.errors import (
    EXIT_SERVICE,
    EXIT_USAGE,
    WORKER_ERROR_MARK,
    ServiceError,
    SettingsError,
    UserError,
)
from capflow_tasks.fleet.application import queue_of_rank
from capflow_tasks.fleet.embedded import (
    Services,
    announce,
    database_url,
    embedded_postgres,
    embedded_redis,
    open_log,
    running_services,
    sole_use,
)
from capflow_tasks.lifeline import die_with_parent
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect, unreachable
from capflow_tasks.store.figures import RunFigures
from capflow_tasks.store.statistics import Statistics

log = logging.getLogger(__name__)

#: A worker that ends sooner than this did not get to work.
_TOO_SOON_SECONDS = 120
_MAX_FRUITLESS_STARTS = 3

#: On top of the worker's own deadline, for its engine to end.
_STOP_GRACE_SECONDS = 20


class EmbeddedWorker:
    """A worker process, started again when it ends unasked."""

    def __init__(self, settings: Settings, queues: Sequence[str], environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._queues = queues
        self._environment = environment
        self._fruitless_starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def start(self) -> None:
        queues = ",".join(self._queues)
        command = [sys.executable, "-m", "celery", "-A", "capflow_tasks", "worker", "-Q", queues]
        with open_log(self._settings.home, "worker") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [*command, "-n", f"embedded-{os.getpid()}@%h", "-l", self._settings.log_level],
                env={**os.environ, **self._environment},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
                # Ctrl-C is the producer's to hear; it tells the worker.
                start_new_session=True,
            )
        self._started_at = monotonic()

    def check(self) -> None:
        """Start the worker, also when it has ended unasked. Raises ServiceError when that is no use."""
        code = self._process.poll() if self._process else None
        if self._process is None:
            self.start()
        if code is None:
            return
        if code in (EXIT_USAGE, EXIT_SERVICE) and (reason := self._reason()):
            raise ServiceError(reason)
        is_fruitless = monotonic() - self._started_at < _TOO_SOON_SECONDS
        self._fruitless_starts = self._fruitless_starts + 1 if is_fruitless else 0
        if self._fruitless_starts >= _MAX_FRUITLESS_STARTS:
            raise ServiceError(
                f"the worker ended {self._fruitless_starts} times in a row; see {self.log_path}"
            )
        log.warning("the worker ended with code %s and is started again; see %s", code, self.log_path)
        self.start()

    def stop(self, deadline_seconds: float) -> None:
        """Let the worker finish what it runs; end it at the deadline."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            log.warning("the worker did not end within %g s and is killed; nothing is lost", deadline_seconds)
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def log_path(self) -> Path:
        return self._settings.home / "logs" / "worker.log"

    def _reason(self) -> str | None:
        """The sentence with which this start of the worker gave up, None if it wrote none."""
        with self.log_path.open(encoding="utf-8", errors="replace") as lines:
            lines.seek(self._log_start)
            reasons = [
                line.removeprefix(WORKER_ERROR_MARK) for line in lines if line.startswith(WORKER_ERROR_MARK)
            ]
        return reasons[-1].strip() if reasons else None


@contextmanager
def services(settings: Settings) -> Iterator[Services]:
    """The servers that settings name; embedded ones for those they do not."""
    database_url, broker_url = settings.database_url, settings.broker_url
    if database_url and broker_url:
        yield Services(database_url, broker_url)
        return
    if broker_url:
        raise SettingsError(
            "CAPFLOW_BROKER_URL is set and CAPFLOW_DATABASE_URL is not: the broker's workers could not reach "
            "an embedded database; set both, or neither"
        )
    with ExitStack() as stack:
        stack.enter_context(sole_use(settings.home))
        database_url = database_url or stack.enter_context(embedded_postgres(settings.home))
        found = Services(database_url, stack.enter_context(embedded_redis(settings.home)))
        stack.enter_context(announce(settings.home, found))
        yield found


@contextmanager
def embedded_worker(
    settings: Settings, reached: Services, ranks: Collection[int] = ()
) -> Iterator[EmbeddedWorker | None]:
    """A worker for an embedded broker, started at its first check; None where others start the workers.

    It takes what is for all, and what is pinned to these ranks.
    """
    if settings.broker_url is not None:
        yield None
        return
    environment = {
        "CAPFLOW_DATABASE_URL": reached.database_url,
        "CAPFLOW_BROKER_URL": reached.broker_url,
    }
    pinned = [queue_of_rank(queue, rank) for queue in settings.queues for rank in sorted(ranks)]
    worker = EmbeddedWorker(settings, [*settings.queues, *pinned], environment)
    try:
        yield worker
    finally:
        worker.stop(settings.drain_seconds + _STOP_GRACE_SECONDS)


def is_asleep(settings: Settings) -> bool:
    """Whether the database is the embedded one and nobody runs it: what is in it cannot change."""
    if settings.database_url is not None or not (settings.home / "postgres").is_dir():
        return False
    return running_services(settings.home) is None


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The database set or running, else the one that an earlier run has left under this home."""
    if is_asleep(settings):
        with sole_use(settings.home), embedded_postgres(settings.home) as url:
            yield url
    else:
        yield database_url(settings)


@contextmanager
def reading(url: str) -> Iterator[Engine]:
    """A pool for questions. Raises ServiceError when there is no server, or it lacks the tables."""
    engine = connect(url)
    try:
        yield engine
    except OperationalError as error:
        raise unreachable(engine, error) from error
    except ProgrammingError as error:
        raise ServiceError("the database lacks Capflow's tables; run capflow-db upgrade") from error
    finally:
        engine.dispose()


#: Runs that a message names.
_SHOWN = 10


def chosen_run(engine: Engine, name_or_plan: str) -> RunFigures:
    """The run of this name, else the only one of this plan. Raises UserError when there is not just one."""
    statistics = Statistics(engine)
    found = statistics.runs(name_or_plan, str(Path(name_or_plan).resolve()))
    found = [run for run in found if run.name == name_or_plan] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name_or_plan} has several runs; name one of them: {_names(found)}")
    known = statistics.runs()
    remedy = f"name one of: {_names(known)}" if known else "start one with capflow-produce"
    raise UserError(f"{name_or_plan}: the database has no run of this name or plan; {remedy}")


def _names(runs: list[RunFigures]) -> str:
    """The newest of them."""
    shown = [run.name for run in runs[:_SHOWN]]
    return ", ".join([*shown, f"and {len(runs) - _SHOWN} more"] if len(runs) > _SHOWN else shown)
