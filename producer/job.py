"""A job from beginning to end: reach services, dispatch shards, conclude. Knows nothing of plans."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TypeVar

from kombu.exceptions import OperationalError as BrokerAway
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError as DatabaseAway

from capflow_tasks.application import make_app
from capflow_tasks.errors import ServiceError, UserError
from capflow_tasks.records import Shard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.rows import ShardRow, Tally
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.store.views import Views
from capflow_tasks.store.workers import WorkerStore
from producer.broker import Broker
from producer.dispatch import Dispatcher, Expand, Pace
from producer.fleet import embedded_worker, services
from producer.progress import UnderWay, progress, under_way
from producer.reconcile import Reconciler

log = logging.getLogger(__name__)

T = TypeVar("T")

_OUTAGE_WAIT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """Shards that are to go through some stages, as one run."""

    #: Name of the run; the same name goes on with it.
    run: str
    #: What it was made from, for people.
    source: Path
    #: Folder of what comes of it.
    output: Path
    shards: tuple[Shard, ...]
    sample_count: int
    #: How a shard becomes batches.
    expand: Expand
    #: Stages to run, in order.
    stages: tuple[Stage, ...]
    #: Batches in flight.
    window: int
    #: Samples routed with less are held back.
    min_confidence: float = 0.0
    #: Only the workers of a shard's rank may take it.
    pin_ranks: bool = False
    #: Whether shards that the run had and the job has not are forgotten.
    forgets_other_shards: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """Which failed samples are tried again, by canonical names; nothing named means all."""

    kinds: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """Where a job stands when nothing more is sent."""

    run_id: int
    #: In the job's order.
    shards: list[ShardRow]
    views: Views
    #: False when it was told to stop before every sample had come to its end.
    is_complete: bool
    #: Files that broke off, one message each.
    problems: list[str]
    seconds: float


class JobRunner:
    """Runs one job with the services that settings name."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job = job
        self._settings = settings

    def run(self, stopping: Event, conclude: Callable[[Ending], T], retry: Retry | None = None) -> T:
        """Send what is not done yet and wait for it; then what `conclude` makes of how it ended.

        Raises ServiceError when database, broker or model cannot be had at the start; later it waits.
        """
        started = monotonic()
        count = self._job.sample_count
        with services(self._settings) as reached:
            engine = connect(reached.database_url)
            upgrade(engine)
            broker = Broker(make_app(self._settings, reached.broker_url))
            broker.check()
            run_id = self._continue(engine)
            if retry is not None:
                self._reopen(engine, run_id, retry)
            with (
                embedded_worker(self._settings, reached, self._pinned_ranks()) as worker,
                progress(count, self._ask(engine, run_id)) as bar,
            ):

                def look(tally: Tally, running: int) -> None:
                    if worker is not None and tally.total < count:
                        worker.check()
                    bar.show(tally, running)

                dispatch = partial(self._dispatch, engine, broker, look, stopping)
                is_complete, problems = through_outages(dispatch, stopping)
            end = partial(self._end, engine, is_complete, problems, started, conclude)
            return through_outages(end, stopping)

    def _open(self, engine: Engine) -> tuple[int, list[ShardRow]]:
        job, runs = self._job, RunStore(engine)
        run_id = runs.open_run(
            job.run,
            str(job.source),
            str(job.output),
            job.stages,
            job.min_confidence,
            pin_ranks=job.pin_ranks,
        )
        return run_id, runs.add_shards(run_id, job.shards)

    def _pinned_ranks(self) -> set[int]:
        return {shard.assign_rank for shard in self._job.shards} if self._job.pin_ranks else set()

    def _ask(self, engine: Engine, run_id: int) -> Callable[[], UnderWay]:
        return partial(under_way, Statistics(engine), run_id, self._settings.lease_seconds)

    def _continue(self, engine: Engine) -> int:
        """Open what an earlier run with fewer stages or a higher bar left; the run's id. Raises UserError."""
        run_id, shards = self._open(engine)
        if self._job.forgets_other_shards:
            RunStore(engine).forget_other_shards(run_id, [row.id for row in shards])
        under_way = Views(engine).stages_under_way(run_id) - set(self._job.stages)
        if under_way:
            raise UserError(
                f"run {self._job.run} has batches that wait for {', '.join(sorted(under_way))}: "
                "finish it with its earlier --stages first, or give this one a --run of its own"
            )
        RunStore(engine).continue_run(run_id, self._job.stages, self._job.min_confidence)
        return run_id

    def _reopen(self, engine: Engine, run_id: int, retry: Retry) -> None:
        if count := RunStore(engine).retry_failed(run_id, retry.kinds, retry.domains):
            log.warning("%s failed samples are tried again", count)

    def _dispatch(
        self, engine: Engine, broker: Broker, look: Callable[[Tally, int], None], stopping: Event
    ) -> tuple[bool, list[str]]:
        """Whether all samples came to their end, and which files broke off."""
        run_id, shards = self._open(engine)
        runs, views = RunStore(engine), Views(engine)
        reconciler = Reconciler(runs, WorkerStore(engine), broker, self._settings.lease_seconds, run_id)
        pace = Pace(self._job.window, self._settings.queue_seconds)
        dispatcher = Dispatcher(run_id, shards, self._job.expand, runs, views, broker, reconciler, pace)
        return dispatcher.run(look, stopping), dispatcher.problems

    def _end(
        self,
        engine: Engine,
        is_complete: bool,
        problems: list[str],
        started: float,
        conclude: Callable[[Ending], T],
    ) -> T:
        run_id, shards = self._open(engine)
        return conclude(Ending(run_id, shards, Views(engine), is_complete, problems, monotonic() - started))


def through_outages(call: Callable[[], T], stopping: Event) -> T:
    """Call again for as long as the database or the broker is away; what is called may be killed anywhere."""
    while True:
        try:
            return call()
        except (DatabaseAway, BrokerAway) as error:
            log.warning("waiting for the database and the broker: %s", str(error).partition("\n")[0])
            if stopping.wait(_OUTAGE_WAIT_SECONDS):
                raise ServiceError("stopped while the database or the broker was away") from error
