"""Reaches the services that a command needs: those that settings name, else embedded ones and one worker."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, TypeVar
from uuid import uuid4

from celery import Celery, Signature, chain
from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError as BrokerAway
from kombu.utils.json import loads
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, ProgrammingError

from capflow_tasks import outages
from capflow_tasks.engine.devices import visible_devices
from capflow_tasks.errors import WORKER_ERROR_MARK, ServiceError, SettingsError, UserError
from capflow_tasks.fleet import application, embedded
from capflow_tasks.lifeline import die_with_parent
from capflow_tasks.media.paths import root_problem
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store import figures, states, statistics
from capflow_tasks.store.database import connect, unavailable, upgrade
from producer.console import counted, waiting
from producer.reading.plan import kept_plan

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A worker that exits sooner than this has failed to start.
_START_SECONDS = 120
_MAX_FAILED_STARTS = 3
#: For the worker's engine to shut down, on top of the worker's own deadline.
_STOP_GRACE_SECONDS = 20
#: Between two attempts to reach a database or a broker that is away.
_OUTAGE_WAIT_SECONDS = 2.0
#: For workers to say what they see.
_ANSWER_SECONDS = 2.0
#: Ends the name of the queue of one worker.
_OWN_QUEUE_SUFFIX = worker_direct("").name
_LONG_AGO = "2000-01-01T00:00:00+00:00"
#: Runs that a message names.
_SHOWN_RUNS = 10


@dataclass(frozen=True, slots=True)
class QueueLengths:
    """Numbers of messages."""

    #: In the queues that hold some, by name and priority.
    by_queue: dict[tuple[str, int], int]
    #: Taken by workers and not acknowledged.
    unacked: int


class Broker:
    """Redis as a producer uses it. Its messages carry the id of a batch, its rank and its `queued_until`."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def check(self) -> None:
        """Raise ServiceError when the broker cannot be reached."""
        with self._app.connection_for_write() as connection:
            try:
                connection.ensure_connection(max_retries=2, interval_start=0, interval_step=1)
            except BrokerAway as error:
                raise ServiceError(
                    f"the broker {connection.as_uri()} cannot be reached: {error}; "
                    "start it, or correct CAPFLOW_BROKER_URL"
                ) from error

    def publish(self, batch: states.ReadyBatch) -> None:
        """Send the stages that are left of the batch's chain."""
        stages = states.stages_from(batch.next_stage, batch.stages)
        chain(*(self._task(batch, stage) for stage in stages)).apply_async()

    def _task(self, batch: states.ReadyBatch, stage: Stage) -> Signature[Any]:
        rank = {} if batch.pinned_to is None else {application.RANK_HEADER: batch.pinned_to}
        # The task's id names batch and stage, for people in Flower and for `waiting`.
        return self._app.signature(
            application.task_name(stage),
            kwargs={"batch_id": batch.id},
            immutable=True,
            task_id=f"{batch.id}.{stage}.{uuid4().hex[:12]}",
            # What Flower and the worker's log show in place of the arguments.
            argsrepr=batch.samples,
            kwargsrepr=f"run {batch.run}, batch {batch.id}",
            headers={application.QUEUED_UNTIL_HEADER: batch.queued_until.isoformat(), **rank},
        )

    def waiting(self) -> states.WaitingMessages | None:
        """Read only the message that is taken next from each queue; None while the broker is away."""
        with self._app.connection_for_read() as connection:
            try:
                channel: Any = connection.default_channel
                with channel.client.pipeline(transaction=False) as pipeline:
                    names = [key.decode() for key in _lists(channel)]
                    for name in names:
                        pipeline.lrange(name, -1, -1)
                    found = dict(zip(names, pipeline.execute(), strict=True))
            except (RedisError, BrokerAway):
                return None
        # A queue may have become empty since its name was read.
        return _waiting_messages({name: loads(messages[0]) for name, messages in found.items() if messages})

    def taken_batches(self) -> set[int] | None:
        """Read the messages that workers have taken and not acknowledged; return their batches.

        The worker may have died. Reads a message for each batch that runs. None while the broker is away.
        """
        with self._app.connection_for_read() as connection:
            try:
                channel: Any = connection.default_channel
                entries = channel.client.hvals(channel.unacked_key)
            except (RedisError, BrokerAway):
                return None
        ids = (_batch_and_stage(loads(entry)[0]) for entry in entries)
        return {int(batch_id) for batch_id, _ in ids if batch_id.isdecimal()}

    def lengths(self) -> QueueLengths | None:
        """Count the messages that wait and those that workers hold; None while the broker is away."""
        with self._app.connection_for_read() as connection:
            try:
                connection.ensure_connection(max_retries=1)
                channel: Any = connection.default_channel
                lists = {key.decode(): channel.client.llen(key) for key in _lists(channel)}
                unacked = channel.client.hlen(channel.unacked_key)
            except (RedisError, BrokerAway):
                return None
        # Priority 0 has no suffix; replies to Celery's remote control are not batches.
        queues = {_queue_of(name): count for name, count in lists.items() if "pidbox" not in name}
        return QueueLengths(queues, unacked)

    def ask_for_roots(self, roots: Collection[str], workers: int) -> dict[str, dict[str, str]]:
        """Ask so many workers what is wrong with these folders; return it by node and folder.

        Leaves out workers that do not serve the queues of this application, and those that do not answer.
        """
        arguments = {"roots": sorted(roots), "queues": [queue.name for queue in self._app.conf.task_queues]}
        with suppress(RedisError, BrokerAway):
            answers = self._app.control.broadcast(
                application.ROOTS_COMMAND,
                arguments=arguments,
                reply=True,
                timeout=_ANSWER_SECONDS,
                limit=workers,
            )
            found = {node: answer for each in answers or () for node, answer in each.items()}
            return {node: answer["problems"] for node, answer in found.items() if "problems" in answer}
        return {}

    def drop_queues_of(self, nodes: Collection[str]) -> None:
        """Remove the personal queues of dead workers; their batches are sent again to others."""
        for node in nodes:
            log.warning("worker %s is gone; removing its queue", node)
            with self._app.connection_for_write() as connection:
                worker_direct(node)(connection.default_channel).purge()


def _waiting_messages(next_by_list: Mapping[str, Any]) -> states.WaitingMessages:
    """Sort the message that is taken next from each list by who may take it."""
    nodes: set[str] = set()
    next_until: dict[tuple[Stage, int | None], datetime] = {}
    for name, message in next_by_list.items():
        queue, _ = _queue_of(name)
        _, stage = _batch_and_stage(message)
        if queue.endswith(_OWN_QUEUE_SUFFIX):
            nodes.add(queue.removesuffix(_OWN_QUEUE_SUFFIX))
        elif stage in set(Stage):
            headers = message["headers"]
            # An older Capflow's message counts as sent before all others, so that none is taken for lost.
            until = datetime.fromisoformat(headers.get(application.QUEUED_UNTIL_HEADER, _LONG_AGO))
            place = Stage(stage), headers.get(application.RANK_HEADER)
            next_until[place] = min(until, next_until.get(place, until))
    return states.WaitingMessages(next_until, nodes)


def _batch_and_stage(message: Any) -> tuple[str, str]:
    """Read them from the task's id; those of a message that is not about a batch are other text."""
    batch_id, _, rest = message["headers"].get("id", "").partition(".")
    return batch_id, rest.partition(".")[0]


def _queue_of(name: str) -> tuple[str, int]:
    """Split the name of a Redis list into queue and priority: `gpu:9`, or `gpu` for priority 0."""
    queue, separator, priority = name.rpartition(":")
    return (queue, int(priority)) if separator and priority.isdecimal() else (name, 0)


def _lists(channel: Any) -> Iterator[bytes]:
    return channel.client.scan_iter(count=1000, _type="LIST")  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The services of a run, reached; its workers are the fleet's own or an embedded one."""

    settings: Settings
    services: embedded.Services
    engine: Engine
    broker: Broker


@contextmanager
def reach_fleet(settings: Settings) -> Iterator[Fleet]:
    """Reach database and broker, and upgrade the schema. Raises ServiceError when one cannot be reached."""
    with services(settings) as found:
        engine = connect(found.database_url)
        upgrade(engine)
        broker = Broker(application.make_app(settings, found.broker_url))
        broker.check()
        yield Fleet(settings, found, engine, broker)


@contextmanager
def looking(settings: Settings) -> Iterator[Fleet | None]:
    """Reach what is there, starting no broker; None before the first run. Raises ServiceError."""
    if settings.database_url is None and not (settings.home / "postgres").is_dir():
        yield None
        return
    with database(settings) as url, reading(url) as engine:
        broker = Broker(application.make_app(settings, settings.broker_url))
        yield Fleet(settings, embedded.Services(url, settings.broker_url or ""), engine, broker)


def unseen_media(settings: Settings, fleet: Fleet | None, roots: Collection[str]) -> list[str]:
    """Ask the fleet's workers whether they see the folders of the media; return what is to be said."""
    if settings.broker_url is None or fleet is None:
        # An embedded worker sees what this process sees.
        found = {root: root_problem(root) for root in sorted(set(roots))}
        return [
            f"the media root {root} {problem} here; mount it: until then its samples wait"
            for root, problem in found.items()
            if problem
        ]
    workers = statistics.Statistics(fleet.engine).workers(settings.lease_seconds)
    nodes = {worker.node for worker in workers if worker.is_alive}
    if not nodes:
        return ["no worker runs, so none was asked whether it sees the media"]
    answers = fleet.broker.ask_for_roots(set(roots), len(nodes))
    said = [
        f"worker {node}: the media root {root} {problem} there; mount it, or other workers do its work"
        for node, problems in sorted(answers.items())
        for root, problem in problems.items()
    ]
    if not answers:
        said.append(f"no worker of these queues said within {_ANSWER_SECONDS:g} s whether it sees the media")
    elif all(answers.values()):
        said.append("no worker sees all media: batches whose root none sees wait")
    return said


@contextmanager
def services(settings: Settings) -> Iterator[embedded.Services]:
    """Yield the servers that settings name; start embedded ones in place of those that they don't."""
    database_url, broker_url = settings.database_url, settings.broker_url
    if database_url and broker_url:
        yield embedded.Services(database_url, broker_url)
        return
    if broker_url:
        raise SettingsError(
            "CAPFLOW_BROKER_URL is set and CAPFLOW_DATABASE_URL is not: the broker's workers could not reach "
            "an embedded database; set both, or neither"
        )
    with ExitStack() as stack:
        stack.enter_context(embedded.sole_use(settings.home))
        if not database_url:
            with waiting(f"starting PostgreSQL (log {settings.home / 'postgres' / 'log'})"):
                database_url = stack.enter_context(embedded.embedded_postgres(settings.home))
        found = embedded.Services(database_url, stack.enter_context(embedded.embedded_redis(settings.home)))
        stack.enter_context(embedded.announce(settings.home, found))
        yield found


def through_outages(call: Callable[[], T], stopping: Event) -> T:
    """Call again for as long as the database or the broker is away; the call may be cut short anywhere.

    Raises ServiceError when stopped during an outage.
    """
    while True:
        try:
            return call()
        except Exception as error:
            if not outages.is_outage(error):
                raise
            if stopping.is_set():
                raise ServiceError("stopped while the database or the broker was away") from error
            log.warning("waiting for the database and the broker: %s", outages.explained(error))
            stopping.wait(_OUTAGE_WAIT_SECONDS)


class EmbeddedWorker:
    """A worker process for an embedded broker, started again when it exits by itself.

    It takes the batches that are for all, and those that are pinned to these ranks.
    """

    def __init__(self, fleet: Fleet, ranks: Collection[int], number: int, gpus: str | None) -> None:
        queues = fleet.settings.queues
        pinned = [application.queue_of_rank(queue, rank) for queue in queues for rank in sorted(ranks)]
        self._queues = ",".join([*queues, *pinned])
        self._fleet = fleet
        #: From 0, among the workers of this process.
        self._number = number
        self._name = f"worker-{number}" if number else "worker"
        #: For CUDA_VISIBLE_DEVICES; None leaves that as it is.
        self._gpus = gpus
        self.log_path = fleet.settings.home / "logs" / f"{self._name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._failed_starts = 0

    def check(self) -> None:
        """Start the worker unless it runs. Raises ServiceError when starting it again would not help."""
        if self._process is None:
            self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        if code in (UserError.exit_code, ServiceError.exit_code) and (reason := self._reason()):
            raise ServiceError(reason)
        has_failed = monotonic() - self._started_at < _START_SECONDS
        self._failed_starts = self._failed_starts + 1 if has_failed else 0
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise ServiceError(
                f"the worker failed to start {self._failed_starts} times in a row; see {self.log_path}"
            )
        log.warning("the worker exited with code %s and is started again; see %s", code, self.log_path)
        self._start()

    def terminate(self) -> None:
        """Ask the worker to finish the stages that it runs and exit."""
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        """Wait for the worker's exit; kill it at the deadline."""
        if self._process is None:
            return
        deadline_seconds = self._fleet.settings.drain_seconds + _STOP_GRACE_SECONDS
        try:
            self._process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            log.warning("killing the worker, which did not stop in %g s; nothing is lost", deadline_seconds)
        finally:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        settings, urls = self._fleet.settings, self._fleet.services
        command = [sys.executable, "-m", "celery", "-A", "capflow_tasks", "worker", "-Q", self._queues]
        suffix = f"-{self._number}" if self._number else ""
        command += ["-n", f"embedded-{os.getpid()}{suffix}@%h", "-l", settings.log_level]
        ours = {"CAPFLOW_DATABASE_URL": urls.database_url, "CAPFLOW_BROKER_URL": urls.broker_url}
        # `capflow eval` has arms with models of their own.
        ours["CAPFLOW_MODEL"] = settings.model
        if self._gpus is not None:
            ours["CUDA_VISIBLE_DEVICES"] = self._gpus
        if settings.metrics_port:
            ours["CAPFLOW_METRICS_PORT"] = str(settings.metrics_port + self._number)
        with embedded.open_log(settings.home, self._name) as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **ours},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
                # Ctrl-C goes to the producer alone, which then stops the worker.
                start_new_session=True,
            )
        self._started_at = monotonic()

    def _reason(self) -> str | None:
        """Read from its log why this start of the worker gave up; None if it does not say."""
        with self.log_path.open(encoding="utf-8", errors="replace") as lines:
            lines.seek(self._log_start)
            reasons = [line for line in lines if line.startswith(WORKER_ERROR_MARK)]
        return reasons[-1].removeprefix(WORKER_ERROR_MARK).strip() if reasons else None


class EmbeddedWorkers:
    """The worker processes for an embedded broker: as many as this machine's GPUs allow, at least one.

    Where settings name a broker, the fleet has workers of its own, and none is started here.
    """

    def __init__(self, fleet: Fleet, ranks: Collection[int] = ()) -> None:
        self._workers: list[EmbeddedWorker] = []
        self._settings = fleet.settings
        if fleet.settings.broker_url is not None:
            return
        for number, gpus in enumerate(_gpu_groups(fleet.settings)):
            self._workers.append(EmbeddedWorker(fleet, ranks, number, gpus))

    def awaited(self, alive: int) -> str:
        """Say what a run waits for that has so many live workers and runs nothing."""
        settings = self._settings
        if self._workers:
            loads = [queue for queue in settings.queues if settings.engine_of(queue) != "openai"]
            models = ", ".join(dict.fromkeys(map(settings.model_of, loads)))
            return (
                f"{f'loading {models}' if models else 'starting a worker'} (log {self._workers[0].log_path})"
            )
        if alive:
            return f"waiting for {counted(alive, 'worker')} of the fleet to take a batch"
        queues = ",".join(settings.queues)
        return f"no worker listens to {queues}: celery -A capflow_tasks worker -Q {queues}"

    def check(self) -> None:
        """Start each worker unless it runs. Raises ServiceError when starting one again would not help."""
        for worker in self._workers:
            worker.check()

    def close(self) -> None:
        """Let the workers finish the stages that they run; kill them at the deadline."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.wait()


def _gpu_groups(settings: Settings) -> list[str | None]:
    """Return the GPUs of each worker that fits here, as CUDA_VISIBLE_DEVICES names them."""
    size = settings.tensor_parallel_size
    uses_gpus = any(settings.engine_of(queue) != "openai" for queue in settings.queues)
    devices = visible_devices() if uses_gpus else []
    count = len(devices) // size
    if count < 2:
        return [None]
    left = f"; GPUs left over: {len(devices) % size}" if len(devices) % size else ""
    each = "1 GPU" if size == 1 else f"{size} GPUs"
    log.info("%s GPUs found: starting %s workers with %s each%s", len(devices), count, each, left)
    ids = [device.id for device in devices]
    return [",".join(ids[start : start + size]) for start in range(0, count * size, size)]


def is_asleep(settings: Settings) -> bool:
    """Whether the database is an embedded one that no process runs, so that nothing in it can change."""
    if settings.database_url is not None or not (settings.home / "postgres").is_dir():
        return False
    return embedded.running_services(settings.home) is None


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """Yield the URL of the database set or running; start the embedded one that an earlier run has left."""
    if is_asleep(settings):
        with embedded.sole_use(settings.home), embedded.embedded_postgres(settings.home) as url:
            yield url
    else:
        yield embedded.database_url(settings)


@contextmanager
def reading(url: str) -> Iterator[Engine]:
    """Yield a pool for queries. Raises ServiceError when there is no server, or it lacks the tables."""
    engine = connect(url)
    try:
        yield engine
    except ProgrammingError as error:
        raise ServiceError("the database lacks Capflow's tables; run capflow db upgrade") from error
    except DBAPIError as error:
        raise unavailable(engine, error) from error
    finally:
        engine.dispose()


def find_run(engine: Engine, name_or_plan: str) -> figures.RunFigures:
    """Find the run of this name, else the only one of this plan or source.

    Raises UserError unless there is one.
    """
    stored = statistics.Statistics(engine)
    found = stored.runs(name_or_plan, str(Path(name_or_plan).resolve()))
    found = [run for run in found if run.name == name_or_plan] or found
    if not found and Path(name_or_plan).exists():
        kept = kept_plan([name_or_plan]).parts
        found = [run for run in stored.runs() if Path(run.plan).parts[-len(kept) :] == kept]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name_or_plan} has several runs; name one of them: {_names(found)}")
    known = stored.runs()
    remedy = f"name one of: {_names(known)}" if known else "start one with capflow caption"
    raise UserError(f"{name_or_plan}: the database has no run of this name or plan; {remedy}")


def _names(runs: list[figures.RunFigures]) -> str:
    """List the newest runs."""
    shown = [run.name for run in runs[:_SHOWN_RUNS]]
    return ", ".join([*shown, f"and {len(runs) - _SHOWN_RUNS} more"] if len(runs) > _SHOWN_RUNS else shown)
