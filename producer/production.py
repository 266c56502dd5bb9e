"""A run of a plan from beginning to end: check, reach services, dispatch, export."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic

from capflow_tasks.application import make_app
from capflow_tasks.domains import Catalogue, load_catalogue
from capflow_tasks.embedded import Services
from capflow_tasks.records import Modality, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.database import connect, upgrade
from capflow_tasks.store.rows import ShardRow, Tally
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.views import Views
from producer.broker import Broker
from producer.dispatch import Dispatcher, Pace
from producer.expansion import Expansion
from producer.export import export
from producer.fleet import embedded_worker, services
from producer.plan import Plan, read_plan
from producer.progress import progress
from producer.summary import SHOWN_FAILURES, Summary

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

    @property
    def run_name(self) -> str:
        """The same plan file is the same run, wherever the command is typed."""
        digest = hashlib.sha256(str(self.plan.resolve()).encode()).hexdigest()
        return self.run or f"{self.plan.stem}-{digest[:8]}"


class Production:
    """One order, checked and ready to run. Raises PlanError or WorkflowError before anything starts."""

    def __init__(self, order: Order, settings: Settings) -> None:
        self._order = order
        self._settings = settings
        self._catalogue = load_catalogue(settings.domains)
        self.plan = _checked_plan(order.plan, self._catalogue)

    def run(self, stopping: Event) -> Summary:
        """Caption what is not captioned yet, then export; what is missing when told to stop is not exported.

        Raises ServiceError when database, broker or model cannot be had.
        """
        started = monotonic()
        with services(self._settings) as reached:
            engine = connect(reached.database_url)
            upgrade(engine)
            runs, views = RunStore(engine), Views(engine)
            run_id, shards = self._open(runs)
            broker = Broker(make_app(self._settings, reached.broker_url))
            broker.check()
            pace = Pace(self._order.window, self._settings.queue_seconds)
            expansion = Expansion(self._catalogue, self._order.batch_size, tuple(Stage))
            dispatcher = Dispatcher(run_id, shards, expansion, runs, views, broker, pace)
            is_complete = self._dispatch(dispatcher, reached, stopping)
            return Summary(
                run=self._order.run_name,
                is_complete=is_complete,
                domains=views.domain_counts(run_id),
                failures=views.failures(run_id, SHOWN_FAILURES),
                problems=dispatcher.problems,
                files=export(views, shards, self._order.output) if is_complete else [],
                seconds=monotonic() - started,
            )

    def _open(self, runs: RunStore) -> tuple[int, list[ShardRow]]:
        order = self._order
        run_id = runs.open_run(order.run_name, str(order.plan.resolve()), str(order.output), tuple(Stage))
        return run_id, runs.add_shards(run_id, self.plan.shards)

    def _dispatch(self, dispatcher: Dispatcher, reached: Services, stopping: Event) -> bool:
        """Run the dispatcher beside the worker it needs; no worker is started when nothing is left to do."""
        if dispatcher.is_over():
            return True
        with embedded_worker(self._settings, reached) as worker, progress(self.plan.sample_count) as bar:

            def look(tally: Tally, running: int) -> None:
                if worker is not None:
                    worker.check()
                bar.show(tally, running)

            return dispatcher.run(look, stopping)


def _checked_plan(path: Path, catalogue: Catalogue) -> Plan:
    video_tasks = {domain.name for domain in catalogue.domains if domain.modality is Modality.VIDEO}
    plan = read_plan(path, lambda task: catalogue.resolve(task).name, video_tasks)
    for warning in plan.warnings:
        log.warning("%s", warning)
    return plan
