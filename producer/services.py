"""Reaches the services that a command needs: those that settings name, else embedded ones."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event
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
from capflow_tasks.errors import ServiceError, SettingsError, UserError
from capflow_tasks.fleet import application, embedded
from capflow_tasks.media.paths import root_problem
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store import figures, states, statistics
from capflow_tasks.store.database import connect, unavailable, upgrade
from producer.console import waiting
from producer.reading.plan import kept_plan

log = logging.getLogger(__name__)

T = TypeVar("T")

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
            log.info("worker %s is gone; removing its queue", node)
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
        try:
            upgrade(engine)
            broker = Broker(application.make_app(settings, found.broker_url))
            broker.check()
            yield Fleet(settings, found, engine, broker)
        finally:
            engine.dispose()


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
