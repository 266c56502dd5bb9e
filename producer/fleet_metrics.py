"""The fleet's metrics for Prometheus, from the database and the broker.

They are cached for a while, so that any number of scrapers cannot overload the database.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import Any

from prometheus_client.core import GaugeMetricFamily as Family
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from capflow_tasks.fleet.application import PRIORITY_STEPS
from capflow_tasks.store.figures import RunFigures, RunState
from capflow_tasks.store.statistics import Statistics
from producer.services import Broker

log = logging.getLogger(__name__)

#: The share of time that reading may take: what took 3 s to read is cached for 30 s.
_SHARE = 0.1


@dataclass(eq=False)
class FleetCollector(Collector):
    """Reads database and broker when a scrape finds the cache too old. Thread-safe."""

    statistics: Statistics
    broker: Broker
    queues: Iterable[str]
    lease_seconds: float
    cache_seconds: float
    _lock: Lock = field(default_factory=Lock, init=False)
    _families: list[Family] = field(default_factory=list, init=False)
    _fresh_until: float = field(default=0.0, init=False)

    def collect(self) -> list[Family]:
        with self._lock:
            if (began := monotonic()) >= self._fresh_until:
                self._families = [*self._database(), *self._messages()]
                took = monotonic() - began
                self._families.append(
                    Family("capflow_fleet_look_duration_seconds", "How long the last reading took.", took)
                )
                self._fresh_until = monotonic() + max(self.cache_seconds, took / _SHARE)
            return self._families

    def _database(self) -> list[Family]:
        try:
            runs = self.statistics.runs()
            workers = self.statistics.workers(self.lease_seconds)
            backlog = {
                (run.name, figures.stage, state): count
                for run in runs
                if run.open_batches and not run.is_stopped
                for figures in self.statistics.stages(run.id)
                for state, count in figures.by_state.items()
            }
            failures = {
                (run.name, kind.kind): kind.count
                for run in runs
                if run.tally.failed
                for kind in self.statistics.failures(run.id)
            }
        except SQLAlchemyError as error:
            log.warning("cannot read the fleet's metrics from the database: %s", error)
            return [_up("database", False)]
        by_state = Counter(run.state for run in runs)
        alive = sum(worker.is_alive for worker in workers)
        paused = sum(worker.is_alive and bool(worker.fault) for worker in workers)
        stale = sum(worker.running_batches for worker in workers if not worker.is_alive)
        return [
            _up("database", True),
            _labelled(
                "capflow_workers",
                "Workers in the database, by whether their heartbeat is recent.",
                ["state"],
                {("alive",): alive, ("silent",): len(workers) - alive},
            ),
            Family("capflow_paused_workers", "Workers that take no work, as their node is at fault.", paused),
            Family("capflow_stale_batches", "Batches that silent workers hold.", stale),
            _labelled(
                "capflow_runs", "Runs by state.", ["state"], {(state,): by_state[state] for state in RunState}
            ),
            _labelled(
                "capflow_run_samples",
                "Samples of a run's plan by state; unsent ones are still in their annotation files.",
                ["run", "state"],
                {(run.name, state): count for run in runs for state, count in _states(run).items()},
            ),
            _labelled(
                "capflow_backlog_samples",
                "Samples in unfinished batches, by their next stage and their batch's state.",
                ["run", "stage", "state"],
                backlog,
            ),
            _labelled("capflow_run_failed_samples", "Failed samples by kind.", ["run", "kind"], failures),
        ]

    def _messages(self) -> Iterator[Family]:
        lengths = self.broker.lengths()
        yield _up("broker", lengths is not None)
        if lengths is None:
            return
        # Redis has no empty lists, and an empty queue must be visible.
        counts = {(queue, str(step)): 0 for queue in self.queues for step in PRIORITY_STEPS}
        counts |= {(queue, str(step)): count for (queue, step), count in lengths.by_queue.items()}
        yield _labelled(
            "capflow_queue_messages",
            "Waiting messages, by queue and priority (0 goes first); `NODE.dq2` is a worker's own queue.",
            ["queue", "priority"],
            counts,
        )
        description = "Messages that workers have received and not acknowledged."
        yield Family("capflow_unacked_messages", description, lengths.unacked)


def _labelled(name: str, description: str, labels: Sequence[str], counts: Mapping[Any, int]) -> Family:
    """One metric, with a value for each tuple of labels."""
    family = Family(name, description, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _up(service: str, is_up: bool) -> Family:
    return Family(f"capflow_{service}_up", f"1 when the {service} answered.", float(is_up))


def _states(run: RunFigures) -> Mapping[str, int]:
    return {
        "unsent": run.samples - run.expanded,
        "in_flight": run.expanded - run.tally.total,
        "done": run.tally.done,
        "failed": run.tally.failed,
        "held": run.tally.held,
    }
