"""A plan captioned from beginning to end: check it, run it as a job, export."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from capflow_tasks.application import make_app
from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.errors import SettingsError
from capflow_tasks.records import Modality, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.workers import WorkerStore
from producer.broker import Broker, publish_ready
from producer.expansion import Expansion
from producer.job import Ending, Job, JobRunner, Retry, through_outages
from producer.reading.plan import Plan, read_plan
from producer.reconcile import LOOK_SECONDS, Reconciler
from producer.summary import SHOWN_FAILURES, Summary
from producer.writing.export import export

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
        return Summary(
            run=self._order.run_name,
            is_complete=ending.is_complete,
            domains=views.domain_counts(run_id),
            confidences=views.confidence_histogram(run_id),
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
