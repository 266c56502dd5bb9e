"""A worker's life as Celery bootsteps: engines start before the first task, and SIGTERM drains the worker."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Collection
from functools import partial
from threading import Timer
from time import monotonic
from typing import Any

import psutil
from celery import Celery, bootsteps
from celery.utils.nodenames import worker_direct
from celery.worker import components
from celery.worker import state as worker_state

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stages import StageRunner
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.engine.interface import Engine, EngineState, build_engine, state_of
from capflow_tasks.errors import EXIT_RESTART, WORKER_ERROR_MARK, CapflowError, ServiceError, redacted
from capflow_tasks.fleet.application import shared_queue
from capflow_tasks.fleet.embedded import database_url
from capflow_tasks.fleet.vitals import vitals
from capflow_tasks.media.budget import budget_of
from capflow_tasks.media.decoders import shared_video_files
from capflow_tasks.media.video import WindowRule, Windows
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings, read_settings
from capflow_tasks.store.claims import BatchStore, WorkerStore
from capflow_tasks.store.database import connect, upgrade

log = logging.getLogger(__name__)

#: Between two timestamps of the consumer loop, seconds.
_TIMESTAMP_SECONDS = 2.0
#: Between two checks of what a draining worker has left, seconds.
_DRAIN_POLL_SECONDS = 0.2
#: After the drain's deadline, for Celery's own shutdown, seconds.
_EXIT_GRACE_SECONDS = 15.0

_runner: StageRunner | None = None
#: Celery's controller of this worker.
_controller: Any = None


def runner() -> StageRunner:
    """Return this process's stage runner. Raises ServiceError outside a started worker."""
    if _runner is None:
        raise ServiceError("stages run in a worker only: celery -A capflow_tasks worker -Q gpu")
    return _runner


def install(app: Celery) -> None:
    """Add Capflow's bootsteps to the application's workers."""
    app.steps["worker"].add(EngineStep)
    app.steps["consumer"].add(DrainStep)
    app.steps["consumer"].add(LoopTimestampStep)
    # Celery orders bootsteps by what they require: tasks must find the engines up.
    components.Pool.requires = (*components.Pool.requires, EngineStep)  # type: ignore[misc]


def stop_worker(exit_code: int) -> None:
    """Have this worker finish what it runs, take nothing more, and exit to be restarted."""
    worker_state.should_stop = exit_code  # type: ignore[assignment]


def follow_batch_limit() -> None:
    """Take no more batches at the same time than those whose prefixes the engines can keep."""
    if _controller is not None:
        # Celery reads it before it takes a message; the pool keeps its size.
        _controller.max_concurrency = runner().batch_limit()


def restart_when_too_big() -> None:
    """Exit to be restarted when this process uses more memory than it may."""
    limit = read_settings().max_rss_mib
    if limit is not None and (used := psutil.Process().memory_info().rss // 2**20) > limit:
        log.warning("this worker uses %s MiB of at most %s MiB and exits to be restarted", used, limit)
        stop_worker(EXIT_RESTART)


class EngineStep(bootsteps.StartStopStep):
    """Starts the engines of the queues this worker consumes, and stops them after the last task."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        #: In the order in which they are stopped.
        self._started: list[Engine | Heartbeat] = []

    def start(self, worker: Any) -> None:
        try:
            self._start(worker)
        except CapflowError as error:
            print(redacted(f"{WORKER_ERROR_MARK}{error}"), file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from error

    def stop(self, worker: Any) -> None:
        for each in self._started:
            each.stop()

    def _start(self, worker: Any) -> None:
        global _runner, _controller
        settings = read_settings()
        vitals.serve(settings)
        database = connect(database_url(settings), pool_size=settings.concurrency + 2)
        upgrade(database)
        catalogue = load_catalogue(settings.domains)
        queues = frozenset(
            name for name in worker.app.amqp.queues.consume_from if shared_queue(name) in settings.queues
        )
        engines = self._start_engines(settings, set(map(shared_queue, queues)))
        # A restarted node is another owner: it must not finish what it held before.
        owner = f"{worker.hostname}/{uuid.uuid4().hex[:8]}"
        heartbeat = Heartbeat(WorkerStore(database), owner, settings.lease_seconds)
        heartbeat.start()
        self._started.append(heartbeat)
        vitals.heartbeat = heartbeat
        store = BatchStore(database)
        _runner = StageRunner(store, catalogue, engines, heartbeat, settings, _windows(settings))
        _controller = worker
        worker.app.conf.task_routes[0].become_worker(worker.hostname, queues)

    def _start_engines(self, settings: Settings, queues: Collection[str]) -> dict[Stage, Engine]:
        """Return the engine of each stage that these queues carry; queues with the same model share one."""
        by_model: dict[str, Engine] = {}
        for model in sorted({settings.model_of(queue) for queue in queues}):
            engine = by_model[model] = build_engine(settings, model)
            vitals.watch_engine(model, lambda: EngineState.LOADING)
            engine.start()
            vitals.watch_engine(model, partial(state_of, engine))
            self._started.append(engine)
        queue_by_stage = {stage: settings.queue_of(stage) for stage in Stage}
        return {
            stage: by_model[settings.model_of(queue)]
            for stage, queue in queue_by_stage.items()
            if queue in queues
        }


def _windows(settings: Settings) -> Windows:
    files = shared_video_files(settings.video_decoders)
    rule = WindowRule(settings.video_fps, settings.video_window_frames, settings.video_max_windows)
    return Windows(rule, partial(files.measure, budget=budget_of(settings)))


class LoopTimestampStep(bootsteps.StartStopStep):
    """Timestamps the consumer loop, so that probes can see it hang; starts with each connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        vitals.timestamp_loop()
        vitals.is_connected = True
        self._timer = consumer.timer.call_repeatedly(_TIMESTAMP_SECONDS, vitals.timestamp_loop)

    def stop(self, consumer: Any) -> None:
        vitals.is_connected = False
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
        _call_after(seconds, self._shut_down)
        _call_after(seconds + _EXIT_GRACE_SECONDS, _exit_now)
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
            self._consumer.hub.call_later(_DRAIN_POLL_SECONDS, self._shut_down_when_drained)
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


def _call_after(seconds: float, call: Callable[[], None]) -> None:
    timer = Timer(seconds, call)
    timer.daemon = True
    timer.start()
