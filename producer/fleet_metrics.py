"""The fleet in Prometheus' terms, as the database and the broker see it: each of its metrics is named here.

What is told is remembered for a while, so that scrapers, however many, cannot hammer the database.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from threading import Lock
from time import monotonic

from prometheus_client.core import GaugeMetricFamily as Family
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from capflow_tasks.fleet.application import PRIORITY_STEPS
from capflow_tasks.store.figures import RunFigures, RunState, WorkerFigures
from capflow_tasks.store.statistics import Statistics
from producer.broker import Broker, QueueLengths

log = logging.getLogger(__name__)

#: Looking may take this share of the time: a look of 3 s is good for 30 s.
_SHARE = 0.1


class FleetCollector(Collector):
    """Looks at database and broker when it is asked and its last look is too old. Thread-safe."""

    def __init__(
        self,
        statistics: Statistics,
        broker: Broker,
        queues: Iterable[str],
        lease_seconds: float,
        cache_seconds: float,
    ) -> None:
        self._statistics = statistics
        self._broker = broker
        self._queues = tuple(queues)
        self._lease_seconds = lease_seconds
        self._cache_seconds = cache_seconds
        self._lock = Lock()
        self._seen: list[Family] = []
        self._fresh_until = 0.0

    def collect(self) -> list[Family]:
        with self._lock:
            if monotonic() >= self._fresh_until:
                began = monotonic()
                self._seen = [*self._database(), *self._messages()]
                took = monotonic() - began
                self._seen.append(_took(took))
                self._fresh_until = monotonic() + max(self._cache_seconds, took / _SHARE)
            return self._seen

    def _database(self) -> list[Family]:
        try:
            runs = self._statistics.runs()
            workers = self._statistics.workers(self._lease_seconds)
            open_runs = [run for run in runs if run.open_batches]
            failed_runs = [run for run in runs if run.tally.failed]
            return [
                _up("database", True),
                *_workers(workers),
                _runs(runs),
                _run_samples(runs),
                self._backlog(open_runs),
                self._failures(failed_runs),
            ]
        except SQLAlchemyError as error:
            log.warning("the database cannot be asked: %s", error)
            return [_up("database", False)]

    def _backlog(self, runs: Iterable[RunFigures]) -> Family:
        family = Family(
            "capflow_backlog_samples",
            "Samples with the workers or waiting for them, by the stage before them and their batch's state.",
            labels=["run", "stage", "state"],
        )
        for run in runs:
            for figures in self._statistics.stages(run.id):
                for state, count in figures.by_state.items():
                    family.add_metric([run.name, figures.stage, state], count)
        return family

    def _failures(self, runs: Iterable[RunFigures]) -> Family:
        family = Family(
            "capflow_run_failed_samples", "Samples that have failed, by kind.", labels=["run", "kind"]
        )
        for run in runs:
            for kind in self._statistics.failures(run.id):
                family.add_metric([run.name, kind.kind], kind.count)
        return family

    def _messages(self) -> Iterator[Family]:
        lengths = self._broker.lengths()
        yield _up("broker", lengths is not None)
        if lengths is not None:
            yield _queues(self._queues, lengths)
            yield Family(
                "capflow_unacked_messages",
                "Messages that workers have taken and not acknowledged.",
                lengths.unacked,
            )


def _up(service: str, is_up: bool) -> Family:
    return Family(f"capflow_{service}_up", f"1 when the {service} answered.", float(is_up))


def _took(seconds: float) -> Family:
    return Family("capflow_fleet_look_duration_seconds", "What the last look at the fleet took.", seconds)


def _workers(workers: Iterable[WorkerFigures]) -> Iterator[Family]:
    alive = Family(
        "capflow_workers", "Workers that have not been struck off, by whether they beat.", labels=["state"]
    )
    counts = Counter(worker.is_alive for worker in workers)
    alive.add_metric(["alive"], counts[True])
    alive.add_metric(["silent"], counts[False])
    yield alive
    held = sum(worker.running_batches for worker in workers if not worker.is_alive)
    yield Family("capflow_stale_batches", "Batches that are held by silent workers.", held)


def _runs(runs: Iterable[RunFigures]) -> Family:
    family = Family("capflow_runs", "Runs by where they stand.", labels=["state"])
    counts = Counter(run.state for run in runs)
    for state in RunState:
        family.add_metric([state], counts[state])
    return family


def _run_samples(runs: Iterable[RunFigures]) -> Family:
    family = Family(
        "capflow_run_samples",
        "Samples of a run's plan by state; unsent ones are still in their annotation files.",
        labels=["run", "state"],
    )
    for run in runs:
        for state, count in _states(run).items():
            family.add_metric([run.name, state], count)
    return family


def _states(run: RunFigures) -> Mapping[str, int]:
    return {
        "unsent": run.samples - run.expanded,
        "in_flight": run.expanded - run.tally.total,
        "done": run.tally.done,
        "failed": run.tally.failed,
        "held": run.tally.held,
    }


def _queues(queues: Iterable[str], lengths: QueueLengths) -> Family:
    family = Family(
        "capflow_queue_messages",
        "Messages that wait, by queue and priority (0 goes first); `NODE.dq2` is a worker's own.",
        labels=["queue", "priority"],
    )
    # Redis has no empty lists; a queue that is empty is to be seen as such.
    empty = dict.fromkeys(((queue, step) for queue in queues for step in PRIORITY_STEPS), 0)
    for (queue, priority), count in (empty | lengths.by_queue).items():
        family.add_metric([queue, str(priority)], count)
    return family
