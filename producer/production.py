"""A run of a plan from beginning to end: check, reach services, dispatch, export."""

from __future__ import annotations

import hashlib
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
from capflow_tasks.domains import Catalogue, load_catalogue
from capflow_tasks.errors import ServiceError, SettingsError, UserError
from capflow_tasks.records import Modality, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.rows import ShardRow, Tally
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.views import Views
from capflow_tasks.store.workers import WorkerStore
from producer.broker import Broker, publish_ready
from producer.dispatch import Dispatcher, Pace
from producer.expansion import Expansion
from producer.fleet import embedded_worker, services
from producer.progress import progress
from producer.reading.plan import Plan, read_plan
from producer.reconcile import LOOK_SECONDS, Reconciler
from producer.summary import SHOWN_FAILURES, Summary
from producer.writing.export import export

log = logging.getLogger(__name__)

T = TypeVar("T")

_OUTAGE_WAIT_SECONDS = 2.0


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
        digest = hashlib.sha256(str(self.plan.resolve()).encode()).hexdigest()
        return self.run or f"{self.plan.stem}-{digest[:8]}"


@dataclass(frozen=True, slots=True)
class Retry:
    """Which failed samples are tried again; nothing named means all."""

    kinds: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


class Production:
    """One order, checked and ready to run. Raises PlanError or WorkflowError before anything starts."""

    def __init__(self, order: Order, settings: Settings) -> None:
        self._order = order
        self._settings = settings
        self._catalogue = load_catalogue(settings.domains)
        self.plan = _checked_plan(order.plan, self._catalogue)

    def run(self, stopping: Event, retry: Retry | None = None) -> Summary:
        """Caption what is not captioned yet, then export; nothing is exported when told to stop before.

        Raises ServiceError when database, broker or model cannot be had at the start; later it waits.
        """
        started = monotonic()
        with services(self._settings) as reached:
            engine = connect(reached.database_url)
            upgrade(engine)
            broker = Broker(make_app(self._settings, reached.broker_url))
            broker.check()
            self._continue(engine)
            if retry is not None:
                self._reopen(engine, retry)
            with (
                embedded_worker(self._settings, reached, self._pinned_ranks()) as worker,
                progress(self.plan.sample_count) as bar,
            ):

                def look(tally: Tally, running: int) -> None:
                    if worker is not None and tally.total < self.plan.sample_count:
                        worker.check()
                    bar.show(tally, running)

                dispatch = partial(self._dispatch, engine, broker, look, stopping)
                is_complete, problems = through_outages(dispatch, stopping)
            summarize = partial(self._summarize, engine, is_complete, problems, started)
            return through_outages(summarize, stopping)

    def _open(self, engine: Engine) -> tuple[int, list[ShardRow]]:
        order, runs = self._order, RunStore(engine)
        run_id = runs.open_run(
            order.run_name,
            str(order.plan.resolve()),
            str(order.output),
            order.stages,
            order.min_confidence,
            pin_ranks=order.pin_ranks,
        )
        return run_id, runs.add_shards(run_id, self.plan.shards)

    def _pinned_ranks(self) -> set[int]:
        return {shard.assign_rank for shard in self.plan.shards} if self._order.pin_ranks else set()

    def _continue(self, engine: Engine) -> None:
        """Open what an earlier run with fewer stages or a higher bar left. Raises UserError."""
        run_id, _ = self._open(engine)
        under_way = Views(engine).stages_under_way(run_id) - set(self._order.stages)
        if under_way:
            raise UserError(
                f"run {self._order.run_name} has batches that wait for {', '.join(sorted(under_way))}: "
                "finish it with its earlier --stages first, or give this one a --run of its own"
            )
        RunStore(engine).continue_run(run_id, self._order.stages, self._order.min_confidence)

    def _reopen(self, engine: Engine, retry: Retry) -> None:
        run_id, _ = self._open(engine)
        domains = [self._catalogue.resolve(domain).name for domain in retry.domains]
        count = RunStore(engine).retry_failed(run_id, retry.kinds, domains)
        log.warning("%s failed samples are tried again", count)

    def _dispatch(
        self, engine: Engine, broker: Broker, look: Callable[[Tally, int], None], stopping: Event
    ) -> tuple[bool, list[str]]:
        """Whether all samples came to their end, and which annotation files broke off."""
        run_id, shards = self._open(engine)
        runs, views = RunStore(engine), Views(engine)
        expansion = Expansion(self._catalogue, self._order.batch_size, self._order.stages)
        reconciler = Reconciler(runs, WorkerStore(engine), broker, self._settings.lease_seconds, run_id)
        pace = Pace(self._order.window, self._settings.queue_seconds)
        dispatcher = Dispatcher(run_id, shards, expansion, runs, views, broker, reconciler, pace)
        return dispatcher.run(look, stopping), dispatcher.problems

    def _summarize(self, engine: Engine, is_complete: bool, problems: list[str], started: float) -> Summary:
        run_id, shards = self._open(engine)
        views = Views(engine)
        return Summary(
            run=self._order.run_name,
            is_complete=is_complete,
            domains=views.domain_counts(run_id),
            confidences=views.confidence_histogram(run_id),
            failures=views.failures(run_id, SHOWN_FAILURES),
            problems=problems,
            files=export(views, shards, self._order.output) if is_complete else [],
            seconds=monotonic() - started,
        )


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


def through_outages(call: Callable[[], T], stopping: Event) -> T:
    """Call again for as long as the database or the broker is away; what is called may be killed anywhere."""
    while True:
        try:
            return call()
        except (DatabaseAway, BrokerAway) as error:
            log.warning("waiting for the database and the broker: %s", str(error).partition("\n")[0])
            if stopping.wait(_OUTAGE_WAIT_SECONDS):
                raise ServiceError("stopped while the database or the broker was away") from error


def _checked_plan(path: Path, catalogue: Catalogue) -> Plan:
    video_tasks = {domain.name for domain in catalogue.domains if domain.modality is Modality.VIDEO}
    plan = read_plan(path, lambda task: catalogue.resolve(task).name, video_tasks)
    for warning in plan.warnings:
        log.warning("%s", warning)
    return plan
