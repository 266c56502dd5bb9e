"""Looks at a run while it goes on: says which workers take no work, and why."""

import logging

from capflow_tasks.store import statistics
from capflow_tasks.store.figures import WorkerFigures

log = logging.getLogger(__name__)


class Watch:
    """One run's workers, looked at again and again."""

    def __init__(self, figures: statistics.Statistics, lease_seconds: float) -> None:
        self._figures = figures
        self._lease_seconds = lease_seconds
        #: What has been said of each worker that takes no work.
        self._said: dict[str, str] = {}

    def look(self) -> None:
        """Log which workers have begun to take no work, and which take some again."""
        alive = [each for each in self._figures.workers(self._lease_seconds) if each.is_alive]
        paused = {each.owner: each.fault for each in alive if each.fault}
        for worker in alive:
            self._tell(worker, paused.get(worker.owner))
        if paused.keys() - self._said.keys() and len(paused) == len(alive):
            log.warning("no worker takes work; the run goes on by itself when one can")
        self._said = paused

    def _tell(self, worker: WorkerFigures, fault: str | None) -> None:
        before = self._said.get(worker.owner)
        if fault is not None and fault != before:
            log.warning("worker %s takes no work: %s", worker.node, fault)
        elif before is not None and fault is None:
            log.info("worker %s takes work again", worker.node)
