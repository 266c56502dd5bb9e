"""A job from beginning to end: reach services, dispatch shards, conclude. Knows nothing of plans."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TypeVar

from kombu.exceptions import OperationalError as BrokerAway
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError as DatabaseAway

from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.errors import ServiceError, SettingsError, UserError
from capflow_tasks.fleet.application import make_app
from capflow_tasks.records import Modality, PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.claims import WorkerStore
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.figures import Activity
from capflow_tasks.store.rows import ShardRow, Tally
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.statistics import Statistics
from capflow_tasks.store.views import Views
from producer.broker import Broker, publish_ready
from producer.dispatch import Dispatcher, Expand, Expansion, Pace
from producer.progress import progress
from producer.reading.plan import Plan, read_plan
from producer.reconcile import LOOK_SECONDS, Reconciler
from producer.services import embedded_worker, services
from producer.summary import SHOWN_FAILURES, Summary
from producer.writing.captions import export

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
    shards: tuple[PlanShard, ...]
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

    def _ask(self, engine: Engine, run_id: int) -> Callable[[], Activity]:
        return partial(Statistics(engine).activity, run_id, self._settings.lease_seconds)

    def _continue(self, engine: Engine) -> int:
        """Open what an earlier run with fewer stages or a higher bar left; the run's id. Raises UserError."""
        run_id, shards = self._open(engine)
        if self._job.forgets_other_shards:
            RunStore(engine).forget_other_shards(run_id, [row.id for row in shards])
        under_way = Views(engine).open_stages(run_id) - set(self._job.stages)
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


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for on the command line."""

    plan: Path
    #: Folder of the caption files.
    output: Path
    #: Name of the run; None for one that follows from the plan's path.
    run: str | None
    #: Samples per batch.
    batch_size: int
    #: Batches in flight.
    window: int
    #: Stages to run, in order.
    stages: tuple[Stage, ...] = tuple(Stage)
    #: Samples routed with less are held back.
    min_confidence: float = 0.0
    #: Only the workers of a shard's rank may take it.
    pin_ranks: bool = False

    @property
    def run_name(self) -> str:
        """The same plan file is the same run, wherever the command is typed."""
        return self.run or name_of_run(self.plan)


class Production:
    """One order, checked and ready to run. Raises PlanError or WorkflowError before anything starts."""

    def __init__(self, order: Order, settings: Settings) -> None:
        self._order = order
        self._settings = settings
        self._catalogue = load_catalogue(settings.domains)
        self.plan = checked_plan(order.plan, self._catalogue)

    def run(self, stopping: Event, retry: Retry | None = None) -> Summary:
        """Caption what is not captioned yet, then export; nothing is exported when told to stop before.

        Raises ServiceError when database, broker or model cannot be had at the start; later it waits.
        """
        if retry is not None:
            domains = tuple(self._catalogue.resolve(domain).name for domain in retry.domains)
            retry = replace(retry, domains=domains)
        return JobRunner(self._job(), self._settings).run(stopping, self._summarize, retry)

    def _job(self) -> Job:
        order = self._order
        return Job(
            run=order.run_name,
            source=order.plan.resolve(),
            output=order.output,
            shards=self.plan.shards,
            sample_count=self.plan.sample_count,
            expand=Expansion(self._catalogue, order.batch_size, order.stages).batches,
            stages=order.stages,
            window=order.window,
            min_confidence=order.min_confidence,
            pin_ranks=order.pin_ranks,
        )

    def _summarize(self, ending: Ending) -> Summary:
        views, run_id = ending.views, ending.run_id
        statistics = Statistics(views.engine)
        return Summary(
            run=self._order.run_name,
            is_complete=ending.is_complete,
            domains=statistics.domains(run_id, with_stages=True),
            confidences=statistics.confidences(run_id),
            failures=views.failures(run_id, SHOWN_FAILURES),
            problems=ending.problems,
            files=export(views, ending.shards, self._order.output) if ending.is_complete else [],
            seconds=ending.seconds,
        )


def name_of_run(source: Path) -> str:
    """A run's name when it is given none: the same for the same path, and for no other."""
    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()
    return f"{source.stem}-{digest[:8]}"


def reconcile_until_stopped(settings: Settings, stopping: Event) -> None:
    """Send again what is lost, of all runs, for a fleet whose producers have gone. Raises ServiceError."""
    if not (settings.database_url and settings.broker_url):
        raise SettingsError("--reconcile needs a fleet: set CAPFLOW_DATABASE_URL and CAPFLOW_BROKER_URL")
    engine = connect(settings.database_url)
    upgrade(engine)
    runs, broker = RunStore(engine), Broker(make_app(settings, settings.broker_url))
    broker.check()
    reconciler = Reconciler(runs, WorkerStore(engine), broker, settings.lease_seconds)

    def look() -> None:
        reconciler.look()
        publish_ready(runs, broker, settings.queue_seconds)

    while not stopping.wait(LOOK_SECONDS):
        through_outages(look, stopping)


def checked_plan(path: Path, catalogue: Catalogue) -> Plan:
    """The plan, its doubtful lines told. Raises PlanError."""
    video_tasks = {domain.name for domain in catalogue.domains if domain.modality is Modality.VIDEO}
    plan = read_plan(path, lambda task: catalogue.resolve(task).name, video_tasks)
    for warning in plan.warnings:
        log.warning("%s", warning)
    return plan
