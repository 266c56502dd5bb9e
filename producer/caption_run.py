"""Captions a plan: checks it, turns its entries into samples, runs these, and exports the caption files."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from time import monotonic

from capflow_tasks.domains.catalogue import Catalogue, load_catalogue
from capflow_tasks.entries import media_of, task_of
from capflow_tasks.errors import BadEntry
from capflow_tasks.records import Failure, JsonObject, Modality, PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store.states import NewSample
from capflow_tasks.store.statistics import Statistics
from producer.reading.annotations import Entry, read_entries
from producer.reading.plan import Plan, read_plan
from producer.run import OpenRun, Order
from producer.services import reach_fleet, through_outages
from producer.summary import SHOWN_FAILURES, Summary
from producer.writing.captions import export

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retry:
    """The failed samples to try again; no kind or no domain means all."""

    kinds: tuple[str, ...] = ()
    #: Names or aliases of domains.
    domains: tuple[str, ...] = ()


class CaptionRun:
    """The captioning of one plan. Raises PlanError or WorkflowError before anything starts."""

    def __init__(self, order: Order, settings: Settings) -> None:
        self._order = order
        self._settings = settings
        self._catalogue = load_catalogue(settings.domains)
        self.plan = checked_plan(order.source, self._catalogue)

    def run(self, stopping: Event, retry: Retry | None = None) -> Summary:
        """Caption what is not captioned yet, then export; export nothing when stopped before that.

        Raises ServiceError when database, broker or model is not available at the start; later it waits.
        """
        started = monotonic()
        domains = [self._catalogue.resolve(domain).name for domain in retry.domains] if retry else []
        with reach_fleet(self._settings) as fleet:
            run = OpenRun(fleet, self._order, self.plan.shards)
            if retry is not None:
                run.retry_failed(retry.kinds, domains)
            is_complete = run.finish(partial(read_samples, self._catalogue), stopping)
            seconds = monotonic() - started
            return through_outages(partial(self._export, run, is_complete, seconds), stopping)

    def _export(self, run: OpenRun, is_complete: bool, seconds: float) -> Summary:
        statistics = Statistics(run.views.engine)
        return Summary(
            run=self._order.run_name,
            is_complete=is_complete,
            domains=statistics.domains(run.id, with_stages=True),
            confidences=statistics.confidences(run.id),
            failures=run.views.failures(run.id, SHOWN_FAILURES),
            problems=run.problems,
            files=export(run.views.finished_samples, run.shards, self._order.output) if is_complete else [],
            seconds=seconds,
            pause=run.pause,
        )


def checked_plan(path: Path, catalogue: Catalogue) -> Plan:
    """Read the plan and log its warnings. Raises PlanError."""
    plan = read_plan(path, catalogue.resolve)
    for warning in plan.warnings:
        log.warning("%s", warning)
    return plan


def read_samples(catalogue: Catalogue, shard: PlanShard, start_idx: int) -> Iterator[NewSample]:
    """Read the shard's samples from an index on. Raises PlanError where the annotation file breaks off."""
    for entry in read_entries(Path(shard.annotation), start_idx, shard.end_idx):
        yield _sample(catalogue, shard, entry)


def _sample(catalogue: Catalogue, shard: PlanShard, entry: Entry) -> NewSample:
    """The entry as a sample; one that cannot be used has failed already."""
    try:
        if entry.value is None:
            raise BadEntry(entry.problem)
        return NewSample(entry.index, entry.value, _domain(catalogue, shard, entry.value))
    except BadEntry as error:
        failure = Failure(Stage.ROUTE, BadEntry.kind, str(error), is_retryable=False)
        return NewSample(entry.index, entry.value or {}, None, failure)


def _domain(catalogue: Catalogue, shard: PlanShard, entry: JsonObject) -> str | None:
    """The entry's own task, else the shard's, else the one for videos; None means that the router decides."""
    kinds = {kind for kind, _ in media_of(entry, shard.modality)}
    given = task_of(entry, lambda task: catalogue.resolve(task).name) or shard.task
    if given is None and Modality.VIDEO in kinds:
        return catalogue.for_video().name
    return given
