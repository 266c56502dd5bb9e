"""What makes a Celery worker Capflow's: engines loaded before the first task, stopped after the last.

A bootstep starts and stops; what it starts works without Celery.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Collection
from functools import partial
from typing import Any

import psutil
from celery import Celery, bootsteps
from celery.worker import components
from celery.worker import state as worker_state

from capflow_tasks.captioning.heartbeat import Heartbeat
from capflow_tasks.captioning.stages import Patience, StageRunner
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.engine.interface import Engine, EngineState, build_engine, state_of
from capflow_tasks.errors import EXIT_RESTART, WORKER_ERROR_MARK, CapflowError, ServiceError, redacted
from capflow_tasks.fleet.application import shared_queue
from capflow_tasks.fleet.drain import DrainStep, give_back_with
from capflow_tasks.fleet.embedded import database_url
from capflow_tasks.fleet.vitals import vitals
from capflow_tasks.media.budget import budget_of
from capflow_tasks.media.decoders import shared_video_files
from capflow_tasks.media.video import Windows
from capflow_tasks.records import Stage
from capflow_tasks.settings import Settings, read_settings
from capflow_tasks.store.claims import BatchStore, WorkerStore
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.rows import RetryPolicy

log = logging.getLogger(__name__)

_runner: StageRunner | None = None
#: Celery's controller of this worker.
_controller: Any = None


def runner() -> StageRunner:
    """This process's stage runner. Raises ServiceError outside of a started worker."""
    if _runner is None:
        raise ServiceError("stages run in a worker only: celery -A capflow_tasks worker -Q gpu")
    return _runner


def install(app: Celery) -> None:
    app.steps["worker"].add(EngineStep)
    app.steps["consumer"].add(DrainStep)
    app.steps["consumer"].add(PulseStep)
    # The order of bootsteps is random but for what is required: tasks must find the engine up.
    components.Pool.requires = (*components.Pool.requires, EngineStep)  # type: ignore[misc]


class EngineStep(bootsteps.StartStopStep):
    """Loads the engines of the queues this worker consumes, and stops them after the last task."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._engines: list[Engine] = []
        self._heartbeat: Heartbeat | None = None

    def start(self, worker: Any) -> None:
        try:
            self._start(worker)
        except CapflowError as error:
            print(redacted(f"{WORKER_ERROR_MARK}{error}"), file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from error

    def stop(self, worker: Any) -> None:
        for engine in self._engines:
            engine.stop()
        if self._heartbeat:
            self._heartbeat.stop()
            self._heartbeat.resign()

    def _start(self, worker: Any) -> None:
        global _runner, _controller
        settings = read_settings()
        vitals.serve(settings)
        database = _database(settings)
        catalogue = load_catalogue(settings.domains)
        queues = frozenset(
            name for name in worker.app.amqp.queues.consume_from if shared_queue(name) in settings.queues
        )
        engines = self._start_engines(settings, set(map(shared_queue, queues)))
        # A restarted node is another owner: what it held before it died is not its own.
        owner = f"{worker.hostname}/{uuid.uuid4().hex[:8]}"
        self._heartbeat = Heartbeat(WorkerStore(database), owner, settings.lease_seconds)
        self._heartbeat.start()
        vitals.watch_heartbeat(self._heartbeat)
        give_back_with(self._heartbeat.resign)
        _runner = StageRunner(
            BatchStore(database),
            catalogue,
            engines,
            self._heartbeat,
            owner,
            _patience(settings),
            _windows(settings),
        )
        _controller = worker
        worker.app.conf.task_routes[0].become_worker(worker.hostname, queues)

    def _start_engines(self, settings: Settings, queues: Collection[str]) -> dict[Stage, Engine]:
        """The engine of every stage that these queues carry; queues with the same model share one."""
        by_model: dict[str, Engine] = {}
        for model in sorted({settings.model_of(queue) for queue in queues}):
            engine = by_model[model] = build_engine(settings, model)
            vitals.watch_engine(model, lambda: EngineState.LOADING)
            engine.start()
            vitals.watch_engine(model, partial(state_of, engine))
            self._engines.append(engine)
        queue_by_stage = {stage: settings.queue_of(stage) for stage in Stage}
        return {
            stage: by_model[settings.model_of(queue)]
            for stage, queue in queue_by_stage.items()
            if queue in queues
        }


def stop_worker(exit_code: int) -> None:
    """Have this worker finish what it runs, take nothing more, and exit for its supervisor to restart."""
    worker_state.should_stop = exit_code  # type: ignore[assignment]


def follow_capacity() -> None:
    """Take no more batches at a time than those whose prefixes the engines can keep."""
    if _controller is not None:
        # Celery reads it before it takes a message; the pool keeps its size.
        _controller.max_concurrency = runner().most_batches(read_settings().concurrency)


def end_when_too_big() -> None:
    """Ask to be started again when this process holds more memory than it may."""
    limit = read_settings().max_rss_mib
    if limit is not None and (used := psutil.Process().memory_info().rss // 2**20) > limit:
        log.warning("this worker uses %s MiB, more than %s MiB, and ends to be started again", used, limit)
        stop_worker(EXIT_RESTART)


def _database(settings: Settings) -> Any:
    database = connect(database_url(settings), pool_size=settings.concurrency + 2)
    upgrade(database)
    return database


def _windows(settings: Settings) -> Windows:
    return Windows(budget_of(settings), shared_video_files(settings.video_decoders))


def _patience(settings: Settings) -> Patience:
    return Patience(
        lease_seconds=settings.lease_seconds,
        queue_seconds=settings.queue_seconds,
        database_seconds=settings.database_seconds,
        retry=RetryPolicy(settings.max_attempts, settings.retry_seconds),
        max_tries=settings.max_tries,
    )


_TICK_SECONDS = 2.0


class PulseStep(bootsteps.StartStopStep):
    """Starts with each connection to the broker and stops with it."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        vitals.turn()
        vitals.is_connected = True
        self._timer = consumer.timer.call_repeatedly(_TICK_SECONDS, vitals.turn)

    def stop(self, consumer: Any) -> None:
        vitals.is_connected = False
        self._timer.cancel()

    shutdown = stop
