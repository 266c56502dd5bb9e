"""Finds what was lost and makes it ready to be sent again. One lease, in PostgreSQL, decides.

Lost is: a batch whose lease ran out, since its worker died or its message waited for too long; and a
batch that should have a message in the broker and has none, twice in a row.
"""

from __future__ import annotations

import logging
from time import monotonic

from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.workers import WorkerStore
from producer.broker import Broker

log = logging.getLogger(__name__)

#: Between two looks, seconds. A message that is being delivered may be missed by one look, not by two.
LOOK_SECONDS = 2.0


class Reconciler:
    """Looks after one run, or after all of them; any number of reconcilers may look at once."""

    def __init__(
        self,
        runs: RunStore,
        workers: WorkerStore,
        broker: Broker,
        lease_seconds: float,
        run_id: int | None = None,
    ) -> None:
        self._runs = runs
        self._workers = workers
        self._broker = broker
        self._silent_seconds = 2 * lease_seconds
        self._run_id = run_id
        self._missing: set[int] = set()
        self._looked_at = -LOOK_SECONDS

    def look(self) -> int:
        """How many batches were found lost and are ready again; does nothing right after the last look."""
        if monotonic() - self._looked_at < LOOK_SECONDS:
            return 0
        self._looked_at = monotonic()
        self._broker.drop_queues_of(self._workers.bury(self._silent_seconds))
        lost = self._runs.requeue_stale(self._run_id) + self._requeue_missing()
        if lost:
            log.warning("%s batches were lost and are sent again", lost)
        return lost

    def _requeue_missing(self) -> int:
        queued = self._runs.queued(self._run_id)
        held = self._broker.batch_ids() if queued else set()
        if held is None:
            # The broker is away: what it holds is not known.
            return 0
        missing = queued - held
        gone, self._missing = missing & self._missing, missing - self._missing
        return self._runs.requeue_lost(gone) if gone else 0
