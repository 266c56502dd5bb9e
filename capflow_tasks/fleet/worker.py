"""The Celery tasks, one per stage, a worker's life as bootsteps, and its health: probes and gauges.

Engines start before the first task, and SIGTERM drains the worker.
"""

import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from http import HTTPStatus
from math import nan, prod
from threading import Thread, Timer
from time import monotonic, sleep
from typing import Any, NoReturn

import psutil
from celery import Celery, Task, bootsteps, shared_task, signals
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.exceptions import Ignore
from celery.utils.nodenames import worker_direct
from celery.worker import components
from celery.worker import state as worker_state
from celery.worker.consumer.connection import Connection
from celery.worker.control import inspect_command
from prometheus_client import REGISTRY

from capflow_tasks import errors, outages
from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stages import StageRunner, StageSummary
from capflow_tasks.domains.catalogue import load_workflow
from capflow_tasks.engine.devices import visible_devices
from capflow_tasks.engine.interface import Engine, EngineState, build_engine
from capflow_tasks.fleet import agreement
from capflow_tasks.fleet.application import (
    ROOTS_COMMAND,
    is_stopping,
    refusal_of_broker,
    shared_queue,
    task_name,
)
from capflow_tasks.fleet.embedded import database_url
from capflow_tasks.media import budget, decoders, ocr, video
from capflow_tasks.media.paths import root_problem
from capflow_tasks.observe import metrics, pages
from capflow_tasks.records import JsonObject, Stage, Workflow
from capflow_tasks.settings import Settings, read_settings
from capflow_tasks.store import claims, database

log = logging.getLogger(__name__)

#: Connections that all stages of a worker share: each holds one for a few milliseconds.
_STAGE_CONNECTIONS = 3
#: Celery's flags that its pool of threads ignores or fails on, and what does the same here.
_REFUSED_FLAGS = {
    "autoscale": "set CAPFLOW_CONCURRENCY, and scale workers: one per GPU",
    "max_tasks_per_child": "set CAPFLOW_MAX_RSS_MIB to have a worker restarted",
    "max_memory_per_child": "set CAPFLOW_MAX_RSS_MIB to have a worker restarted",
    "time_limit": "set CAPFLOW_REQUEST_TIMEOUT_SECONDS",
    "soft_time_limit": "set CAPFLOW_REQUEST_TIMEOUT_SECONDS",
    "pool_start_method": "a worker starts no child processes for its tasks",
}
#: After the drain's deadline, for Celery's own shutdown, seconds.
_EXIT_GRACE_SECONDS = 15.0
#: Between two attempts to write to a broker that refuses.
_OUTAGE_WAIT_SECONDS = 2.0
#: Age of the consumer loop's timestamp at which the loop is taken to hang; it is set every few seconds.
LOOP_LIMIT_SECONDS = 60.0

#: For a look at the folders of media.
_LOOK_SECONDS = 1.0
#: Between two looks at whether the engines have room for further batches.
_ADMISSION_SECONDS = 0.1

_runner: StageRunner | None = None
#: Celery's controller of this worker.
_controller: Any = None


def install(app: Celery) -> None:
    """Add Capflow's bootsteps to the application's workers."""
    app.steps["worker"].add(EngineStep)
    app.steps["consumer"].add(BrokerReadyStep)
    app.steps["consumer"].add(DrainStep)
    app.steps["consumer"].add(LoopTimestampStep)
    app.steps["consumer"].add(AdmissionStep)
    # Celery orders bootsteps by what they require: tasks must find the engines up.
    signals.celeryd_init.connect(_check_flags, weak=False)
    components.Pool.requires = (*components.Pool.requires, EngineStep)  # type: ignore[misc]
    Connection.requires = (BrokerReadyStep,)


def _check_flags(options: Mapping[str, Any], conf: Any, **_: Any) -> None:
    """Exit with one sentence on a flag of Celery's that a worker cannot honour."""
    refused = [(name, remedy) for name, remedy in _REFUSED_FLAGS.items() if options.get(name) is not None]
    if options.get("concurrency") not in (None, conf.worker_concurrency):
        refused.append(("concurrency", "set CAPFLOW_CONCURRENCY"))
    if not issubclass(options.get("pool") or ThreadPool, ThreadPool):
        refused.append(("pool", "a worker's tasks share one engine, so they run in threads; leave it out"))
    if refused:
        name, remedy = refused[0]
        _give_up(errors.SettingsError(f"--{name.replace('_', '-')} has no use here: {remedy}"))


def _give_up(error: errors.CapflowError) -> NoReturn:
    print(errors.redacted(f"{errors.WORKER_ERROR_MARK}{error}"), file=sys.stderr, flush=True)
    raise SystemExit(error.exit_code) from error


def _make_task(stage: Stage) -> Task[[int], str]:
    @shared_task(name=task_name(stage))
    def run(batch_id: int) -> str:
        return _run_stage(batch_id, stage)

    return run


TASKS = [_make_task(stage) for stage in Stage]


def _run_stage(batch_id: int, stage: Stage) -> str:
    """Run the stage and return what Flower shows; end the chain when another worker is to have the batch."""
    metrics.LAST_MESSAGE.set_to_current_time()
    if _runner is None:
        raise errors.ServiceError("stages run in a worker only: celery -A capflow_tasks worker -Q gpu")
    try:
        result = _runner.run(batch_id, stage)
    except errors.ServiceError as error:
        # Without database or engine every further message would fail too: leave them to other workers.
        print(errors.redacted(f"{errors.WORKER_ERROR_MARK}{error}"), file=sys.stderr, flush=True)
        _stop_worker(errors.EXIT_SERVICE)
        raise
    except errors.NodeFault as fault:
        # Other workers have the batch, and this one pauses.
        _set_batch_limit()
        raise Ignore from fault
    except BaseException as error:
        # A MemoryError or SystemExit would occupy the pool's thread for good.
        raise errors.CapflowError(f"batch {batch_id}: {stage} failed: {error!r}") from error
    _set_batch_limit()
    limit = read_settings().max_rss_mib
    if limit is not None and (used := psutil.Process().memory_info().rss // 2**20) > limit:
        log.warning("this worker uses %s MiB of at most %s MiB and exits to be restarted", used, limit)
        _stop_worker(errors.EXIT_RESTART)
    if isinstance(result, StageSummary):
        return str(result)
    if result is claims.NotClaimed.PASSED:
        return "done before"
    raise Ignore


@inspect_command(name=ROOTS_COMMAND)
def media_roots(state: Any, roots: Collection[str], queues: Collection[str]) -> JsonObject:
    """Answer what is wrong with these folders here; nothing if this worker serves none of these queues.

    Celery runs it in the thread that takes messages, which a mount that hangs must not hold up.
    """
    if not {shared_queue(name) for name in state.app.amqp.queues.consume_from} & set(queues):
        return {}
    found: dict[str, str | None] = {}
    looking = Thread(target=lambda: found.update({root: root_problem(root) for root in roots}), daemon=True)
    looking.start()
    looking.join(_LOOK_SECONDS)
    problems = {root: found.get(root, "does not answer") for root in roots}
    return {"problems": {root: problem for root, problem in problems.items() if problem}}


def _set_batch_limit() -> None:
    """Tell Celery how many messages to work on at most, which it reads before it takes one."""
    if _runner is not None:
        _controller.max_concurrency = _runner.batch_limit()


def _stop_worker(exit_code: int) -> None:
    """Have this worker finish what it runs, take nothing more, and exit to be restarted."""
    worker_state.should_stop = exit_code  # type: ignore[assignment]


class Vitals:
    """What is known of a worker's health; one per process.

    A worker is alive while its consumer loop runs, or while it waits for its broker: a broker that is away
    must not end workers. It is ready while its engines are up, messages arrive and its leases are kept.
    """

    def __init__(self) -> None:
        self._engines: dict[str, Callable[[], EngineState]] = {}
        self.heartbeat: Heartbeat | None = None
        #: Whether the worker is connected to its broker, so that its consumer loop must run.
        self.is_connected = False
        self.is_draining = False
        self._looped_at = nan

    def watch_engine(self, model: str, state_now: Callable[[], EngineState]) -> None:
        self._engines[model] = state_now
        metrics.ENGINE_REBUILDS.labels(model)
        for state in EngineState:
            is_in = partial(lambda state: float(state_now() is state), state)
            metrics.ENGINE_STATE.labels(model, state).set_function(is_in)

    def timestamp_loop(self) -> None:
        """Note that the consumer loop runs."""
        self._looped_at = monotonic()

    @property
    def lease_age_seconds(self) -> float:
        """Time since the last heartbeat; NaN while the engines load, when there are no leases."""
        return self.heartbeat.age_seconds if self.heartbeat else nan

    def healthz(self) -> JsonObject:
        """Return the checks of a worker that is alive."""
        return {"loop_turns": not self.is_connected or monotonic() - self._looped_at < LOOP_LIMIT_SECONDS}

    def readyz(self) -> JsonObject:
        """Return the checks of a worker that is ready."""
        states = [state_now() for state_now in self._engines.values()]
        return {
            **self.healthz(),
            "engines_up": bool(states) and all(state is EngineState.UP for state in states),
            "broker_connected": self.is_connected,
            "leases_kept": self.heartbeat is not None and self.heartbeat.is_fresh,
            "node_well": not (_runner and _runner.pause.fault),
            "not_draining": not (self.is_draining or is_stopping()),
        }

    def serve(self, settings: Settings) -> pages.WebPages | None:
        """Serve metrics and probes if the settings name a port. Raises SettingsError."""
        metrics.LEASE_AGE.set_function(lambda: self.lease_age_seconds)
        metrics.LEASE_DURATION.set(settings.lease_seconds)
        metrics.LOOP_AGE.set_function(lambda: monotonic() - self._looped_at)
        metrics.CONNECTED.set_function(lambda: float(self.is_connected))
        metrics.DRAINING.set_function(lambda: float(self.is_draining or is_stopping()))
        metrics.PAUSED.set_function(lambda: float(bool(_runner and _runner.pause.fault)))
        metrics.watch_memory(settings.max_rss_mib)
        metrics.start_at_zero()
        if settings.metrics_port is None:
            return None
        served = {
            "/metrics": pages.metrics_page(REGISTRY),
            "/healthz": lambda: _probe_page(self.healthz()),
            "/readyz": lambda: _probe_page(self.readyz()),
        }
        return pages.WebPages(settings.metrics_host, settings.metrics_port, served)


def _probe_page(checks: JsonObject) -> pages.Page:
    """Answer 200 when every check holds and 503 otherwise, with the checks as JSON."""
    status = HTTPStatus.OK if all(checks.values()) else HTTPStatus.SERVICE_UNAVAILABLE
    return pages.Page(json.dumps(checks).encode() + b"\n", "application/json", status)


#: The health of this process.
vitals = Vitals()


class EngineStep(bootsteps.StartStopStep):
    """Starts the engines of the queues this worker consumes, and stops them after the last task."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        #: In the order in which they are stopped.
        self._started: list[Engine | Heartbeat | ocr.TextReader] = []

    def start(self, worker: Any) -> None:
        try:
            self._start(worker)
        except errors.CapflowError as error:
            _give_up(error)

    def stop(self, worker: Any) -> None:
        for each in self._started:
            each.stop()

    def _start(self, worker: Any) -> None:
        global _runner, _controller
        settings = read_settings()
        vitals.serve(settings)
        store = database.connect(database_url(settings), pool_size=_STAGE_CONNECTIONS)
        database.upgrade(store)
        workflow_of = cache(partial(load_workflow, folder=settings.domains, language=settings.language))
        workflow_of(Workflow.STANDARD)
        queues = frozenset(
            name for name in worker.app.amqp.queues.consume_from if shared_queue(name) in settings.queues
        )
        # A restarted node is another owner: it must not finish what it held before.
        owner = f"{worker.hostname}/{uuid.uuid4().hex[:8]}"
        # A connection of its own, so that no stage can keep a heartbeat waiting.
        pulse = claims.WorkerStore(database.connect(database_url(settings), pool_size=1))
        broker = agreement.broker_identity(worker.app.conf.broker_url)
        traits = agreement.traits_of(settings, set(map(shared_queue, queues)))
        agrees = (owner, broker, traits, 2 * settings.lease_seconds)
        # Before the model is loaded, and again when the worker is listed: another may have been quicker.
        self._refuse(settings, traits, pulse.rival_of(*agrees))
        engines = self._start_engines(settings, set(map(shared_queue, queues)))
        self._refuse(settings, traits, pulse.register(*agrees))
        if gpus := _gpus_per_model(settings, set(map(shared_queue, queues))):
            pulse.note_gpus(owner, gpus)
        heartbeat = Heartbeat(pulse, owner, settings.lease_seconds)
        heartbeat.start()
        self._started.append(heartbeat)
        vitals.heartbeat = heartbeat
        files = decoders.shared_video_files(settings.video_decoders)
        windows = video.Windows(budget.budget_of(settings), files)
        _controller = worker
        tools = _tools(settings) if Stage.PERCEIVE in engines else {}
        self._started += tools.values()
        _runner = StageRunner(
            claims.BatchStore(store), workflow_of, engines, heartbeat, settings, windows, tools
        )
        _set_batch_limit()
        pause = _runner.pause
        worker.app.conf.task_routes[0].become_worker(worker.hostname, queues, lambda: pause.fault is None)

    def _refuse(self, settings: Settings, traits: JsonObject, rival: claims.Rival | None) -> None:
        """Raise SettingsError if another worker differs from this one, unless the settings allow that."""
        if rival is None:
            return
        error = agreement.refusal(traits, rival)
        if not settings.mixed_workers:
            raise error
        log.warning("%s", error)

    def _start_engines(self, settings: Settings, queues: Collection[str]) -> dict[Stage, Engine]:
        """Return the engine of each stage that these queues carry; queues with the same model share one."""
        models = {queue: (settings.model_of(queue), settings.engine_of(queue)) for queue in queues}
        by_model: dict[tuple[str, str], Engine] = {}
        queue_of = {model: queue for queue, model in sorted(models.items(), reverse=True)}
        on_gpu = sum(kind == "vllm" for _, kind in queue_of)
        settings.check_shares([queue for (_, kind), queue in queue_of.items() if kind == "vllm"])
        for model, kind in sorted(queue_of):
            shared = settings.sharing_gpu(queue_of[model, kind], on_gpu) if kind == "vllm" else settings
            engine = by_model[model, kind] = build_engine(shared, model, kind)
            vitals.watch_engine(model, lambda: EngineState.LOADING)
            engine.start()
            vitals.watch_engine(model, partial(getattr, engine, "state", EngineState.UP))
            self._started.append(engine)
        return {
            stage: by_model[models[queue]] for stage in Stage if (queue := settings.queue_of(stage)) in queues
        }


def _tools(settings: Settings) -> dict[str, ocr.TextReader]:
    """Return what answers for agents with a tool, by its name in domain files."""
    if not settings.ocr_processes:
        return {}
    if ocr.version() is None:
        log.warning("no text is read from pictures: %s", ocr.REMEDY)
        return {}
    return {"ocr": ocr.TextReader(settings.ocr_processes, budget.budget_of(settings))}


def _gpus_per_model(settings: Settings, queues: Collection[str]) -> float | None:
    """Return how many GPUs each model of these queues holds; None on a CPU, and for other engines."""
    models = {settings.model_of(queue) for queue in queues if settings.engine_of(queue) == "vllm"}
    if not models or not visible_devices():
        return None
    arguments = {"tensor_parallel_size": settings.tensor_parallel_size, **settings.engine_args}
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return float(prod(arguments.get(name, 1) for name in names)) / len(models)


class BrokerReadyStep(bootsteps.StartStopStep):
    """Waits before each connection until the broker takes writes.

    A replica, or a server without memory, lets workers connect and refuses what they do then. Celery would
    connect again without a pause.
    """

    def start(self, consumer: Any) -> None:
        while (refusal := refusal_of_broker(consumer.app)) is not None:
            log.warning("waiting for the broker: %s", outages.explained(refusal))
            sleep(_OUTAGE_WAIT_SECONDS)
            worker_state.maybe_shutdown()


class LoopTimestampStep(bootsteps.StartStopStep):
    """Timestamps the consumer loop, so that probes can see it hang; starts with each connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    #: None until the first connection is complete; Celery also stops the steps of one that failed half way.
    _timer: Any = None

    def start(self, consumer: Any) -> None:
        vitals.timestamp_loop()
        vitals.is_connected = True
        self._timer = consumer.timer.call_repeatedly(2.0, vitals.timestamp_loop)

    def stop(self, consumer: Any) -> None:
        vitals.is_connected = False
        if self._timer is not None:
            self._timer.cancel()

    shutdown = stop


class AdmissionStep(bootsteps.StartStopStep):
    """Takes further batches as soon as samples leave the engines, not only when a stage ends."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        self._timer = consumer.timer.call_repeatedly(_ADMISSION_SECONDS, _set_batch_limit)

    def stop(self, consumer: Any) -> None:
        self._timer.cancel()

    shutdown = stop


class DrainStep(bootsteps.StartStopStep):
    """On the first SIGTERM: leave the shared queues, finish the own queue, then shut down as Celery does.

    Celery's own warm shutdown would leave what waits in the own queue. At a deadline it is given back.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer = consumer
        self._own_queue = worker_direct(consumer.hostname).name
        self._celery_handler: Callable[..., Any] | None = None
        self._deadline: float | None = None

    def start(self, consumer: Any) -> None:
        # Celery calls this after each connection to the broker.
        if self._celery_handler is None:
            self._celery_handler = signal.getsignal(signal.SIGTERM)  # type: ignore[assignment]
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: Any) -> None:
        if self._deadline is not None:
            self._shut_down()
            return
        seconds = self._consumer.app.conf.capflow_drain_seconds
        self._deadline = monotonic() + seconds
        vitals.is_draining = True
        # While the broker is away, the hub does not run and a thread that publishes does not return.
        for timer in (Timer(seconds, self._shut_down), Timer(seconds + _EXIT_GRACE_SECONDS, _exit_now)):
            timer.daemon = True
            timer.start()
        self._consumer.hub.call_soon(self._leave_shared_queues)

    def _leave_shared_queues(self) -> None:
        for queue in list(self._consumer.app.amqp.queues.consume_from):
            if queue != self._own_queue:
                self._consumer.cancel_task_queue(queue)
        self._shut_down_when_drained()

    def _shut_down_when_drained(self) -> None:
        waiting = self._consumer.task_consumer.channel._size(self._own_queue)
        running = len(worker_state.reserved_requests)
        if (waiting or running) and monotonic() < (self._deadline or 0):
            self._consumer.hub.call_later(0.2, self._shut_down_when_drained)
            return
        log.info("drained; batches left: %s waiting, %s running", waiting, running)
        self._shut_down()

    def _shut_down(self) -> None:
        if self._celery_handler is not None:
            self._celery_handler(signal.SIGTERM, None)


def _exit_now() -> None:
    """Exit with threads still running, after giving back their batches."""
    log.warning("not drained in time; the batches that are left are given back")
    if vitals.heartbeat is not None:
        vitals.heartbeat.resign()
    os._exit(0)
